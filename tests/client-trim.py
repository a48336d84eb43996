#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Under a guest that writes, scratch shrinks as the pull goes on, and what is
written behind it is not copied: client-trim.py TMP RATE.
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
