#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A guest writes while the client pulls: the backup is the disk as it was when
# the point was taken, and the next one has what was written meanwhile.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 32
start_stoppable vda
repo=$tmp/repo
run_ok "$tidemark" backup "$ctl" "$repo"

guest vda 'write -P 1 0 16M' 'write -P 2 20M 8M'
cp "$tmp/vda.raw" "$tmp/copy2.raw"
start_stuck "$repo" vda
kill -STOP $client
kill -CONT "$backend"
guest vda 'write -P 3 4M 4M' 'write -z 8M 1M' 'write -P 4 30M 1M' \
    'write -P 5 20M 2M'
kill -CONT $client
# More while it pulls.
guest vda 'write -P 77 22M 4M' 'write -P 78 0 3M'
end_stuck 0
cmp -s "$tmp/vda.raw" "$tmp/copy2.raw" && fail "nothing was written meanwhile"
cp "$tmp/vda.raw" "$tmp/copy3.raw"
run_ok "$tidemark" backup "$ctl" "$repo"
grep -q 'incremental' "$tmp/out" || fail "not incremental"
check_restore "$repo" vda 2 "$tmp/copy2.raw"
check_restore "$repo" vda 3 "$tmp/copy3.raw"
run_ok "$tidemark" verify "$repo"
