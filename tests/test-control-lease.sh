#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Sessions that end by themselves: the lease, scratch, shutdown; and what keeps
# the lease from running out.
. "${srcdir:-.}/control-test.sh"
truncate -s 16M "$tmp/vda.raw"
timeout 60 python3 - "$tmp" <<'END'
import subprocess
import sys
import time
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, fail

tmp = sys.argv[1]
M = 1024 * 1024


def begin(q, **more):
    return q.execute("backup-begin", dict({"bitmap": "b"}, **more))


def lease_runs_out(d, q):
    d.write("vda", 0, M)
    start = time.monotonic()
    s = begin(q, lease=1)
    event = q.wait_event("BACKUP_ENDED", id=s["id"])
    took = time.monotonic() - start
    check_equal(event["data"]["reason"], "lease", "reason")
    check(1 <= took < 10, "the lease of 1 s ran out after %.2f s" % took)
    check_equal(q.execute("query-backups"), [], "query-backups")
    bitmap = d.bitmaps(q)["b"]
    check_equal((bitmap["count"], bitmap["busy"]), (M, False), "merged back")


def traffic_renews(d, q, touch):
    """A lease of 1 s lives for two with traffic, and no longer without."""
    s = begin(q, lease=1)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        touch(s)
    last = time.monotonic()
    q.wait_event("BACKUP_ENDED", id=s["id"], reason="lease")
    check(time.monotonic() - last > 0.5, "the lease was not renewed")


def read(s):
    subprocess.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 4k",
                    s["disks"][0]["uri"]], check=True,
                   stdout=subprocess.DEVNULL)


def queries_do_not_renew(d, q):
    s = begin(q, lease=1)
    while q.execute("query-backups"):
        pass
    q.wait_event("BACKUP_ENDED", id=s["id"], reason="lease")


def scratch_overflows(d, q):
    """The backup breaks, the guest's write does not."""
    d.write("vda", 0, 16 * M, 7)
    s = begin(q, **{"scratch-limit": M})
    d.write("vda", 0, 4 * M, 8)
    event = q.wait_event("BACKUP_ENDED", id=s["id"])
    check_equal(event["data"]["reason"], "scratch", "reason")
    check_equal(q.execute("query-backups"), [], "query-backups")
    check_equal(d.bitmaps(q)["b"]["count"], 16 * M, "merged back")
    try:
        q.execute("backup-end", {"id": s["id"], "success": True})
    except QmpError as e:
        check(e.error_class in ("BackupNotFound", "BackupBroken"),
              "class %s" % e.error_class)
    else:
        fail("a broken backup ended in success")


with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp,
               "--bitmap", "vda/b", "--scratch-dir", tmp) as d, d.qmp() as q:
    lease_runs_out(d, q)
    traffic_renews(d, q, lambda s: q.execute("backup-attach",
                                             {"id": s["id"]}))
    traffic_renews(d, q, read)
    queries_do_not_renew(d, q)
    scratch_overflows(d, q)
    # Everybody is told, before the connection ends.
    s = begin(q)
    with d.qmp() as other:
        q.execute("quit")
        for c in q, other:
            c.wait_event("BACKUP_ENDED", id=s["id"], reason="shutdown")
            check_equal(c.receive(), None, "end of the connection")
    check_equal(d.wait(), 0, "exit status")
END
