#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""All the ways in which a backup's session ends, in the middle of its pull:
client-ends.py TMP.  After each the bitmaps have all that they should, no
export, session or scratch file is left, and the next run is an incremental
that leaves nothing unfinished and restores to the disk.
"""
import json
import os
import signal
import subprocess
import sys
import threading

from client_world import World, messages, wait_message
from tidemarkd_util import TIMEOUT, check, check_equal

K = 1 << 10
M = 1 << 20
tmp = sys.argv[1]
scratch = tmp + "/scratch"
SIZES = {"vda": 8 * M, "vdb": 4 * M}


# What happens in the middle of the pull; returns after it has.  The reason of
# the session's end is waited for here if there is an event.
def success(w, p):
    w.go()


def abort(w, p):
    p.send_signal(signal.SIGTERM)
    w.ended("abort")
    w.go()


def abort_in_a_call(w, p):
    """What it waits for breaks off; the last word takes another connection."""
    w.ctl.stall()
    w.data.cut()
    w.data.go()
    wait_message(tmp, p, "trying to go on")
    p.send_signal(signal.SIGTERM)
    w.ctl.go()
    w.ended("abort")


def lease_over(w, p):
    p.send_signal(signal.SIGSTOP)
    w.ended("lease")
    p.send_signal(signal.SIGCONT)
    w.go()


def scratch_full(w, p):
    check_equal(w.write("vda", 0, 2 * M), 0, "a write of the guest")
    w.ended("scratch")
    w.go()


def scratch_full_of_one(w, p):
    check_equal(w.write("vda", 0, 2 * M), 0, "a write of the guest")
    w.go()


def scratch_full_breaks_write(w, p):
    check(w.write("vdb", 0, 2 * M), "a write of the guest has not failed")
    w.go()


def server_killed(w, p):
    # For the client, which nobody tells, the session may still be there.
    w.restart(signal.SIGKILL, lambda: p.wait(TIMEOUT))


def server_ended(w, p):
    w.restart(signal.SIGTERM)


def client_killed(w, p):
    p.kill()
    w.go()


def client_killed_lease(w, p):
    p.kill()
    w.ended("lease")
    w.go()


def network_cut(w, p):
    w.cut()
    w.ended("lease")
    p.wait(TIMEOUT)
    w.go()


def disk_removed(w, p):
    w.refused("in use", "blockdev-del", {"node-name": "vdc"})
    w.go()


def disk_resized(w, p):
    w.refused("backup", "block_resize", {"device": "vda", "size": 16 * M})
    w.go()


# (what happens, options, status of the client, the next run's first event, and
# what the client says of it)
SHORT = ("--lease", "3", "--retry", "1")
TABLE = (
    (success, (), 0, None),
    (abort, (), 4, None),
    (abort_in_a_call, (), 4, None),
    (lease_over, SHORT, 1, None, "it has ended (lease)"),
    (scratch_full, ("--retry", "1"), 1, None, "it has ended (scratch)"),
    (scratch_full_of_one, ("--retry", "1", "--partial-ok"), 5, None,
     "as it was at the point: No space left on device"),
    (scratch_full_breaks_write, (), 0, None),
    (server_killed, ("--retry", "1"), 1, "not-resumed"),
    (server_ended, ("--retry", "60"), 1, None),
    (client_killed, (), -signal.SIGKILL, "resumed"),
    (client_killed_lease, SHORT, -signal.SIGKILL, "not-resumed"),
    (network_cut, SHORT, 1, "not-resumed"),
    (disk_removed, (), 0, None),
    (disk_resized, (), 0, None),
)


def dirty(w):
    """Bytes in the repository's bitmap of each disk, none of them busy."""
    with open(w.repo + "/tidemark.json") as f:
        name = "tidemark-" + json.load(f)["id"]
    result = {}
    for disk in SIZES:
        b = w.d.bitmaps(w.q, disk)[name]
        check_equal((b["busy"], b["recording"], b["status"]),
                    (False, True, "active"), "the bitmap of " + disk)
        result[disk] = b["count"]
    return result


def open_files(pid):
    """What the process has open; it may close some of it meanwhile."""
    fds = "/proc/%d/fd/" % pid
    for n in os.listdir(fds):
        try:
            yield os.readlink(fds + n)
        except FileNotFoundError:
            pass


def check_nothing_left(w):
    check_equal(w.q.execute("query-backups"), [], "sessions")
    out = subprocess.run(["nbdinfo", "--list", "--json",
                          "nbd+unix:///?socket=" + w.d.backup],
                         stdout=subprocess.PIPE, check=True,
                         timeout=TIMEOUT).stdout
    check_equal(json.loads(out).get("exports"), [], "exports")
    check_equal(os.listdir(scratch), [], "scratch")
    check_equal([n for n in open_files(w.d.process.pid)
                 if n.startswith(scratch)], [], "scratch files")


def check_run(w, first):
    """A run that ends in success and leaves nothing."""
    events = w.run()
    check_equal(events[0]["event"] if "resumed" in events[0]["event"]
                else None, first, "first event")
    for e in events:
        if e["event"] == "disk-begin" and e["disk"] != "vdc":
            check_equal(e["mode"], "incremental", "mode, as " + e["why"])
    check_equal(w.leftovers(), [], "leftovers")


def one(w, happens, options, status, first, said=None):
    print("---- %s" % happens.__name__, flush=True)
    w.write("vda", 0, 4 * M, 1)
    w.write("vdb", 0, 2 * M, 2)
    if happens == disk_removed:
        w.q.execute("blockdev-add", {"driver": "null-co", "size": M,
                                     "node-name": "vdc"})
    before = {disk: w.content(disk) for disk in SIZES}
    reached = threading.Event()
    w.data.at = (w.data.down + 256 * K, lambda: (w.data.stall(),
                                                 reached.set()))
    p = w.client(*options)
    check(reached.wait(TIMEOUT), "the pull did not get far")
    # What is written meanwhile is not in this backup, and in the next one.
    w.write("vda", 64 * K, 64 * K, 3)
    w.write("vda", 6 * M, 64 * K, 3)
    happens(w, p)
    p.communicate(timeout=TIMEOUT)
    check_equal(p.returncode, status, "status of the client")
    if said:
        err = messages(tmp).splitlines()
        check(said in err[-1] and "could not be told" not in "".join(err),
              "messages: %s" % err)
        # And nothing of each read that fails for it.
        check(status == 5 or "failed" not in "".join(err),
              "messages: %s" % err)
    if first == "resumed":
        check_equal(len(w.q.execute("query-backups")), 1, "sessions")
    else:
        check_nothing_left(w)
        meanwhile = {"vda": 128 * K, "vdb": 0}
        all_of_it = {"vda": 4 * M + 64 * K, "vdb": 2 * M}
        got = dirty(w)
        if happens == scratch_full_breaks_write:
            # Marked, and not written.
            check(0 < got["vdb"] <= 2 * M, "the bitmap of vdb")
            got["vdb"] = 0
        if status == 5:
            meanwhile["vda"] = all_of_it["vda"]
        check_equal(got, meanwhile if status in (0, 5) else all_of_it, "dirty")
    if status == 0:
        check_equal({disk: w.restored(disk) == before[disk] for disk in SIZES},
                    {disk: True for disk in SIZES}, "what was stored")
    if first is None:
        check_equal(w.leftovers(), [], "leftovers")
    check_run(w, first)
    if first == "resumed":
        check_equal(w.restored("vda") == before["vda"], True, "what was resumed")
        check_run(w, None)
    check_nothing_left(w)
    check_equal(dirty(w), {"vda": 0, "vdb": 0}, "dirty after all")
    for disk in SIZES:
        check(w.restored(disk) == w.content(disk), "the next backup of " + disk)
    if happens == disk_removed:
        w.q.execute("blockdev-del", {"node-name": "vdc"})


os.mkdir(scratch)
for name, size in SIZES.items():
    with open("%s/%s.raw" % (tmp, name), "wb") as f:
        f.write(os.urandom(size))
world = World(tmp, {"vda": "", "vdb": ",on-scratch-error=break-guest-write"},
              "--scratch-dir", scratch, "--scratch-limit", "1M")
with world.d:
    world.run()
    try:
        for row in TABLE:
            one(world, *row)
        check_equal(world.d.stop(), 0, "status of the server")
    finally:
        # It is another process than in the beginning.
        if world.d.process.poll() is None:
            world.d.process.kill()
            world.d.wait()
