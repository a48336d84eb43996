#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Hostile and broken control clients: the service lives on, its memory is
# bounded, and others are not disturbed.
. "${srcdir:-.}/control-test.sh"
truncate -s 1M "$tmp/vda.raw"
SANITIZERS=$sanitizers timeout 90 python3 - "$tmp" <<'END'
import json
import os
import socket
import sys
from qmp_client import Qmp
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal

tmp = sys.argv[1]
VERSION = b'{"execute": "query-version"}'
# Sanitizers need several times the memory.
FACTOR = 1 if os.environ["SANITIZERS"] == "no" else 8


def is_alive(d):
    with d.qmp() as q:
        check("qemu" in q.execute("query-version"), "query-version")


def connect_all(d, count, negotiate):
    """Connections that the server has greeted."""
    peers = []
    for _ in range(count):
        q = Qmp(d.control, negotiate=negotiate)
        if not negotiate:
            check("QMP" in q.receive(), "greeting")
        peers.append(q)
    return peers


def broken(d):
    """Each gets errors without id, and the connection lives on."""
    table = [
        b"{]\n", b"]\n", b"blah\n", b"{\"a\n", b'{"execute" "x"}\n',
        b'{"execute": "query-version", "execute": "quit"}\n',
        b"\xff", b'{"a\xff', b'{"a\xc0\x80": 1}\n', b'{"a\\u0000": 1}\n',
        b'{"a": 99999999999999999999}\n', b'"\x00"\n',
        b"[" * 65 + b"\n", b"[" * 100000 + b"\n", b'{"a":' * 1000 + b"\n",
        b"[" + b"1," * 20000 + b"1]\n", b"{" * 3000000 + b"\n",
        b'{"a": "' + b"x" * 3000000 + b'"}\n', b"x" * 3000000 + b"\n",
        b'{"execute": "' + b"x" * 1000000 + b'"}\n',
        b" " * 3000000,
    ]
    with d.qmp() as q:
        for i, text in enumerate(table):
            q.send_bytes(text)
            q.send({"execute": "query-version", "id": i})
            while True:
                reply = q.reply()
                check(reply is not None, "%r ended the connection" % text[:40])
                if "id" in reply:
                    break
                check("error" in reply, "%r in return for %r" %
                      (reply, text[:40]))
            check_equal(reply["id"], i, "id")
            check("return" in reply, "query-version after %r" % text[:40])


def cut_off(d):
    """Peers that leave in the middle, or half-close."""
    for text in b"", b"{", b'{"execute": "quer', VERSION:
        q = Qmp(d.control, negotiate=False)
        q.send_bytes(text)
        q.close()
    q = Qmp(d.control, negotiate=False)
    q.send_bytes(b'{"execute": "qmp_capabilities"}' + VERSION)
    q.sock.shutdown(socket.SHUT_WR)
    check("QMP" in q.receive(), "greeting")
    check_equal(q.receive(), {"return": {}}, "qmp_capabilities")
    check("return" in q.receive(), "query-version")
    check_equal(q.receive(), None, "end")


def silent(d):
    """All places taken by peers that say nothing: they give way."""
    peers = connect_all(d, 40, negotiate=False)
    is_alive(d)
    for q in peers:
        q.close()


def full(d):
    """All places taken by peers that have negotiated: they stay."""
    peers = connect_all(d, 32, negotiate=True)
    q = Qmp(d.control, negotiate=False)
    check_equal(q.receive()["error"]["desc"], "Too many control connections",
                "one too many")
    check_equal(q.receive(), None, "end")
    for peer in peers:
        peer.execute("query-version")
        peer.close()
    is_alive(d)


def flood(d):
    """Requests without reading the replies: they are not even read."""
    q = d.qmp()
    q.sock.settimeout(1)
    sent = 0
    try:
        while sent < 64 * 1024 * 1024:
            sent += q.sock.send(VERSION * 100)
    except socket.timeout:
        pass
    check(sent < 8 * 1024 * 1024, "%d bytes of requests were taken" % sent)
    is_alive(d)
    # What was taken is answered, in order, once it is read.
    q.sock.settimeout(TIMEOUT)
    for _ in range(sent // len(VERSION) // 2):
        check("return" in q.receive(), "reply")
    q.close()


def unread_events(d):
    """A peer that never reads loses its connection, the others nothing."""
    deaf = d.qmp()
    with d.qmp() as q:
        request = json.dumps({"execute": "backup-begin",
                              "arguments": {"mode": "copy"}}).encode()
        # Until its socket and then the server's backlog are full.
        for _ in range(1000):
            q.send_bytes(request)
            s = q.reply()["return"]
            q.execute("backup-end", {"id": s["id"], "success": False})
            q.events.clear()
    with d.qmp() as q:
        q.execute("query-version")
    check("BACKUP_ENDED" in str(deaf.receive()), "event")
    deaf.close()


def big_ids(d):
    """Replies as large as requests: at most one is held for a deaf peer."""
    peers = []
    for _ in range(8):
        q = d.qmp()
        q.sock.settimeout(0.2)
        request = json.dumps({"execute": "query-version",
                              "id": "x" * 1000000}).encode()
        try:
            for _ in range(20):
                q.sock.sendall(request)
        except socket.timeout:
            pass
        peers.append(q)
    is_alive(d)
    for q in peers:
        q.close()


with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp,
               "--scratch-dir", tmp) as d:
    is_alive(d)
    before = d.status("VmRSS")
    for attack in (broken, cut_off, silent, full, flood, unread_events,
                   big_ids):
        attack(d)
        is_alive(d)
    grown = d.status("VmHWM") - before
    check(grown < FACTOR * 48 * 1024, "memory has grown by %d KiB" % grown)
    print("memory: %d KiB, at most %d more" % (before, grown))
    check_equal(d.stop(), 0, "exit status")
    check_equal(d.messages(), "", "messages")
END
