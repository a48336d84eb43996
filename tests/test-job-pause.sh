#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Push backups that pause, are slowed down, and of disks that grow: a grown disk
# is backed up whole, a paused job copies nothing while another disk's bitmaps
# go on, a speed holds and can be changed.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
timeout 120 python3 - "$tmp" <<'END'
import os
import sys
import time
from job_util import (Disks, K, M, check, check_equal, check_image, compare,
                      create, refused)

tmp = sys.argv[1]
full, inc, old = tmp + "/full", tmp + "/inc", tmp + "/old"


def progress(d, job="vda"):
    (info,) = [j for j in d.qmp.execute("query-jobs") if j["id"] == job]
    return info["status"], info["current-progress"]


def start_chain(d, disk, path):
    d.add_bitmap(disk)
    d.backup(disk, path, bitmap="b0", bitmap_mode="on-success")


def one_unit(d, **more):
    """A job that has copied one unit and is to copy the next in an hour."""
    d.start("vda", inc, speed=18, mode="existing", **more)
    while progress(d)[1] == 0:
        pass
    check_equal(progress(d), ("running", 64 * K), "after the first unit")


def grown():
    with Disks(tmp, "vda") as d:
        d.write("vda", (1, 0, 3 * M))
        start_chain(d, "vda", full)
        d.write("vda", (2, 15 * M, M))
        d.qmp.execute("block_resize", {"device": "vda", "size": 24 * M + 512})
        d.write("vda", (3, 20 * M + 5 * K, 100 * K), (4, 24 * M, 512),
                (5, 16 * M - 3 * K, 6 * K))
        check_equal(d.bitmap("vda")["count"], 9 * M + 512, "dirty")
        create(inc, 24 * M + 512, backing=full)
        data = d.backup("vda", inc, "incremental", bitmap="b0",
                        mode="existing")
        check_equal(data["len"], 9 * M + 64 * K, "len")
        check_image(inc)
        compare(inc, d.reference("vda", "ref"))
        check_equal(d.bitmap("vda")["count"], 0, "dirty afterwards")

        # Of the old size it is refused, and so is growing it meanwhile.
        refused(d.qmp, "drive-backup", {
            "device": "vda", "target": full, "sync": "incremental",
            "bitmap": "b0", "mode": "existing", "format": "qcow2"},
            "Source and target image have different sizes")
        d.write("vda", (6, 0, M))
        create(old, backing=inc)
        d.start("vda", old, "incremental", bitmap="b0", mode="existing",
                speed=1)
        refused(d.qmp, "block_resize", {"device": "vda", "size": 25 * M},
                "Device 'vda' is in use")
        refused(d.qmp, "block_resize", {"node-name": "vda", "size": 25 * M},
                "Device 'vda' is in use")
        d.qmp.execute("block-job-cancel", {"device": "vda"})
        d.wait_cancelled("vda")
        d.qmp.execute("block_resize", {"device": "vda", "size": 25 * M})
        check_equal(d.bitmap("vda")["count"], 2 * M, "dirty after a cancel")


def others(d):
    """All that can be done with another disk's bitmaps, a backup too."""
    def bitmap(verb, **arguments):
        d.qmp.execute("block-dirty-bitmap-" + verb,
                      dict(arguments, node="vdb"))
    d.write("vdb", (8, M, 64 * K))
    bitmap("add", name="b1", granularity=32 * K)
    bitmap("merge", target="b1", bitmaps=["b0"])
    bitmap("disable", name="b1")
    d.write("vdb", (9, 2 * M, 64 * K))
    check_equal(d.bitmap("vdb", "b1")["count"], 64 * K, "merged")
    bitmap("enable", name="b1")
    d.qmp.execute("transaction", {"actions": [
        {"type": "block-dirty-bitmap-clear",
         "data": {"node": "vdb", "name": "b1"}}]})
    bitmap("remove", name="b1")
    create(old, backing=full)
    d.backup("vdb", old, "incremental", bitmap="b0", mode="existing")
    compare(old, d.reference("vdb", "ref-b"))
    check_equal(d.bitmap("vdb")["count"], 0, "the other disk's bitmap")


def paused():
    with Disks(tmp, "vda", "vdb", size=4 * M) as d:
        for disk in "vda", "vdb":
            d.write(disk, (1, 0, M))
        start_chain(d, "vdb", full)
        d.add_bitmap("vda")
        d.write("vda", (2, 0, 3 * M))
        ref = d.reference("vda", "ref")
        create(inc, 4 * M)
        one_unit(d, sync="full", bitmap="b0", bitmap_mode="on-success")
        d.events()
        d.qmp.execute("job-pause", {"id": "vda"})
        d.qmp.wait_event("JOB_STATUS_CHANGE", id="vda", status="paused")
        d.qmp.execute("block-job-set-speed", {"device": "vda", "speed": 0})
        others(d)
        d.write("vda", (3, 0, 64 * K), (4, 2 * M, M))
        check_equal(progress(d), ("paused", 64 * K), "a paused job")
        (info,) = d.qmp.execute("query-block-jobs")
        check_equal((info["paused"], info["speed"], info["io-status"]),
                    (True, 0, "ok"), "query-block-jobs")
        check(d.bitmap("vda")["busy"], "its bitmap is not busy")
        d.events()
        d.qmp.execute("job-resume", {"id": "vda"})
        data = d.wait("vda")
        check_equal((data["len"], data["offset"]), (4 * M, 4 * M), "the end")
        check_equal([e.split()[1] for e in d.events()],
                    ["running", "waiting", "pending", "concluded"], "events")
        compare(inc, ref)
        check_equal(d.bitmap("vda")["count"], M + 64 * K, "written since")


def speed():
    """A limit takes its time, and one that has been lifted does not count."""
    with Disks(tmp, "vda", size=4 * M) as d:
        d.write("vda", (1, 0, 4 * M))
        start = time.monotonic()
        d.backup("vda", full, speed=8 * M)
        check(time.monotonic() - start > 0.3, "4 MiB at 8 MiB/s: %s s"
              % (time.monotonic() - start))
        create(inc, 4 * M)
        one_unit(d, sync="full")
        start = time.monotonic()
        d.qmp.execute("block-job-set-speed", {"device": "vda",
                                              "speed": 8 * M})
        check_equal(d.wait("vda")["speed"], 8 * M, "speed")
        check(time.monotonic() - start > 0.3, "changed to 8 MiB/s: %s s"
              % (time.monotonic() - start))
        compare(inc, full)
        one_unit(d, sync="full")
        d.qmp.execute("block-job-set-speed", {"device": "vda", "speed": 0})
        d.wait("vda")


grown()
paused()
speed()
END
