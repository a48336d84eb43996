#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# After a crash of the host, here a store with the boot id of another start:
# what may be dirty for that alone is in query-block, within the bound, until a
# backup has succeeded; "tidemark store check" agrees with the store before and
# after.  What nobody writes to for a while is let go: then there is none.
. "${srcdir:-.}/control-test.sh"
export TIDEMARK=$tidemark
timeout 120 python3 - "$tmp" <<'END'
import os
import signal
import subprocess
import sys
import time
from store_util import crash_host
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal

tmp = sys.argv[1]
RAW = tmp + "/vda.raw"
STORE = RAW + ".tidemark"
DISK = ["--disk", "vda,file=" + RAW, "--bitmap", "vda/b"]


def store_check():
    r = subprocess.run([os.environ["TIDEMARK"], "store", "check", STORE],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    check_equal(r.returncode, 0, "store check: %r" % r.stdout)


with open(RAW, "wb") as f:
    f.truncate(256 << 20)
with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    s = q.execute("backup-begin", {"bitmap": "b"})
    q.execute("backup-end", {"id": s["id"], "success": True})
    d.write("vda", 40 << 20, 65536)
    d.write("vda", 80 << 20, 65536)
    store = q.execute("query-block")[0]["inserted"]["store"]
    check(store["active-regions"] >= 2, "active")
    check("over-estimate" not in d.bitmaps(q)["b"], "over-estimate too early")
    d.stop(signal.SIGKILL)
store_check()
crash_host(RAW, STORE)
store_check()
with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    bitmap = d.bitmaps(q)["b"]
    check_equal(bitmap["status"], "active", "status: %r" % bitmap)
    over = bitmap["over-estimate"]
    check(0 < over <= store["max-over-estimate"], "over-estimate: %d" % over)
    check_equal(bitmap["count"], 2 * 65536 + over, "count")
    check("too many dirty after a crash" in d.messages(), d.messages())
    d.stop(signal.SIGKILL)
store_check()
with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    check_equal(d.bitmaps(q)["b"]["over-estimate"], over, "after one more kill")
    s = q.execute("backup-begin", {"bitmap": "b"})
    check_equal(s["disks"][0]["mode"], "incremental", "mode")
    q.execute("backup-end", {"id": s["id"], "success": True})
    check("over-estimate" not in d.bitmaps(q)["b"], "over-estimate for ever")

    d.write("vda", 120 << 20, 65536)
    end = time.monotonic() + TIMEOUT
    while True:
        store = q.execute("query-block")[0]["inserted"]["store"]
        if store["active-regions"] == 0:
            break
        check(time.monotonic() < end, "idle regions stay: %r" % store)
        time.sleep(0.1)
    check_equal(store["max-over-estimate"], 0, "over-estimate of nothing")
    d.stop(signal.SIGKILL)
crash_host(RAW, STORE)
store_check()
with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    bitmap = d.bitmaps(q)["b"]
    check_equal((bitmap["status"], bitmap["count"]), ("active", 65536),
                "after a rest")
    check("over-estimate" not in bitmap, "over-estimate after a rest")
    d.stop()
store_check()
END
