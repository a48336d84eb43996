#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A relay of stream sockets that is a bad network: it delays and limits what
passes, both ways, and cuts, resets, stalls and refuses connections.

As a module: Relay(listen, target, rate, delay).  As a program:
  relay.py LISTEN TARGET [--rate BYTES] [--delay SECONDS]
Addresses are paths of Unix sockets, or HOST:PORT.  The program takes commands
from standard input, a line each, and answers each with a line:
  cut | reset | stall | refuse | go | count
"""
import argparse
import queue
import socket
import struct
import sys
import threading
import time

CHUNK = 65536


def _socket(address):
    if ":" in address and not address.startswith("/"):
        host, port = address.rsplit(":", 1)
        return socket.socket(socket.AF_INET), (host, int(port))
    return socket.socket(socket.AF_UNIX), address


class Program:
    """bench/relay in a process that has its standard input and output as text:
    the same, with few delays of its own.
    """

    def __init__(self, process):
        self.process = process
        self.tell("count")      # it listens

    def line(self):
        return self.process.stdout.readline().split()

    def tell(self, command):
        """Bytes up and down until now."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return [int(n) for n in self.line()]


class Relay:
    """What is public may be called from any thread."""

    def __init__(self, listen, target, rate=0, delay=0.0):
        self.target = target
        self.rate = rate        # bytes per second and direction; 0 = no limit
        self.delay = delay      # seconds, one way
        self.down = 0           # bytes that were handed to clients
        self.up = 0
        self.at = None          # (bytes of down, function): call it there, once
        self.is_refusing = False
        self.flowing = threading.Event()
        self.flowing.set()
        self.lock = threading.Lock()
        self.pairs = []
        self.next = [0.0, 0.0]  # when the next byte may go, each way
        self.listener, address = _socket(listen)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(address)
        self.listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.is_refusing:
                client.close()
                continue
            server, address = _socket(self.target)
            try:
                server.connect(address)
            except OSError:
                client.close()
                continue
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
            with self.lock:
                self.pairs.append((client, server))
            for source, sink, way in ((client, server, 0), (server, client, 1)):
                self._start(source, sink, way)

    def _start(self, source, sink, way):
        if self.delay == 0:
            threading.Thread(target=self._pump, daemon=True,
                             args=(source, sink, way)).start()
            return
        q = queue.Queue(4096)
        threading.Thread(target=self._read, daemon=True,
                         args=(source, q)).start()
        threading.Thread(target=self._write, daemon=True,
                         args=(q, sink, way)).start()

    def _read(self, source, q):
        data = b"x"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            q.put((time.monotonic() + self.delay, data))

    def _write(self, q, sink, way):
        data = b"x"
        while data:
            due, data = q.get()
            time.sleep(max(0, due - time.monotonic()))
            if not self._pass(data, sink, way):
                return

    def _pump(self, source, sink, way):
        data = b"x"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            if not self._pass(data, sink, way):
                return

    def _wait_turn(self, n, way):
        if self.rate == 0:
            return
        with self.lock:
            at = max(self.next[way], time.monotonic())
            self.next[way] = at + n / self.rate
        time.sleep(max(0, at - time.monotonic()))

    def _pass(self, data, sink, way):
        self._wait_turn(len(data), way)
        self.flowing.wait()
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
            sink.sendall(data)
        except OSError:
            return False
        call = None
        with self.lock:
            if way == 0:
                self.up += len(data)
            else:
                self.down += len(data)
                if self.at and self.down >= self.at[0]:
                    call, self.at = self.at[1], None
        if call:
            call()
        return True

    def cut(self, is_reset=False):
        """End all connections; with is_reset rudely, where the kernel can."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for s in pair:
                try:
                    if is_reset and s.family == socket.AF_INET:
                        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                     struct.pack("ii", 1, 0))
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                s.close()

    def stall(self):
        """Nothing passes; connections are accepted and stay."""
        self.flowing.clear()

    def refuse(self):
        """No new connections either."""
        self.is_refusing = True

    def go(self):
        self.is_refusing = False
        self.flowing.set()

    def close(self):
        self.listener.close()
        self.go()
        self.cut()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("listen")
    p.add_argument("target")
    p.add_argument("--rate", type=int, default=0)
    p.add_argument("--delay", type=float, default=0.0)
    a = p.parse_args()
    relay = Relay(a.listen, a.target, a.rate, a.delay)
    commands = {"cut": relay.cut, "reset": lambda: relay.cut(True),
                "stall": relay.stall, "refuse": relay.refuse, "go": relay.go,
                "count": lambda: None}
    for line in sys.stdin:
        commands[line.strip()]()
        print(relay.up, relay.down, flush=True)
    relay.close()


if __name__ == "__main__":
    main()
