#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A store on a file system that is full.  What it needs while it works is there
# from the start: guests' writes and incremental backups go on and nothing is
# lost; what needs more room is refused.  Where it has lost its room, the disk is
# served without it, and a full backup says why.  And one that cannot be written
# in place for want of room fails: its bitmaps are inconsistent at once, durably.
#
# The file system is a tmpfs in a mount namespace of our own.
if [ "${1:-}" != inside ]; then
    for flags in -m -rm; do
        if unshare $flags mount -t tmpfs none /mnt 2>/dev/null; then
            exec unshare $flags "$0" inside
        fi
    done
fi
. "${srcdir:-.}/control-test.sh"
shim=$top_builddir/tests/fail-store.so
preload=$shim
case $sanitizers in
    *address*) preload="$(${CC:-gcc} -print-file-name=libasan.so) $shim" ;;
    *thread*) preload="$(${CC:-gcc} -print-file-name=libtsan.so) $shim" ;;
esac
mkdir "$tmp/small"
if [ "${1:-}" = inside ]; then
    mount -t tmpfs -o size=1m none "$tmp/small"
    test_cleanup+=("umount '$tmp/small'")
else
    echo "no mount namespace: without a file system that is really full"
fi
timeout 120 python3 - "$tmp" "${1:-}" "$preload" <<'PYTHON'
import errno
import os
import shutil
import signal
import subprocess
import sys
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, fail

tmp, inside, preload = sys.argv[1:]
SMALL = tmp + "/small"
STORE = SMALL + "/store.tidemark"
DISKS = ["--disk", "vda,file=%s/vda.raw,store=%s" % (tmp, STORE),
         "--bitmap", "vda/b,granularity=4k",
         "--disk", "vdb,file=%s/vdb.raw" % tmp,
         "--bitmap", "vdb/b,granularity=4k"]
NO_SPACE = "No space left on dev"
SIZE = 256 << 20


def refuse(q, command, **arguments):
    try:
        q.execute(command, arguments)
        fail("%s %r succeeds" % (command, arguments))
    except QmpError as e:
        check(NO_SPACE in e.desc, e.desc)


def fill(leave=0):
    """To the last byte, or nearly."""
    with open(SMALL + "/filler", "ab", buffering=0) as f:
        for n in 65536, 4096, 1:
            try:
                while True:
                    f.write(b"x" * n)
            except OSError as e:
                check_equal(e.errno, errno.ENOSPC, "filling")
        f.truncate(f.tell() - leave)


def backup(q, disks=("vda", "vdb")):
    """Mode auto: name -> (mode, why)"""
    s = q.execute("backup-begin", {"bitmap": "b", "disks":
                                   [{"disk": d} for d in disks]})
    q.execute("backup-end", {"id": s["id"], "success": True})
    return {d["disk"]: (d["mode"], d["why"]) for d in s["disks"]}


def expect_full_of_vda(q, what, text, disks=("vda", "vdb")):
    modes = backup(q, disks)
    mode, why = modes.pop("vda")
    check_equal(mode, "full", what)
    check(text in why, "%s: %s" % (what, why))
    for mode, why in modes.values():
        check_equal(mode, "incremental", "%s: %s" % (what, why))


def full():
    with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
        backup(q)
        # Two threads may make room for the next backup at once.
        fill(leave=16384)
        d.write("vda", 1 << 20, 4096)
        d.write("vda", 200 << 20, 4096)
        refuse(q, "block-dirty-bitmap-add", node="vda", name="large",
               granularity=512, persistent=True)
        refuse(q, "block_resize", device="vda", size=1 << 40)
        check_equal(os.path.getsize(tmp + "/vda.raw"), SIZE, "size")
        d.stop(signal.SIGKILL)
    with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["count"], 8192, "after a kill")
        for i in range(3):
            d.write("vda", i << 20, 4096)
            check_equal(backup(q)["vda"][0], "incremental", "mode")
        d.write("vda", 7 << 20, 4096)
        check_equal(d.stop(), 0, "exit status")
    with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["count"], 4096, "after a clean end")
        check_equal(d.stop(), 0, "exit status")

    # The store comes back from a copy that has left out its zeroes, and there
    # is no room for them any more.
    os.unlink(SMALL + "/filler")
    subprocess.run(["cp", "--sparse=always", STORE, tmp + "/copy"], check=True)
    subprocess.run(["cp", "--sparse=always", tmp + "/copy", STORE + ".2"],
                   check=True)
    os.rename(STORE + ".2", STORE)
    fill()
    with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
        bitmap = d.bitmaps(q)["b"]
        check_equal(bitmap["status"], "inconsistent", "without room")
        check(NO_SPACE in bitmap["reason"], bitmap["reason"])
        for i in range(0, SIZE, 16 << 20):
            d.write("vda", i, 4096)
        expect_full_of_vda(q, "without room", NO_SPACE)
        check_equal(d.bitmaps(q)["b"]["persistent"], False, "persistent")
        # Now there is room: for the bitmap, if it is made anew.
        os.unlink(SMALL + "/filler")
        q.execute("block-dirty-bitmap-remove", {"node": "vda", "name": "b"})
        expect_full_of_vda(q, "with room", NO_SPACE)
        check_equal(d.bitmaps(q)["b"]["persistent"], True, "persistent")
        d.write("vda", 5 << 20, 4096)
        d.stop(signal.SIGKILL)
    with Tidemarkd(tmp, *DISKS) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["count"], 65536, "with room again")
        check_equal(backup(q)["vda"][0], "incremental", "with room again")
        check_equal(d.stop(), 0, "exit status")


def cannot_overwrite():
    """As where a block is written to a new place, or gets one late."""
    dead = tmp + "/dead"
    with Tidemarkd(tmp, *DISKS[:4], env={"LD_PRELOAD": preload, "FAIL_WHILE": dead,
                                     "FAIL_AS": "full"}) as d, d.qmp() as q:
        backup(q, ["vda"])
        d.write("vda", 1 << 20, 4096)
        open(dead, "w").close()
        d.write("vda", 100 << 20, 4096)
        event = q.wait_event("BITMAP_INCONSISTENT")["data"]
        check_equal((event["node"], event["bitmap"]), ("vda", "b"), "event")
        check(NO_SPACE in event["reason"], event["reason"])
        check_equal(d.bitmaps(q)["b"]["status"], "inconsistent", "status")
        check(not os.path.exists(STORE), "what cannot be written is removed")
        d.write("vda", 50 << 20, 4096)
        expect_full_of_vda(q, "while it is full", NO_SPACE, ["vda"])
        check_equal(d.bitmaps(q)["b"]["persistent"], False, "persistent")
        d.stop(signal.SIGKILL)
    os.unlink(dead)
    with Tidemarkd(tmp, *DISKS[:4]) as d, d.qmp() as q:
        check("base" not in d.bitmaps(q)["b"], "a base point after all")
        expect_full_of_vda(q, "the next one", "no base point", ["vda"])
        check_equal(d.bitmaps(q)["b"]["persistent"], True, "persistent")
        check_equal(d.stop(), 0, "exit status")


for name in "vda", "vdb":
    with open("%s/%s.raw" % (tmp, name), "wb") as f:
        f.truncate(SIZE)
if inside:
    full()
cannot_overwrite()
PYTHON
