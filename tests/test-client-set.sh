#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Several disks: one point, one set, which appears as a whole or not at all, also
# after a crash between its commits.
. "${srcdir:-.}/client-test.sh"
start_pair 4 8
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(member "$repo" vda 1 session)" = "$(member "$repo" vdb 1 session)" ] ||
    fail "sessions differ"
[ "$(member "$repo" vdb 1 disks)" = "['vda', 'vdb']" ] || fail "disks"
check_backup "$repo" vda 1 "$tmp/vda.raw"
check_backup "$repo" vdb 1 "$tmp/vdb.raw"

# One of them cannot be stored: no part of the set appears, no bit is lost.
guest vda 'write -P 1 0 1M'
guest vdb 'write -P 2 0 2M'
touch "$tmp/inject"
expect_status 1 "Input/output error" "$tidemark" backup "$ctl" "$repo"
rm "$tmp/inject"
[ "$(nr_backups "$repo" vda)" = 1 ] || fail "a part of the set appeared"
[ ! -e "$repo/vda/000002-inc.qcow2" ] || fail "an image is left"
bitmap=$(repo_bitmap "$repo")
[ "$(dirty_bytes vda "$bitmap")" = $((1 << 20)) ] || fail "vda: bits are lost"
[ "$(dirty_bytes vdb "$bitmap")" = $((2 << 20)) ] || fail "vdb: bits are lost"
no_leftovers "$repo"

# Only one disk is asked for; the other one's bitmap stays as it is.
run_ok "$tidemark" backup "$ctl" "$repo" --disk vdb
[ "$(nr_backups "$repo" vda)" = 1 ] && [ "$(nr_backups "$repo" vdb)" = 2 ] ||
    fail "--disk"
[ "$(dirty_bytes vda "$bitmap")" = $((1 << 20)) ] || fail "vda: touched"
expect_status 1 "vdx" "$tidemark" backup "$ctl" "$repo" --disk vdx

# A gap in one chain makes that disk full, the other stays incremental.
rm "$repo"/vdb/000002-inc.*
guest vdb 'write -P 3 1M 64k'
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(member "$repo" vda 2 mode)" = incremental ] || fail "vda is not incremental"
[ "$(member "$repo" vdb 2 mode)" = full ] || fail "vdb is not full"
member "$repo" vdb 2 why | grep -q 'not in this chain' || fail "why"
[ "$(member "$repo" vda 2 session)" = "$(member "$repo" vdb 2 session)" ] ||
    fail "sessions differ, 2"
check_backup "$repo" vda 2 "$tmp/vda.raw"
check_backup "$repo" vdb 2 "$tmp/vdb.raw"

# A crash after the first manifest's rename: the next run does the second.
guest vda 'write -P 4 2M 64k'
guest vdb 'write -P 5 2M 64k'
run_ok "$tidemark" backup "$ctl" "$repo"
cp "$tmp/vdb.raw" "$tmp/copy3.raw"
mv "$repo/vdb/000003-inc.json" "$repo/vdb/000003-inc.json.partial"
[ "$(nr_backups "$repo" vdb)" = 2 ] || fail "partial manifests count"
run_ok "$tidemark" verify "$repo"
guest vdb 'write -P 6 3M 64k'
run_ok "$tidemark" backup "$ctl" "$repo"
grep -q 'completed backup 3' "$tmp/out" || fail "not completed"
[ "$(member "$repo" vdb 4 mode)" = incremental ] || fail "4 is not incremental"
check_backup "$repo" vdb 3 "$tmp/copy3.raw"
check_backup "$repo" vdb 4 "$tmp/vdb.raw"

# Before the first rename: neither, and the next run removes both.
for d in vda vdb; do
    mv "$repo/$d/000004-inc.json" "$repo/$d/000004-inc.json.partial"
done
guest vda 'write -P 7 0 64k'
run_ok "$tidemark" backup "$ctl" "$repo"
grep -q 'vda: removed the unfinished backup 4' "$tmp/out" || fail "vda: said"
grep -q 'vdb: removed the unfinished backup 4' "$tmp/out" || fail "vdb: said"
[ "$(member "$repo" vda 4 mode)" = full ] || fail "vda: 4 is not full"
check_backup "$repo" vda 4 "$tmp/vda.raw"
no_leftovers "$repo"
run_ok "$tidemark" verify "$repo"
