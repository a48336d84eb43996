# SPDX-License-Identifier: BSD-3-Clause
"""The table of interop-qemu-qmp-errors.sh: see there."""
import json
import sys

from qmp_pair import Pair

tmp = sys.argv[1]
LONG = "x" * 40


def file(name):
    return {"driver": "file", "filename": "DIR/" + name}


def cached(sizes):
    return dict(sizes, driver="qcow2", file=file("c.qcow2"),
                **{"node-name": "x"})


def bitmap_commands():
    prefix = "block-dirty-bitmap-"
    for a in ({}, {"node": "q0"}, {"node": "q0", "name": ""},
              {"node": "q0", "name": "y" * 1024},
              {"node": "q0", "name": "b", "granularity": 64000},
              {"node": "q0", "name": "b", "granularity": 256},
              {"node": "q0", "name": "b", "granularity": 0},
              {"node": "q0", "name": "b", "granularity": -1},
              {"node": "q0", "name": "b", "granularity": 1 << 32},
              {"node": "q0", "name": "b", "granularity": "x"},
              {"node": "q0", "name": "b", "granularity": 1.5},
              {"node": "no", "name": "b"}, {"node": "q0", "name": "b0"},
              {"node": "q0", "name": "b", "disabled": 1},
              {"node": "q0", "name": "b", "no": 1}):
        yield prefix + "add", a
    for c in ("remove", "clear", "enable", "disable"):
        for a in ({}, {"node": "q0"}, {"node": "no", "name": "b"},
                  {"node": "q0", "name": "no"}, {"node": 1, "name": "b0"},
                  {"node": "q0", "name": "b0", "no": None}):
            yield prefix + c, a
    for a in ({}, {"node": "q0", "target": "b0"},
              {"node": "q0", "bitmaps": ["b0"]},
              {"node": "no", "target": "b0", "bitmaps": ["b0"]},
              {"node": "q0", "target": "no", "bitmaps": ["b0"]},
              {"node": "q0", "target": "b0", "bitmaps": ["no"]},
              {"node": "q0", "target": "b0", "bitmaps": {}},
              {"node": "q0", "target": "b0", "bitmaps": [{"node": "q0"}]},
              {"node": "q0", "target": "b0",
               "bitmaps": [{"node": "no", "name": "x"}]},
              {"node": "q0", "target": "b0",
               "bitmaps": [{"node": "n0", "name": "no"}]},
              {"node": "q0", "target": "b0",
               "bitmaps": [{"node": "n0", "name": "c0", "no": 1}]}):
        yield prefix + "merge", a
    for a in ({}, {"node": "q0"}, {"node": "no", "name": "x"},
              {"node": "q0", "name": "no"}, {"node": "q0", "name": 1}):
        yield "x-debug-block-dirty-bitmap-sha256", a


def blockdev_commands():
    f = dict(file("b.raw"), **{"node-name": "x"})
    for a in ({}, {"driver": 1}, {"driver": "no"}, {"driver": "file"},
              file("a.raw"), {"driver": "file", "node-name": "x"},
              {"driver": "file", "node-name": "x", "filename": 1},
              dict(f, **{"node-name": "9x"}), dict(f, **{"node-name": ""}),
              dict(f, **{"node-name": LONG}),
              dict(f, **{"node-name": "q0"}), dict(f, **{"node-name": "q0f"}),
              dict(f, filename="DIR/none"), dict(f, filename="DIR"),
              dict(f, no=1), dict(f, locking="x"), dict(f, aio="x"),
              dict(f, discard="x"), dict(f, cache={"direct": 1}),
              dict(f, cache={"no": True}), dict(f, cache=1),
              dict(f, **{"read-only": "yes"}),
              dict(f, **{"detect-zeroes": "x"}),
              dict(f, **{"detect-zeroes": "unmap"}),
              dict(f, **{"force-share": True}),
              dict(f, driver="host_device"),
              {"driver": "raw", "node-name": "x"},
              {"driver": "raw", "node-name": "x", "file": 1},
              {"driver": "raw", "node-name": "x", "file": "no"},
              {"driver": "raw", "node-name": "x", "file": {}},
              {"driver": "raw", "node-name": "x",
               "file": {"driver": "file"}},
              {"driver": "raw", "node-name": "x", "file": file("b.raw"),
               "offset": 2 << 20},
              {"driver": "raw", "node-name": "x", "file": file("b.raw"),
               "offset": 512, "size": 1 << 20},
              {"driver": "raw", "node-name": "x", "file": file("b.raw"),
               "size": 100},
              {"driver": "raw", "node-name": "x", "file": file("b.raw"),
               "size": -1},
              {"driver": "raw", "node-name": "x", "file": file("b.raw"),
               "size": "1M"},
              {"driver": "qcow2", "node-name": "x"},
              {"driver": "qcow2", "node-name": "x", "file": file("none")},
              {"driver": "qcow2", "node-name": "x",
               "file": dict(file("b.raw"), no=1)},
              {"driver": "qcow2", "node-name": "x", "file": file("b.raw"),
               "backing": 1},
              {"driver": "qcow2", "node-name": "x", "file": file("b.raw"),
               "lazy-refcounts": 1},
              cached({"cache-size": "1M"}), cached({"l2-cache-size": -1}),
              cached({"cache-size": 1, "l2-cache-size": 1,
                      "refcount-cache-size": 0}),
              cached({"cache-size": 1 << 20, "l2-cache-size": (1 << 20) + 1}),
              cached({"cache-size": 0, "refcount-cache-size": 1}),
              cached({"refcount-cache-size": (1 << 63) - 1}),
              cached({"l2-cache-entry-size": 0}),
              cached({"l2-cache-entry-size": 256}),
              cached({"l2-cache-entry-size": 1000}),
              cached({"l2-cache-entry-size": 1 << 17}),
              cached({"l2-cache-entry-size": (1 << 32) + 512}),
              cached({"l2-cache-entry-size": "4k"}),
              cached({"l2-cache-entry-size": -1}),
              {"driver": "nbd", "node-name": "x"},
              {"driver": "nbd", "node-name": "x", "server": {}},
              {"driver": "nbd", "node-name": "x", "server": 1},
              {"driver": "nbd", "node-name": "x",
               "server": {"type": "unix"}},
              {"driver": "nbd", "node-name": "x",
               "server": {"type": "no", "path": "x"}},
              {"driver": "nbd", "node-name": "x",
               "server": {"type": "inet", "host": "h"}},
              {"driver": "nbd", "node-name": "x",
               "server": {"type": "unix", "path": "p"}, "tls-creds": "t"},
              {"driver": "null-co", "node-name": "x", "read-zeroes": "x"},
              {"driver": "null-co", "node-name": "x", "size": "x"},
              {"driver": "blkdebug", "node-name": "x"},
              {"driver": "blkdebug", "node-name": "x",
               "image": file("b.raw"), "inject-error": [{}]},
              {"driver": "blkdebug", "node-name": "x",
               "image": file("b.raw"), "inject-error": {}},
              {"driver": "blkdebug", "node-name": "x",
               "image": file("b.raw"), "inject-error": [{"event": "no"}]},
              {"driver": "blkdebug", "node-name": "x",
               "image": file("b.raw"),
               "inject-error": [{"event": "none", "iotype": "no"}]},
              {"driver": "blkdebug", "node-name": "x",
               "image": file("b.raw"), "set-state": [{"event": "none"}]}):
        yield "blockdev-add", a
    for a in ({}, {"node-name": "no"}, {"node-name": 1},
              {"node-name": "q0f"}, {"node-name": "f0"},
              {"node-name": "q0"}, {"node-name": "q0", "no": 1}):
        yield "blockdev-del", a


def export_commands():
    e = {"type": "nbd", "id": "x", "node-name": "q0"}
    for a in ({}, {"type": "nbd"}, {"type": "no"}, {"type": 1},
              {"type": "nbd", "id": "x"}, dict(e, id="9"), dict(e, id=""),
              dict(e, id=LONG + "!"), dict(e, id="e0"), dict(e, name="disk"),
              dict(e, **{"node-name": "no"}), dict(e, writable=1),
              dict(e, name="n" * 300, description=1), dict(e, no=1),
              dict(e, bitmaps=["no"]), dict(e, bitmaps="b0"),
              dict(e, bitmaps=["b0"]), dict(e, bitmaps=["b1"]),
              dict(e, bitmaps=["b2"]),
              dict(e, bitmaps=[{"node": "q0"}]),
              dict(e, bitmaps=[{"node": "no", "name": "b0"}]),
              {"type": "nbd", "id": "x", "node-name": "n0",
               "writable": True}):
        yield "block-export-add", a
    for a in ({}, {"id": "no"}, {"id": 1}, {"id": "e0", "mode": "no"},
              {"id": "e0", "no": 1}):
        yield "block-export-del", a
    yield "query-block-exports", {"no": 1}
    unix = {"type": "unix", "data": {"path": "DIR/x.sock"}}
    for a in ({}, {"addr": 1}, {"addr": {}}, {"addr": {"type": "no"}},
              {"addr": {"type": "unix"}},
              {"addr": {"type": "unix", "data": {}}},
              {"addr": {"type": "inet", "data": {"host": "h"}}},
              {"addr": unix}, {"addr": unix, "max-connections": "x"},
              {"addr": unix, "no": 1}):
        yield "nbd-server-start", a
    yield "nbd-server-stop", {"no": 1}
    o = {"qom-type": "tls-creds-x509", "id": "x", "endpoint": "server"}
    for a in ({}, {"qom-type": "tls-creds-x509"}, {"qom-type": "no", "id": "x"},
              {"qom-type": 1}, o, dict(o, id=1), dict(o, id="9", dir="DIR"),
              dict(o, id="", dir="DIR"), dict(o, endpoint="no", dir="DIR"),
              dict(o, no=1, dir="DIR"), dict(o, dir=1),
              dict(o, **{"verify-peer": "x", "dir": "DIR"}),
              {"qom-type": "tls-creds-psk", "id": "x", "endpoint": "server"}):
        yield "object-add", a
    for a in ({}, {"id": "no"}, {"id": 1}, {"id": "no", "no": 1}):
        yield "object-del", a
    for a in ({}, {"device": "no"}, {"device": 1}, {"device": "q0", "no": 1},
              {"device": "q0", "name": "e0"},
              {"device": "q0", "name": "y", "bitmap": "no"}):
        yield "nbd-server-add", a
    for a in ({}, {"name": "no"}, {"name": 1}, {"name": "e0", "mode": "no"},
              {"name": "e0", "no": 1}):
        yield "nbd-server-remove", a


def other_commands():
    for c in ("query-block", "query-version", "query-commands", "quit",
              "query-named-block-nodes"):
        yield c, {"no": 1}
    yield "query-named-block-nodes", {"flat": 1}
    yield "no-such-command", {}
    yield "qmp_capabilities", {}


RAW = [{}, [], 5, {"execute": 1}, {"execute": "query-block", "arguments": 1},
       {"execute": "query-block", "no": 1}, {"arguments": {}}]

# What ours say where they differ, by the command and its arguments.
OURS = {}


def setup(server):
    for a in (dict(file("a.raw"), **{"node-name": "f0"}),
              {"driver": "raw", "node-name": "r0", "file": "f0"},
              {"driver": "qcow2", "node-name": "q0",
               "file": dict(file("q.qcow2"), **{"node-name": "q0f"})},
              {"driver": "null-co", "node-name": "n0", "size": 1 << 20,
               "read-only": True}):
        server.must("blockdev-add", place(server, a))
    for a in ({"node": "q0", "name": "b0"},
              {"node": "q0", "name": "b1", "disabled": True},
              {"node": "q0", "name": "b2"}, {"node": "n0", "name": "c0"}):
        server.must("block-dirty-bitmap-add", a)
    server.must("block-export-add", {
        "type": "nbd", "id": "e0", "name": "disk", "node-name": "q0",
        "writable": True, "bitmaps": ["b1"]})


def place(server, arguments):
    return json.loads(json.dumps(arguments).replace(
        "DIR", "%s/%s" % (tmp, server.name)))


def error_of(server, reply):
    if "error" not in reply:
        return "returned %s" % json.dumps(reply["return"])
    desc = reply["error"]["desc"].replace("%s/%s" % (tmp, server.name), "DIR")
    # (Our messages have a limit.)
    return "%s: %s" % (reply["error"]["class"], desc[:200])


def compare(pair, what, send):
    """True if they agree, or ours is what it should be."""
    ours, theirs = [error_of(s, send(s)) for s in pair.servers]
    expected = OURS.get(what, theirs)
    if ours == expected:
        return True
    sys.stderr.write("%s\nours:   %s\ntheirs: %s\n" % (what, ours, expected))
    return False


with Pair(tmp) as pair:
    for s in pair.servers:
        setup(s)
    nr = failed = 0
    for commands in (bitmap_commands, blockdev_commands, export_commands,
                     other_commands):
        for name, arguments in commands():
            what = "%s %s" % (name, json.dumps(arguments))
            nr += 1
            failed += not compare(pair, what, lambda s: s.command(
                name, place(s, arguments)))
    for value in RAW:
        def send(server):
            # A number ends where something else begins.
            server.qmp.send_bytes(json.dumps(value).encode() + b"\n")
            return server.qmp.reply()
        nr += 1
        failed += not compare(pair, json.dumps(value), send)
    if failed:
        sys.exit("FAIL: %d of %d differ" % (failed, nr))
    # Nothing has come of all this.
    for s in pair.servers:
        names = [n["node-name"]
                 for n in s.must("query-named-block-nodes")]
        if sorted(names) != ["f0", "n0", "q0", "q0f", "r0"]:
            sys.exit("FAIL: %s: nodes %s" % (s.name, names))
