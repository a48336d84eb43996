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


events = {}                     # by node: whichever store is looked at first


def wait_inconsistent(q, node, bitmap):
    while node not in events:
        event = q.wait_event("BITMAP_INCONSISTENT")["data"]
        events[event["node"]] = event
    check_equal(events[node]["bitmap"], bitmap, "event")
    return events[node]


for path in RAW, tmp + "/added.raw", tmp + "/stored.raw":
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

    # Another one, of a node that is added.
    q.execute("blockdev-add", {
        "driver": "raw", "node-name": "stored", "store": tmp + "/s.tidemark",
        "file": {"driver": "file", "filename": tmp + "/stored.raw"}})
    q.execute("block-dirty-bitmap-add",
              {"node": "stored", "name": "s", "persistent": True})
    q.execute("block-export-add", {"type": "nbd", "id": "e", "writable": True,
                                   "node-name": "stored"})

    open(DEAD, "w").close()
    # A region that is not active.
    d.write("vda", 200 << 20, 4096)
    event = wait_inconsistent(q, "vda", "b")
    d.write("stored", 0, 4096)
    wait_inconsistent(q, "stored", "s")
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

    # Not while it cannot be written, and not for a disk that has no store.
    q.execute("blockdev-add", {"driver": "raw", "node-name": "added", "file": {
        "driver": "file", "filename": tmp + "/added.raw"}})
    for node, text in (("vda", "cannot be made anew: Input/output error"),
                       ("added", "disk 'added' has no store")):
        try:
            q.execute("block-dirty-bitmap-add",
                      {"node": node, "name": "new", "persistent": True})
            fail("a persistent bitmap without a store")
        except QmpError as e:
            check(text in e.desc, e.desc)
    check_equal(store_of(q)["failed"], True, "after the attempt")
    os.unlink(DEAD)
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

# It can be written again: the next persistent bitmap makes a new store, and
# what the old one had stays inconsistent, also after a kill; a full backup
# makes its bitmap anew.
def fails_and_works_again(d, q, make_works):
    open(DEAD, "w").close()
    d.write("vda", 200 << 20, 4096)
    q.wait_event("BITMAP_INCONSISTENT")
    os.unlink(DEAD)
    make_works()
    store = store_of(q)
    check_equal(store["failed"], False, "failed")
    check("reason" not in store, "a reason for nothing")
    d.write("vda", 30 << 20, 4096)


def backup(q, bitmap):
    s = q.execute("backup-begin", {"bitmap": bitmap})
    q.execute("backup-end", {"id": s["id"], "success": True})
    return s["disks"][0]


with Tidemarkd(tmp, *DISK, env={"LD_PRELOAD": preload,
                                "FAIL_WHILE": DEAD}) as d, d.qmp() as q:
    d.write("vda", 10 << 20, 4096)
    # By a command; a backup in progress has to end first.
    add = {"node": "vda", "name": "c", "persistent": True}
    s = q.execute("backup-begin", {"bitmap": "b"})

    def add_too_early():
        try:
            q.execute("block-dirty-bitmap-add", add)
            fail("made anew under a backup")
        except QmpError as e:
            check("only when no backup uses a bitmap of it" in e.desc, e.desc)
        q.execute("backup-end", {"id": s["id"], "success": True})
        check_equal(d.bitmaps(q)["b"]["status"], "inconsistent", "its end")
        q.execute("block-dirty-bitmap-add", add)

    fails_and_works_again(d, q, add_too_early)
    check_equal(d.bitmaps(q)["c"]["persistent"], True, "persistent")
    d.stop(signal.SIGKILL)
with Tidemarkd(tmp, *DISK, env={"LD_PRELOAD": preload,
                                "FAIL_WHILE": DEAD}) as d, d.qmp() as q:
    bitmaps = d.bitmaps(q)
    check_equal(bitmaps["b"]["status"], "inconsistent", "it was lost")
    check("the store failed" in bitmaps["b"]["reason"], "%r" % bitmaps)
    check_equal((bitmaps["c"]["status"], bitmaps["c"]["count"]),
                ("active", 65536), "the new one")
    # By a full backup, of the bitmap that was lost.
    check_equal(backup(q, "b")["mode"], "full", "mode")
    check_equal(backup(q, "b")["mode"], "incremental", "mode")
    fails_and_works_again(d, q, lambda: check_equal(
        backup(q, "b")["mode"], "full", "after the second failure"))
    check_equal(d.bitmaps(q)["b"]["persistent"], True, "persistent")
    check_equal(d.bitmaps(q)["c"]["status"], "inconsistent", "the other")
    d.stop(signal.SIGKILL)
with Tidemarkd(tmp, *DISK) as d, d.qmp() as q:
    check_equal(d.bitmaps(q)["b"]["count"], 65536, "after the kill")
    check_equal(backup(q, "b")["mode"], "incremental", "after the kill")
    check_equal(d.stop(), 0, "exit status")

# One that never can be written again: the server ends, killed or not, without
# having recorded it in it.  What was stored into the live page tells, also after
# a crash of the host if the page got to the disk.  (Else there is a note of it:
# test-store-notes.sh.)
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
        check("the store failed" in bitmap["reason"], "%r" % bitmap)
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
