#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Bitmaps given on the command line are in FILE.tidemark: they survive a clean
# end and kill -9, exactly; a session in progress is merged back.  What is true
# of one disk is true of each of a session's.
. "${srcdir:-.}/control-test.sh"
truncate -s 64M "$tmp/vda.raw" "$tmp/vdb.raw" "$tmp/vdc.raw"
timeout 120 python3 - "$tmp" <<'END'
import os
import signal
import sys
from tidemarkd_util import Tidemarkd, check, check_equal

tmp = sys.argv[1]
DISK = ["--disk", "vda,file=%s/vda.raw" % tmp, "--bitmap", "vda/b"]
GRANULE = 65536


def bitmap(q, name="b"):
    device = q.execute("query-block")[0]
    for b in device["inserted"].get("dirty-bitmaps", []):
        if b["name"] == name:
            return b
    return None


def begin(q, mode):
    return q.execute("backup-begin", {"bitmap": "b", "mode": mode})


def full_backup(d, q):
    s = begin(q, "full")
    q.execute("backup-end", {"id": s["id"], "success": True})
    return s["id"]


with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    check(bitmap(q)["persistent"], "persistent")
    check(os.path.exists(tmp + "/vda.raw.tidemark"), "no store")
    base = full_backup(d, q)
    d.write("vda", 0, 4096)
    d.write("vda", 10 * GRANULE, 3 * GRANULE)
    check_equal(bitmap(q)["count"], 4 * GRANULE, "dirty bytes")
    d.stop(signal.SIGKILL)

with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    b = bitmap(q)
    check_equal(b["count"], 4 * GRANULE, "dirty bytes after kill -9")
    check_equal(b["base"], base, "base point after kill -9")
    check("inconsistent" not in b, "inconsistent")
    # A session in progress when the server is killed.
    s = begin(q, "incremental")
    d.write("vda", 40 * GRANULE, GRANULE)
    d.stop(signal.SIGKILL)

with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    b = bitmap(q)
    check_equal(b["count"], 5 * GRANULE, "dirty bytes of both arrays")
    check_equal(b["base"], base, "base point after a cut session")
    check_equal(b["busy"], False, "busy")
    check_equal(d.stop(), 0, "exit status")

with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    b = bitmap(q)
    check_equal(b["count"], 5 * GRANULE, "dirty bytes after a clean end")
    check_equal(b["base"], base, "base point after a clean end")
    s = begin(q, "incremental")
    q.execute("backup-end", {"id": s["id"], "success": True})
    d.stop(signal.SIGKILL)

# What a backup's end has promised is there.
with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    check_equal(bitmap(q)["count"], 0, "dirty bytes after a backup")
    check_equal(bitmap(q)["base"], s["id"], "base point after a backup")

# The same of three disks.
NAMES = ["vda", "vdb", "vdc"]
DISKS = []
for name in NAMES:
    DISKS += ["--disk", "%s,file=%s/%s.raw" % (name, tmp, name),
              "--bitmap", name + "/b"]


def check_all(count, base, what):
    for i, name in enumerate(NAMES):
        b = d.bitmaps(q, name)["b"]
        check_equal((b["count"], b["base"], b["busy"]),
                    (count and count + i * GRANULE, base, False),
                    "%s: %s" % (what, name))


def write_all(granule, n):
    for i, name in enumerate(NAMES):
        d.write(name, granule * GRANULE, (n + i) * GRANULE)


with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
    base = full_backup(d, q)
    write_all(3, 1)
    d.stop(signal.SIGKILL)
with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
    check_all(GRANULE, base, "after kill -9")
    s = begin(q, "incremental")
    for name in NAMES:
        d.write(name, 40 * GRANULE, GRANULE)
    d.stop(signal.SIGKILL)
with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
    check_all(2 * GRANULE, base, "both arrays")
    s = begin(q, "incremental")
    q.execute("backup-end", {"id": s["id"], "success": True})
    d.stop(signal.SIGKILL)
with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
    check_all(0, s["id"], "after a backup")
    check_equal(d.stop(), 0, "exit status")
END
