#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# tidemark check and damaged images: its verdict is qemu-img check's, what it
# mends is sound for both.
. ./functions.sh
requires qemu-img qemu-io python3

python3 "$top_srcdir/tests/qcow2-check.py" "$tidemark" "$tmp" 2>"$tmp/err" ||
    fail "see above"

# Not an image, in use, read-only.
expect_error "not a qcow2 image" "$tidemark" check "$tmp/err"
expect_error "No such file" "$tidemark" check "$tmp/nothing"
status=0
"$tidemark" check --repair some "$tmp/base" 2>"$tmp/err" || status=$?
[ $status = 1 ] || fail "status $status for a wrong option"
grep -q "allowed are leaks and all" "$tmp/err" || fail "$(cat "$tmp/err")"
background "$tidemarkd" --disk "a,file=$tmp/base,format=qcow2" \
    --listen "unix:$tmp/s"
wait_for 20 is_listening "$tmp/s"
expect_error "$tmp/base" "$tidemark" check --repair all "$tmp/base"
