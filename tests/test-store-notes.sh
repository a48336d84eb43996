#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A store that cannot say that its bitmaps are not to be trusted: it has failed
# and can neither be marked nor removed, or could not be opened when the disk was
# served.  That is noted elsewhere, and the next start finds it, also after a
# crash of the host within a minute, and where a disk has no time of change; then
# the note is gone.  Where no note can be made, an event and the log say so.
. "${srcdir:-.}/control-test.sh"
requires nbdkit
shim=$top_builddir/tests/fail-store.so
preload=$shim
case $sanitizers in
    *address*) preload="$(${CC:-gcc} -print-file-name=libasan.so) $shim" ;;
    *thread*) preload="$(${CC:-gcc} -print-file-name=libtsan.so) $shim" ;;
esac
mkdir "$tmp/disk" "$tmp/store" "$tmp/scratch"
truncate -s 64M "$tmp/disk/vda.raw"
nbdkit -U "$tmp/nbd.sock" -P "$tmp/nbd.pid" memory 64M
test_cleanup+=("kill \$(cat '$tmp/nbd.pid')")
timeout 200 python3 - "$tmp" "$preload" <<'END'
import os
import signal
import sys
from store_util import crash_host, lose_live_page, SLOTS
from tidemarkd_util import Tidemarkd, check, check_equal

tmp, preload = sys.argv[1:]
RAW, DEAD, STORE = tmp + "/disk/vda.raw", tmp + "/dead", tmp + "/store/s.tidemark"
MORE = ["--bitmap", "vda/b", "--scratch-dir", tmp + "/scratch"]
FILE = ["--disk", "vda,file=%s,store=%s" % (RAW, STORE)] + MORE
NBD = ["--disk", "vda,file=nbd+unix:///?socket=%s/nbd.sock,store=%s"
       % (tmp, STORE)] + MORE
FIRST = 1000                    # seconds since 1970


def notes():
    """Where there are some now."""
    found = []
    if any("tidemark" in name for name in os.listxattr(RAW)):
        found.append("attribute")
    for name in "disk", "store", "scratch":
        if any(note.startswith("tidemark-failed-")
               for note in os.listdir(tmp + "/" + name)):
            found.append(name)
    return found


def backup(q):
    s = q.execute("backup-begin", {"bitmap": "b"})
    q.execute("backup-end", {"id": s["id"], "success": True})
    return s["disks"][0]["mode"]


def fresh(disk, sig=signal.SIGTERM):
    """The bitmap counts from a point, and a block has changed."""
    with Tidemarkd(tmp, *disk) as d, d.qmp() as q:
        backup(q)
        check_equal(backup(q), "incremental", "mode")
        d.write("vda", 1 << 20, 65536)
        d.stop(sig)


def broken(disk, deny):
    return Tidemarkd(tmp, *disk, env={"LD_PRELOAD": preload, "FAIL_WHILE": DEAD,
                                      "FAIL_NOTES": deny})


def expect_inconsistent(disk, what, text):
    with Tidemarkd(tmp, *disk) as d, d.qmp() as q:
        bitmap = d.bitmaps(q)["b"]
        check_equal(bitmap["status"], "inconsistent", what)
        check(text in bitmap["reason"], "%s: %r" % (what, bitmap))
        check_equal(notes(), [], what + ": it is found once")
        check_equal(backup(q), "full", what)
        d.write("vda", 2 << 20, 65536)
        d.stop(signal.SIGKILL)
    expect_active(disk, what + ", the next")


def expect_active(disk, what, count=65536):
    with Tidemarkd(tmp, *disk) as d, d.qmp() as q:
        bitmap = d.bitmaps(q)["b"]
        check_equal((bitmap["status"], bitmap["count"]), ("active", count),
                    "%s: %r" % (what, bitmap))
        check_equal(notes(), [], what)
        check_equal(d.stop(), 0, what)


# It fails, and the machine dies less than a minute later.
def die(disk, deny, age):
    fresh(disk)
    with broken(disk, deny) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["status"], "active", deny)
        open(DEAD, "w").close()
        d.write("vda", 40 << 20, 4096)
        event = q.wait_event("BITMAP_INCONSISTENT")["data"]
        d.write("vda", 20 << 20, 4096)
        d.stop(signal.SIGKILL)
    os.unlink(DEAD)
    with open(STORE, "rb") as f:
        for off in SLOTS:
            f.seek(off + 28)
            check_equal(f.read(1)[0] & 2, 0, "nothing is recorded in it")
    crash_host(RAW, STORE)
    lose_live_page(STORE, FIRST)
    os.utime(RAW, (FIRST + age, FIRST + age))
    return event["reason"]


for disk, deny, place in ((FILE, "", "attribute"),
                          (FILE, "attribute", "disk"),
                          (NBD, "", "store"),
                          (NBD, tmp + "/store", "scratch")):
    reason = die(disk, deny, 30)
    check("may hide" not in reason, reason)
    check_equal(notes(), [place], "notes without %r" % deny)
    expect_inconsistent(disk, place, "could only be noted elsewhere")

# What docs/format.md says of the rest.
for age, is_seen in (61, True), (59, False):
    reason = die(FILE, "notes", age)
    check("; a crash of the host may hide this" in reason, reason)
    check_equal(notes(), [], "notes that cannot be made")
    with Tidemarkd(tmp, *FILE) as d, d.qmp() as q:
        check_equal(d.bitmaps(q)["b"]["status"],
                    "inconsistent" if is_seen else "active", "age %d" % age)
        check_equal(d.stop(), 0, "exit status")


# It cannot be opened at the start, and the disk changes.
def serve_without(disk, deny, is_written=True):
    os.rename(STORE, STORE + ".away")
    os.symlink(STORE, STORE)
    open(DEAD, "w").close()
    with broken(disk, deny) as d, d.qmp() as q:
        bitmap = d.bitmaps(q)["b"]
        check_equal(bitmap["status"], "inconsistent", "without")
        check("Too many levels" in bitmap["reason"], bitmap["reason"])
        if is_written:
            d.write("vda", 20 << 20, 4096)
        messages = d.messages()
        check_equal(d.stop(), 0, "exit status")
    os.unlink(DEAD)
    os.rename(STORE + ".away", STORE)
    return messages


for disk, deny, place in ((FILE, "", "attribute"), (NBD, "", "store"),
                          (NBD, tmp + "/store", "scratch")):
    for sig in signal.SIGTERM, signal.SIGKILL:
        fresh(disk, sig)
        check("nowhere" not in serve_without(disk, deny), "nowhere")
        check_equal(notes(), [place], "notes of one that is missing")
        expect_inconsistent(disk, place, "when the store could not be opened")
fresh(NBD)
check("noted nowhere" in serve_without(NBD, "all"), "where?")
check_equal(notes(), [], "notes")
# Nothing has changed: the time of a file tells.
fresh(FILE)
serve_without(FILE, "", False)
check_equal(notes(), ["attribute"], "notes")
expect_active(FILE, "nothing has changed")

# It is renamed if that is all that works.
fresh(NBD)
open(DEAD, "w").close()
with broken(NBD, "notes") as d, d.qmp() as q:
    check_equal(d.bitmaps(q)["b"]["status"], "inconsistent", "renamed")
    d.write("vda", 20 << 20, 4096)
    check_equal(d.stop(), 0, "exit status")
os.unlink(DEAD)
check(os.path.exists(STORE + ".damaged"), "it is not renamed")
with Tidemarkd(tmp, *NBD) as d, d.qmp() as q:
    check("base" not in d.bitmaps(q)["b"], "a base point after all")
    check_equal(d.stop(), 0, "exit status")
END
