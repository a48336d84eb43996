#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A store that is of no use never makes the disk unusable: what it had is
# inconsistent, for a reason that is said, and the next backup is a full one.
# Changes behind our back are seen after a clean end and after kill -9.  Two
# servers cannot have one store.
. "${srcdir:-.}/control-test.sh"
export TIDEMARK=$tidemark
timeout 200 python3 - "$tmp" <<'END'
import os
import shutil
import signal
import struct
import subprocess
import sys
from store_util import LIVE, LIVE_SLOT, next_tick
from tidemarkd_util import Tidemarkd, check, check_equal, fail

tmp = sys.argv[1]
RAW = tmp + "/vda.raw"
STORE = RAW + ".tidemark"
DISK = ["--disk", "vda,file=" + RAW, "--bitmap", "vda/b"]
SLOT = 128 * 1024


def server(**more):
    return Tidemarkd(tmp, *DISK, **more)


def backup(q):
    """Mode auto: (mode, why)."""
    s = q.execute("backup-begin", {"bitmap": "b"})
    q.execute("backup-end", {"id": s["id"], "success": True})
    return s["disks"][0]["mode"], s["disks"][0]["why"]


def fresh(sig=signal.SIGTERM):
    """A disk and a store with a bitmap that counts from a point."""
    for name in os.listdir(tmp):
        if name.startswith("vda."):
            os.unlink(tmp + "/" + name)
    with open(RAW, "wb") as f:
        f.truncate(16 << 20)
    with server() as d, d.qmp() as q:
        backup(q)
        d.write("vda", 1 << 20, 65536)
        check_equal(backup(q)[0], "incremental", "mode")
        d.write("vda", 2 << 20, 65536)
        d.stop(sig)


def edit(path, off, data):
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)


def expect_inconsistent(what, text):
    """It serves, says why, and recovers by a full backup."""
    with server() as d, d.qmp() as q:
        b = d.bitmaps(q)["b"]
        check(b.get("inconsistent"), what + ": is believed")
        check(text in b["reason"], "%s: reason %r" % (what, b["reason"]))
        d.write("vda", 3 << 20, 65536)
        mode, why = backup(q)
        check_equal(mode, "full", what)
        check(text[:20] in why, "%s: why %r" % (what, why))
        check_equal(backup(q)[0], "incremental", what + ", the next")
        check_equal(d.stop(), 0, "exit status")


def expect_sound(what):
    with server() as d, d.qmp() as q:
        b = d.bitmaps(q)["b"]
        check("inconsistent" not in b, "%s: %s" % (what, b))
        check_equal(b["count"], 65536, what)
        check_equal(d.stop(), 0, "exit status")


def tool(action, path, status):
    r = subprocess.run([os.environ["TIDEMARK"], "store", action, path],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = r.stdout.decode()
    check_equal(r.returncode, status, "store %s: %s" % (action, out))
    return out


# Nothing happens: nothing is lost.
for sig in signal.SIGTERM, signal.SIGKILL:
    fresh(sig)
    expect_sound("signal %d" % sig)

# Another program writes to the disk in between.
for sig in signal.SIGTERM, signal.SIGKILL:
    fresh(sig)
    next_tick()
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write 5M 4k", RAW],
                   check=True, stdout=subprocess.DEVNULL)
    expect_inconsistent("edited after signal %d" % sig,
                        "another program has changed the disk")

# As soon as the clock of files goes on.
for sig in signal.SIGTERM, signal.SIGKILL:
    fresh(sig)
    next_tick()
    edit(RAW, 5 << 20, b"edited")
    expect_inconsistent("edited at once after signal %d" % sig,
                        "another program has changed the disk")

# A write was in progress when the process was killed: it may have come to the
# disk within 10 s, and nothing later.
for age, is_seen in (8, False), (12, True):
    fresh(signal.SIGKILL)
    edit(STORE, LIVE + LIVE_SLOT, struct.pack("<I", 1))
    last = os.stat(RAW).st_mtime_ns + age * 10 ** 9
    os.utime(RAW, ns=(last, last))
    if is_seen:
        expect_inconsistent("12 s after a write in progress",
                            "another program has changed the disk")
    else:
        expect_sound("8 s after the start of a write")

# The disk and its store move together.
fresh()
os.rename(RAW, tmp + "/vda.moved")
os.rename(STORE, tmp + "/vda.moved.tidemark")
with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.moved" % tmp) as d, \
        d.qmp() as q:
    check_equal(d.bitmaps(q)["b"]["count"], 65536, "moved")

# Another file, another size.
fresh()
shutil.copyfile(RAW, tmp + "/copy")
os.rename(tmp + "/copy", RAW)
expect_inconsistent("another file", "the store belongs to another file")
# It has taken the place of the disk while that was served.
fresh()
with server() as d:
    shutil.copyfile(RAW, tmp + "/copy")
    os.rename(tmp + "/copy", RAW)
    d.write("vda", 4 << 20, 65536)
    check_equal(d.stop(), 0, "exit status")
expect_inconsistent("replaced while served",
                    "the store belongs to another file")
fresh()
os.truncate(RAW, 32 << 20)
expect_inconsistent("another size", "the disk has 33554432 bytes now")

# One slot damaged: the other one is as good.
for slot in 0, 1:
    fresh()
    edit(STORE, slot * SLOT + 100, b"x" * 8)
    check("damaged: slot " + "AB"[slot] in tool("check", STORE, 3), "check")
    expect_sound("slot %d damaged" % slot)
    check("sound, 1 bitmaps" in tool("check", STORE, 0), "check")

# Both: a new store, the old one kept.
fresh()
for slot in 0, 1:
    edit(STORE, slot * SLOT + 100, b"x" * 8)
tool("check", STORE, 3)
expect_inconsistent("both slots damaged", "the store was damaged")
check(os.path.exists(STORE + ".damaged"), "the old store is gone")

# Truncated, in the middle and to nothing.
fresh()
os.truncate(STORE, 2 * SLOT + 4096)
check("truncated" in tool("check", STORE, 3), "check")
expect_inconsistent("truncated", "the store was damaged")
fresh()
os.truncate(STORE, 0)
expect_inconsistent("emptied", "the store was damaged")

# Bits that rot between two runs.
fresh()
with open(STORE, "rb") as f:
    f.seek(512 + 40)            # bits of the first record
    bits, = struct.unpack("<Q", f.read(8))
edit(STORE, bits + 24, b"\xff")
check("checksum" in tool("check", STORE, 3), "check")
expect_inconsistent("bits damaged", "the checksum of its bits")

# A newer version, or no store at all: it is left alone.
for what, data, text in (("newer", struct.pack("<I", 99), "format version 99"),
                         ("foreign", None, "not a Tidemark store")):
    fresh()
    if data:
        for slot in 0, 1:
            edit(STORE, slot * SLOT + 8, data)
    else:
        with open(STORE, "wb") as f:
            f.write(b"something else " * 100000)
    with open(STORE, "rb") as f:
        before = f.read()
    check(text in tool("check", STORE, 1), what)
    expect_inconsistent(what, text)
    with open(STORE, "rb") as f:
        check_equal(f.read() == before, True, what + ": left alone")

# Two servers: the lock dies with its holder.
fresh()
with open(tmp + "/vdb.raw", "wb") as f:
    f.truncate(16 << 20)
with server() as d:
    command = [os.environ["TIDEMARKD"], "--disk",
               "vdb,file=%s/vdb.raw,store=%s" % (tmp, STORE),
               "--listen", "unix:%s/other" % tmp]
    r = subprocess.run(command, stderr=subprocess.PIPE, timeout=30)
    check_equal(r.returncode, 1, "exit status")
    check(b"is in use by another process" in r.stderr, r.stderr)
    check("bitmap: b" in tool("info", STORE, 0), "info while in use")
    d.stop(signal.SIGKILL)
expect_sound("after the other one")

# No store: in memory, and said; or refused if it was asked for.
NONE = ["--disk", "vda,file=%s,store=none" % RAW]
fresh()
os.unlink(STORE)
with Tidemarkd(tmp, *NONE, "--bitmap", "vda/b") as d, d.qmp() as q:
    check_equal(d.bitmaps(q)["b"]["persistent"], False, "persistent")
    check("kept in memory only" in d.messages(), d.messages())
    check(not os.path.exists(STORE), "a store")
r = subprocess.run([os.environ["TIDEMARKD"], *NONE, "--bitmap",
                    "vda/b,persistent=on", "--listen", "unix:%s/o" % tmp],
                   stderr=subprocess.PIPE, timeout=30)
check_equal(r.returncode, 1, "exit status")
check(b"cannot be persistent" in r.stderr, r.stderr)
END
