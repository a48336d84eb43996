#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Block status: contexts, limits, lengths near 2^32, the payload form."""

import struct

import raw_nbd
from raw_nbd import *

MB = 1 << 20
TB = 1 << 40
ALL = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0",
       "qemu:dirty-bitmap:b1"]
B0 = ["qemu:dirty-bitmap:b0"]
DISKS = ("--disk", "a,size=64M", "--bitmap", "a/b0",
         "--bitmap", "a/b1,granularity=4096",
         "--bitmap", "a/off,disabled=on")
BIG = ("--disk", "big,size=16T", "--bitmap", "big/b0")
MODES = ({"structured": True}, {"extended": True})


def payload(length, *idents):
    return struct.pack(">Q", length) + b"".join(struct.pack(">I", i)
                                                for i in idents)


def covered(items):
    return sum(length for length, _ in items)


def test_several_contexts():
    with Server(*DISKS) as server:
        for mode in MODES:
            with server.go("a", meta=ALL, **mode) as c:
                c.write(MB + 5, b"x" * 10)
                got = c.status(0, 64 * MB)
                assert len(got) == 4
                b0, b1 = (got[c.contexts[name]] for name in ALL[2:])
                assert b0 == [(MB, 0), (65536, 1), (63 * MB - 65536, 0)]
                assert b1 == [(MB, 0), (4096, 1), (63 * MB - 4096, 0)]
                data = got[c.contexts["base:allocation"]]
                assert data[0] == (MB, 3) and data[1][1] == 0
                assert covered(data) == 64 * MB
                depth = got[c.contexts["qemu:allocation-depth"]]
                assert covered(depth) == 64 * MB


def test_req_one():
    with Server(*DISKS) as server:
        for mode in MODES:
            with server.go("a", meta=ALL, **mode) as c:
                c.write(MB, b"x" * 65536)
                for off, length in ((0, 64 * MB), (MB - 1, 2), (MB, MB),
                                    (5, 1), (64 * MB - 1, 1)):
                    got = c.status(off, length, REQ_ONE)
                    assert len(got) == 4
                    for items in got.values():
                        assert len(items) == 1 and items[0][0] <= length
                assert c.status(MB, MB, REQ_ONE)[c.contexts[B0[0]]] \
                    == [(65536, 1)]


def test_same_as_model():
    """Any range of a scattered bitmap, clipped to the request."""
    granules = [1, 2, 5, 9, 10, 11, 500, 1023]
    with Server(*DISKS) as server:
        for mode in MODES:
            with server.go("a", meta=B0, **mode) as c:
                for g in granules:
                    c.write(g * 65536 + 100, b"y")
                for off, length in ((0, 64 * MB), (65535, 3), (65536, 65536),
                                    (65537, 700000), (64 * MB - 65537, 65537),
                                    (600000, 32 * MB)):
                    items = c.status(off, length)[c.contexts[B0[0]]]
                    assert covered(items) == length
                    pos = off
                    for n, dirty in items:
                        for g in range(pos // 65536, (pos + n - 1) // 65536 + 1):
                            assert (g in granules) == bool(dirty)
                        pos += n


def test_disabled_bitmap():
    """It does not record; what it says is what it was."""
    with Server(*DISKS) as server:
        with server.go("a", meta=["qemu:dirty-bitmap:off"]) as c:
            c.write(0, b"x")
            assert list(c.status(0, MB).values()) == [[(MB, 0)]]


def test_nothing_negotiated():
    with Server(*DISKS) as server:
        for mode in ({"structured": False}, *MODES):
            with server.go("a", **mode) as c:
                assert c.error(STATUS, 0, MB) == EINVAL


def test_length_nothing():
    with Server(*DISKS) as server:
        for mode in MODES:
            with server.go("a", meta=ALL, **mode) as c:
                assert c.error(STATUS, 0, 0) == EINVAL
                assert c.error(STATUS, 64 * MB, 0) == EINVAL
                assert c.error(STATUS, 64 * MB, 1) == EINVAL


def test_lengths_near_32_bits():
    lengths = (1, 511, 512, 65535, 65536, 65537, 2**31, 2**32 - 65536,
               2**32 - 65535, 2**32 - 512, 2**32 - 1)
    with Server(*BIG) as server:
        with server.go("big", meta=B0 + ALL[:1]) as c:
            c.write(8 * TB, b"x")
            for off in (0, 1, 65535, 2**32 - 1, 2**32, 8 * TB - 2**32,
                        8 * TB - 2**31, 8 * TB, 16 * TB - 2**32 + 1,
                        16 * TB - 2**32):
                for length in lengths:
                    for flags in (0, REQ_ONE):
                        got = c.status(off, length, flags)
                        for items in got.values():
                            assert 0 < covered(items) <= length
                        dirty = got[c.contexts[B0[0]]]
                        pos = off
                        for n, bit in dirty:
                            touches = pos < 8 * TB + 65536 and pos + n > 8 * TB
                            assert bit == touches, (off, length, dirty)
                            pos += n
            assert c.error(STATUS, 16 * TB - 2**32 + 2, 2**32 - 1) == EINVAL


def test_64_bit_lengths():
    size = 16 * TB
    with Server(*BIG) as server:
        with server.go("big", extended=True, meta=B0) as c:
            ident = c.contexts[B0[0]]
            for length in (1, 2**32 - 1, 2**32, 2**32 + 1, size - 1, size):
                assert c.status(0, length)[ident] == [(length, 0)]
                assert c.status(size - length, length, REQ_ONE)[ident] \
                    == [(length, 0)]
            assert c.error(STATUS, 0, size + 1) == EINVAL
            c.write(8 * TB, b"x")
            assert c.status(0, size)[ident] \
                == [(8 * TB, 0), (65536, 1), (8 * TB - 65536, 0)]
            ret = c.request(STATUS, 65536, size - 65536)
            assert ret.error == 0 and ret.offset == 65536


def test_extents_are_limited():
    """A reply ends early, and going on from there gives the rest."""
    nr = 140000                 # of alternating granules
    with Server("--disk", "a,size=1200M", "--bitmap", "a/b1,granularity=4096",
                "--bitmap", "a/b0,granularity=4096") as server:
        with server.go("a") as c:
            for first in range(0, nr, 2000):
                c.send(b"".join(c.encode(WRITE, g * 8192, 0, 0, b"x")
                                for g in range(first, first + 2000)))
                for _ in range(2000):
                    assert c.chunk()[4] == 0
        for mode in MODES:
            for meta, limit in ((B0, 131072), (B0 + ALL[3:], 65536)):
                with server.go("a", meta=meta, **mode) as c:
                    off, lengths, dirty = 0, [], 0
                    while off < 1200 * MB:
                        items = c.status(off, 1200 * MB - off)[c.contexts[
                            B0[0]]]
                        lengths.append(len(items))
                        assert len(items) <= limit
                        dirty += sum(n for n, bit in items if bit)
                        off += covered(items)
                    assert dirty == nr * 4096 and lengths[0] == limit


def test_payload_selects_contexts():
    with Server(*DISKS) as server:
        with server.go("a", extended=True, meta=ALL) as c:
            c.write(0, b"x")
            everything = c.status(0, 64 * MB)
            for idents in ([1], [4], [2, 3], [4, 1], [1, 2, 3, 4]):
                got = c.status(0, 0, PAYLOAD_LEN, payload(64 * MB, *idents))
                assert got == {i: everything[i] for i in idents}
            got = c.status(0, 0, PAYLOAD_LEN | REQ_ONE, payload(64 * MB, 3))
            assert got == {3: everything[3][:1]}


def test_payload_malformed():
    bad = [b"x", bytes(8), payload(MB), payload(MB, 0), payload(MB, 5),
           payload(MB, 1, 1), payload(MB, 1, 2, 3, 4, 1), payload(0, 1),
           payload(64 * MB + 1, 1), payload(2**64 - 1, 1),
           payload(MB, 1) + b"x", bytes(70000), bytes(32 * MB)]
    with Server(*DISKS) as server:
        with server.go("a", extended=True, meta=ALL) as c:
            for data in bad:
                # Refused, and the stream is in step.
                assert c.error(STATUS, 0, 0, PAYLOAD_LEN, data) == EINVAL
            assert c.error(STATUS, 64 * MB, 0, PAYLOAD_LEN,
                           payload(1, 1)) == EINVAL
            assert c.status(0, 0, PAYLOAD_LEN, payload(MB, 1))


def test_payload_where_it_does_not_belong():
    with Server(*DISKS) as server:
        with server.go("a", extended=True) as c:
            for command in (READ, FLUSH, TRIM, CACHE, ZEROES, STATUS, 99):
                for length in (1, 12, 4096, 100000):
                    assert c.error(command, 0, 0, PAYLOAD_LEN,
                                   bytes(length)) == EINVAL
            # A write has to have it.
            c.submit(WRITE, 0, 4096)
            assert c.reply(c.cookie).error == EINVAL
            assert c.read(0, 512) == bytes(512)
        with server.go("a", meta=B0) as c:
            assert c.error(STATUS, 0, MB, PAYLOAD_LEN) == EINVAL
            assert c.error(READ, 0, 512, PAYLOAD_LEN) == EINVAL


def test_removed_bitmap():
    """I7: not clean but an error, for it alone."""
    with Server(*DISKS) as server:
        with server.go("a", extended=True, meta=ALL) as c:
            c.write(0, b"x")
            server.ok("bitmap-remove a/b0")
            assert c.error(STATUS, 0, MB) == EIO
            assert c.error(STATUS, 0, 0, PAYLOAD_LEN, payload(MB, 3)) == EIO
            assert c.status(0, 0, PAYLOAD_LEN, payload(MB, 4))
            with server.client() as other:
                other.structured_replies()
                assert other.set_meta("a", B0) == {}


def test_failing_extents():
    """base:allocation that cannot be told is an error, too."""
    with Server("--disk", "a,size=1M,debug=on", "--bitmap", "a/b0") as server:
        with server.go("a", meta=ALL[:1] + B0) as c:
            server.ok("fail a 32 1 5 0")
            ret = c.request(STATUS, 0, MB)
            assert ret.error == EIO and ret.chunks == []
            assert len(c.status(0, MB)) == 2


raw_nbd.main()
