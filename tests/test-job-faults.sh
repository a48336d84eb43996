#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Push backups that meet errors, injected by blkdebug: a failed incremental,
# more writes and a good one; every on-error policy ends in the right image;
# compressed and node targets.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
timeout 120 python3 - "$tmp" <<'END'
import json
import os
import sys
from job_util import (Disks, K, M, check, check_equal, check_image, compare,
                      create, run)

tmp = sys.argv[1]
SIZE = 4 * M


def add(d, name, size=SIZE, backing=None, **rule):
    """An image as a node.  rule: fails after the first flush."""
    path = "%s/%s" % (tmp, name)
    if not os.path.exists(path):
        create(path, None if backing else size, backing=backing)
    file = {"driver": "file", "filename": path}
    if rule:
        file = {"driver": "blkdebug", "image": file,
                "set-state": [{"event": "flush_to_disk", "state": 1,
                               "new_state": 2}],
                "inject-error": [dict({"state": 2, "once": True}, **rule)]}
    node = {"node-name": name, "driver": "qcow2", "file": file}
    if backing:
        node["backing"] = None
    d.qmp.execute("blockdev-add", node)
    return path


def export(d, name):
    d.qmp.execute("block-export-add", {"type": "nbd", "id": name,
                                       "node-name": name, "writable": True})


def remove(d, name, is_exported=False):
    if is_exported:
        d.qmp.execute("block-export-del", {"id": name, "mode": "hard"})
    d.qmp.execute("blockdev-del", {"node-name": name})


def failed_incremental(mode):
    """One read error, then more changes and a good incremental: a new one, or
    the rest of the failed one, as the mode has it."""
    with Disks(tmp) as d:
        add(d, "src", event="read_aio", errno=5)
        export(d, "src")
        full = tmp + "/full"
        d.qmp.execute("block-dirty-bitmap-add", {"node": "src", "name": "b0"})
        d.backup("src", full, bitmap="b0", bitmap_mode="on-success",
                 sync="full")
        d.write("src", (1, 0, M), (2, 2 * M, 300 * K), (3, 3 * M, 10 * K))
        before = d.bitmap("src")["count"]
        inc = create(tmp + "/inc", backing=full)
        d.events()
        d.backup("src", inc, "bitmap", "Input/output error", bitmap="b0",
                 bitmap_mode=mode, mode="existing")
        events = d.events()
        check_equal(events[2], "src BLOCK_JOB_ERROR action=report "
                    "operation=read", "event")
        b = d.bitmap("src")
        check(not b["busy"], "busy after a failure")
        if mode == "on-success":
            check_equal(b["count"], before, "bits after a failure")
        else:           # what has been copied beside what failed is clean
            check(0 < b["count"] <= before, "bits: %r" % b)
        d.write("src", (4, M - 7 * K, 20 * K), (None, 2 * M, 64 * K))
        if mode == "on-success":
            os.unlink(inc)
            create(inc, backing=full)
        d.backup("src", inc, "bitmap", bitmap="b0", bitmap_mode=mode,
                 mode="existing")
        check_image(inc)
        compare(inc, d.reference("src", "ref"))
        check_equal(d.bitmap("src")["count"], 0, "bits in the end")
    os.unlink(tmp + "/src")


def failed_flush():
    """What is not durable does not count, and cannot be tried again."""
    with Disks(tmp, "vda", size=SIZE) as d:
        d.add_bitmap("vda")
        d.write("vda", (1, 0, M))
        path = add(d, "lost", event="l2_update", errno=5, state=0)
        d.start("vda", "lost", command="blockdev-backup", bitmap="b0",
                bitmap_mode="on-success", on_target_error="ignore")
        d.wait("vda", "Input/output error")
        check_equal(d.bitmap("vda")["count"], M, "bits after a failed flush")
        d.start("vda", "lost", command="blockdev-backup", bitmap="b0",
                bitmap_mode="on-success")
        d.wait("vda")
        check_equal(d.bitmap("vda")["count"], 0, "bits in the end")
        remove(d, "lost")
        compare(path, d.reference("vda", "ref"))


def policies():
    """Nothing is left out of an image, whatever failed and came again."""
    with Disks(tmp) as d:
        path = add(d, "plain")
        export(d, "plain")
        d.write("plain", (1, 0, M), (2, 2 * M, 300 * K), (3, 4 * M - 5 * K,
                                                         5 * K))
        remove(d, "plain", True)
        faults = [({"event": "read_aio", "errno": 5}, {}),
                  ({}, {"event": "write_aio", "errno": 28})]
        for source, target in faults:
            for policy in "ignore", "stop":
                name = "%s-%s" % ((source or target)["event"], policy)
                os.rename(path, tmp + "/s-" + name)
                add(d, "s-" + name, **source)
                add(d, "t-" + name, **target)
                export(d, "t-" + name)
                export(d, "s-" + name)
                # The first flush: from here on it fails.
                d.write("t-" + name, (9, M, 4 * K))
                d.write("s-" + name, (1, 0, 4 * K))
                d.events()
                d.start("s-" + name, "t-" + name, command="blockdev-backup",
                        job_id="j", on_source_error=policy,
                        on_target_error=policy)
                event = d.qmp.wait_event("BLOCK_JOB_ERROR", device="j")
                check_equal(event["data"], {
                    "device": "j", "action": policy,
                    "operation": "read" if source else "write"}, name)
                if policy == "stop":
                    d.qmp.wait_event("JOB_STATUS_CHANGE", id="j",
                                     status="paused")
                    (info,) = d.qmp.execute("query-block-jobs")
                    check_equal((info["io-status"], info["status"]),
                                ("nospace" if target.get("errno") == 28
                                 else "failed", "paused"), name)
                    d.write("s-" + name, (7, 0, 100 * K))
                    d.qmp.execute("block-job-resume", {"device": "j"})
                d.wait("j")
                remove(d, "t-" + name, True)
                if policy == "stop":
                    d.write("s-" + name, (1, 0, 100 * K))
                remove(d, "s-" + name, True)
                os.rename(tmp + "/s-" + name, path)
                check_image(tmp + "/t-" + name)
                compare(tmp + "/t-" + name, path)


def packed(path):
    return json.loads(run("qemu-img", "check", "--output=json", path)).get(
        "compressed-clusters", 0)


def compressed():
    """Full, incremental over it, to a node, and the old data of a moving
    copy; clusters that are larger and smaller than the units copied."""
    with Disks(tmp, "vda", size=SIZE) as d:
        d.write("vda", (1, 0, M), (2, 3 * M + 100 * K, 200 * K))
        start = d.reference("vda", "start")
        d.add_bitmap("vda")
        full = tmp + "/packed"
        d.backup("vda", full, bitmap="b0", bitmap_mode="on-success",
                 compress=True)
        compare(full, start)
        check_equal(packed(full), 16 + 4, "clusters")
        d.write("vda", (3, 10 * K, 100 * K), (None, M // 2, 64 * K))
        inc = create(tmp + "/packed-inc", backing=full)
        d.backup("vda", inc, "incremental", bitmap="b0", mode="existing",
                 compress=True)
        compare(inc, d.reference("vda", "ref"))
        check_equal(packed(inc), 2, "clusters")
        for cluster in 4 * K, 2 * M:
            node = "node-%d" % cluster
            path = create("%s/%s" % (tmp, node), SIZE, cluster=cluster)
            add(d, node)
            d.start("vda", node, command="blockdev-backup", compress=True)
            d.wait("vda")
            remove(d, node)
            check_image(path)
            compare(path, tmp + "/ref")
            check(packed(path) > 0, "not compressed: " + path)
        old = tmp + "/old"
        d.start("vda", old, "none", compress=True)
        d.write("vda", (5, 0, 2 * M))
        d.qmp.execute("job-cancel", {"id": "vda"})
        d.wait_cancelled("vda")
        compare(old, tmp + "/ref")
        check(packed(old) > 0, "not compressed")


for mode in "on-success", "always":
    failed_incremental(mode)
failed_flush()
policies()
compressed()
END
