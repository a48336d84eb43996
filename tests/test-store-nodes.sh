#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Bitmaps of nodes of blockdev-add over kill -9: with a store they are exact, of
# raw and qcow2 alike, and changes by other programs are seen; of a qcow2 image
# without one, those that it had are inconsistent for a reason that is said, and
# those that it had not are gone, which the next backup says.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-io
timeout 120 python3 - "$tmp" <<'END_OF_TEST'
import os
import signal
import subprocess
import sys
from qmp_client import QmpError
from store_util import next_tick
from tidemarkd_util import Tidemarkd, check, check_equal, fail

tmp = sys.argv[1]
RAW, IMAGE, PLAIN = tmp + "/a.raw", tmp + "/b.qcow2", tmp + "/c.qcow2"
GRANULE = 65536
M = 1 << 20


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def spec(name, driver, path, **more):
    return dict({"driver": driver, "node-name": name,
                 "file": {"driver": "file", "filename": path}}, **more)


NODES = (spec("raw", "raw", RAW, store=tmp + "/a.store"),
         spec("image", "qcow2", IMAGE, store=tmp + "/b.store"),
         spec("plain", "qcow2", PLAIN))
NAMES = tuple(n["node-name"] for n in NODES)


def add(q, nodes=NODES):
    for node in nodes:
        q.execute("blockdev-add", node)
        q.execute("block-export-add", {"type": "nbd", "id": node["node-name"],
                                       "node-name": node["node-name"],
                                       "writable": True})


def serve():
    return Tidemarkd(tmp)


def counts(d, q, node):
    bitmaps = d.bitmaps(q, node)
    for b in bitmaps.values():
        check("inconsistent" not in b, "%s: %r" % (node, b))
    return {name: b["count"] // GRANULE for name, b in bitmaps.items()}


def refuse(q, text, command, arguments):
    try:
        q.execute(command, arguments)
        fail("%s %r succeeds" % (command, arguments))
    except QmpError as e:
        check(text in e.desc, e.desc)


def begin(q, node, bitmap):
    s = q.execute("backup-begin", {"disks": [{"disk": node,
                                              "bitmap": bitmap}]})
    return s["id"], s["disks"][0]


def backup(q, node, bitmap):
    ident, disk = begin(q, node, bitmap)
    q.execute("backup-end", {"id": ident, "success": True})
    return disk["mode"], disk["why"]


with open(RAW, "wb") as f:
    f.truncate(64 * M)
for path in IMAGE, PLAIN:
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
    run("qemu-img", "bitmap", "--add", path, "old")

with serve() as d, d.qmp() as q:
    add(q)
    for name in NAMES:
        q.execute("block-dirty-bitmap-add",
                  {"node": name, "name": "new", "persistent": True})
        d.write(name, 5 * M, 4096)
        check_equal(backup(q, name, "new")[0], "full", "mode")
        d.write(name, 20 * M, 2 * GRANULE)
    # Killed with a backup in progress.
    begin(q, "raw", "new")
    d.write("raw", 40 * M, 4096)
    d.stop(signal.SIGKILL)

with serve() as d, d.qmp() as q:
    add(q)
    check_equal(counts(d, q, "raw"), {"new": 3}, "raw, killed")
    check_equal(counts(d, q, "image"), {"old": 3, "new": 2}, "image, killed")
    bitmaps = d.bitmaps(q, "plain")
    check_equal(list(bitmaps), ["old"], "without a store")
    check_equal(bitmaps["old"]["status"], "inconsistent", "without a store")
    check("not saved to the image" in bitmaps["old"]["reason"],
          bitmaps["old"]["reason"])
    for bitmap, text in (("old", "is inconsistent"), ("new", "no bitmap")):
        mode, why = backup(q, "plain", bitmap)
        check_equal(mode, "full", "plain, killed")
        check(text in why, why)
    for name in "raw", "image":
        check_equal(backup(q, name, "new")[0], "incremental", "killed")
        d.write(name, 7 * M, 4096)
    # Taken away, and added again.
    for node in NODES:
        # The server may not have seen yet that the last client has gone.
        q.execute("block-export-del", {"id": node["node-name"],
                                       "mode": "hard"})
        q.wait_event("BLOCK_EXPORT_DELETED", id=node["node-name"])
        q.execute("blockdev-del", {"node-name": node["node-name"]})
    add(q)
    check_equal(counts(d, q, "raw"), {"new": 1}, "raw, added again")
    check_equal(counts(d, q, "image"), {"old": 4, "new": 1},
                "image, added again")
    check_equal(d.stop(), 0, "exit status")

# Another program, after a clean end, and after a kill.
for sig in signal.SIGTERM, signal.SIGKILL:
    with serve() as d, d.qmp() as q:
        add(q, NODES[:2])
        for name in "raw", "image":
            backup(q, name, "new")
            d.write(name, 9 * M, 4096)
        d.stop(sig)
    next_tick()
    run("qemu-io", "-f", "raw", "-c", "write 5M 4k", RAW)
    run("qemu-io", "-f", "qcow2", "-c", "write 5M 4k", IMAGE)
    with serve() as d, d.qmp() as q:
        add(q, NODES[:2])
        b = d.bitmaps(q, "raw")["new"]
        check("another program has changed the disk" in b.get("reason", ""),
              "raw, edited after signal %d: %r" % (sig, b))
        # After a clean end the image's own bitmaps hold, for QEMU goes on with
        # them; after a kill it leaves them as it has found them.
        b = d.bitmaps(q, "image")["new"]
        if sig == signal.SIGTERM:
            check_equal(counts(d, q, "image")["new"], 2, "continued by QEMU")
        else:
            check("inconsistent" in b, "image, edited: %r" % b)
        check_equal(d.stop(), 0, "exit status")

# What is no use.
with serve() as d, d.qmp() as q:
    refuse(q, "'store' must be an absolute path, not 'x'", "blockdev-add",
           dict(NODES[0], store="x"))
    refuse(q, "Parameter 'file.store' is unexpected", "blockdev-add",
           {"driver": "raw", "node-name": "raw",
            "file": {"driver": "file", "filename": RAW, "store": "/x"}})
    q.execute("blockdev-add", {"driver": "file", "node-name": "file",
                               "filename": RAW})
    refuse(q, "not by the name of another node", "blockdev-add",
           {"driver": "raw", "node-name": "raw", "file": "file",
            "store": tmp + "/x"})
    q.execute("blockdev-del", {"node-name": "file"})
    add(q, NODES[:1])
    refuse(q, "is in use by another process or disk", "blockdev-add",
           spec("other", "qcow2", IMAGE, store=tmp + "/a.store"))
    q.execute("block-export-del", {"id": "raw", "mode": "hard"})
    q.wait_event("BLOCK_EXPORT_DELETED", id="raw")
    refuse(q, "Node 'raw' has a store for dirty bitmaps", "blockdev-add",
           {"driver": "raw", "node-name": "other", "file": "raw"})
    check_equal(d.stop(), 0, "exit status")
END_OF_TEST
