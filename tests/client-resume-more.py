#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backups that go on, or cannot: client-resume-more.py TMP SHIM STEP.  A set that
is cut in its second disk, a level of compression, damaged journals, a client
that dies before it has noted its session or in the commit.
"""
import glob
import os
import signal
import sys

from client_world import World
from tidemarkd_util import TIMEOUT, check, check_equal, fail

M = 1 << 20
SIZE = 4 * M
tmp, shim, step = sys.argv[1], sys.argv[2], int(sys.argv[3])


def kill_at(w, size, *options):
    """Start a client that is killed when so many bytes have come."""
    w.data.at = (w.data.down + size, lambda: p.send_signal(signal.SIGKILL))
    p = w.client(*options)
    p.communicate(timeout=TIMEOUT)
    check_equal(p.returncode, -signal.SIGKILL, "status")
    w.data.cut()


def fill(w):
    """New data on both disks; what they are then."""
    for disk in w.disks:
        with open(tmp + "/data", "wb") as f:
            f.write(os.urandom(SIZE))
        check_equal(w.copy_in(disk, tmp + "/data"), 0, "a guest's writes")
    return {disk: w.content(disk) for disk in w.disks}


def check_stored(w, point, what):
    for disk in w.disks:
        check(w.restored(disk) == point[disk], "%s: %s" % (what, disk))
    check_equal(w.leftovers(), [], "leftovers")
    check_equal(w.q.execute("query-backups"), [], "sessions")


def names(events):
    return [e["event"] for e in events if e["event"] != "progress"]


def cut_in_the_second(w):
    point = fill(w)
    kill_at(w, SIZE * 3 // 2)
    w.write("vda", 0, M)
    w.write("vdb", 0, M)
    start = w.data.down
    events = w.run()
    check_equal(names(events), ["resumed", "disk-begin", "disk-resumed",
                                "disk-end", "stored", "stored"], "events")
    check_equal([e["disk"] for e in events if e["event"] == "disk-begin"],
                ["vdb"], "what is pulled")
    # How much of the second was stable depends on time; of the first all was.
    check(w.data.down - start < SIZE * 9 // 8, "pulled again: %d"
          % (w.data.down - start))
    check_stored(w, point, "cut in the second disk")


def damaged_journal(w, damage):
    point = fill(w)
    kill_at(w, SIZE * 3 // 2)
    # A kill may leave the next one, half written, beside it.
    journal, = [n for n in os.listdir(w.repo + "/vdb")
                if n.endswith(".journal.partial")]
    damage(w.repo + "/vdb/" + journal)
    events = w.run()
    check_equal(names(events), ["resumed", "warning", "disk-begin", "disk-end",
                                "stored", "stored"], "events")
    check("journal.partial: Bad message" in events[1]["message"],
          events[1]["message"])
    check_stored(w, point, "a damaged journal")


def damaged_run(w, damage):
    fill(w)
    kill_at(w, SIZE // 2)
    check_equal(len(w.q.execute("query-backups")), 1, "sessions")
    damage(w.repo + "/run.partial")
    point = {disk: w.content(disk) for disk in w.disks}
    events = w.run()
    check_equal(events[0]["event"], "not-resumed", "the first event")
    check_equal(events[0]["reason"], "run.partial cannot be read: Bad message",
                "reason")
    check_equal([e["mode"] for e in events if e["event"] == "disk-begin"],
                ["incremental"] * 2, "modes")
    check_stored(w, point, "a damaged run.partial")


def cut_short(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip_a_digit(path):
    """Of a number, so that it is still JSON."""
    with open(path) as f:
        text = f.read()
    at = max(i for i, c in enumerate(text)
             if c in "123" and text[i - 1] in " 0123456789"
             and "checksum" not in text[text.rfind("\n", 0, i):i])
    with open(path, "w") as f:
        f.write(text[:at] + chr(ord(text[at]) + 1) + text[at + 1:])


def same_level(w):
    """The rest is compressed as the beginning was."""
    sizes = {}
    repo = w.repo
    with open(tmp + "/data", "wb") as f:
        text = b"".join(open(path, "rb").read() for path in sorted(
            glob.glob(os.environ["top_srcdir"] + "/block/*.c")))
        f.write((text * (1 + SIZE // len(text)))[:SIZE])
    check_equal(w.copy_in("vda", tmp + "/data"), 0, "a guest's writes")
    for level in "9", "1", "cut":
        w.repo = repo + level
        options = ("--disk", "vda", "--mode", "copy", "--compress",
                   "zlib:" + level.replace("cut", "1"))
        if level == "cut":
            kill_at(w, SIZE // 4, *options)
        events = w.run(*options)
        check_equal(events[0]["event"] == "resumed", level == "cut", "resumed")
        sizes[level] = os.path.getsize(w.repo + "/vda/000001-full.qcow2")
    print("sizes", sizes)
    check(sizes["1"] > 1.1 * sizes["9"], "levels make no difference")
    check(sizes["cut"] > 0.96 * sizes["1"], "the level is lost")
    w.repo = repo


def run_file(w):
    try:
        with open(w.repo + "/run.partial") as f:
            return f.read()
    except FileNotFoundError:
        return ""


def killed_anywhere(w):
    """By the Nth call that changes a file, and run again."""
    n, unnoted = 0, 0
    while True:
        # The session is begun early; in the end comes the commit.
        n += 1 if n < 12 else step
        w.write("vda", 0, 65536, n)
        w.write("vdb", 0, 65536, n)
        p = w.client(env={"FAIL_HOW": "crash", "FAIL_NTH": str(n),
                          "FAIL_FIRED": tmp + "/fired", "LD_PRELOAD": shim})
        p.communicate(timeout=TIMEOUT)
        if p.returncode == 0:
            break
        check_equal(p.returncode, 99, "status of crash %d" % n)
        point = {disk: w.content(disk) for disk in w.disks}
        if w.q.execute("query-backups") and '"session": ""' in run_file(w):
            unnoted += 1
        p = w.client()
        out = p.communicate(timeout=TIMEOUT)[0]
        check_equal(p.returncode, 0, "status after crash %d" % n)
        check('"mode":"full"' not in out, "full after crash %d" % n)
        check_stored(w, point, "crash %d" % n)
    check(n > 20, "only %d calls" % n)
    check(unnoted > 0, "no session was left that is not noted")


for name in "vda", "vdb":
    with open("%s/%s.raw" % (tmp, name), "wb") as f:
        f.write(os.urandom(SIZE))
world = World(tmp, {"vda": "", "vdb": ""}, "--scratch-dir", tmp, rate=24 * M)
with world.d:
    world.run()
    print("cut in the second disk", flush=True)
    cut_in_the_second(world)
    print("damage", flush=True)
    damaged_journal(world, cut_short)
    damaged_journal(world, flip_a_digit)
    damaged_run(world, cut_short)
    damaged_run(world, flip_a_digit)
    print("level", flush=True)
    same_level(world)
    print("killed anywhere", flush=True)
    world.data.rate = 0
    world.run()
    killed_anywhere(world)
    check_equal(world.d.stop(), 0, "status of the server")
