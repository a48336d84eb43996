#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blkdebug below qcow2, at every event of its metadata: the guest is told of the
# failure, and the image is not damaged.  And blkdebug as a disk's top.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
truncate -s 4M "$tmp/base.raw"
timeout 120 python3 - "$tmp" <<'END'
import json
import subprocess
import sys
from qmp_pair import run_io
from tidemarkd_util import Tidemarkd, check, check_equal

tmp = sys.argv[1]
EVENTS = ["cluster_alloc", "cow_read", "cow_write", "flush_to_disk",
          "flush_to_os", "l1_update", "l2_alloc_write",
          "l2_load", "l2_update", "pwritev", "pwritev_done", "read_aio",
          "read_backing_aio", "refblock_alloc", "refblock_load", "refblock_update_part",
          "reftable_update", "write_aio"]
NEVER = ["l1_grow_activate_table", "vmstate_load", "pwritev_rmw_head"]
# Clusters of 512 bytes with 64-bit refcounts: this needs more refcount blocks.
COMMANDS = ["write 0 64k", "read 0 64k", "flush", "write 1k 512", "flush",
            "write 3072100 100", "flush", "read 3000k 1k", "read 2000k 1k",
            "write 0 64k", "flush"]


def remove(q):
    q.execute("block-export-del", {"id": "e", "mode": "hard"})
    q.execute("blockdev-del", {"node-name": "d"})


def run_event(d, q, event):
    """How many commands failed."""
    image = "%s/%s.qcow2" % (tmp, event)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "cluster_size=512,refcount_bits=64", "-F", "raw", "-b",
                    tmp + "/base.raw", image, "4M"], check=True)
    # State 2 is reached by the first data write: opening must succeed.
    q.execute("blockdev-add", {
        "driver": "qcow2", "node-name": "d", "allow-backing": True,
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": image},
            "set-state": [{"event": "write_aio", "state": 1, "new_state": 2}],
            "inject-error": [{"event": event, "once": True, "errno": 5,
                              "state": 0 if event == "cluster_alloc" else 2}]
        }})
    q.execute("block-export-add", {"type": "nbd", "id": "e", "name": "d",
                                   "node-name": "d", "writable": True})
    results = run_io(d.uri("d"), COMMANDS)
    check(set(results) <= {"ok", "EIO"}, "%s: %s" % (event, results))
    remove(q)
    # Leaks (3) are allowed, corruption is not.
    p = subprocess.run(["qemu-img", "check", "-q", image])
    check(p.returncode in (0, 3), "%s: damaged" % event)
    return results.count("EIO")


with Tidemarkd(tmp) as d, d.qmp() as q:
    counts = {e: run_event(d, q, e) for e in EVENTS}
    silent = [e for e in EVENTS if counts[e] == 0]
    check_equal(silent, [], "events at which nothing failed")
    for event in NEVER:
        check_equal(run_event(d, q, event), 0, event)

    # As the top of a disk, with nothing above that tells of events.
    with open(tmp + "/a.raw", "w") as f:
        f.truncate(1 << 20)
    q.execute("blockdev-add", {
        "driver": "blkdebug", "node-name": "d",
        "image": {"driver": "file", "filename": tmp + "/a.raw"},
        "set-state": [{"event": "flush_to_disk", "state": 1,
                       "new_state": 2}],
        "inject-error": [
            {"event": "read_aio", "state": 2, "once": True},
            {"event": "write_aio", "state": 2, "errno": 28, "sector": 16,
             "once": True}]})
    q.execute("block-export-add", {"type": "nbd", "id": "e", "name": "d",
                                   "node-name": "d", "writable": True})
    check_equal(run_io(d.uri("d"), ["write 0 4k", "read 0 4k", "flush",
                                    "read 0 4k", "read 0 4k", "write 0 4k",
                                    "write 8k 4k", "write 8k 4k"]),
                ["ok", "ok", "ok", "EIO", "ok", "ok", "ENOSPC", "ok"], "top")
    remove(q)

    # What is injected while the image is opened is the command's error.
    reply = q.command("blockdev-add", {
        "driver": "qcow2", "node-name": "d", "file": {
            "driver": "blkdebug", "inject-error": [{"event": "none"}],
            "image": {"driver": "file",
                      "filename": tmp + "/l2_load.qcow2"}}})
    check("error" in reply and "Input/output error" in reply["error"]["desc"],
          "opening: %s" % reply)
    check_equal(q.execute("query-named-block-nodes"), [], "nodes")
END
