#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# --mode of all disks and of one; differentials and copies leave bitmaps as they
# are, and no later backup is based on them.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 2
random_file "$tmp/vdb.raw" 1
start_tidemarkd vda vdb
repo=$tmp/repo

# backup NUMBER MODE BACKING DIRTY-KIB [OPTION...]: of vda; so much is dirty
# afterwards.
backup ()
{
    local number=$1 mode=$2 backing=$3 dirty=$4
    shift 4
    cp "$tmp/vda.raw" "$tmp/copy$number.raw"
    run_ok "$tidemark" backup "$@" "$ctl" "$repo"
    bitmap=$(repo_bitmap "$repo")
    [ "$(member "$repo" vda "$number" mode)" = "$mode" ] || fail "$number: mode"
    [ "$(member "$repo" vda "$number" backing)" = "$backing" ] ||
        fail "$number: backing file"
    [ "$(dirty_bytes vda "$bitmap")" = $((dirty << 10)) ] ||
        fail "$number: $(dirty_bytes vda "$bitmap") dirty"
}

expect_status 2 "--mode all: allowed are auto, incremental, full" \
    "$tidemark" backup --mode all "$ctl" "$repo"
expect_status 2 "--mode =full: allowed are" \
    "$tidemark" backup --mode =full "$ctl" "$repo"
expect_status 1 "--mode vdx=full: no such disk" \
    "$tidemark" backup --mode vdx=full "$ctl" "$repo"
expect_status 1 "--mode vdb=full: no such disk" \
    "$tidemark" backup --disk vda --mode vdb=full "$ctl" "$repo"
# A first copy makes no bitmap.
run_ok "$tidemark" backup --mode copy "$ctl" "$repo"
qmp "$ctl" query-block >"$tmp/qmp"
if grep -q dirty-bitmaps "$tmp/qmp"; then fail "a copy made a bitmap"; fi
expect_status 1 "not found" "$tidemark" backup --mode differential "$ctl" "$repo"

backup 2 full None 0
guest vda 'write -P 1 0 64k'
backup 3 differential 000002-full.qcow2 64 --mode differential
guest vda 'write -P 2 64k 64k'
backup 4 differential 000002-full.qcow2 128 --mode differential --disk vda
[ "$(member "$repo" vda 4 data-bytes)" = $((128 << 10)) ] || fail "of the full"
guest vda 'write -P 3 128k 64k'
backup 5 copy None 192 --mode copy --disk vda
backup 6 incremental 000002-full.qcow2 0 --full --mode incremental
[ "$(member "$repo" vda 6 parent-point)" = "$(member "$repo" vda 2 point)" ] ||
    fail "parent of 6"
guest vda 'write -P 4 192k 64k'
backup 7 differential 000006-inc.qcow2 64 --mode auto --mode vda=differential \
    --mode vda=full --mode vda=differential
[ "$(member "$repo" vdb 5 mode)" = incremental ] || fail "mode of vdb"
backup 8 incremental 000006-inc.qcow2 0 --mode vdb=copy
[ "$(member "$repo" vdb 6 mode)" = copy ] || fail "mode of vdb, 2"
backup 9 full None 0 --mode incremental --mode vda=full
[ "$(member "$repo" vdb 7 mode)" = incremental ] || fail "mode of vdb, 3"
for n in 2 3 4 5 6 7 8 9; do check_backup "$repo" vda $n "$tmp/copy$n.raw"; done
run_ok "$tidemark" verify "$repo"
no_leftovers "$repo"

# A killed differential that was stored, but not confirmed: the server is told by
# the next run, whatever that is for, and the bitmap stays.
guest vda 'write -P 5 0 64k'
killed_after_commit "$repo/vda/000010-inc.json" \
    "$tidemark" backup --mode differential --disk vda "$ctl" "$repo"
backup 11 copy None 64 --mode copy --disk vda
grep -q 'the server was told' "$tmp/out" || fail "not confirmed"
no_leftovers "$repo"

# An NBD server knows no modes; the chain is the same.
nbd="nbd+unix:///vda?socket=$live"
expect_status 1 "no incremental backup is possible: the repository has no" \
    "$tidemark" backup --mode incremental --bitmap b --disk vda "$nbd" "$repo.2"
run_ok "$tidemark" backup --mode copy --disk vda "$nbd" "$repo.2"
expect_status 1 "no differential backup is possible: the repository has no" \
    "$tidemark" backup --mode differential --bitmap b --disk vda "$nbd" "$repo.2"
[ "$(member "$repo.2" vda 1 mode)" = copy ] || fail "a copy over NBD"

# Differentials from a full one, beside incrementals: in a repository, and so a
# bitmap, of their own.
run_ok "$tidemark" backup --disk vda "$ctl" "$repo.d"
run_ok "$tidemark" backup --disk vda "$ctl" "$repo"
guest vda 'write -P 6 0 64k'
run_ok "$tidemark" backup --disk vda --mode incremental "$ctl" "$repo"
guest vda 'write -P 7 256k 64k'
run_ok "$tidemark" backup --disk vda --mode differential "$ctl" "$repo.d"
[ "$(member "$repo.d" vda 2 data-bytes)" = $((128 << 10)) ] || fail "from the full"
check_backup "$repo.d" vda 2 "$tmp/vda.raw"
