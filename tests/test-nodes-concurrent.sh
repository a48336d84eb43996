#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Nodes, exports and jobs that come and go from many control connections at once,
# while clients connect and queries run: each command does what its reply says,
# and in the end nothing is left.
. "${srcdir:-.}/control-test.sh"
timeout 120 python3 - "$tmp" <<'END'
import random
import sys
import threading
import traceback
from errno import ESHUTDOWN
from raw_nbd import IS_SANITIZED, OPT_GO, READ, REP_ACK, WRITE, Client, Closed
from tidemarkd_util import Tidemarkd, check, check_equal

tmp = sys.argv[1]
ROUNDS = 8 if IS_SANITIZED else 30
SIZE = 1 << 20
failures = []
is_over = threading.Event()


def thread_main(function, d, n):
    try:
        with d.qmp() as q:
            function(d, q, n, random.Random(n))
    except BaseException:
        failures.append(traceback.format_exc())


def add_node(q, name):
    q.execute("blockdev-add", {
        "driver": "raw", "node-name": name,
        "file": {"driver": "null-co", "size": SIZE, "read-zeroes": True}})


def connect(path, name, write=False):
    """True if there is such an export, and it was used."""
    try:
        with Client(path) as c:
            c.structured_replies()
            kind, _ = c.info(name, (), OPT_GO)
            if kind != REP_ACK:
                return False
            errors = [c.error(WRITE, 0, payload=bytes(4096))] if write else []
            errors += [c.error(READ, 0, 4096)]
            # One that is going away says so.
            check(set(errors) <= {0, ESHUTDOWN}, "errors %s" % errors)
            return not any(errors)
    except (Closed, OSError):
        return False


def own(d, q, n, rng):
    """A node of its own, exported while it lives, and nowhere afterwards."""
    name = "own%d" % n
    for i in range(ROUNDS):
        add_node(q, name)
        q.execute("block-dirty-bitmap-add", {"node": name, "name": "b"})
        q.execute("block-export-add", {
            "type": "nbd", "id": name, "node-name": name, "writable": True})
        check(connect(d.live, name, write=True), "not served: " + name)
        check_equal(d.bitmaps(q, name)["b"]["count"], 65536, "count")
        reply = q.command("blockdev-del", {"node-name": name})
        check_equal(reply["error"]["desc"], "Node %s is in use" % name, "del")
        q.execute("block-export-del", {"id": name, "mode": "hard"})
        q.wait_event("BLOCK_EXPORT_DELETED", id=name)
        check(not connect(d.live, name), "still served: " + name)
        q.execute("blockdev-del", {"node-name": name})


def shared(d, q, n, rng):
    """One node and export that all of these fight for."""
    for i in range(ROUNDS):
        for what in rng.sample(range(4), 4):
            if what == 0:
                q.command("blockdev-add", {
                    "driver": "null-co", "node-name": "shared", "size": SIZE})
            elif what == 1:
                q.command("block-export-add", {
                    "type": "nbd", "id": "shared", "node-name": "shared",
                    "writable": True})
            elif what == 2:
                q.command("block-export-del", {
                    "id": "shared", "mode": rng.choice(["safe", "hard"])})
            else:
                q.command("blockdev-del", {"node-name": "shared"})
        q.events = []


def jobs(d, q, n, rng):
    """Backups between nodes of its own, cancelled as often as not."""
    source, target = "source%d" % n, "target%d" % n
    for i in range(ROUNDS):
        add_node(q, source)
        add_node(q, target)
        q.execute("blockdev-backup", {
            "device": source, "target": target, "sync": "full",
            "job-id": source, "speed": rng.choice([0, 1])})
        for name in source, target:
            q.command("blockdev-del", {"node-name": name})
            q.command("block_resize", {"node-name": name, "size": 2 * SIZE})
        q.command("job-pause", {"id": source})
        q.command("job-cancel", {"id": source})
        q.wait_event("JOB_STATUS_CHANGE", id=source, status="null")
        q.command("blockdev-del", {"node-name": source})
        q.command("blockdev-del", {"node-name": target})
        q.events = []


def queries(d, q, n, rng):
    while not is_over.is_set():
        for command in ("query-block", "query-named-block-nodes",
                        "query-block-exports", "query-jobs",
                        "query-block-jobs"):
            q.execute(command)
        q.events = []


def clients(d, q, n, rng):
    while not is_over.is_set():
        connect(d.live, rng.choice(["shared", "own0", "own1"]),
                rng.random() < 0.5)


with Tidemarkd(tmp) as d:
    threads = [threading.Thread(target=thread_main, args=(f, d, n))
               for n, f in enumerate([own, own, shared, shared, shared, jobs,
                                      jobs, queries, clients, clients])]
    for t in threads:
        t.start()
    for t in threads[:7]:
        t.join()
    is_over.set()
    for t in threads[7:]:
        t.join()
    check(not failures, "\n".join(failures))
    with d.qmp() as q:
        q.command("block-export-del", {"id": "shared", "mode": "hard"})
        q.command("blockdev-del", {"node-name": "shared"})
        for command in ("query-block-exports", "query-named-block-nodes",
                        "query-jobs"):
            check_equal(q.execute(command), [], command)
    status = d.stop()
    check_equal(d.messages(), "", "messages")
    check_equal(status, 0, "exit status")
END
