#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Peers that do not keep to the protocol: they are cut off or answered, the
others are served meanwhile, and memory stays bounded.
"""

import os
import random
import struct
import threading
import time

import raw_nbd
from raw_nbd import *

MB = 1 << 20
DISKS = ("--disk", "a,size=64M", "--bitmap", "a/b0")


def assert_bounded(server, before, limit):
    """The server has grown by no more than limit bytes."""
    if not IS_SANITIZED:
        grown = server.memory() - before
        assert grown < limit, f"grown by {grown >> 10} KiB"


def test_garbage_magic():
    with Server(*DISKS) as server:
        for flags in (b"\0\0\0\4", b"\xff" * 4):
            with server.client(greet=False) as c:
                c.recv(18)
                c.send(flags)
                assert c.is_closed()
        with server.client() as c:
            c.send(bytes(16))
            assert c.is_closed()
        for extended in (False, True):
            with server.go("a", extended=extended) as c:
                c.submit(READ, 0, 512, magic=0x25609514)
                assert c.is_closed()
        # The magic of the other kind of header.
        with server.go("a", extended=True) as c:
            c.submit(READ, 0, 512, magic=REQUEST_MAGIC)
            assert c.is_closed()
        server.assert_alive()


def test_garbage():
    rng = random.Random(7)
    with Server(*DISKS) as server:
        for i in range(60):
            where = rng.choice(("greeting", "options", "transmission"))
            with (server.go("a", extended=i % 2) if where == "transmission"
                  else server.client(greet=where == "options")) as c:
                try:
                    c.send(rng.randbytes(rng.choice((1, 100, 10000))))
                    c.sock.shutdown(1)
                    while True:
                        c.recv(1)
                except (Closed, OSError):
                    pass
        server.assert_alive()
        server.wait_connections(0)


def test_mutated_sessions():
    """A correct session with some bytes changed, cut anywhere."""
    rng = random.Random(int(os.environ.get("SEED", "1")))

    def options():
        for option, data in ((OPT_STRUCTURED, b""), (OPT_EXTENDED, b""),
                             (OPT_LIST, b""),
                             (OPT_SET_META, meta_data("a", [
                                 "base:allocation", "qemu:dirty-bitmap:b0"])),
                             (OPT_INFO, info_data("a", [0, 1, 2, 3])),
                             (OPT_GO, info_data("a"))):
            yield struct.pack(">QII", OPTION_MAGIC, option, len(data)) + data

    def requests():
        for flags, command, off, length, data in (
                (0, READ, 0, 4096, b""), (PAYLOAD_LEN, WRITE, 0, 512,
                                          bytes(512)),
                (0, STATUS, 0, MB, b""), (PAYLOAD_LEN, STATUS, 0, 12,
                                          struct.pack(">QI", MB, 1)),
                (0, ZEROES, 0, MB, b""), (0, FLUSH, 0, 0, b"")):
            yield struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags,
                              command, 1, off, length) + data

    session = struct.pack(">I", 3) + b"".join((*options(), *requests()))
    with Server(*DISKS) as server:
        before = server.memory()
        for _ in range(400):
            data = bytearray(session)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.choice(
                    (0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)))
            data = data[:rng.randrange(len(data) + 1)]
            with server.client(greet=False) as c:
                try:
                    c.send(bytes(data))
                    c.sock.shutdown(1)
                    while c.sock.recv(65536):
                        pass
                except (Closed, OSError):
                    pass
        server.assert_alive()
        server.wait_connections(0)
        assert_bounded(server, before, 64 * MB)


def test_truncated():
    with Server(*DISKS) as server:
        for n in (1, 17):
            with server.client(greet=False) as c:
                c.recv(n)
        for n in (1, 8, 15):
            with server.client() as c:
                c.send(struct.pack(">QII", OPTION_MAGIC, OPT_GO, 10)[:n])
        for mode in ({}, {"extended": True}):
            with server.go("a", **mode) as c:
                wire = c.encode(WRITE, 0, 0, 0, b"x" * 100000)
            for n in (1, 27, 31, 32, 33, 5000, 99999):
                c = server.go("a", **mode)
                c.send(wire[:n])
                c.close()
        server.wait_connections(0)
        # Nothing of a write that was cut off has been done.
        with server.go("a") as c:
            assert c.read(0, 100000) == bytes(100000)


def test_half_closed():
    """What was asked for before the end is answered."""
    with Server(*DISKS) as server:
        with server.go("a") as c:
            cookies = [c.submit(READ, i * MB, MB, DF) for i in range(20)]
            c.sock.shutdown(1)
            for _ in cookies:
                assert c.chunk()[0] in cookies
            assert c.is_closed()


def test_long_strings_and_options():
    with Server(*DISKS) as server:
        before = server.memory()
        start = time.monotonic()
        with server.client() as c:
            assert c.option(99, bytes(16 * MB))[0] == ERR_TOO_BIG
        for length in (16 * MB + 1, 2**31, 2**32 - 1):
            with server.client() as c:
                c.send_option(OPT_INFO, length=length)
                assert c.is_closed()
            with server.client() as c:
                c.send_option(OPT_EXPORT_NAME, length=length)
                assert c.is_closed()
        assert time.monotonic() - start < 9     # not by the deadline
        # Lengths within an option that point beyond it.
        for data in (b"\xff\xff\xff\xff", struct.pack(">I", 4096),
                     struct.pack(">IH", 0, 65535),
                     struct.pack(">II", 0, 2**32 - 1)):
            with server.client() as c:
                c.structured_replies()
                for option in (OPT_INFO, OPT_LIST_META, OPT_SET_META):
                    assert c.option(option, data)[0] == ERR_INVALID
        assert_bounded(server, before, 8 * MB)
        server.assert_alive()


def test_option_flood():
    with Server(*DISKS) as server:
        with server.client() as c:
            n = 0
            try:
                while n < 5000:
                    c.option(OPT_LIST)
                    n += 1
            except Closed:
                pass
            assert 100 < n < 5000, n
        server.assert_alive()


def test_handshake_has_a_deadline():
    """Silence, and one byte now and then, end at the same time."""
    with Server(*DISKS, "--handshake-timeout", "1") as server:
        start = time.monotonic()
        silent = server.client(greet=False)
        started = server.client()
        slow = server.client()
        in_option = server.client()
        in_option.send_option(OPT_INFO, b"abc", length=100)
        deaf = server.client()      # asks for lists, reads none
        deaf.sock.setblocking(False)
        wire = struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0)
        served = server.go("a")
        try:
            for byte in wire * 1000:
                slow.send(bytes([byte]))
                time.sleep(0.05)
        except Closed:
            pass
        try:
            while time.monotonic() - start < 10:
                deaf.sock.send(wire * 100)
        except BlockingIOError:
            pass
        except OSError:
            pass
        silent.recv(18)
        for c in (silent, started, in_option):
            assert c.is_closed()
        taken = time.monotonic() - start
        assert 0.9 < taken < 10, taken
        server.wait_connections(1)
        # It is for the handshake only.
        assert served.read(0, 512) == bytes(512)


def test_connection_limit():
    with Server(*DISKS, "--max-connections", "4") as server:
        clients = [server.go("a") for _ in range(4)]
        for _ in range(3):
            with server.client(greet=False) as c:
                assert c.is_closed()
        clients.pop().close()
        server.wait_connections(3)
        clients.append(server.go("a"))
        for c in clients:
            assert c.read(0, 512) == bytes(512)
            c.close()


def test_many_connections_come_and_go():
    with Server(*DISKS) as server:
        for _ in range(20):
            server.go("a").close()
        before = server.memory()
        for _ in range(500):
            server.go("a").close()
        server.wait_connections(0)
        assert_bounded(server, before, 4 * MB)
        fds = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        assert fds < 20, fds


def flood(client, wire):
    """Send without reading until nothing more is taken."""
    client.sock.settimeout(2)
    sent = 0
    try:
        while sent < 256 * MB:
            client.sock.sendall(wire)
            sent += len(wire)
    except OSError:
        pass
    return sent


def test_stalled_readers():
    """Clients that read no replies: bounded memory, and others are served."""
    with Server(*DISKS, "--workers", "2") as server:
        before = server.memory()
        stalled = [server.go("a", extended=i % 2, meta=["qemu:dirty-bitmap:b0"])
                   for i in range(8)]
        threads = []
        for i, c in enumerate(stalled):
            wire = (c.encode(READ, 0, 32 * MB, DF), c.encode(READ, 0, 4 * MB, DF), c.encode(STATUS, 0, 64 * MB),
                    c.encode(99), c.encode(WRITE, 0, 0, 0, bytes(4096)),
                    c.encode(FLUSH), c.encode(READ, 0, 512),
                    c.encode(CACHE, 0, 4096))[i] * 64
            threads.append(threading.Thread(target=flood, args=(c, wire)))
        other = server.go("a")
        for t in threads:
            t.start()
        end = time.monotonic() + 3
        served = 0
        while time.monotonic() < end:
            other.write(MB, b"z" * 4096)
            assert other.read(MB, 4096) == b"z" * 4096
            assert other.error(FLUSH) == 0
            served += 1
        assert served > 20, served
        for t in threads:
            t.join()
        # The limit in flight, some buffers and the threads of each.
        assert_bounded(server, before, 8 * 36 * MB)
        for c in stalled:
            c.close()
        other.close()
        server.wait_connections(0)


def test_stalled_large_reads():
    with Server("--disk", "a,size=256M", "--workers", "2") as server:
        with server.go("a") as c:
            for i in range(0, 64, 2):
                c.write(i * 4 * MB, b"d" * MB)
        before = server.memory()
        stalled = [server.go("a") for _ in range(6)]
        for c in stalled:
            c.send(b"".join(c.encode(READ, i * MB, 32 * MB)
                            for i in range(0, 200, 10)))
        with server.go("a") as other:
            for i in range(50):
                other.read(i * MB, 65536)
                assert other.error(FLUSH) == 0
        assert_bounded(server, before, 6 * 36 * MB)
        # They can still have it all.
        c = stalled[0]
        got = 0
        while got < 20:
            got += c.chunk()[1] & DONE
        for c in stalled:
            c.close()
        server.wait_connections(0)


def test_idle_connection():
    """It keeps no buffers, and goes on as before."""
    with Server("--disk", "a,size=32M,debug=on", "--workers", "1") as server:
        with server.go("a") as c:
            c.write(0, b"x" * MB)
            before = server.memory()
            server.ok("pause a 2")
            for i in range(16):
                c.submit(WRITE, 0, 0, 0, b"x" * MB)
            server.ok("wait a")
            server.ok("resume a")
            for i in range(16):
                c.chunk()
            end = time.monotonic() + 20
            while not IS_SANITIZED and server.memory() - before > 4 * MB:
                assert time.monotonic() < end, server.memory() - before
                time.sleep(0.05)
            c.write(16 * MB, b"y" * MB)
            assert c.read(16 * MB, MB) == b"y" * MB


def send_until_stalled(client, wire):
    """Send until the server takes no more; returns how many bytes it took."""
    sent = 0
    client.sock.settimeout(1)
    try:
        while sent < len(wire):
            sent += client.sock.send(wire[sent:sent + MB])
    except TimeoutError:
        pass
    return sent


def test_stalled_disk():
    """What waits for a disk is limited, in bytes and in number."""
    with Server("--disk", "a,size=256M,debug=on", "--workers", "1") as server:
        before = server.memory()
        server.ok("pause a 2")
        with server.go("a") as c:
            wire = b"".join(c.encode(WRITE, i * 4 * MB, 0, FUA, bytes(4 * MB))
                            for i in range(20))
            sent = send_until_stalled(c, wire)
            assert 32 * MB <= sent < 40 * MB, sent
            with server.go("a") as other:
                sent = send_until_stalled(other, other.encode(FLUSH) * 200000)
                assert sent < 2 * MB, sent
            assert_bounded(server, before, 48 * MB)
            server.ok("resume a")


def test_slow_writer():
    """A write that comes byte by byte holds up nobody, nor a removal."""
    with Server(*DISKS, "--disk", "b,size=1M") as server:
        slow = server.go("a")
        wire = slow.encode(WRITE, 0, 0, 0, b"s" * 100000)
        slow.send(wire[:1000])
        with server.go("a") as other:
            for _ in range(100):
                other.write(MB, b"o" * 4096)
        server.ok("export-remove a")
        slow.send(wire[1000:])
        assert slow.reply(slow.cookie).error == ESHUTDOWN
        slow.close()


def test_end_with_connections():
    """The server ends while clients are connected, stalled or silent."""
    server = Server("--disk", "a,size=64M")
    with server:
        silent = server.client(greet=False)
        idle = server.go("a")
        stalled = server.go("a")
        stalled.send(stalled.encode(READ, 0, 32 * MB, DF) * 10)
        half = server.go("a")
        half.send(half.encode(WRITE, 0, 0, 0, bytes(MB))[:5000])
        start = time.monotonic()
    taken = time.monotonic() - start
    assert taken < 20, taken
    silent.recv(18)
    for c in (silent, idle, half):
        assert c.is_closed()
        c.close()
    stalled.close()


def test_requests_end_before_the_connection():
    """A client that is gone: its write is finished before it counts as gone.
    """
    with Server("--disk", "a,size=1M,debug=on") as server:
        c = server.go("a")
        server.ok("pause a 2")
        c.submit(WRITE, 0, 0, FUA, b"last" * 128)
        server.ok("wait a")
        c.close()
        with server.go("a") as other:
            server.wait_connections(2)
            assert other.read(0, 512) == bytes(512)
            server.ok("resume a")
            server.wait_connections(1)
            assert other.read(0, 512) == b"last" * 128


raw_nbd.main()
