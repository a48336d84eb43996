#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A store's maps are locked in memory, also in a server that has forked after it
# opened them: locks do not survive a fork.
. ./functions.sh
requires nbdkit

# is_locked PID: at least the live page, the intent map and one array.
is_locked ()
{
    [ "$(awk '$1 == "VmLck:" { print $2 }' "/proc/$1/status")" -ge 12 ]
}

truncate -s 64M "$tmp/a.raw" "$tmp/b.raw"
background "$tidemarkd" --disk "a,file=$tmp/a.raw" --bitmap a/k \
    --listen "unix:$tmp/a.sock"
wait_for 20 is_locked $!

# It leaves the foreground.
nbdkit -U "$tmp/b.sock" -P "$tmp/pid" "$plugin" "disk=b,file=$tmp/b.raw" \
    bitmap=b/k
wait_for 20 test -s "$tmp/pid"
test_pids+=("$(cat "$tmp/pid")")
wait_for 20 is_locked "$(cat "$tmp/pid")"
