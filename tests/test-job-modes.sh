#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Push backups: bitmap-mode never and always, sync full with a bitmap, top,
# none; raw and qcow2 disks and targets; sizes that are not whole clusters.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
timeout 120 python3 - "$tmp" <<'END'
import os
import sys
from job_util import (Disks, K, M, check, check_equal, check_image, compare,
                      create, run)

tmp = sys.argv[1]
full, ref, diff = tmp + "/full", tmp + "/ref", tmp + "/diff"


def differential(fmt):
    """never: each backup holds all since the full one."""
    with Disks(tmp, "vda", fmt=fmt) as d:
        d.write("vda", (1, 0, 3 * M))
        d.backup("vda", full)
        d.add_bitmap("vda")
        for i in range(3):
            d.write("vda", (10 + i, i * M, 100 * K))
            create(diff, backing=full)
            data = d.backup("vda", diff, "bitmap", bitmap="b0",
                            bitmap_mode="never", mode="existing")
            check_equal(data["len"], (i + 1) * 128 * K, "len")
            compare(diff, d.reference("vda", "ref"))
            os.unlink(diff)


def always():
    """always: what a cancelled job did not copy is dirty again, and what it
    did copy is in its target."""
    with Disks(tmp, "vda") as d:
        d.write("vda", (1, 0, 3 * M))
        d.backup("vda", full)
        d.add_bitmap("vda")
        d.write("vda", (2, 0, 64 * K), (3, M, 64 * K), (4, 2 * M, 64 * K))
        one = create(tmp + "/one", backing=full)
        # One unit at once, the next after an hour.
        d.start("vda", one, "bitmap", bitmap="b0", bitmap_mode="always",
                mode="existing", speed=18)
        while d.qmp.execute("query-jobs")[0]["current-progress"] == 0:
            pass
        d.write("vda", (5, 3 * M, 64 * K))
        check_equal(d.qmp.execute("query-jobs"), [
            {"id": "vda", "type": "backup", "status": "running",
             "current-progress": 64 * K, "total-progress": 192 * K}],
            "query-jobs")
        d.qmp.execute("job-cancel", {"id": "vda"})
        d.wait_cancelled("vda")
        check_equal(d.bitmap("vda")["count"], 3 * 64 * K, "bits left")
        two = create(tmp + "/two", backing=one)
        d.backup("vda", two, "bitmap", bitmap="b0", bitmap_mode="always",
                 mode="existing")
        compare(two, d.reference("vda", "ref"))
        check_equal(d.bitmap("vda")["count"], 0, "bits left in the end")


def full_with_bitmap():
    """A bitmap that counts from a full backup; dropped on success only."""
    with Disks(tmp, "vda") as d:
        d.add_bitmap("vda")
        d.write("vda", (1, 0, 3 * M))
        d.start("vda", full, bitmap="b0", bitmap_mode="on-success", speed=1)
        check_equal(d.bitmap("vda")["busy"], True, "busy")
        d.qmp.execute("block-job-cancel", {"device": "vda"})
        d.wait_cancelled("vda")
        check_equal(d.bitmap("vda")["count"], 3 * M, "bits after a cancel")
        d.backup("vda", full, bitmap="b0", bitmap_mode="on-success")
        check_equal(d.bitmap("vda")["count"], 0, "bits after success")
        d.write("vda", (2, M, 64 * K))
        create(diff, backing=full)
        d.backup("vda", diff, "incremental", bitmap="b0", mode="existing")
        compare(diff, d.reference("vda", "ref"))


def moving_copy(fmt):
    """none: the target gets what the guest overwrites, before that."""
    with Disks(tmp, "vda", fmt=fmt) as d:
        d.write("vda", (1, 0, 3 * M))
        before = d.reference("vda", "before")
        old = tmp + "/old"
        d.start("vda", old, "none")
        check_equal(d.qmp.execute("query-block-jobs")[0]["offset"], 0,
                    "offset")
        d.write("vda", (2, 4 * K, 4 * K), (3, M - 1 * K, 130 * K),
                (4, 5 * M, M), (None, 2 * M, 100 * K), (5, 4 * K, 4 * K))
        check(d.qmp.execute("query-block-jobs")[0]["offset"] >= M, "offset")
        d.write("vda", (6, 15 * M, M))
        d.qmp.execute("block-job-cancel", {"device": "vda"})
        d.wait_cancelled("vda")
        # What is below it is the disk.
        compare(old, before)
        check_image(old)
        os.unlink(old)


def top():
    """top: only what the upper layer holds."""
    base = create(tmp + "/base", 8 * M)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", base)
    overlay = create(tmp + "/vda.qcow2", backing=base)
    os.rename(overlay, tmp + "/overlay")
    overlay = tmp + "/overlay"
    from tidemarkd_util import Tidemarkd
    with Tidemarkd(tmp, "--disk", "vda,format=qcow2,backing=allow,file="
                   + overlay) as t:
        d = Disks.__new__(Disks)
        d.tmp, d.daemon, d.qmp = tmp, t, t.qmp()
        d.write("vda", (2, M, 64 * K), (None, 2 * M, 100 * K))
        target = tmp + "/top"
        data = d.backup("vda", target, "top")
        check_equal(data["len"], 3 * 64 * K, "len")
        compare(target, d.reference("vda", "ref"))
        check(base in run("qemu-img", "info", target), "backing file")
        os.unlink(overlay)


def odd_sizes():
    size = 3 * M + 512 * 7
    with Disks(tmp, "vda", size=size) as d:
        d.write("vda", (1, 0, size))
        data = d.backup("vda", full)
        check_equal(data["len"], 3 * M + 64 * K, "len, in whole units")
        compare(full, d.reference("vda", "ref"))
        d.add_bitmap("vda")
        d.write("vda", (2, size - 512, 512))
        create(diff, backing=full)
        d.backup("vda", diff, "incremental", bitmap="b0", mode="existing")
        compare(diff, d.reference("vda", "ref"))
        raw = tmp + "/raw"
        d.backup("vda", raw, format="raw")
        compare(raw, d.reference("vda", "ref"), format_a="raw")


for fmt in "raw", "qcow2":
    differential(fmt)
    moving_copy(fmt)
always()
full_with_bitmap()
top()
odd_sizes()
END
