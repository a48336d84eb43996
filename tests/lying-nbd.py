#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server that misbehaves in one way, for tests of clients.

lying-nbd.py SOCKET LIE: one export of 1 MiB, all of it dirty, with the context
qemu:dirty-bitmap:b0.  Serves until it is killed.  LIE is

  none            answers as it should
  no-bitmap       grants base:allocation alone
  no-contexts     has no structured replies
  short-status    status that ends after 1000 bytes: not wrong
  empty-status    a status extent of length 0
  long-status     a status extent beyond the end of the export
  missing-status  no status for the bitmap
  error-status    EIO for the bitmap's status
  clean-status    success, and no status at all
  short-read      data for half of what was asked
  outside-read    data that lies elsewhere
  error-read      EIO
  vanish          hangs up upon the first read
  vanish-status   hangs up upon the first status
  odd-size        the export has 1000001 bytes
  empty           the export has 0 bytes
"""
import socket
import struct
import sys
import threading

SIZE = 1 << 20
path, lie = sys.argv[1:]


def get(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def reply(s, option, kind, data=b""):
    s.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data)) +
              data)


def size():
    return {"odd-size": 1000001, "empty": 0}.get(lie, SIZE)


def set_context(s, option, data):
    name_len, = struct.unpack_from(">I", data)
    at = 4 + name_len
    count, = struct.unpack_from(">I", data, at)
    at += 4
    ids = {b"base:allocation": 1, b"qemu:dirty-bitmap:b0": 2}
    names = []
    for _ in range(count):
        n, = struct.unpack_from(">I", data, at)
        names.append(data[at + 4:at + 4 + n])
        at += 4 + n
    if option == 9 and (not names or names == [b"qemu:dirty-bitmap:"]):
        names = list(ids)
    for name in names:
        if name in ids and not (lie == "no-bitmap" and ids[name] == 2):
            reply(s, option, 4, struct.pack(">I", ids[name]) + name)
    reply(s, option, 1)


def handshake(s):
    s.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
    get(s, 4)
    while True:
        _, option, length = struct.unpack(">QII", get(s, 16))
        data = get(s, length)
        if option == 8 and lie != "no-contexts":
            reply(s, option, 1)
        elif option in (9, 10) and lie != "no-contexts":
            set_context(s, option, data)
        elif option in (6, 7):
            reply(s, option, 3, struct.pack(">HQH", 0, size(), 0x0103))
            reply(s, option, 1)
            if option == 7:
                return
        elif option == 2:
            reply(s, option, 1)
            raise EOFError
        else:
            reply(s, option, 0x80000001)


def chunk(s, kind, cookie, data, done=False):
    s.sendall(struct.pack(">IHHQI", 0x668e33ef, int(done), kind, cookie,
                          len(data)) + data)


def error(s, cookie, done=True):
    chunk(s, 32769, cookie, struct.pack(">IH", 5, 0), done)


def status(s, cookie, off, length):
    if lie == "vanish-status":
        raise EOFError
    if lie == "clean-status":
        chunk(s, 0, cookie, b"", True)
        return
    n = length
    if lie == "short-status":
        n = min(length, 1000)
    chunk(s, 5, cookie, struct.pack(">III", 1, n, 0))
    if lie == "missing-status":
        chunk(s, 0, cookie, b"", True)
    elif lie == "error-status":
        error(s, cookie)
    else:
        n = {"empty-status": 0, "long-status": SIZE - off + 512}.get(lie, n)
        chunk(s, 5, cookie, struct.pack(">III", 2, n, 1), True)


def read(s, cookie, off, length):
    if lie == "vanish":
        raise EOFError
    if lie == "error-read":
        error(s, cookie)
        return
    data = bytes(1 + i // 65536 for i in range(off, off + length))
    if lie == "short-read":
        data = data[:length // 2]
    if lie == "outside-read":
        off += 4096
    chunk(s, 1, cookie, struct.pack(">Q", off) + data, True)


def serve(s):
    try:
        handshake(s)
        while True:
            _, _, command, cookie, off, length = struct.unpack(
                ">IHHQQI", get(s, 28))
            if command == 2:
                break
            {0: read, 7: status}[command](s, cookie, off, length)
    except (EOFError, OSError):
        pass
    s.close()


listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(16)
while True:
    c, _ = listener.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
