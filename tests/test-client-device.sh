#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Block devices (loop devices; skipped where there are none): one is served,
# backed up while it is written to, and restored to another.
. "${srcdir:-.}/client-test.sh"
requires losetup

# loop SIZE [OPTION...]: a new device, whose name is in $device.
loop ()
{
    local size=$1
    shift
    images=$((${images:-0} + 1))
    random_file "$tmp/image$images" "$size"
    device=$(losetup --find --show "$@" "$tmp/image$images" 2>"$tmp/err") || {
        echo "no loop device: $(cat "$tmp/err")"
        exit 77
    }
    test_cleanup+=("losetup --detach $device")
}

loop 8
disk=$device
repo=$tmp/repo
ctl=$tmp/ctl.sock
live=$tmp/live.sock
background "$tidemarkd" --disk "vda,file=$disk" --control "unix:$ctl" \
    --listen "unix:$live" --backup-listen "unix:$tmp/backup.sock" \
    --scratch-dir "$tmp"
server=$!
wait_for 20 qmp "$ctl" query-version
run_ok "$tidemark" backup "$ctl" "$repo"
cat "$disk" >"$tmp/copy1.raw"
guest vda 'write -P 1 1M 1M' 'write -z -u 3M 1M' 'discard 5M 64k' 'flush'
cat "$disk" >"$tmp/copy2.raw"
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(member "$repo" vda 2 mode)" = incremental ] || fail "not incremental"
[ "$(member "$repo" vda 2 dirty-bytes)" = $(((2 << 20) + 65536)) ] ||
    fail "dirty: $(member "$repo" vda 2 dirty-bytes)"
check_backup "$repo" vda 1 "$tmp/copy1.raw"
check_backup "$repo" vda 2 "$tmp/copy2.raw"
stop_server

# The target is larger, and full of other data.
loop 10
tail -c 2M "$device" >"$tmp/tail"
expect_status 1 "$device is a block device: what it holds would be lost" \
    "$tidemark" restore "$repo" "$device"
cmp -s "$device" "$tmp/image$images" || fail "overwritten"
run_ok "$tidemark" restore --force "$repo" "$device"
cmp -n $((8 << 20)) "$device" "$tmp/copy2.raw" || fail "restored"
tail -c 2M "$device" | cmp - "$tmp/tail" || fail "behind the disk's end"
run_ok "$tidemark" restore --force --at 1 "$repo" "$device"
cmp -n $((8 << 20)) "$device" "$tmp/copy1.raw" || fail "restored, --at 1"
expect_status 1 "--format qcow2 is for new files only" \
    "$tidemark" restore --force --format qcow2 "$repo" "$device"

# One that somebody holds, that is too small, that cannot be written to.
python3 - "$device" >"$tmp/held" <<'END' &
import os, signal, sys
os.open (sys.argv[1], os.O_RDONLY | os.O_EXCL)
print ("held", flush=True)
signal.pause ()
END
holder=$!
test_pids+=($holder)
wait_for 20 grep -q held "$tmp/held"
expect_status 1 "$device: Device or resource busy" \
    "$tidemark" restore --force "$repo" "$device"
kill $holder
wait $holder 2>/dev/null || :
loop 7
expect_status 1 "$device: 7 MiB (7340032 bytes) is too small for a disk of 8 MiB" \
    "$tidemark" restore --force "$repo" "$device"
loop 8 --read-only
expect_status 1 "$device" "$tidemark" restore --force "$repo" "$device"
expect_status 1 "$device" "$tidemarkd" --disk "vda,file=$device" \
    --control "unix:$tmp/other.sock"
