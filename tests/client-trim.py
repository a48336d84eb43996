#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Under a guest that writes, scratch shrinks as the pull goes on, and what is
written behind it is not copied.  With one that overwrites the whole disk, a
step ahead of the pull, scratch holds no more than a part of it at any time:
client-trim.py TMP RATE.
"""
import os
import sys
import threading
import time

from client_world import World
from tidemarkd_util import TIMEOUT, check, check_equal

M = 1 << 20
SIZE = 16 * M
tmp, rate = sys.argv[1], int(sys.argv[2])


def state(w):
    disk, = w.q.execute("query-backups")[0]["disks"]
    return disk["scratch-bytes"], disk["copied-bytes"]


def reach(w, size, then=lambda: None):
    """An event that comes when so many bytes have been pulled."""
    event = threading.Event()
    w.data.at = (w.data.down + size, lambda: (then(), event.set()))
    return event


with open(tmp + "/vda.raw", "wb") as f:
    f.write(os.urandom(SIZE))
world = World(tmp, {"vda": ""}, "--scratch-dir", tmp, rate=rate)
with world.d:
    w = world
    # All of it has to go through scratch, for the guest is ahead of the pull.
    point = w.content("vda")
    begun = reach(w, M // 4, w.data.stall)
    p = w.client()
    check(begun.wait(TIMEOUT), "the pull did not begin")
    check_equal(w.write("vda", SIZE // 2, SIZE // 2), 0, "a guest's write")
    full, copied = state(w)
    check_equal(copied, SIZE // 2, "copied")
    check(full >= SIZE // 2, "scratch: %d" % full)
    late = reach(w, SIZE * 3 // 4)
    # The session does not end before we have looked.
    w.data.go()
    w.ctl.stall()
    check(late.wait(TIMEOUT), "the pull does not go on")
    least = full
    end = time.monotonic() + TIMEOUT
    while least > full * 7 // 8 and time.monotonic() < end:
        least = min(least, state(w)[0])
    print("scratch: %d, then %d" % (full, least))
    check(least <= full * 7 // 8, "scratch does not shrink: %d" % least)
    check_equal(w.write("vda", 0, SIZE // 4), 0, "a guest's write")
    check_equal(state(w)[1], copied, "copied behind the pull")
    w.go()
    p.communicate(timeout=TIMEOUT)
    check_equal(p.returncode, 0, "status")
    check(w.restored("vda") == point, "what was stored")
    with open(tmp + "/log", "w") as f:
        f.write("%s" % w.run("--mode", "incremental"))
    check(w.restored("vda") == w.content("vda"), "the next one")
    check_equal(w.d.stop(), 0, "status of the server")

# A guest that is always a step ahead and overwrites nearly all of the disk
# before it is pulled.  While it writes no data comes.  What scratch holds then
# has not been trimmed yet: at most one trim is under way, its answer comes
# behind what was asked for before it, at most MEMORY, and it was sent when all
# that had come before the answer to the last one was stored.
SIZE, STEP, MEMORY = 64 * M, 4 * M, 8 * M
tmp += "/bound"
os.mkdir(tmp)
with open(tmp + "/vda.raw", "wb") as f:
    f.write(os.urandom(SIZE))
world = World(tmp, {"vda": ""}, "--scratch-dir", tmp)
with world.d:
    w = world
    point = w.content("vda")
    seen, done = [], threading.Event()

    def step(k):
        # A client that is slow to store is slow to trim: it gets more time, and
        # then the answer that it may be waiting for.
        end = time.monotonic() + TIMEOUT / 4
        while state(w)[0] + STEP > SIZE // 2 and time.monotonic() < end:
            time.sleep(0.01)
        if state(w)[0] + STEP > SIZE // 2:
            w.data.at = (w.data.down + STEP // 8, lambda: step(k))
            return
        w.write("vda", (k + 1) * STEP, STEP)
        seen.append(state(w))
        if (k + 2) * STEP < SIZE:
            w.data.at = ((k + 1) * STEP, lambda: step(k + 1))
        else:
            done.set()

    w.data.at = (STEP // 4, lambda: step(0))
    # The client keeps 28 MiB for other things.
    p = w.client("--memory", "%dM" % (28 + MEMORY // M))
    check(done.wait(TIMEOUT * 3), "the pull does not go on")
    p.communicate(timeout=TIMEOUT)
    check_equal(p.returncode, 0, "status")
    peak, copied = max(s[0] for s in seen), seen[-1][1]
    print("copied %d, scratch at most %d" % (copied, peak))
    check(copied >= SIZE * 3 // 4, "nothing is given back: %s" % seen)
    check(peak <= SIZE // 2, "scratch is too large: %s" % seen)
    check(w.restored("vda") == point, "what was stored, under writes")
    check_equal(w.d.stop(), 0, "status of the server")
