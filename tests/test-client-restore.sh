#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# restore: to each kind of output, what it refuses, and what is left when it
# fails.
. "${srcdir:-.}/client-test.sh"
requires nbdkit
random_file "$tmp/vda.raw" 4
truncate -s 40M "$tmp/vda.raw"
random_file "$tmp/vdb.raw" 1
start_tidemarkd vda vdb
repo=$tmp/repo
run_ok "$tidemark" backup "$ctl" "$repo"
# Not over a disk that is served.
expect_status 1 "vda.raw: in use: another process" \
    "$tidemark" restore --force -d vda "$repo" "$tmp/vda.raw"
cp --sparse=always "$tmp/vda.raw" "$tmp/copy1.raw"
guest vda 'write -P 1 30M 1M' 'write -z 1M 1M'
run_ok "$tidemark" backup "$ctl" "$repo"
stop_server
restore=("$tidemark" restore -d vda "$repo")

expect_status 1 "holds 2 disks; choose one with --disk: vda vdb" \
    "$tidemark" restore "$repo" "$tmp/o.raw"
expect_status 1 "has no backup number 3" "${restore[@]}" --at 3 "$tmp/o.raw"
expect_status 1 "'never' names no backup: allowed are" \
    "${restore[@]}" --at never "$tmp/o.raw"

# A new raw file: sparse, with the usual mode.
(umask 027; run_ok "${restore[@]}" "$tmp/o.raw")
cmp "$tmp/o.raw" "$tmp/vda.raw" || fail "raw"
[ "$(stat -c %a "$tmp/o.raw")" = 640 ] || fail "mode"
[ "$(du -k "$tmp/o.raw" | cut -f1)" -lt 10000 ] || fail "not sparse"
# It is not overwritten by mistake, only with --force, and then as a whole.
expect_status 1 "$tmp/o.raw exists; use --force to overwrite it" \
    "${restore[@]}" --at 1 "$tmp/o.raw"
cmp "$tmp/o.raw" "$tmp/vda.raw" || fail "overwritten"
chmod 600 "$tmp/o.raw"
ln -s o.raw "$tmp/link"
run_ok "${restore[@]}" --at 1 --force "$tmp/link"
cmp "$tmp/o.raw" "$tmp/copy1.raw" || fail "--force"
[ "$(stat -c %a "$tmp/o.raw")" = 600 ] && [ -L "$tmp/link" ] || fail "mode, link"
expect_status 1 "neither a file nor a block device" \
    "${restore[@]}" --force /dev/null
expect_status 1 "neither a file nor a block device" "${restore[@]}" "$tmp"
expect_status 1 "$tmp/no/out" "${restore[@]}" "$tmp/no/out"

# qcow2: alone, whole, checked.
run_ok "${restore[@]}" --format qcow2 --verify "$tmp/out.qcow2"
run_ok qemu-img check -f qcow2 "$tmp/out.qcow2"
run_ok qemu-img compare -f qcow2 -F raw "$tmp/out.qcow2" "$tmp/vda.raw"
qemu-img info "$tmp/out.qcow2" | grep -q 'backing file' && fail "backing file"
[ "$(du -k "$tmp/out.qcow2" | cut -f1)" -lt 10000 ] || fail "qcow2 size"

# An NBD export, full of other data, larger than the disk.
random_file "$tmp/target.raw" 44
background nbdkit -f -U "$tmp/t.sock" file "$tmp/target.raw"
wait_for 20 is_listening "$tmp/t.sock"
uri="nbd+unix:///?socket=$tmp/t.sock"
tail -c 4M "$tmp/target.raw" >"$tmp/tail"
run_ok "${restore[@]}" --json "$uri"
cmp -n $((40 << 20)) "$tmp/target.raw" "$tmp/vda.raw" || fail "NBD"
tail -c 4M "$tmp/target.raw" | cmp - "$tmp/tail" || fail "behind the end"
expect_status 1 "--format qcow2 is for new files only" \
    "${restore[@]}" --format qcow2 "$uri"
background nbdkit -f -r -U "$tmp/ro.sock" memory 40M
background nbdkit -f -U "$tmp/small.sock" memory 39M
wait_for 20 is_listening "$tmp/ro.sock"
wait_for 20 is_listening "$tmp/small.sock"
expect_status 1 "read-only" "${restore[@]}" "nbd+unix:///?socket=$tmp/ro.sock"
expect_status 1 "is too small for a disk of 40 MiB" \
    "${restore[@]}" "nbd+unix:///?socket=$tmp/small.sock"
# One that fails on the way.
background nbdkit -f -U "$tmp/e.sock" --filter=error memory 40M \
    error-pwrite=ENOSPC error-pwrite-rate=100%
wait_for 20 is_listening "$tmp/e.sock"
expect_status 1 "No space left on device" \
    "${restore[@]}" "nbd+unix:///?socket=$tmp/e.sock"

# A chain that is not whole: nothing is made.
mv "$repo/vda/000001-full.qcow2" "$tmp/hidden"
expect_status 1 "000001-full.qcow2: No such file" \
    "${restore[@]}" "$tmp/other.raw"
mv "$tmp/hidden" "$repo/vda/000001-full.qcow2"
mv "$repo/vda/000001-full.json" "$tmp/hidden"
expect_status 1 "is based on backup 1, whose manifest is missing" \
    "${restore[@]}" "$tmp/other.raw"
mv "$tmp/hidden" "$repo/vda/000001-full.json"

# Interrupted: status 4.
background nbdkit -f -U "$tmp/slow.sock" --filter=delay memory 40M wdelay=300ms
wait_for 20 is_listening "$tmp/slow.sock"
env --default-signal=INT "${restore[@]}" --json \
    "nbd+unix:///?socket=$tmp/slow.sock" >"$tmp/ev" 2>"$tmp/err" &
client=$!
test_pids+=($client)
connected () { ls -l "/proc/$client/fd" | grep -q socket; }
wait_for 20 connected
kill -INT $client
status=0
wait $client || status=$?
[ $status -eq 4 ] || fail "status $status instead of 4"
grep -q 'interrupted by SIGINT' "$tmp/err" || fail "message"

# A full file system: nothing left there, and the old file is as it was.
mkdir "$tmp/small"
cat >"$tmp/full.sh" <<'END'
set -e
mount -t tmpfs -o size=3m none "$1/small"
echo old >"$1/small/out.raw"
status=0
"$2" restore -d vda --force "$1/repo" "$1/small/out.raw" 2>"$1/err" || status=$?
[ $status -eq 1 ]
[ "$(cat "$1/small/out.raw")" = old ]
[ "$(ls -A "$1/small")" = out.raw ]
END
unshare -rm bash "$tmp/full.sh" "$tmp" "$tidemark" || fail "full file system"
grep -q 'No space left on device' "$tmp/err" || fail "message: ENOSPC"
