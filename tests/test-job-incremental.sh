#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Incremental push backups: three in a row of several granularities, targets
# with larger clusters that are rebased afterwards, a failed one in between.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
timeout 120 python3 - "$tmp" <<'END'
import os
import sys
from job_util import (Disks, K, M, check, check_equal, check_image, compare,
                      create)

tmp = sys.argv[1]


def full(d, name):
    """A full backup with new bitmap b0 from the same point."""
    path = "%s/%s" % (tmp, name)
    d.qmp.execute("transaction", {"actions": [
        {"type": "block-dirty-bitmap-add",
         "data": {"node": "vda", "name": "b0",
                  "granularity": d.granularity}},
        {"type": "drive-backup",
         "data": {"device": "vda", "target": path, "format": "qcow2",
                  "sync": "full"}}]})
    check_equal(d.wait("vda")["len"], d.size, "len of a full backup")
    return path


def incremental(d, name, backing, error=None, cluster=None, rebased=False):
    path = "%s/%s" % (tmp, name)
    if rebased:
        create(path, d.size, cluster)
    else:
        create(path, cluster=cluster, backing=backing)
    data = d.backup("vda", path, "incremental", error, bitmap="b0",
                    mode="existing")
    if rebased:
        os.system("qemu-img rebase -u -b '%s' -F qcow2 '%s'"
                  % (backing, path))
    check_image(path)
    return path, data


# Whole clusters, a new area, parts of clusters that overlap; zeroes too.
ROUNDS = [
    [],
    [(0x64, 0, 64 * K), (0x65, 32 * 64 * K, 64 * K), (None, 64 * K, 128 * K)],
    [(0x70, 30 * K, 8 * K), (0x71, M - 5 * K, 9 * K), (0x72, 8 * M, 1 * M),
     (None, 32 * 64 * K + 4 * K, 20 * K), (0x73, 15 * M + 1000 * K, 24 * K)],
]


def three_in_a_row(granularity, cluster=None, rebased=False):
    with Disks(tmp, "vda") as d:
        d.granularity = granularity
        d.write("vda", (0x41, 0, 4 * M), (0x42, 9 * M, 70 * K))
        head = full(d, "full")
        compare(head, d.reference("vda", "ref"))
        for i, writes in enumerate(ROUNDS):
            if writes:
                d.write("vda", *writes)
            b = d.bitmap("vda")
            check_equal((b["count"] == 0, b["granularity"]),
                        (not writes, granularity), "bitmap")
            head, data = incremental(d, "inc%d" % i, head, None, cluster,
                                     rebased)
            check_equal(data["len"], data["offset"], "progress")
            check_equal(data["len"] == 0, not writes, "len")
            check(data["len"] < 3 * M, "copied too much: %r" % data)
            compare(head, d.reference("vda", "ref"))
            b = d.bitmap("vda")
            check_equal((b["count"], b["busy"]), (0, False), "bitmap after")


def failed_in_between():
    """The second is cancelled; its changes are in the third."""
    with Disks(tmp, "vda") as d:
        d.granularity = 64 * K
        d.write("vda", (1, 0, M))
        head = full(d, "full")
        d.write("vda", (2, 2 * M, M))
        small = create(tmp + "/small", d.size)
        d.qmp.execute("drive-backup", {
            "device": "vda", "target": small, "format": "qcow2",
            "sync": "incremental", "bitmap": "b0", "mode": "existing",
            "speed": 1})
        d.write("vda", (3, 5 * M, 200 * K))
        check(d.bitmap("vda")["busy"], "not busy")
        d.qmp.execute("block-job-cancel", {"device": "vda"})
        d.wait_cancelled("vda")
        b = d.bitmap("vda")
        check_equal((b["busy"], b["count"]), (False, M + 256 * K),
                    "old and new bits")
        d.write("vda", (4, 0, 4 * K))
        head, _ = incremental(d, "good", head)
        compare(head, d.reference("vda", "ref"))


for granularity in 32 * K, 64 * K, 128 * K:
    three_in_a_row(granularity)
three_in_a_row(64 * K, cluster=128 * K)
three_in_a_row(64 * K, cluster=128 * K, rebased=True)
three_in_a_row(32 * K, rebased=True)
failed_in_between()
END
