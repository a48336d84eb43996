#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# block/blk-file on a block device (a loop device; skipped where there are
# none, as in most containers).
. ./functions.sh
requires losetup

truncate -s 2M "$tmp/image"
if ! device=$(losetup --find --show "$tmp/image" 2> "$tmp/err"); then
    echo "no loop device: $(cat "$tmp/err")"
    exit 77
fi
test_cleanup+=("losetup --detach $device")
./blk-device "$device" || fail "$device"

truncate -s 2M "$tmp/image2"
device=$(losetup --find --show --read-only "$tmp/image2")
test_cleanup+=("losetup --detach $device")
./blk-device ro "$device" || fail "$device, read-only"
