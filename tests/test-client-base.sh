#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# When an incremental would not be right the backup is full, and says why.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 16
start_tidemarkd vda
repo=$tmp/repo

backup ()                       # backup N MODE WHY
{
    cp "$tmp/vda.raw" "$tmp/copy$1.raw"
    run_ok "$tidemark" backup "$ctl" "$repo" --bitmap b0
    [ "$(member "$repo" vda "$1" mode)" = "$2" ] || {
        cat "$tmp/out" >&2
        fail "backup $1 is not $2"
    }
    member "$repo" vda "$1" why | grep -qF "$3" || {
        member "$repo" vda "$1" why >&2
        fail "why is backup $1 $2?"
    }
    check_restore "$repo" vda "$1" "$tmp/copy$1.raw"
}

end_session ()                  # end_session ID SUCCESS
{
    qmp "$ctl" backup-end "{\"id\": \"$1\", \"success\": $2}" >"$tmp/end"
}

backup 1 full "no bitmap 'b0'"
guest vda 'write -P 1 1M 64k'
backup 2 incremental "bitmap 'b0' counts from point"

# Somebody else's backup moves the bitmap's base: our chain has a gap.
guest vda 'write -P 2 2M 64k'
id=$(qmp "$ctl" backup-begin '{"bitmap": "b0"}' | json "j['id']")
guest vda 'write -P 3 3M 64k'
end_session "$id" true
backup 3 full "counts from point $id, which is not in this chain"
[ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "a session is left"
backup 4 incremental "counts from point"

qmp "$ctl" block-dirty-bitmap-remove '{"node": "vda", "name": "b0"}' \
    >"$tmp/out"
qmp "$ctl" block-dirty-bitmap-add '{"node": "vda", "name": "b0"}' >"$tmp/out"
guest vda 'write -P 4 4M 64k'
backup 5 full "base point"

qmp "$ctl" block-dirty-bitmap-disable '{"node": "vda", "name": "b0"}' \
    >"$tmp/out"
guest vda 'write -P 14 4M 64k'
backup 6 full "bitmap 'b0' is disabled"
guest vda 'write -P 15 4M 64k'
qmp "$ctl" block-dirty-bitmap-enable '{"node": "vda", "name": "b0"}' \
    >"$tmp/out"
cp "$tmp/vda.raw" "$tmp/copy7.raw"
run_ok "$tidemark" backup "$ctl" "$repo" --bitmap b0
check_restore "$repo" vda 7 "$tmp/copy7.raw"

# Damage of the chain: what is based on it would be lost as well.
guest vda 'write -P 5 5M 64k'
backup 8 incremental "counts from point"
mv "$repo/vda/000006-full.qcow2" "$tmp/hidden"
cp "$tmp/vda.raw" "$tmp/copy7.raw"
backup 9 full "the chain is damaged: "
mv "$tmp/hidden" "$repo/vda/000006-full.qcow2"

# Asked for.
run_ok "$tidemark" backup "$ctl" "$repo" --bitmap b0 --full
[ "$(member "$repo" vda 10 mode)" = full ] || fail "--full"

# The repository goes back by one backup: the server counts from a point that
# this chain does not have.
guest vda 'write -P 6 6M 64k'
cp -a "$repo" "$tmp/repo-before"
backup 11 incremental "counts from point"
guest vda 'write -P 7 7M 64k'
rm -rf "$repo"
mv "$tmp/repo-before" "$repo"
backup 11 full "which is not in this chain"
backup 12 incremental "counts from point"

# Grown.
stop_server
truncate -s 24M "$tmp/vda.raw"
start_tidemarkd vda
backup 13 full "no bitmap 'b0'"
