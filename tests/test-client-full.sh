#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The repository's file system is full: the backup fails, says so, leaves nothing
# and loses nothing; with space again the next one is right.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 12
start_tidemarkd vda
cat >"$tmp/full.sh" <<'END'
set -e
tmp=$1 tidemark=$2 ctl=$3
mkdir "$tmp/fs"
mount -t tmpfs -o size=8m none "$tmp/fs"
status=0
"$tidemark" backup "$ctl" "$tmp/fs/repo" 2>"$tmp/err" || status=$?
[ $status -eq 1 ]
grep -q 'No space left on device' "$tmp/err"
[ "$(ls -A "$tmp/fs/repo" | sort | tr '\n' ' ')" = 'lock tidemark.json ' ]
[ "$(df --output=used -k "$tmp/fs" | tail -n 1)" -lt 100 ]
mount -o remount,size=16m "$tmp/fs"
"$tidemark" backup "$ctl" "$tmp/fs/repo"
qemu-io -f raw -c 'write -P 3 0 6M' "$4"
status=0
"$tidemark" backup "$ctl" "$tmp/fs/repo" 2>"$tmp/err" || status=$?
[ $status -eq 1 ]
grep -q 'No space left on device' "$tmp/err"
[ -z "$(find "$tmp/fs/repo" -name '*.partial')" ]
mount -o remount,size=32m "$tmp/fs"
"$tidemark" backup "$ctl" "$tmp/fs/repo"
"$tidemark" verify "$tmp/fs/repo"
"$tidemark" restore "$tmp/fs/repo" "$tmp/restored.raw"
cp -a "$tmp/fs/repo" "$tmp/repo"
END
unshare -rm bash -x "$tmp/full.sh" "$tmp" "$tidemark" "$ctl" \
    "nbd+unix:///vda?socket=$live" >"$tmp/log" 2>&1 || {
    cat "$tmp/log" "$tmp/err" >&2
    fail "see above"
}
cmp "$tmp/restored.raw" "$tmp/vda.raw" || fail "restored"
[ "$(member "$tmp/repo" vda 2 mode)" = incremental ] || fail "2"
[ "$(member "$tmp/repo" vda 2 data-bytes)" = $((6 << 20)) ] || fail "bits lost"
