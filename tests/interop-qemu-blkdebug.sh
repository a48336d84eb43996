#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The same blkdebug rules in qemu-storage-daemon and in tidemarkd: the same
# requests of a guest fail, with the same errors.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-storage-daemon
cat >"$tmp/cases.py" <<'END'
import json
import subprocess
import sys
from qmp_pair import Pair, run_io

tmp = sys.argv[1]


def rule(event, **more):
    return dict({"event": event}, **{k.replace("_", "-"): v
                                     for k, v in more.items()})


def state(event, old, new):
    return {"event": event, "state": old, "new_state": new}


W = "write 0 64k"
R = "read 0 64k"
CASES = [
    # driver above, inject-error, set-state, commands
    ("raw", [rule("read_aio", errno=5, once=True)], [], [W, R, R]),
    ("raw", [rule("read_aio", errno=5)], [], [W, R, R, W]),
    ("raw", [rule("write_aio", errno=28, once=True)], [], [W, W, R]),
    ("raw", [rule("read_aio", errno=5, sector=8)], [],
     ["read 8k 4k", "read 0 4k", "read 4k 4k"]),
    ("raw", [rule("pwritev", errno=28, iotype="write", once=True)], [],
     ["read 0 4k", "write 0 4k", "write 0 4k"]),
    ("raw", [rule("none", errno=5, iotype="flush")], [],
     ["read 0 4k", "write 0 4k", "flush"]),
    ("raw", [rule("read_aio", errno=5, state=2, once=True)],
     [state("flush_to_disk", 1, 2)],
     [R, W, "flush", R, R]),
    ("raw", [rule("read_aio", errno=5, state=3, once=True)],
     [state("flush_to_disk", 1, 2), state("write_aio", 2, 3)],
     [R, "write 0 4k", R, "flush", R, "write 0 4k", R, R]),
    ("raw", [rule("flush_to_disk", errno=5, iotype="flush", once=True)], [],
     ["write 0 4k", "flush", "flush"]),
    ("qcow2", [rule("read_aio", errno=5, state=2, once=True)],
     [state("flush_to_disk", 1, 2)],
     [W, R, "flush", R, R]),
    ("qcow2", [rule("write_aio", errno=28, once=True)], [], [W, W, R]),
    ("qcow2", [rule("cluster_alloc", errno=28, once=True)], [], [R, W, W]),
    ("qcow2", [rule("none", errno=1, iotype="block-status")], [], [W, R]),
]


def run_case(server, n, case):
    driver, inject, states, commands = case
    image = "%s/%s-%d" % (tmp, server.name, n)
    subprocess.run(["qemu-img", "create", "-q", "-f", driver, image, "4M"],
                   check=True)
    # (QEMU does not take an empty array.)
    debug = {"driver": "blkdebug", "inject-error": inject,
             "image": {"driver": "file", "filename": image}}
    if states:
        debug["set-state"] = states
    server.must("blockdev-add", {"driver": driver, "node-name": "d",
                                 "file": debug})
    server.must("block-export-add", {"type": "nbd", "id": "e", "name": "d",
                                     "node-name": "d", "writable": True})
    results = run_io(server.uri("d"), commands)
    server.must("block-export-del", {"id": "e", "mode": "hard"})
    server.wait_event("BLOCK_EXPORT_DELETED")
    server.must("blockdev-del", {"node-name": "d"})
    return results


with Pair(tmp) as pair:
    for n, case in enumerate(CASES):
        ours, theirs = [run_case(s, n, case) for s in pair.servers]
        if ours != theirs:
            sys.exit("FAIL: %s\nours:   %s\ntheirs: %s" %
                     (json.dumps(case), ours, theirs))
        if n == 0 and ours != ["ok", "EIO", "ok"]:
            sys.exit("FAIL: the first case: %s" % ours)
END
timeout 120 python3 "$tmp/cases.py" "$tmp"
