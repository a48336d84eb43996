#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every command and flag, with simple, structured and extended replies."""

from raw_nbd import *
import struct

import raw_nbd

MB = 1 << 20
DISKS = ("--disk", "a,size=64M", "--disk", "ro,size=1M,readonly=on",
         "--disk", "big,size=16T", "--bitmap", "a/b0")
MODES = ({"structured": False}, {"structured": True}, {"extended": True})


def each_mode(server, name="a", modes=MODES, **kwargs):
    for mode in modes:
        with server.go(name, **mode, **kwargs) as client:
            yield client


def pattern(length, seed=1):
    return bytes((i * 7 + seed + (i >> 8)) % 251 + 1 for i in range(length))


def test_read_write():
    with Server(*DISKS) as server:
        for i, c in enumerate(each_mode(server)):
            for length in (1, 511, 512, 4096, 65536, 65537, 262144, 3 * MB):
                data = pattern(length, i)
                c.write(1000, data)
                assert c.read(1000, length) == data, length
            c.write(64 * MB - 5, b"12345")
            assert c.read(64 * MB - 5, 5) == b"12345"


def test_largest():
    data = pattern(65536) * 512
    with Server(*DISKS) as server:
        for c in each_mode(server):
            c.write(MB, data)
            assert c.read(MB, 32 * MB) == data
            assert c.error(WRITE, 0, 0, 0, b"2" * 512) == 0


def test_too_large():
    with Server(*DISKS) as server:
        for c in each_mode(server):
            expected = EOVERFLOW if c.structured else EINVAL
            assert c.error(READ, 0, 32 * MB + 1) == expected
            assert c.error(READ, 0, 64 * MB) == expected
            if not c.extended:
                # Refused, and the stream is in step.
                assert c.error(WRITE, 0, 0, 0, bytes(32 * MB + 1)) == EINVAL
                assert c.error(WRITE, 0, 0, 0, bytes(64 * MB)) == EINVAL
            assert c.read(0, 512) == bytes(512)
        with server.go("a") as c:
            c.submit(WRITE, 0, 64 * MB + 1)
            assert c.is_closed()
        with server.go("a", extended=True) as c:
            c.submit(WRITE, 0, 32 * MB + 1, PAYLOAD_LEN)
            assert c.is_closed()


def test_nothing():
    with Server(*DISKS) as server:
        for c in each_mode(server):
            for command in (READ, TRIM, CACHE, ZEROES):
                ret = c.request(command, 4096, 0)
                assert ret.error == 0 and ret.data(0, 0) == b""
                assert c.error(command, 64 * MB, 0) == 0
                assert c.error(command, 64 * MB + 1, 0) != 0
            c.write(4096, b"")


def test_out_of_range():
    cases = [(64 * MB, 1), (64 * MB - 1, 2), (2**64 - 1, 1), (2**64 - 1, 2),
             (2**63, 4096), (0, 64 * MB + 1), (4096, 2**32 - 1),
             (2**64 - 4096, 4096)]
    with Server(*DISKS) as server:
        for c in each_mode(server):
            for off, length in cases:
                for command in (READ, TRIM, CACHE):
                    assert c.error(command, off, length) == EINVAL
                assert c.error(ZEROES, off, length) == ENOSPC
                if length <= 4096:
                    assert c.error(WRITE, off, 0, 0, bytes(length)) == ENOSPC
            assert c.read(0, 512) == bytes(512)


def test_64_bit_range():
    cases = [(0, 2**64 - 1), (1, 2**64 - 1), (2**44 - 1, 2**32),
             (2**63, 2**63), (2**64 - 1, 2**64 - 1), (0, 2**44 + 1)]
    with Server(*DISKS) as server:
        with server.go("big", extended=True, meta=["base:allocation"]) as c:
            for off, length in cases:
                for command in (READ, TRIM, CACHE, STATUS):
                    assert c.error(command, off, length) == EINVAL
                assert c.error(ZEROES, off, length) == ENOSPC
            # Long, and in range.
            assert c.error(READ, 0, 2**32) == EOVERFLOW
            assert c.error(READ, 0, 2**44) == EOVERFLOW
            for length in (2**32 - 1, 2**32, 2**44 - 1, 2**44):
                c.write(2**43, b"x" * 4096)
                assert c.error(ZEROES, 0, length) == 0
                if length > 2**43:
                    assert c.read(2**43, 512) == bytes(512)
                assert c.error(TRIM, 0, length) == 0
                assert c.error(CACHE, 0, length) == 0


def test_unknown_commands_and_flags():
    valid = {READ: FUA | DF, WRITE: FUA, FLUSH: FUA, TRIM: FUA, CACHE: FUA,
             ZEROES: FUA | NO_HOLE | FAST_ZERO, STATUS: FUA | REQ_ONE}
    with Server(*DISKS) as server:
        for c in each_mode(server):
            for command in (8, 9, 100, 65535):
                assert c.error(command, 0, 512) == EINVAL
                assert c.error(command, 0, 512, 0xffff & ~PAYLOAD_LEN) \
                    == EINVAL
            for command, flags in valid.items():
                for flag in (1 << bit for bit in range(16)):
                    if flag == PAYLOAD_LEN:
                        continue
                    payload = bytes(512) if command == WRITE else None
                    length = 0 if command in (FLUSH, WRITE) else 512
                    error = c.error(command, 0, length, flag, payload)
                    if command == STATUS or not flag & flags \
                       or (flag == DF and not c.structured):
                        assert error == EINVAL, (command, flag, error)
                    else:
                        assert error in (0, ENOTSUP), (command, flag, error)
            c.write(0, bytes(512))


def test_read_only():
    with Server(*DISKS) as server:
        for c in each_mode(server, "ro"):
            assert c.error(WRITE, 0, 0, 0, bytes(70000)) == EPERM
            assert c.error(ZEROES, 0, 4096) == EPERM
            assert c.error(TRIM, 0, 4096) == EPERM
            assert c.error(FLUSH) == 0
            assert c.error(CACHE, 0, 4096) == 0
            assert c.read(0, 4096) == bytes(4096)


def test_flush():
    with Server(*DISKS) as server:
        for c in each_mode(server):
            assert c.error(FLUSH) == 0
            assert c.error(FLUSH, 0, 1) == EINVAL
            assert c.error(FLUSH, 1, 0) == EINVAL


def test_flags_reach_the_node():
    """Exactly this I/O, and no other."""
    cases = [(WRITE, 0, b"f" * 512, 0, "write 512+512"),
             (WRITE, FUA, b"f" * 512, 0, "write 512+512 fua"),
             (WRITE, FUA, b"f" * 70000, 0, "write 512+70000 fua"),
             (ZEROES, 0, None, 512, "zero 512+512 unmap"),
             (ZEROES, FUA, None, 512, "zero 512+512 fua unmap"),
             (ZEROES, NO_HOLE, None, 512, "zero 512+512"),
             (ZEROES, FAST_ZERO, None, 512, "zero 512+512 unmap fast"),
             (TRIM, 0, None, 512, "trim 512+512"),
             (TRIM, FUA, None, 512, "trim 512+512 fua"),
             (READ, FUA, None, 512, "read 512+512"),
             (FLUSH, FUA, None, 0, "flush"),
             (STATUS, REQ_ONE, None, 512, "extents 512+512 one"),
             (STATUS, 0, None, 512, "extents 512+512")]
    with Server("--disk", "a,size=1M,plain=on,debug=on") as server:
        for c in each_mode(server, modes=MODES[1:], meta=["base:allocation"]):
            server.command("trace a")
            for command, flags, payload, length, expected in cases:
                off = 0 if command == FLUSH else 512
                assert c.error(command, off, length, flags, payload) == 0
                got = server.command("trace a")
                assert got == expected, (got, expected)


def test_long_zero_in_pieces():
    """One durable flush at the end of them, and a fast one in one piece."""
    with Server("--disk", "a,size=1G,plain=on,debug=on") as server:
        for c in each_mode(server):
            server.command("trace a")
            assert c.error(ZEROES, 4096, 600 * MB, FUA) == 0
            assert server.command("trace a") == ";".join((
                f"zero 4096+{256 * MB} unmap",
                f"zero {4096 + 256 * MB}+{256 * MB} unmap",
                f"zero {4096 + 512 * MB}+{88 * MB} unmap", "flush"))
            assert c.error(TRIM, 0, 257 * MB) == 0
            assert server.command("trace a") \
                == f"trim 0+{256 * MB};trim {256 * MB}+{MB}"
            assert c.error(ZEROES, 0, 600 * MB, FAST_ZERO) == 0
            assert server.command("trace a") \
                == f"zero 0+{600 * MB} unmap fast"


def test_zeroes():
    with Server(*DISKS) as server:
        for c in each_mode(server):
            for flags in (0, NO_HOLE, FUA, NO_HOLE | FUA):
                c.write(0, b"x" * 70000)
                assert c.error(ZEROES, 1, 69998, flags) == 0
                assert c.read(0, 70000) == b"x" + bytes(69998) + b"x"
            c.write(0, b"x" * 65536)
            assert c.error(ZEROES, 0, 65536, FAST_ZERO) == 0
            assert c.read(0, 65536) == bytes(65536)


def test_zeroes_holes():
    with Server(*DISKS) as server:
        with server.go("a", meta=["base:allocation"]) as c:
            ident = c.contexts["base:allocation"]
            c.write(0, b"x" * MB)
            assert c.error(ZEROES, 0, 65536) == 0
            assert c.status(0, 65536, REQ_ONE)[ident] == [(65536, 3)]
            c.write(0, b"x" * MB)
            assert c.error(ZEROES, 0, 65536, NO_HOLE) == 0
            assert not c.status(0, 65536, REQ_ONE)[ident][0][1] & 1


def test_trim():
    with Server(*DISKS) as server:
        with server.go("a", meta=["base:allocation"]) as c:
            c.write(0, b"x" * MB)
            assert c.error(TRIM, 0, 65536) == 0
            ident = c.contexts["base:allocation"]
            assert c.status(0, 65536, REQ_ONE)[ident] == [(65536, 3)]
            assert c.read(65536, 512) == b"x" * 512


def test_cache():
    with Server(*DISKS) as server:
        for c in each_mode(server):
            assert c.error(CACHE, 0, MB) == 0
            assert c.error(CACHE, 0, 64 * MB) == 0


def test_disc():
    with Server("--disk", "a,size=1M,debug=on") as server:
        for c in each_mode(server):
            # What is in progress is finished first.
            server.ok("pause a 2")
            cookie = c.submit(WRITE, 0, 0, FUA, b"last" * 128)
            server.ok("wait a")
            c.submit(DISC)
            server.ok("resume a")
            assert c.reply(cookie).error == 0
            assert c.is_closed()
            with server.go("a") as other:
                assert other.read(0, 512) == b"last" * 128


def test_holes():
    data = pattern(65536)
    with Server(*DISKS) as server:
        for c in each_mode(server, modes=MODES[1:]):
            assert c.error(ZEROES, 0, MB) == 0
            c.write(65536, data)
            ret = c.request(READ, 0, 65536 * 3)
            assert [kind for kind, _ in ret.chunks] == [HOLE, DATA, HOLE]
            assert ret.data(65536 * 3, 0) == bytes(65536) + data + bytes(65536)
            # A small read of zeroes only is a hole, too.
            assert c.request(READ, 0, 512).chunks[0][0] == HOLE
            # Unaligned.
            ret = c.request(READ, 1, 65536 * 2)
            assert ret.data(65536 * 2, 1) == bytes(65535) + data + b"\0"


def test_many_holes():
    with Server(*DISKS) as server:
        for c in each_mode(server, modes=MODES[1:]):
            assert c.error(ZEROES, 0, 32 * MB) == 0
            for i in range(0, 32 * MB, 131072):
                c.write(i, b"d" * 4096)
            expected = (b"d" * 4096 + bytes(131072 - 4096)) * 256
            ret = c.request(READ, 0, 32 * MB)
            assert 2 < len(ret.chunks) <= 16
            assert ret.data(32 * MB, 0) == expected


def test_df():
    with Server(*DISKS) as server:
        for c in each_mode(server, modes=MODES[1:]):
            c.write(0, b"d" * 65536)
            assert c.error(ZEROES, 65536, MB) == 0
            for length in (4096, 65536, 131072, 32 * MB):
                ret = c.request(READ, 0, length, DF)
                assert [kind for kind, _ in ret.chunks] == [DATA]
                assert ret.data(length, 0)[:4096] == b"d" * 4096
            assert [k for k, _ in c.request(READ, 65536, 65536, DF).chunks] \
                == [HOLE]


def test_error_replies():
    with Server(*DISKS) as server:
        for c in each_mode(server):
            ret = c.request(READ, 64 * MB, 512)
            assert ret.error == EINVAL
            if c.structured:
                assert b"beyond the end" in ret.text
            if c.extended:
                assert ret.offset == 64 * MB


def test_pipelined():
    """Many requests in one send; replies in any order."""
    with Server(*DISKS) as server:
        for c in each_mode(server):
            wire = b""
            cookies = {}
            for i in range(300):
                wire += c.encode(WRITE, i * 4096, 0, 0,
                                 bytes([i % 255 + 1]) * 4096)
                cookies[c.cookie] = None
            for i in range(100):
                wire += c.encode(READ, 64 * MB - 4096 * (i + 1), 4096)
                cookies[c.cookie] = 4096
            wire += c.encode(FLUSH)
            cookies[c.cookie] = None
            c.send(wire)
            while cookies:
                if c.structured:
                    cookie, flags, _, _, error, _ = c.chunk()
                    done = flags & DONE
                else:
                    magic, error, cookie = struct.unpack(">IIQ", c.recv(16))
                    assert magic == SIMPLE_MAGIC
                    if cookies[cookie]:
                        c.recv(4096)
                    done = True
                assert error == 0
                if done:
                    del cookies[cookie]
            for i in range(0, 300, 17):
                assert c.read(i * 4096, 4096) == bytes([i % 255 + 1]) * 4096


def test_slow_request_overtaken():
    with Server("--disk", "a,size=1M,debug=on") as server:
        with server.go("a") as c:
            server.ok("pause a 16")
            slow = c.submit(FLUSH)
            server.ok("wait a")
            c.write(0, b"x" * 512)
            assert c.read(0, 512) == b"x" * 512
            server.ok("resume a")
            assert c.reply(slow).error == 0


def test_export_removed():
    with Server(*DISKS) as server:
        clients = [server.go("a", **mode) for mode in MODES]
        server.ok("export-remove a")
        for c in clients:
            assert c.error(READ, 0, 512) == ESHUTDOWN
            assert c.error(WRITE, 0, 0, 0, bytes(100000)) == ESHUTDOWN
            assert c.error(FLUSH) == ESHUTDOWN
            c.close()
        with server.client() as c:
            assert c.info("a")[0] == ERR_UNKNOWN
        server.assert_alive("ro")


def test_export_removed_waits():
    """Removal returns when the requests in progress have ended."""
    with Server("--disk", "a,size=1M,debug=on") as server:
        with server.go("a") as c, server.go("a") as other:
            server.ok("pause a 2")
            cookie = c.submit(WRITE, 0, 0, FUA, b"x" * 512)
            server.ok("wait a")
            server.ok("export-remove-start a")
            # New requests are refused, though the removal still waits.
            while other.error(READ, 0, 512) != ESHUTDOWN:
                pass
            server.ok("resume a")
            assert c.reply(cookie).error == 0
            server.ok("export-remove-wait")


raw_nbd.main()
