#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A store that cannot be written while the server runs: the guest does not
# notice, the bitmaps are inconsistent at once, an event and query-block say so,
# and once the store can be written again that is recorded in it for whoever
# comes after.
. "${srcdir:-.}/control-test.sh"
shim=$top_builddir/tests/fail-store.so
preload=$shim
case $sanitizers in
    *address*) preload="$(${CC:-gcc} -print-file-name=libasan.so) $shim" ;;
    *thread*) preload="$(${CC:-gcc} -print-file-name=libtsan.so) $shim" ;;
esac
timeout 120 python3 - "$tmp" "$preload" <<'END'
import os
import signal
import struct
import sys
import time
from qmp_client import QmpError
from store_util import crash_host, SLOTS
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal, fail

tmp, preload = sys.argv[1:]
RAW, DEAD = tmp + "/vda.raw", tmp + "/dead"
STORE = RAW + ".tidemark"
DISK = ["--disk", "vda,file=" + RAW, "--bitmap", "vda/b"]


def store_of(q):
    return q.execute("query-block")[0]["inserted"]["store"]


def is_failed():
    """Does either slot say so?"""
    with open(STORE, "rb") as f:
        for off in SLOTS:
            f.seek(off + 28)
            if struct.unpack("<I", f.read(4))[0] & 2:
                return True
    return False


for path in RAW, tmp + "/added.raw":
    with open(path, "wb") as f:
        f.truncate(256 << 20)
with Tidemarkd(tmp, *DISK, env={"LD_PRELOAD": preload,
                                "FAIL_WHILE": DEAD}) as d, d.qmp() as q:
    d.write("vda", 0, 4096)
    store = store_of(q)
    check_equal(store["filename"], STORE, "filename")
    check_equal(store["region-size"], 4 << 20, "region-size")
    check_equal(store["failed"], False, "failed")
    check_equal(store["max-over-estimate"],
                store["active-regions"] * store["region-size"], "over-estimate")
    check("reason" not in store, "a reason for nothing")

    open(DEAD, "w").close()
    # A region that is not active.
    d.write("vda", 200 << 20, 4096)
    event = q.wait_event("BITMAP_INCONSISTENT")["data"]
    check_equal((event["node"], event["bitmap"]), ("vda", "b"), "event")
    check("could not be written: Input/output error" in event["reason"],
          "reason: %r" % event["reason"])
    bitmap = d.bitmaps(q)["b"]
    check_equal(bitmap["status"], "inconsistent", "status")
    check(event["reason"] in bitmap["reason"], "another reason")
    store = store_of(q)
    check_equal((store["failed"], store["reason"]), (True, event["reason"]),
                "store")
    check(not is_failed(), "it cannot have been recorded yet")
    d.write("vda", 100 << 20, 4096)

    os.unlink(DEAD)
    # Not before the next start, and not for a disk that has no store.
    q.execute("blockdev-add", {"driver": "raw", "node-name": "added", "file": {
        "driver": "file", "filename": tmp + "/added.raw"}})
    for node, text in (("vda", "the next start of the server"),
                       ("added", "disk 'added' has no store")):
        try:
            q.execute("block-dirty-bitmap-add",
                      {"node": node, "name": "new", "persistent": True})
            fail("a persistent bitmap without a store")
        except QmpError as e:
            check(text in e.desc, e.desc)
    end = time.monotonic() + TIMEOUT
    while not is_failed():
        if time.monotonic() > end:
            fail("the failure is not recorded")
        time.sleep(0.05)
    d.stop(signal.SIGKILL)

with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    bitmap = d.bitmaps(q)["b"]
    check_equal(bitmap["status"], "inconsistent", "status of the next")
    check("the store failed" in bitmap["reason"], bitmap["reason"])
    check_equal(store_of(q)["failed"], False, "the next one")
    s = q.execute("backup-begin", {"bitmap": "b"})
    disk = s["disks"][0]
    check_equal(disk["mode"], "full", "mode")
    check("the store failed" in disk["why"], disk["why"])
    q.execute("backup-end", {"id": s["id"], "success": True})

# One that never can be written again: the server ends, killed or not, without
# having recorded it.  What was stored into the live page tells, also after a
# crash of the host if the page got to the disk.
for sig, is_other_boot in ((signal.SIGTERM, False), (signal.SIGKILL, False),
                           (signal.SIGKILL, True)):
    what = "signal %d, other boot: %s" % (sig, is_other_boot)
    with Tidemarkd(tmp, *DISK, env={"LD_PRELOAD": preload,
                                    "FAIL_WHILE": DEAD}) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["status"], "active", what)
        open(DEAD, "w").close()
        d.write("vda", 200 << 20, 4096)
        q.wait_event("BITMAP_INCONSISTENT")
        d.write("vda", 100 << 20, 4096)
        d.stop(sig)
    check(not is_failed(), what + ": recorded")
    os.unlink(DEAD)
    if is_other_boot:
        crash_host(RAW, STORE)
    with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
        bitmap = d.bitmaps(q)["b"]
        check_equal(bitmap["status"], "inconsistent", what)
        check("the store failed" in bitmap["reason"], bitmap["reason"])
        s = q.execute("backup-begin", {"bitmap": "b"})
        q.execute("backup-end", {"id": s["id"], "success": True})
        check_equal(d.stop(), 0, what)

# It fails while the disk is resized: that goes on, and nobody hangs.
for size in 512 << 20, 128 << 20:
    with Tidemarkd(tmp, *DISK, env={"LD_PRELOAD": preload,
                                    "FAIL_WHILE": DEAD}) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["status"], "active", "before a resize")
        d.write("vda", 64 << 20, 4096)
        open(DEAD, "w").close()
        try:
            q.execute("block_resize", {"device": "vda", "size": size})
        except QmpError as e:
            check("cannot resize" in e.desc, e.desc)
        q.wait_event("BITMAP_INCONSISTENT")
        d.write("vda", 96 << 20, 4096)
        os.unlink(DEAD)
        check_equal(d.stop(), 0, "exit status after a resize")
    with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["status"], "inconsistent", "resized")
        s = q.execute("backup-begin", {"bitmap": "b"})
        q.execute("backup-end", {"id": s["id"], "success": True})
        check_equal(d.stop(), 0, "exit status")
END
