#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A small QMP client for the tests; python3's standard library alone.

As a module: Qmp (path) with execute, wait_event and raw access.
As a program: qmp_client.py SOCKET COMMAND [ARGUMENTS-AS-JSON]
prints the return value as one line of JSON, or "CLASS: DESC" on stderr with
exit status 1.
   qmp_client.py --shell SOCKET
reads lines "COMMAND KEY=VALUE..." as QEMU's qmp-shell does: a dot in KEY makes
nested objects, VALUE is JSON or a string; prints each reply.
"""
import json
import socket
import sys
import time

TIMEOUT = 30


class QmpError(Exception):
    def __init__(self, error):
        super().__init__("%s: %s" % (error["class"], error["desc"]))
        self.error_class = error["class"]
        self.desc = error["desc"]


class Qmp:
    """One connection.  With negotiate=False nothing is sent or read."""

    def __init__(self, path, negotiate=True, timeout=TIMEOUT):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.buffer = b""
        self.events = []
        self.greeting = None
        if negotiate:
            self.greeting = self.receive()
            self.execute("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.sock.close()

    def send_bytes(self, data):
        self.sock.sendall(data)

    def send(self, value):
        self.send_bytes(json.dumps(value).encode())

    def receive(self):
        """The next message; None at the end of the connection."""
        while b"\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        assert line.endswith(b"\r"), line
        return json.loads(line)

    def reply(self):
        """The next message that is not an event; those are kept."""
        while True:
            message = self.receive()
            if message is None or "event" not in message:
                return message
            self.events.append(message)

    def command(self, name, arguments=None, **more):
        """Send a command and return the whole reply."""
        request = dict(execute=name, **more)
        if arguments is not None:
            request["arguments"] = arguments
        self.send(request)
        return self.reply()

    def execute(self, name, arguments=None):
        """Send a command and return its value, or raise QmpError."""
        reply = self.command(name, arguments)
        if reply is None:
            raise EOFError("connection closed during %s" % name)
        if "error" in reply:
            raise QmpError(reply["error"])
        return reply["return"]

    def wait_event(self, name, timeout=TIMEOUT, **data):
        """The next event of that name and data, which is taken."""
        deadline = time.monotonic() + timeout
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name and all(
                        event["data"].get(k) == v for k, v in data.items()):
                    return self.events.pop(i)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no event %s %s" % (name, data))
            self.sock.settimeout(left)
            message = self.receive()
            self.sock.settimeout(TIMEOUT)
            if message is None:
                raise EOFError("connection closed, no event %s" % name)
            self.events.append(message)


def shell_value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def shell_request(line):
    """What a line for qmp-shell means."""
    command, *words = line.split()
    arguments = {}
    for word in words:
        key, value = word.split("=", 1)
        *path, last = key.split(".")
        place = arguments
        for name in path:
            place = place.setdefault(name, {})
        place[last] = shell_value(value)
    request = {"execute": command}
    if arguments:
        request["arguments"] = arguments
    return request


def shell(path):
    with Qmp(path) as qmp:
        for line in sys.stdin:
            qmp.send(shell_request(line))
            print(json.dumps(qmp.reply()), flush=True)
    return 0


def main(argv):
    if len(argv) == 3 and argv[1] == "--shell":
        return shell(argv[2])
    if len(argv) not in (3, 4):
        sys.stderr.write(__doc__)
        return 2
    arguments = json.loads(argv[3]) if len(argv) == 4 else None
    with Qmp(argv[1]) as qmp:
        try:
            print(json.dumps(qmp.execute(argv[2], arguments)))
        except QmpError as e:
            sys.stderr.write("%s\n" % e)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
