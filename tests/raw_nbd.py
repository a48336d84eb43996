# SPDX-License-Identifier: BSD-3-Clause
"""A raw client of the NBD protocol, and a captive nbd-test-server.

For what no library does: extended headers, hostile peers, the corners of the
protocol.  Nothing is checked or hidden here but the framing of replies.
Import it from a test, define functions test_*, and end with raw_nbd.main().
"""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

MAGIC = 0x4e42444d41474943
OPTION_MAGIC = 0x49484156454f5054
OPTION_REPLY_MAGIC = 0x3e889045565a9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21e41c71
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668e33ef
EXTENDED_MAGIC = 0x6e8a278c

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_PEEK, OPT_STARTTLS = 1, 2, 3, 4, 5
OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = 6, 7, 8, 9, 10
OPT_EXTENDED = 11

REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID = 2**31 + 1, 2**31 + 2, 2**31 + 3
ERR_UNKNOWN, ERR_TOO_BIG, ERR_EXT = 2**31 + 6, 2**31 + 9, 2**31 + 10

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

(FLAG_HAS_FLAGS, FLAG_READ_ONLY, FLAG_FLUSH, FLAG_FUA, FLAG_ROTATIONAL,
 FLAG_TRIM, FLAG_ZEROES, FLAG_DF, FLAG_MULTI_CONN, FLAG_RESIZE, FLAG_CACHE,
 FLAG_FAST_ZERO, FLAG_STATUS_PAYLOAD) = (1 << i for i in range(13))

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << i for i in range(6))

DONE = 1
NONE, DATA, HOLE, BLOCK_STATUS, BLOCK_STATUS_EXT = 0, 1, 2, 5, 6
ERROR, ERROR_OFFSET = 0x8001, 0x8002

EPERM, EIO, ENOMEM, EINVAL, ENOSPC = 1, 5, 12, 22, 28
EOVERFLOW, ENOTSUP, ESHUTDOWN = 75, 95, 108

MAX_PAYLOAD = 32 << 20

BUILD_DIR = os.environ.get("top_builddir", "..")
with open(os.path.join(BUILD_DIR, "tests", "functions.sh")) as _f:
    IS_SANITIZED = 'sanitizers="no"' not in _f.read()
TIMEOUT = 60                    # seconds, for any one wait


class Closed(Exception):
    """The server has closed the connection."""


def name_data(name):
    name = name if isinstance(name, bytes) else name.encode()
    return struct.pack(">I", len(name)) + name


def meta_data(name, queries):
    return (name_data(name) + struct.pack(">I", len(queries))
            + b"".join(name_data(q) for q in queries))


def info_data(name, items=()):
    return (name_data(name) + struct.pack(">H", len(items))
            + b"".join(struct.pack(">H", i) for i in items))


class Reply:
    """All that came back for one cookie."""

    def __init__(self):
        self.chunks = []        # (type, payload)
        self.error = 0
        self.text = b""
        self.offset = None      # as told by extended headers

    def data(self, length, offset):
        """The content of a read, checking that it is covered once."""
        buf = bytearray(length)
        seen = 0
        for kind, payload in self.chunks:
            if kind == DATA:
                pos = struct.unpack(">Q", payload[:8])[0] - offset
                n = len(payload) - 8
                assert n > 0 and 0 <= pos and pos + n <= length
                buf[pos:pos + n] = payload[8:]
            elif kind == HOLE:
                pos, n = struct.unpack(">QI", payload)
                pos -= offset
                assert n > 0 and 0 <= pos and pos + n <= length
            else:
                assert kind == NONE, kind
                continue
            seen += n
        assert seen == length, (seen, length)
        return bytes(buf)

    def status(self):
        """{context id: [(length, flags), ...]}"""
        ret = {}
        for kind, payload in self.chunks:
            if kind == BLOCK_STATUS:
                ident, = struct.unpack(">I", payload[:4])
                items = list(struct.iter_unpack(">II", payload[4:]))
            else:
                assert kind == BLOCK_STATUS_EXT, kind
                ident, count = struct.unpack(">II", payload[:8])
                items = list(struct.iter_unpack(">QQ", payload[8:]))
                assert count == len(items)
            assert ident not in ret and items
            assert all(length > 0 for length, _ in items)
            ret[ident] = items
        return ret


class Client:
    """One connection.  No negotiation happens unless asked for."""

    def __init__(self, path, greet=True, flags=3):
        family = socket.AF_INET if isinstance(path, tuple) else socket.AF_UNIX
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(path)
        self.structured = self.extended = False
        self.contexts = {}      # name: id
        self.size = self.flags = None
        self.cookie = 0
        if greet:
            self.greet(flags)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def recv(self, n):
        parts = []
        while n > 0:
            try:
                part = self.sock.recv(min(n, 1 << 20))
            except ConnectionResetError:
                raise Closed from None
            if not part:
                raise Closed
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def is_closed(self):
        """Wait for the end of the connection: True, or False if data comes."""
        try:
            self.recv(1)
        except Closed:
            return True
        return False

    # Handshake.

    def greet(self, flags=3):
        magic, option_magic, server_flags = struct.unpack(">QQH",
                                                          self.recv(18))
        assert magic == MAGIC and option_magic == OPTION_MAGIC
        assert server_flags == 3
        self.send(struct.pack(">I", flags))

    def send_option(self, option, data=b"", length=None):
        self.send(struct.pack(">QII", OPTION_MAGIC, option,
                              len(data) if length is None else length) + data)

    def option_reply(self, option):
        magic, got, kind, length = struct.unpack(">QIII", self.recv(20))
        assert magic == OPTION_REPLY_MAGIC and got == option
        return kind, self.recv(length)

    def option(self, option, data=b""):
        """Send it; returns (final reply type, its data, [(type, data)])."""
        self.send_option(option, data)
        replies = []
        while True:
            kind, payload = self.option_reply(option)
            if kind == REP_ACK or kind & 2**31:
                return kind, payload, replies
            replies.append((kind, payload))

    def structured_replies(self):
        assert self.option(OPT_STRUCTURED)[0] == REP_ACK
        self.structured = True

    def extended_headers(self):
        assert self.option(OPT_EXTENDED)[0] == REP_ACK
        self.structured = self.extended = True

    def set_meta(self, name, queries):
        kind, _, replies = self.option(OPT_SET_META, meta_data(name, queries))
        assert kind == REP_ACK, hex(kind)
        self.contexts = {data[4:].decode(): struct.unpack(">I", data[:4])[0]
                         for _, data in replies}
        return self.contexts

    def list_meta(self, name, queries=()):
        kind, _, replies = self.option(OPT_LIST_META,
                                       meta_data(name, queries))
        assert kind == REP_ACK, hex(kind)
        assert all(data[:4] == bytes(4) for _, data in replies)
        return [data[4:].decode() for _, data in replies]

    def info(self, name, items=(), option=OPT_INFO):
        """Returns (final type, {info type: data})."""
        kind, _, replies = self.option(option, info_data(name, items))
        infos = {}
        for reply, data in replies:
            assert reply == REP_INFO
            item, = struct.unpack(">H", data[:2])
            assert item not in infos
            infos[item] = data[2:]
        if kind == REP_ACK:
            self.size, self.flags = struct.unpack(">QH", infos[INFO_EXPORT])
        return kind, infos

    def go(self, name="", items=()):
        kind, infos = self.info(name, items, OPT_GO)
        assert kind == REP_ACK, hex(kind)
        return infos

    def export_name(self, name="", zeroes=False):
        self.send_option(OPT_EXPORT_NAME, name.encode())
        self.size, self.flags = struct.unpack(">QH", self.recv(10))
        if zeroes:
            assert self.recv(124) == bytes(124)

    # Transmission.

    def encode(self, command, offset=0, length=0, flags=0, payload=None,
               magic=None):
        self.cookie += 1
        if self.extended:
            if payload is not None and command == WRITE:
                flags |= PAYLOAD_LEN
            fmt, number = ">IHHQQQ", EXTENDED_REQUEST_MAGIC
        else:
            fmt, number = ">IHHQQI", REQUEST_MAGIC
        if payload is not None and length == 0:
            length = len(payload)
        return struct.pack(fmt, number if magic is None else magic, flags,
                           command, self.cookie, offset, length) + (
                               payload or b"")

    def submit(self, *args, **kwargs):
        self.send(self.encode(*args, **kwargs))
        return self.cookie

    def chunk(self, read_length=0):
        """One reply message: (cookie, flags, type, payload, error, offset).
        """
        magic, = struct.unpack(">I", self.recv(4))
        if magic == SIMPLE_MAGIC:
            assert not self.extended
            error, cookie = struct.unpack(">IQ", self.recv(12))
            payload = b"" if error else self.recv(read_length)
            return cookie, DONE, None, payload, error, None
        assert self.structured
        offset = None
        if magic == EXTENDED_MAGIC:
            assert self.extended
            flags, kind, cookie, offset, length = struct.unpack(
                ">HHQQQ", self.recv(28))
        else:
            assert magic == STRUCTURED_MAGIC and not self.extended, hex(magic)
            flags, kind, cookie, length = struct.unpack(">HHQI",
                                                        self.recv(16))
        assert length <= 64 << 20
        return cookie, flags, kind, self.recv(length), 0, offset

    def reply(self, cookie, read_length=0):
        ret = Reply()
        while True:
            got, flags, kind, payload, error, offset = self.chunk(read_length)
            assert got == cookie, (got, cookie)
            ret.error = error
            ret.offset = offset
            if kind is None:
                if payload:
                    ret.chunks.append((DATA, struct.pack(">Q", 0) + payload))
            elif kind & 0x8000:
                ret.error, n = struct.unpack(">IH", payload[:6])
                ret.text = payload[6:6 + n]
                assert len(payload) == 6 + n and ret.error
            else:
                ret.chunks.append((kind, payload))
            if flags & DONE:
                return ret

    def request(self, command, offset=0, length=0, flags=0, payload=None):
        cookie = self.submit(command, offset, length, flags, payload)
        return self.reply(cookie, length if command == READ
                          and not self.structured else 0)

    def error(self, *args, **kwargs):
        return self.request(*args, **kwargs).error

    def read(self, offset, length, flags=0):
        ret = self.request(READ, offset, length, flags)
        assert ret.error == 0, ret.error
        return ret.data(length, offset if self.structured else 0)

    def write(self, offset, payload, flags=0):
        error = self.error(WRITE, offset, 0, flags, payload)
        assert error == 0, error

    def status(self, offset, length, flags=0, payload=None):
        ret = self.request(STATUS, offset, length, flags, payload)
        assert ret.error == 0, ret.error
        return ret.status()


class Server:
    """nbd-test-server over a Unix socket, for the time of a "with"."""

    def __init__(self, *args, prefix=()):
        self.dir = tempfile.TemporaryDirectory(prefix="tidemark-test.")
        self.path = os.path.join(self.dir.name, "sock")
        self.args = [*prefix, os.path.join(BUILD_DIR, "tests",
                                           "nbd-test-server"),
                     "--listen", "unix:" + self.path, *args]

    def __enter__(self):
        self.process = subprocess.Popen(
            self.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, bufsize=1)
        line = self.process.stdout.readline()
        assert line == "ready\n", line
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.process.kill()
        self.process.stdin.close()
        status = self.process.wait(TIMEOUT)
        self.process.stdout.close()
        self.dir.cleanup()
        assert kind is not None or status == 0, f"server ended with {status}"

    def command(self, line):
        self.process.stdin.write(line + "\n")
        return self.process.stdout.readline().rstrip("\n")

    def ok(self, line):
        answer = self.command(line)
        assert answer == "ok", f"{line}: {answer}"

    def client(self, **kwargs):
        return Client(self.path, **kwargs)

    def go(self, name="", structured=True, extended=False, meta=()):
        """A connection in transmission."""
        client = self.client()
        if extended:
            client.extended_headers()
        elif structured:
            client.structured_replies()
        if meta:
            client.set_meta(name, meta)
        client.go(name)
        return client

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/status") as f:
            for line in f:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) << 10
        raise RuntimeError("no VmRSS")

    def wait_connections(self, number):
        """Until the server has so many connections."""
        end = time.monotonic() + TIMEOUT
        while int(self.command("connections")) != number:
            assert time.monotonic() < end, self.command("connections")
            time.sleep(0.01)

    def assert_alive(self, name="", size=None):
        """A new client is served."""
        with self.go(name) as client:
            assert size is None or client.size == size
            client.read(0, 512)


def raises(kind, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected")


def main():
    """Run every test_* of the calling script."""
    signal.alarm(int(os.environ.get("TEST_SECONDS", "120")))
    module = sys.modules["__main__"]
    names = [n for n in vars(module) if n.startswith("test_")]
    wanted = sys.argv[1:] or names
    failed = 0
    for name in wanted:
        try:
            getattr(module, name)()
            print(f"ok {name}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {name}", flush=True)
            traceback.print_exc()
    print(f"{len(wanted) - failed} of {len(wanted)} passed")
    sys.exit(1 if failed else 0)
