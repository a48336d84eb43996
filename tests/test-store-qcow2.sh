#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A live qcow2 disk: while it is open its bitmaps are in the store, the image
# says of its own that they are in use; so they survive kill -9 at any moment,
# exactly, the base point too, whether they were made by QEMU or by us; after a
# clean end they are in the image, and whoever had it last is believed.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-io
timeout 120 python3 - "$tmp" <<'END'
import json
import os
import signal
import subprocess
import sys
from store_util import next_tick
from tidemarkd_util import Tidemarkd, check, check_equal

tmp = sys.argv[1]
IMAGE = tmp + "/a.qcow2"
GRANULE = 65536
M = 1 << 20


def run(*command):
    return subprocess.run(command, check=True,
                          stdout=subprocess.PIPE).stdout.decode()


def in_image():
    """name -> flags"""
    j = json.loads(run("qemu-img", "info", "-U", "--output=json", IMAGE))
    return {b["name"]: sorted(b["flags"]) for b in
            j["format-specific"]["data"].get("bitmaps", [])}


def serve():
    return Tidemarkd(tmp, "--disk", "vda,file=%s,format=qcow2,cache-size=1M,"
                     "refcount-cache-size=256k,l2-cache-entry-size=2k" % IMAGE)


def counts(d, q):
    """name -> dirty granules; none is inconsistent."""
    bitmaps = d.bitmaps(q)
    for b in bitmaps.values():
        check("inconsistent" not in b, "%r" % b)
    return {name: b["count"] // GRANULE for name, b in bitmaps.items()}


run("qemu-img", "create", "-q", "-f", "qcow2", IMAGE, "64M")
run("qemu-img", "bitmap", "--add", IMAGE, "b")
run("qemu-io", "-f", "qcow2", "-c", "write 5M 128k", IMAGE)
state = {"b": 2}

# Killed before a guest has written anything, more than once.
for i in range(3):
    with serve() as d, d.qmp() as q:
        check_equal(counts(d, q), state, "opened, %d" % i)
        check_equal(in_image(), {"b": ["auto", "in-use"]}, "flags")
        d.stop(signal.SIGKILL)

# Killed after writes, one without its end.
with serve() as d, d.qmp() as q:
    check_equal(counts(d, q), state, "before writes")
    d.write("vda", 1 * M, 4096)
    d.write("vda", 20 * M + 512, GRANULE)
    q.execute("block-dirty-bitmap-add",
              {"node": "vda", "name": "c", "persistent": True})
    d.write("vda", 40 * M, 512)
    d.stop(signal.SIGKILL)
state = {"b": 6, "c": 1}
with serve() as d, d.qmp() as q:
    check_equal(counts(d, q), state, "after writes")
    # A backup that is in progress, and one that has ended.
    s = q.execute("backup-begin", {"bitmap": "b", "mode": "full"})
    q.execute("backup-end", {"id": s["id"], "success": True})
    base = s["id"]
    d.write("vda", 0, 4096)
    s = q.execute("backup-begin", {"bitmap": "b"})
    d.write("vda", 2 * M, 4096)
    d.stop(signal.SIGKILL)
state = {"b": 2, "c": 3}
with serve() as d, d.qmp() as q:
    check_equal(counts(d, q), state, "after a cut session")
    check_equal(d.bitmaps(q)["b"]["base"], base, "base point")
    # One that is removed does not come back from the image.
    check_equal(in_image(), {"b": ["auto", "in-use"]}, "flags")
    q.execute("block-dirty-bitmap-remove", {"node": "vda", "name": "b"})
    del state["b"]
    d.stop(signal.SIGKILL)
with serve() as d, d.qmp() as q:
    check_equal(counts(d, q), state, "after removal")
    check_equal(d.stop(), 0, "exit status")
check_equal(in_image(), {"c": ["auto"]}, "flags after a clean end")
run("qemu-img", "check", "-q", IMAGE)

# Clean ends and nobody else in between: the store's base point is kept.
with serve() as d, d.qmp() as q:
    s = q.execute("backup-begin", {"bitmap": "c", "mode": "full"})
    q.execute("backup-end", {"id": s["id"], "success": True})
    check_equal(d.stop(), 0, "exit status")
with serve() as d, d.qmp() as q:
    check_equal(d.bitmaps(q)["c"]["base"], s["id"], "base after a clean end")
    d.write("vda", 0, 512)
    check_equal(d.stop(), 0, "exit status")

# QEMU has written: the image's bits are the right ones, not the store's, and
# they survive the next kill as well.
run("qemu-io", "-f", "qcow2", "-c", "write 30M 128k", IMAGE)
for i in range(2):
    with serve() as d, d.qmp() as q:
        check_equal(counts(d, q), {"c": 3}, "after QEMU, %d" % i)
        check("is inconsistent" not in d.messages(), d.messages())
        d.stop(signal.SIGKILL)

# QEMU has written after a kill: nobody knows what.
next_tick()
run("qemu-io", "-f", "qcow2", "-c", "write 50M 128k", IMAGE)
with serve() as d, d.qmp() as q:
    b = d.bitmaps(q)["c"]
    check(b.get("inconsistent"), "believed after QEMU has written")
    check("another program has changed the disk" in b["reason"], b["reason"])
    check("bitmap 'c' is inconsistent: another program" in d.messages(),
          d.messages())
    check_equal(d.stop(), 0, "exit status")
check_equal(in_image(), {"c": ["auto", "in-use"]}, "flags")
run("qemu-img", "check", "-q", IMAGE)

# An image with lazy refcounts is mended when it is opened after a kill, which
# changes it before anybody looks at the store.
IMAGE = tmp + "/lazy.qcow2"
run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on",
    IMAGE, "64M")
run("qemu-img", "bitmap", "--add", IMAGE, "b")
for i in range(3):
    with serve() as d, d.qmp() as q:
        check_equal(counts(d, q), {"b": i}, "lazy, %d" % i)
        d.write("vda", i * M, GRANULE)
        run("qemu-io", "-f", "raw", "-c", "flush", d.uri("vda"))
        d.stop(signal.SIGKILL)
END
