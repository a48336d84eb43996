# SPDX-License-Identifier: BSD-3-Clause
"""What a store's file is, for tests that change one (docs/format.md)."""
import os
import struct
import time
import zlib

SLOT_SIZE = 128 * 1024
SLOTS = (0, SLOT_SIZE)


CLOCK_REALTIME_COARSE = 5       # of files' times


def next_tick():
    """What a file is given as its time from now on is later than all that was
    until now."""
    tick = time.clock_gettime(CLOCK_REALTIME_COARSE)
    while time.clock_gettime(CLOCK_REALTIME_COARSE) == tick:
        pass


def crash_host(disk, store):
    """Both slots of the store were written when the machine ran for another
    time, and the disk was last changed then."""
    with open(store, "r+b") as f:
        for off in SLOTS:
            f.seek(off)
            slot = bytearray(f.read(SLOT_SIZE))
            slot = slot[:struct.unpack_from("<I", slot, 12)[0]]
            slot[56:72] = b"x" * 16
            struct.pack_into("<Q", slot, 136, 0)
            struct.pack_into("<I", slot, 24, 0)
            struct.pack_into("<I", slot, 24, zlib.crc32(slot))
            f.seek(off)
            f.write(slot)
    os.utime(disk, (1, 1))


LIVE, LIVE_SLOT, NR_LIVE_SLOTS = 2 * SLOT_SIZE, 64, 32


def lose_live_page(store, last_change):
    """What is on the disk of the live page knows of no failure; it is as old as
    last_change, in seconds."""
    with open(store, "r+b") as f:
        f.seek(LIVE + 8)
        f.write(struct.pack("<I", 0))
        for i in range(1, NR_LIVE_SLOTS + 1):
            f.seek(LIVE + i * LIVE_SLOT)
            f.write(struct.pack("<IIQ", 0, 0, last_change * 10 ** 9))
