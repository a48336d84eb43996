#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The "dirty:" exports: extents say what is dirty, reads give the live disk,
# nothing can be written.
. ./functions.sh
requires nbdkit nbdinfo qemu-io

cd "$tmp"
truncate -s 16M d.raw
start_plugin s control=unix:c disk=vda,file=d.raw bitmap=vda/b0 \
    bitmap=vda/fine,granularity=4k bitmap=vda/off,disabled=on
live="nbd+unix:///vda?socket=$tmp/s"
dirty="nbd+unix:///dirty:vda/b0?socket=$tmp/s"

# map URI EXPECTED: lines "offset length type".
map ()
{
    nbdinfo --map "$1" | awk '{ print $1, $2, $3 }' > map
    diff -u - map <<< "$2" || fail "map of $1"
}

map "$dirty" "0 16777216 1"
nbdinfo --map "$dirty" | grep -q hole || fail "clean is not shown as a hole"
qemu-io -f raw "$live" -c "write -P 7 1M 4k" -c "write -z 2M 64k" \
    -c "discard 4M 128k" > io
map "$dirty" "0 1048576 1
1048576 65536 0
1114112 983040 1
2097152 65536 0
2162688 2031616 1
4194304 131072 0
4325376 12451840 1"
nbdinfo --map "nbd+unix:///dirty:vda/fine?socket=$tmp/s" |
    awk '$1 == 1048576 && $2 == 4096 && $3 == 0' | grep -q . ||
    fail "granularity of 4k"
map "nbd+unix:///dirty:vda/off?socket=$tmp/s" "0 16777216 1"

# Reads give the live disk, also where it is clean; writes are refused.
qemu-io -r -f raw "$dirty" -c "read -P 7 1M 4k" -c "read -P 0 8M 4k" > io
grep -q "verification failed" io && fail "$(cat io)"
nbdinfo --json "$dirty" | json 'j["exports"][0]["is_read_only"]' |
    grep -q True || fail "a dirty export is writable"

# It is in the list, and gone from it with the bitmap; who has it open gets an
# error, never "clean".
nbdinfo --list --json "$live" |
    json '[e["export-name"] for e in j["exports"]]' > names
test "$(cat names)" = \
    "['vda', 'dirty:vda/b0', 'dirty:vda/fine', 'dirty:vda/off']" ||
    fail "$(cat names)"
qmp c block-dirty-bitmap-clear '{"node": "vda", "name": "b0"}' > out
map "$dirty" "0 16777216 1"
mkfifo commands
exec 9<> commands
background sh -c "exec stdbuf -oL qemu-io -r -f raw \"$dirty\" <&9 >io 2>&1"
echo map >&9
wait_for 10 grep -q '16 MiB .* not allocated' io
qmp c block-dirty-bitmap-remove '{"node": "vda", "name": "b0"}' > out
echo map >&9
wait_for 10 grep -q 'Failed to get allocation status' io
echo quit >&9
expect_error "" nbdinfo --map "$dirty"
