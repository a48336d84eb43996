#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backups that go on, or cannot: client-resume-more.py TMP SHIM STEP.  A set that
is cut in its second disk, a level of compression, damaged journals, a client
that dies before it has noted its session or in the commit.
"""
import glob
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time

from client_world import World, messages, wait_message
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


def kill_with_journal(w):
    """Killed when vda is complete and vdb has a journal: nothing more comes
    until that is there."""
    reached = threading.Event()

    def stall():
        w.data.stall()
        reached.set()

    w.data.at = (w.data.down + SIZE * 3 // 2, stall)
    p = w.client("--parallel", "1")
    check(reached.wait(TIMEOUT), "it does not get on")
    end = time.monotonic() + TIMEOUT
    while not glob.glob(w.repo + "/vdb/*[0-9]-inc.journal.partial"):
        check(time.monotonic() < end, "no journal")
        time.sleep(0.02)
    p.send_signal(signal.SIGKILL)
    p.communicate(timeout=TIMEOUT)
    check_equal(p.returncode, -signal.SIGKILL, "status")
    w.data.cut()
    w.data.go()


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
    kill_with_journal(w)
    w.write("vda", 0, M)
    w.write("vdb", 0, M)
    start = w.data.down
    events = w.run("--parallel", "1")
    check_equal(names(events), ["resumed", "disk-begin", "disk-resumed",
                                "disk-end", "stored", "stored"], "events")
    check_equal([e["disk"] for e in events if e["event"] == "disk-begin"],
                ["vdb"], "what is pulled")
    # How much of the second was stable depends on time; of the first all was.
    check(w.data.down - start < SIZE * 9 // 8, "pulled again: %d"
          % (w.data.down - start))
    check_stored(w, point, "cut in the second disk")


def cut_side_by_side(w):
    """Each disk goes on where it was, as far as it had come."""
    point = fill(w)
    kill_at(w, SIZE * 3 // 2)
    w.write("vda", 0, M)
    w.write("vdb", 0, M)
    start = w.data.down
    events = w.run()
    check_equal(names(events)[0], "resumed", "the first event")
    check_equal(names(events)[-2:], ["stored"] * 2, "the last ones")
    begun = [e["disk"] for e in events if e["event"] == "disk-begin"]
    check(begun and sorted(set(begun)) == sorted(begun), "%r begun" % begun)
    # How much was stable depends on time.
    check(w.data.down - start < SIZE * 17 // 8, "pulled again: %d"
          % (w.data.down - start))
    check_stored(w, point, "cut side by side")


def journal_of(w, disk):
    # A kill may leave the next one, half written, beside it.
    name, = [n for n in os.listdir(w.repo + "/" + disk)
             if n.endswith(".journal.partial")]
    return "%s/%s/%s" % (w.repo, disk, name)


def damaged_journal(w, damage, what):
    """vda is complete, vdb is not.  What is stored may be gone at the server: the
    session is ended and a new one begun."""
    fill(w)
    kill_with_journal(w)
    damage(journal_of(w, "vdb"))
    point = {disk: w.content(disk) for disk in w.disks}
    events = w.run()
    check_equal(events[0]["event"], "not-resumed", "the first event")
    check(what in events[0]["reason"], events[0]["reason"])
    check_equal([e["mode"] for e in events if e["event"] == "disk-begin"],
                ["incremental"] * 2, "modes")
    check_stored(w, point, "a damaged journal: " + what)


def seal(path, change):
    """Change what is in the file as if its writer had meant it."""
    with open(path) as f:
        o = json.load(f)
    del o["checksum"]
    change(o)
    head = json.dumps(o, indent=2)[:-2] + ",\n  "
    with open(path, "w") as f:
        f.write(head + '"checksum": "%s"\n}\n'
                % hashlib.sha256(head.encode()).hexdigest())


def other_disks(path):
    """The journal of vda, which is complete, in the place of vdb's."""
    shutil.copy(path.replace("/vdb/", "/vda/"), path)


def shorter_image(path):
    """The journal of vda says that its image is complete."""
    image = path.replace("/vdb/", "/vda/").replace(".journal.", ".qcow2.")
    os.chmod(image, 0o600)
    os.truncate(image, os.path.getsize(image) - 65536)


def other_run(w, change, reason):
    """A run.partial that its writer meant otherwise."""
    fill(w)
    kill_at(w, SIZE // 2)
    seal(w.repo + "/run.partial", change)
    point = {disk: w.content(disk) for disk in w.disks}
    sessions = [s["id"] for s in w.q.execute("query-backups")]
    events = w.run()
    check_equal(events[0]["event"], "not-resumed", "the first event")
    check(reason in events[0]["reason"], events[0]["reason"])
    for s in w.q.execute("query-backups"):
        check(s["id"] in sessions, "a new session is left")
        w.q.execute("backup-end", {"id": s["id"], "success": False})
    check_stored(w, point, "run.partial: " + reason)


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


def silent(w):
    """A server that is silent is not waited for longer than --timeout says, by
    a renewal of the lease either."""
    point = fill(w)
    reached = threading.Event()

    def stall():
        w.ctl.stall()
        w.data.stall()
        reached.set()

    w.data.at = (w.data.down + SIZE // 2, stall)
    p = w.client("--timeout", "1", "--lease", "15")
    check(reached.wait(TIMEOUT), "it does not get on")
    wait_message(tmp, p, "cannot renew the session's lease")
    check("the server does not answer" in messages(tmp), messages(tmp))
    w.cut()
    w.go()
    out = p.communicate(timeout=TIMEOUT)[0]
    check_equal(p.returncode, 0, "status")
    check('"connected-again"' in out, out)
    check_stored(w, point, "a silent server")


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
    cut_side_by_side(world)
    print("damage", flush=True)
    for damage, what in (
            (cut_short, "vdb: 000004-inc.journal.partial: Bad message"),
            (shorter_image, "inc.qcow2.partial is not as it was"),
            (other_disks, "it is another disk's")):
        damaged_journal(world, damage, what)
    damaged_run(world, cut_short)
    for change, reason in (
            (lambda o: o.update(version=2), "its journal cannot be read"),
            (lambda o: o.update(session="1" * 32), "the session is gone"),
            (lambda o: o["disks"][1].update(disk="vdc"),
             "its journal does not fit disk 'vdb'")):
        other_run(world, change, reason)
    print("silent", flush=True)
    silent(world)
    print("level", flush=True)
    same_level(world)
    print("killed anywhere", flush=True)
    world.data.rate = 0
    world.run()
    killed_anywhere(world)
    check_equal(world.d.stop(), 0, "status of the server")
