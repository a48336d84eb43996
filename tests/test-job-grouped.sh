#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Two disks, added over the control socket, in one grouped transaction: a read
# error in one cancels the other, with QEMU's events and no others; no bitmap
# advances; the same transaction again succeeds.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-io
timeout 120 python3 - "$tmp" <<'END'
import os
import sys
from job_util import (K, M, check, check_equal, check_image, compare, create,
                      event_text, run)
from tidemarkd_util import Tidemarkd

tmp = sys.argv[1]
SIZE = 16 * M
NAMES = "drive0", "drive1"


def path(name):
    return "%s/%s" % (tmp, name)


def write(target, *commands):
    """Each is (pattern, offset, length); flushed at the end."""
    args = []
    for command in commands:
        args += ["-c", "write -P %d %d %d" % command]
    run("qemu-io", "-f", "qcow2" if target.startswith("/") else "raw", *args,
        "-c", "flush", target)


def add_disk(q, name, is_faulty):
    """The first read after a flush fails, once."""
    file = {"driver": "file", "filename": path(name)}
    if is_faulty:
        file = {"driver": "blkdebug", "image": file,
                "set-state": [{"event": "flush_to_disk", "state": 1,
                               "new_state": 2}],
                "inject-error": [{"event": "read_aio", "errno": 5, "state": 2,
                                  "immediately": False, "once": True}]}
    q.execute("blockdev-add", {"node-name": name, "driver": "qcow2",
                               "file": file})
    q.execute("block-export-add", {"type": "nbd", "id": name, "name": name,
                                   "node-name": name, "writable": True})
    q.execute("block-dirty-bitmap-add", {"node": name, "name": "b0"})


def backup(name, target, sync, **more):
    return {"type": "drive-backup", "data": dict(
        {"device": name, "target": target, "format": "qcow2", "sync": sync},
        **more)}


def bitmaps(d, q):
    return {n: (d.bitmaps(q, n)["b0"]["count"], d.bitmaps(q, n)["b0"]["busy"])
            for n in NAMES}


def start_chains(d, q):
    """Both bitmaps cleared and both disks copied, at one point."""
    q.execute("transaction", {"actions": [
        {"type": "block-dirty-bitmap-clear", "data": {"node": n, "name": "b0"}}
        for n in NAMES] + [backup(n, path(n + ".full"), "full")
                           for n in NAMES]})
    for n in NAMES:
        q.wait_event("JOB_STATUS_CHANGE", id=n, status="null")
        done = q.wait_event("BLOCK_JOB_COMPLETED", device=n)["data"]
        check("error" not in done, "full: %r" % done)
    check_equal(bitmaps(d, q), {n: (0, False) for n in NAMES}, "after full")
    for n in NAMES:
        compare(path(n + ".full"), path(n + ".ref"))


def incrementals(q, properties):
    actions = []
    for n in NAMES:
        if os.path.exists(path(n + ".inc")):
            os.unlink(path(n + ".inc"))
        create(path(n + ".inc"), backing=path(n + ".full"))
        actions.append(backup(n, path(n + ".inc"), "incremental", bitmap="b0",
                              mode="existing"))
    q.execute("transaction", {"actions": actions, "properties": properties})


def take_events(q):
    """Until both jobs are gone: their lines, by job."""
    for n in NAMES:
        q.wait_event("JOB_STATUS_CHANGE", id=n, status="null")
    q.execute("query-jobs")
    events, q.events = [event_text(e) for e in q.events], []
    return {n: [e[len(n) + 1:] for e in events if e.startswith(n + " ")
                and not e.endswith((" created", " running", " paused"))]
            for n in NAMES}


def failed(events):
    check_equal(events["drive1"][0],
                "BLOCK_JOB_ERROR action=report operation=read", "the error")
    check_equal(events["drive1"][1:3], ["aborting", [
        e for e in events["drive1"] if e.startswith("BLOCK_JOB_COMPLETED")][0]],
        "drive1")
    check("error=Input/output error" in events["drive1"][2], "its message")
    check_equal(events["drive1"][3:], ["concluded"], "drive1's end")
    waiting = ["waiting"] if events["drive0"][0] == "waiting" else []
    check_equal([e.split()[0] for e in events["drive0"]],
                waiting + ["aborting", "BLOCK_JOB_CANCELLED", "concluded"],
                "drive0")


def grouped(is_empty):
    """is_empty: the healthy disk has nothing to copy."""
    for n in NAMES:
        create(path(n), SIZE)
        write(path(n), (0x41, 0, 2 * M), (0x42, 9 * M, M))
        run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", path(n),
            path(n + ".ref"))
    with Tidemarkd(tmp) as d, d.qmp() as q:
        for n in NAMES:
            add_disk(q, n, n == "drive1")
        start_chains(d, q)
        if not is_empty:
            write(d.uri("drive0"), (0x50, 0, 512 * K), (0x51, 12 * M, M))
        write(d.uri("drive1"), (0x60, M, 512 * K), (0x61, 4 * M, 64 * K))
        before = bitmaps(d, q)
        check_equal(before["drive1"], (576 * K, False), "dirty")
        q.execute("query-jobs")
        q.events = []
        incrementals(q, {"completion-mode": "grouped"})
        failed(take_events(q))
        check_equal(bitmaps(d, q), before, "bitmaps after the failure")
        check_equal(q.execute("query-block-jobs"), [], "jobs")

        # More changes, and again: the error came once.
        write(d.uri("drive1"), (0x62, 15 * M, 100 * K))
        incrementals(q, {"completion-mode": "grouped"})
        events = take_events(q)
        for n in NAMES:
            check_equal([e.split()[0] for e in events[n]],
                        ["waiting", "pending", "BLOCK_JOB_COMPLETED",
                         "concluded"], n)
        check_equal(bitmaps(d, q), {n: (0, False) for n in NAMES}, "success")
        for n in NAMES:
            check_image(path(n + ".inc"))
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", d.uri(n),
                path(n + ".now"))
            compare(path(n + ".inc"), path(n + ".now"))
            os.unlink(path(n + ".inc"))
        check_equal(d.stop(), 0, "exit status")
    for n in NAMES:
        for suffix in "", ".full", ".ref", ".now":
            os.unlink(path(n + suffix))


grouped(False)
grouped(True)
END
