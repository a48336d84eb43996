#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A chain from tidemarkd: full, incrementals of data, zeroes and nothing; every
# point restores, by us and by qemu-img alone.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 8
truncate -s 64M "$tmp/vda.raw"
start_tidemarkd vda
repo=$tmp/repo

backup ()                       # backup N
{
    cp --sparse=always "$tmp/vda.raw" "$tmp/copy$1.raw"
    run_ok "$tidemark" backup --json "unix:$ctl" "$repo"
    cp "$tmp/out" "$tmp/events$1"
}

event ()                        # event N EVENT KEY
{
    grep "\"event\":\"$2\"" "$tmp/events$1" | tail -n 1 | json "j['$3']"
}

backup 1
[ "$(event 1 disk-begin mode)" = full ] || fail "the first is not full"
[ "$(event 1 disk-end moved-bytes)" = $((8 << 20)) ] || fail "moved, 1"
[ "$(event 1 stored image)" = vda/000001-full.qcow2 ] || fail "image"
[ "$(event 1 stored confirmed)" = True ] || fail "not confirmed"

# Parts of granules and clusters, zeroes, what is neither.
guest vda 'write -P 1 3M 100' 'write -P 2 40000k 200k' \
    'write -z 1M 1M' 'write -P 0 50M 64k' 'discard 5M 64k'
backup 2
[ "$(event 2 disk-begin mode)" = incremental ] || fail "2 is not incremental"
# 3M: one cluster; 40000k: 5 clusters at most.
moved=$(event 2 disk-end moved-bytes)
[ "$moved" -ge $((5 * 65536)) ] && [ "$moved" -le $((8 * 65536)) ] ||
    fail "moved, 2: $moved"
[ "$(event 2 disk-end zero-bytes)" -ge $((1 << 20)) ] || fail "zeroes, 2"

backup 3                        # nothing
[ "$(event 3 disk-end moved-bytes)" = 0 ] || fail "moved, 3"
[ "$(event 3 disk-end data-bytes)" = 0 ] || fail "data, 3"

guest vda 'write -P 9 1M 64k' 'write -P 8 63M 1M'
backup 4
guest vda 'write -z 0 64M'
backup 5
[ "$(event 5 disk-end data-bytes)" = 0 ] || fail "data, 5"
[ "$(event 5 disk-end zero-bytes)" = $((64 << 20)) ] || fail "zeroes, 5"

for n in 1 2 3 4 5; do check_backup "$repo" vda $n "$tmp/copy$n.raw"; done
run_ok "$tidemark" verify "$repo"
grep -q '5 backups checked' "$tmp/out" || fail "verify"
no_leftovers "$repo"
[ -z "$(find "$repo/vda" -type f -perm /222)" ] || fail "writable files"
[ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "a session is left"

# A backup builds on the newest one without looking into it, so nothing that it
# names is opened: that would never end here.
cp -a "$repo" "$tmp/odd"
chmod u+w "$tmp/odd/vda/000005-inc.qcow2"
mkfifo "$tmp/fifo"
run_ok qemu-img rebase -u -f qcow2 -F qcow2 -b "$tmp/fifo" \
    "$tmp/odd/vda/000005-inc.qcow2"
guest vda 'write -P 3 0 64k'
run_ok timeout 60 "$tidemark" backup --quiet "unix:$ctl" "$tmp/odd"
expect_status 1 "is not in the image" \
    timeout 60 "$tidemark" restore "$tmp/odd" "$tmp/none.raw"

# The chain as data: base and parent are the backup before, by point.
for n in 2 3 4 5; do
    point=$(member "$repo" vda $((n - 1)) point)
    [ "$(member "$repo" vda $n base-point)" = "$point" ] || fail "base of $n"
    [ "$(member "$repo" vda $n parent-point)" = "$point" ] || fail "parent $n"
done
run_ok "$tidemark" info --json --at 3 "$repo"
[ "$(json "j['disks'][0]['chain']" <"$tmp/out")" = \
  "['000003-inc.qcow2', '000002-inc.qcow2', '000001-full.qcow2']" ] ||
    fail "info: chain"
run_ok "$tidemark" info "$repo"
grep -q 'chain  *000005-inc -> 000004-inc' "$tmp/out" || fail "info"
