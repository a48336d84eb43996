#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# block_resize: bitmaps grow, their new part dirty, and shrink; the disk may be
# exported, and who is connected goes on, up to where it ends now; not while a
# backup holds it; and it all survives kill -9.
. "${srcdir:-.}/control-test.sh"
truncate -s 16M "$tmp/vda.raw"
timeout 120 python3 - "$tmp" <<'END'
import os
import signal
import subprocess
import sys
import raw_nbd
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, fail

tmp = sys.argv[1]
M = 1 << 20
DISK = ["--disk", "vda,file=%s/vda.raw" % tmp, "--bitmap", "vda/b"]


def refuse(q, arguments, text):
    try:
        q.execute("block_resize", arguments)
    except QmpError as e:
        check_equal(e.desc, text, "message")
    else:
        fail("block_resize %r should have failed" % arguments)


def size(d):
    out = subprocess.run(["nbdinfo", "--size", d.uri("vda")], check=True,
                         stdout=subprocess.PIPE).stdout
    return int(out)


def connect(d):
    c = raw_nbd.Client(d.live)
    c.structured_replies()
    c.go("vda")
    return c


def check_end(c, end):
    """There is nothing behind it, and asking for that breaks nothing."""
    check_equal(len(c.read(end - 512, 512)), 512, "the end")
    for command in raw_nbd.READ, raw_nbd.WRITE, raw_nbd.TRIM, raw_nbd.ZEROES:
        for off in end - 512, end, end + M:
            payload = b"x" * 1024 if command == raw_nbd.WRITE else None
            check(c.error(command, off, 1024, payload=payload)
                  in (raw_nbd.EINVAL, raw_nbd.ENOSPC),
                  "command %d at %d of %d" % (command, off, end))


def count(d, q):
    return d.bitmaps(q)["b"]["count"]


with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    q.execute("block-dirty-bitmap-add", {"node": "vda", "name": "memory"})
    refuse(q, {"device": "no", "size": 0},
           "Cannot find device='no' nor node-name=''")
    refuse(q, {"node-name": "vda", "size": -1},
           "Parameter 'size' expects a >0 size")
    refuse(q, {"node-name": "vda", "size": 1000},
           "Parameter 'size' expects a multiple of 512, not 1000")
    d.write("vda", 0, 65536)
    d.write("vda", 15 * M, 65536)
    s = q.execute("backup-begin", {"bitmap": "b"})
    refuse(q, {"device": "vda", "size": 32 * M},
           "disk 'vda' cannot be resized while a backup holds it")
    q.execute("backup-end", {"id": s["id"], "success": True})
    base = d.bitmaps(q)["b"]["base"]
    d.write("vda", 0, 65536)
    d.write("vda", 15 * M, 65536)

    with connect(d) as c:
        check_end(c, 16 * M)
        q.execute("block_resize", {"device": "vda", "size": 1024 * M})
        check_equal(len(c.read(16 * M - 512, 512)), 512, "its last sector")
    check_equal(size(d), 1024 * M, "size")
    check_equal(os.path.getsize(tmp + "/vda.raw"), 1024 * M, "file")
    check_equal(count(d, q), 131072 + 1008 * M, "dirty bytes")
    check_equal(d.bitmaps(q)["memory"]["count"], 131072 + 1008 * M, "memory")
    d.write("vda", 1000 * M, 65536)
    d.stop(signal.SIGKILL)

with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    check_equal(count(d, q), 131072 + 1008 * M, "dirty bytes after kill -9")
    check_equal(d.bitmaps(q)["b"]["base"], base, "base point")
    s = q.execute("backup-begin", {"bitmap": "b"})
    check_equal(s["disks"][0]["mode"], "incremental", "mode")
    q.execute("backup-end", {"id": s["id"], "success": True})
    d.write("vda", 4 * M, 65536)
    d.write("vda", 900 * M, 65536)
    with connect(d) as c:
        q.execute("block_resize", {"node-name": "vda", "size": 8 * M})
        check_end(c, 8 * M)
    check_equal(size(d), 8 * M, "size")
    check_equal(count(d, q), 65536, "dirty bytes")
    d.stop(signal.SIGKILL)

with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    check_equal(count(d, q), 65536, "dirty bytes after kill -9")
    check_equal(d.stop(), 0, "exit status")
with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    check_equal(count(d, q), 65536, "dirty bytes after a clean end")
    check_equal(d.bitmaps(q)["b"]["base"], s["id"], "base point")
END
