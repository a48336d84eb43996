#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Disks of a set are pulled side by side: one that does not get on holds up none
# of the others, and one that fails ends all, or, if it may, itself alone.
. "${srcdir:-.}/client-test.sh"
requires nbdkit
repo=$tmp/repo
ctl=$tmp/ctl.sock
live=$tmp/live.sock
for d in vda vdb vdc; do random_file "$tmp/$d.raw" 2; done
# vda's blocks cannot be read while $backend is stopped; reads of vdb fail while
# there is a file "$tmp/inject".
background nbdkit -f -U "$tmp/vda.sock" file "$tmp/vda.raw"
backend=$!
test_cleanup+=("kill -CONT $backend")
background nbdkit -f -U "$tmp/vdb.sock" --filter=error file "$tmp/vdb.raw" \
    error-pread=EIO error-pread-rate=1 error-pread-file="$tmp/inject"
for d in vda vdb; do wait_for 20 is_listening "$tmp/$d.sock"; done
background "$tidemarkd" --disk "vda,file=nbd+unix:///?socket=$tmp/vda.sock" \
    --disk "vdb,file=nbd+unix:///?socket=$tmp/vdb.sock" \
    --disk "vdc,file=$tmp/vdc.raw" --control "unix:$ctl" \
    --listen "unix:$live" --backup-listen "unix:$tmp/backup.sock" \
    --scratch-dir "$tmp"
wait_for 20 qmp "$ctl" query-version
mkfifo "$tmp/pipe"

# begin OPTION...: a backup in the background, $client, while vda is stuck.
begin ()
{
    kill -STOP $backend
    "$tidemark" backup --json --retry 0 "$@" "$ctl" "$repo" >"$tmp/pipe" \
        2>"$tmp/err" &
    client=$!
    test_pids+=($client)
    exec 7<"$tmp/pipe"
    rm -f "$tmp/events"
}

# until_event PATTERN: as many as it takes, within the test's time limit.
until_event ()
{
    local line
    while read -r line <&7; do
        echo "$line" >>"$tmp/events"
        if [[ $line == $1 ]]; then return; fi
    done
    cat "$tmp/events" "$tmp/err" >&2
    fail "the client ended without $1"
}

# end STATUS: vda gets on.
end ()
{
    local status=0
    kill -CONT $backend
    cat <&7 >>"$tmp/events"
    exec 7<&-
    wait $client || status=$?
    if [ $status -ne "$1" ]; then
        cat "$tmp/events" "$tmp/err" >&2
        fail "status $status instead of $1"
    fi
}

# Two others come to their end while vda is stuck, in turn if need be.
begin --parallel 2
until_event '*"disk-end","disk":"vdc"*'
until_ended=$(grep -c '"disk-end"' "$tmp/events")
[ "$until_ended" -eq 2 ] || fail "$until_ended disks have ended"
if grep -q '"disk-end","disk":"vda"' "$tmp/events"; then fail "vda is not stuck"; fi
end 0
for d in vda vdb vdc; do check_backup "$repo" $d 1 "$tmp/$d.raw"; done
[ "$(member "$repo" vda 1 session)" = "$(member "$repo" vdc 1 session)" ] ||
    fail "sessions differ"

# vdb fails, and may not: the one that is stuck is given up, too.
touch "$tmp/inject"
for d in vda vdb vdc; do guest $d 'write -P 1 0 1M'; done
begin
until_event '*"error"*'
end 1
grep -q 'Input/output error' "$tmp/err" || fail "$(cat "$tmp/err")"
for d in vda vdb vdc; do
    [ "$(nr_backups "$repo" $d)" = 1 ] || fail "$d: a part of the set appeared"
done
no_leftovers "$repo"
[ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "a session is left"

# It may: the others are stored.
begin --partial-ok
until_event '*"disk-failed","disk":"vdb"*'
end 5
rm "$tmp/inject"
for d in vda vdc; do check_backup "$repo" $d 2 "$tmp/$d.raw"; done
[ "$(nr_backups "$repo" vdb)" = 1 ] || fail "vdb appeared"
no_leftovers "$repo"

# An interrupt ends all of them.
guest vda 'write -P 2 0 1M'
begin
until_event '*"disk-end","disk":"vdc"*'
kill -TERM $client
end 4
grep -q 'interrupted by SIGTERM' "$tmp/err" || fail "$(cat "$tmp/err")"
no_leftovers "$repo"
run_ok "$tidemark" backup --parallel 16 --mode incremental "$ctl" "$repo"
for d in vda vdc; do check_backup "$repo" $d 3 "$tmp/$d.raw"; done
check_backup "$repo" vdb 2 "$tmp/vdb.raw"
expect_status 2 "--parallel 0" "$tidemark" backup --parallel 0 "$ctl" "$repo"
