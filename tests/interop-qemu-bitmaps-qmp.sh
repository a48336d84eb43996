#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The same bitmap commands and the same writes in qemu-storage-daemon and in
# tidemarkd: the same counts, hashes, states and errors.
. "${srcdir:-.}/control-test.sh"
requires qemu-storage-daemon
for s in ours theirs; do
    truncate -s 8M "$tmp/$s.a" "$tmp/$s.b"
    truncate -s 4M "$tmp/$s.small"
done
timeout 120 python3 - "$tmp" <<'END'
import random
import sys
from qmp_pair import Pair, run_io

tmp = sys.argv[1]
K = 1024
B = "block-dirty-bitmap-"


def setup(server):
    for name in "a", "b", "small":
        server.must("blockdev-add", {
            "driver": "raw", "node-name": name, "file": {
                "driver": "file",
                "filename": "%s/%s.%s" % (tmp, server.name, name)}})
        server.must("block-export-add", {"type": "nbd", "id": name,
                                         "node-name": name,
                                         "writable": True})


def state(server):
    ret = {}
    for node in server.must("query-named-block-nodes"):
        for b in node.get("dirty-bitmaps", []):
            hashed = server.must("x-debug-" + B[:-1] + "-sha256", {
                "node": node["node-name"], "name": b["name"]})
            ret[node["node-name"], b["name"]] = (
                b["count"], b["granularity"], b["recording"], b["busy"],
                b["persistent"], b.get("inconsistent"), hashed)
    return ret


def both(pair, name, /, **arguments):
    replies = []
    for s in pair.servers:
        r = s.command(name, arguments)
        replies.append(r["error"]["desc"] if "error" in r else "ok")
    if replies[0] != replies[1]:
        sys.exit("FAIL: %s %r\nours:   %s\ntheirs: %s" %
                 (name, arguments, replies[0], replies[1]))
    return replies[0]


def compare(pair, what):
    ours, theirs = [state(s) for s in pair.servers]
    for key in sorted(set(ours) | set(theirs)):
        if ours.get(key) != theirs.get(key):
            sys.exit("FAIL: %s: %s\nours:   %s\ntheirs: %s" %
                     (what, key, ours.get(key), theirs.get(key)))
    return ours


def write(pair, node, rng):
    commands = ["write %d %d" % (rng.randrange(0, 4096 * K - 9000),
                                 rng.randrange(1, 9000)) for _ in range(5)]
    for s in pair.servers:
        run_io(s.uri(node), commands)


with Pair(tmp) as pair:
    for s in pair.servers:
        setup(s)
    for node in "a", "b", "small":
        for g in 512, 4 * K, 32 * K, 64 * K, 128 * K:
            both(pair, B + "add", node=node, name="g%d" % g, granularity=g)
        both(pair, B + "add", node=node, name="plain")
        both(pair, B + "add", node=node, name="off", disabled=True)
    compare(pair, "fresh")
    rng = random.Random(6)
    names = ["g512", "g4096", "g32768", "g65536", "g131072", "plain", "off"]
    for i in range(20):
        node = rng.choice(["a", "b", "small"])
        write(pair, node, rng)
        compare(pair, "write %d" % i)
        what = rng.choice(["clear", "enable", "disable", "merge", "merge"])
        if what == "merge":
            both(pair, B + what, node=node, target=rng.choice(names),
                 bitmaps=[rng.choice(names),
                          {"node": rng.choice(["a", "b", "small"]),
                           "name": rng.choice(names)}])
        else:
            both(pair, B + what, node=node, name=rng.choice(names))
        after = compare(pair, "%s %d" % (what, i))
    # Of other sizes, and of oneself.
    text = both(pair, B + "merge", node="a", target="g4096",
                bitmaps=["g512", {"node": "small", "name": "g4096"}])
    if text == "ok":
        sys.exit("FAIL: merged from a smaller disk")
    both(pair, B + "merge", node="a", target="g4096", bitmaps=["g4096"])
    both(pair, B + "merge", node="a", target="g4096",
         bitmaps=[{"node": "b", "name": "g4096"}, "no"])
    if compare(pair, "merges that fail")["a", "g4096"] == (0, 0):
        sys.exit("FAIL")
    # Exported bitmaps are busy.
    for s in pair.servers:
        s.must("block-export-add", {
            "type": "nbd", "id": "x", "name": "x", "node-name": "a",
            "writable": True, "bitmaps": ["plain", {"node": "b",
                                                    "name": "off"}]})
    compare(pair, "busy")
    for what in "clear", "remove", "enable", "disable":
        both(pair, B + what, node="a", name="plain")
        both(pair, B + what, node="b", name="off")
    both(pair, B + "merge", node="a", target="plain", bitmaps=["g512"])
    both(pair, B + "merge", node="a", target="g512", bitmaps=["plain"])
    both(pair, "block-export-add", type="nbd", id="y", name="y",
         **{"node-name": "a"}, bitmaps=["off"])
    both(pair, "block-export-add", type="nbd", id="z", name="z",
         **{"node-name": "a"}, bitmaps=["off"])
    compare(pair, "at the end")
END
