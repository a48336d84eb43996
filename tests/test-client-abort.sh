#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A backup that is interrupted or fails: the session ends, the bitmap is merged
# back, nothing is left in the repository, and the next incremental has it all.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 64
start_stoppable vda
repo=$tmp/repo

nothing_left ()
{
    [ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "a session is left"
    no_leftovers "$repo"
}

# The very first: the repository is there, the disk's folder is not.
start_stuck "$repo" vda
kill -TERM $client
end_stuck 4
grep -q 'interrupted by SIGTERM' "$tmp/err" || fail "message"
nothing_left
[ ! -e "$repo/vda" ] || fail "a folder is left"

run_ok "$tidemark" backup "$ctl" "$repo"
bitmap=$(repo_bitmap "$repo")
dirty=0
for sig in INT TERM HUP; do
    guest vda "write -P 5 ${dirty}M 1M" "write -P 6 $((dirty + 32))M 1M"
    dirty=$((dirty + 1))
    start_stuck "$repo" vda
    kill -$sig $client
    end_stuck 4
    grep -q "interrupted by SIG$sig" "$tmp/err" || fail "message of $sig"
    nothing_left
    [ "$(nr_backups "$repo" vda)" = 1 ] || fail "a backup appeared"
    [ "$(dirty_bytes vda "$bitmap")" = $((dirty * (2 << 20))) ] ||
        fail "$sig: not merged back: $(dirty_bytes vda "$bitmap")"
done

# Killed: the lease ends the session, the next run clears up.
start_stuck "$repo" vda
kill -KILL $client
kill -CONT "$backend"
exec 7<&-
wait $client 2>/dev/null || :
session=$(qmp "$ctl" query-backups | json "j[0]['id']")
qmp "$ctl" backup-end "{\"id\": \"$session\", \"success\": false}" >"$tmp/out"
find "$repo/vda" -name '*.partial' | grep -q . || fail "no partial to clear up"
cp "$tmp/vda.raw" "$tmp/copy2.raw"
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(grep -c 'removed the unfinished backup 2' "$tmp/out")" = 1 ] ||
    fail "said not once"
grep -q incremental "$tmp/out" || fail "not incremental"
nothing_left
check_restore "$repo" vda 2 "$tmp/copy2.raw"
[ "$(dirty_bytes vda "$bitmap")" = 0 ] || fail "bits are left"

# The session is ended behind the client's back, which has more to read then
# than was on its way: it fails, nothing appears.
guest vda 'write -P 8 0 48M'
start_stuck "$repo" vda
kill -STOP $client
kill -CONT "$backend"
session=$(qmp "$ctl" query-backups | json "j[0]['id']")
qmp "$ctl" backup-end "{\"id\": \"$session\", \"success\": false}" >"$tmp/out"
kill -CONT $client
end_stuck 1
nothing_left
[ "$(nr_backups "$repo" vda)" = 2 ] || fail "a backup appeared"
[ "$(dirty_bytes vda "$bitmap")" = $((48 << 20)) ] || fail "not merged back"

# A server that is killed in the middle: the client cannot know that it is no
# more, so what is there is kept for a run that may find the session.
start_stuck "$repo" vda
stop_server KILL
end_stuck 1
grep -q 'goes on with it' "$tmp/err" || fail "not said that it is kept"
[ "$(nr_backups "$repo" vda)" = 2 ] || fail "a backup appeared"
run_ok "$tidemark" verify "$repo"
rm "$tmp"/*.sock
start_tidemarkd vda
run_ok "$tidemark" backup "$ctl" "$repo"
grep -q 'cannot be gone on with: the session is gone' "$tmp/out" || fail "why"
nothing_left
[ "$(nr_backups "$repo" vda)" = 3 ] || fail "no backup 3"
run_ok "$tidemark" verify "$repo"

# What does not end of the first signal ends of one that comes a second later.
mkfifo "$tmp/hook"
env --default-signal=TERM "$tidemark" backup --pre \
    "echo \$\$ >'$tmp/hook'; exec sleep 1000; :" "$ctl" "$repo" 2>"$tmp/err" &
client=$!
test_pids+=($client)
read -r hook <"$tmp/hook"
test_pids+=("$hook")
start=$(date +%s%N)
while kill -TERM $client 2>"$tmp/kill"; do read -r -t 0.1 <> <(:) || :; done
status=0
wait $client || status=$?
[ $status -eq 143 ] || fail "status $status: $(cat "$tmp/err")"
[ $((($(date +%s%N) - start) / 1000000)) -ge 1000 ] || fail "ended early"
kill "$hook"
