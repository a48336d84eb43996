# SPDX-License-Identifier: BSD-3-Clause
"""What a store's file is, for tests that change one (docs/format.md)."""
import os
import struct
import zlib

SLOT_SIZE = 128 * 1024
SLOTS = (0, SLOT_SIZE)


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
