#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The link that benchmarks put between two programs: what it says of itself is
# so.  Times are only ever looked at from below: it may not be too fast.
. ./functions.sh
requires python3
PYTHONPATH=${srcdir:-.} timeout 120 python3 - "$top_builddir/bench/relay" "$tmp" <<'END'
import select
import socket
import subprocess
import sys
import time
from relay import Program
from tidemarkd_util import check, check_equal

program, tmp = sys.argv[1:]
target = socket.create_server(("127.0.0.1", 0))
real = "127.0.0.1:%d" % target.getsockname()[1]


class Relay(Program):
    nr = 0

    def __init__(self, *options):
        Relay.nr += 1
        self.path = tmp + "/link%d" % Relay.nr
        super().__init__(subprocess.Popen(
            [program, *options, self.path, real], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True))

    def connect(self):
        s = socket.socket(socket.AF_UNIX)
        s.connect(self.path)
        return s

    def pair(self):
        s = self.connect()
        return s, target.accept()[0]

    def end(self):
        self.process.stdin.close()
        check_equal(self.process.wait(), 0, "status of the relay")


def receive(s, n):
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        check(piece, "the end after %d bytes of %d" % (len(data), n))
        data += piece
    return data


def is_reset(s):
    try:
        return s.recv(1) == b"" and None
    except ConnectionResetError:
        return True


# Both ways, several connections, an end.
r = Relay()
a, b = r.pair()
c, d = r.pair()
big = bytes(i * 7 % 251 for i in range(300000))
a.sendall(b"to the target")
check_equal(receive(b, 13), b"to the target", "up")
d.sendall(big)
check_equal(receive(c, len(big)), big, "down")
check_equal(r.tell("count"), [13, len(big)], "count")
a.shutdown(socket.SHUT_WR)
check_equal(b.recv(1), b"", "the end of one way")
b.sendall(b"x")
check_equal(receive(a, 1), b"x", "the other way is open")

# Stalled, nothing arrives; then all does.
r.tell("stall")
d.sendall(b"late")
check(not select.select([c], [], [], 0.3)[0], "a stalled link delivers")
r.tell("go")
check_equal(receive(c, 4), b"late", "after a stall")

# Cut, a connection ends; refused, a new one does; then the next works.
r.tell("refuse")
e = r.connect()
check_equal(e.recv(1), b"", "a refused connection")
r.tell("go")
r.tell("cut")
check_equal(c.recv(1), b"", "a cut connection")
check_equal(d.recv(1), b"", "at the target")
f, g = r.pair()
r.tell("reset")
check(is_reset(g), "the target's connection is not reset")

# When so many bytes have come down.
f, g = r.pair()
r.tell("at %d cut" % (r.tell("count")[1] + 1000))
g.sendall(b"x" * 999)
receive(f, 999)
g.sendall(b"x")
check_equal(r.line()[0], "at", "what is said")
check(len(f.recv(2)) <= 1 and f.recv(1) == b"", "not cut")
r.end()

# A delay each way, and a rate.
r = Relay("--delay=30000")
a, b = r.pair()
start = time.monotonic()
a.sendall(b"x")
receive(b, 1)
b.sendall(b"y")
receive(a, 1)
check(time.monotonic() - start >= 0.06, "too fast for its delay")
r.end()
r = Relay("--rate=1000000")
a, b = r.pair()
start = time.monotonic()
a.sendall(bytes(200000))
receive(b, 200000)
check(time.monotonic() - start >= 0.19, "too fast for its rate")
r.end()

# What it does not know.
for argv in ["--rate=x", tmp + "/l", real], ["only-one"], []:
    p = subprocess.run([program, *argv], stdin=subprocess.DEVNULL,
                       stderr=subprocess.PIPE, text=True)
    check_equal(p.returncode, 1, "status of %r" % argv)
    check("relay: " in p.stderr, p.stderr)
END
