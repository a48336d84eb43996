#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A guest gets a disk, loses one and has it back: only a new one is full.  What
# --estimate says before each backup is what that pulls; it changes nothing.
. "${srcdir:-.}/client-test.sh"
for d in vda vdb vdc; do random_file "$tmp/$d.raw" 1; done
repo=$tmp/repo

state () { (cd "$tmp" && ls -lR repo 2>/dev/null; qmp "$ctl" query-block); }

# Disk, mode, reason, size and bytes in the events $1.
disks ()
{
    sed -n "/\"event\":\"$1\"/s/.*\"disk\":\(.*dirty-bytes\":[0-9]*\).*/\1/p" \
        "$tmp/events" | sed 's/no bitmap .*"size/no bitmap","size/' | sort
}

# backup DISK:NUMBER:MODE...: a run that makes these, as estimated.
backup ()
{
    local before estimate d n
    before=$(state)
    run_ok "$tidemark" backup --estimate --json "$ctl" "$repo"
    cp "$tmp/out" "$tmp/events"
    estimate=$(disks estimate)
    most=$(sum estimate at-most-bytes)
    [ "$(state)" = "$before" ] || fail "--estimate changed something"
    run_ok "$tidemark" backup --json "$ctl" "$repo"
    cp "$tmp/out" "$tmp/events"
    [ "$(disks disk-begin)" = "$estimate" ] ||
        fail "$estimate was estimated, but: $(disks disk-begin)"
    moved=$(sum disk-end moved-bytes)
    [ "$moved" -le "$most" ] || fail "$moved of at most $most bytes"
    [ "$(grep -c '"stored"' "$tmp/events")" -eq $# ] || fail "not these: $*"
    for d; do
        n=$(cut -d: -f2 <<<"$d")
        grep -q "\"stored\",\"disk\":\"${d%%:*}\",\"number\":$n,\"image\":\".*-${d##*:}.qcow2" "$tmp/events" ||
            fail "$d: $(cat "$tmp/events")"
        check_restore "$repo" "${d%%:*}" $n "$tmp/${d%%:*}.raw"
    done
}

# sum EVENT KEY
sum ()
{
    sed -n "/\"event\":\"$1\"/s/.*\"$2\":\([0-9]*\).*/\1/p" "$tmp/events" |
        awk '{ sum += $1 } END { print sum }'
}

restart () { stop_server; rm -f "$tmp"/*.sock; start_tidemarkd "$@"; }

start_tidemarkd vda vdb
expect_status 1 "the server has no disk 'vdx'" \
    "$tidemark" backup --estimate --disk vdx "$ctl" "$repo"
run_ok "$tidemark" backup --estimate "$ctl" "$repo"
grep -q '^vda: full, .*(no bitmap yet: the repository is new)$' "$tmp/out" || fail "new"
[ ! -e "$repo" ] || fail "--estimate made a repository"
# One that is empty.
: >"$tmp/empty.raw"
restart vda empty
for o in --estimate --quiet; do
    expect_status 1 "disk 'empty' has 0 bytes: there is nothing to back up" \
        "$tidemark" backup $o "$ctl" "$tmp/other"
done
run_ok "$tidemark" backup --disk vda "$ctl" "$tmp/other"
restart vda vdb
backup vda:1:full vdb:1:full
guest vda 'write -P 1 5k 1k' 'write -P 2 700k 200k'
guest vdb 'write -P 3 0 64k'
# One more.
restart vda vdb vdc
backup vda:2:inc vdb:2:inc vdc:1:full
[ "$moved" -eq "$most" ] || fail "$moved moved, $most estimated"
guest vda 'write -P 4 128k 64k'
guest vdb 'write -P 5 64k 64k'
# One less, while it is away and when it is back.
restart vda vdc
backup vda:3:inc vdc:2:inc
run_ok "$tidemark" restore "$repo" --disk vdb "$tmp/vdb2.raw"
guest vda 'write -P 6 256k 64k'
restart vdb vda vdc
backup vda:4:inc vdb:3:inc vdc:3:inc
# While the server runs.
qmp "$ctl" blockdev-add "{\"node-name\": \"vdd\", \"driver\": \"file\",
    \"filename\": \"$tmp/vdd.raw\"}" >"$tmp/qmp" 2>&1 && fail "no such file"
random_file "$tmp/vdd.raw" 1
qmp "$ctl" blockdev-add "{\"node-name\": \"vdd\", \"driver\": \"file\",
    \"filename\": \"$tmp/vdd.raw\"}" >"$tmp/qmp"
backup vda:5:inc vdb:4:inc vdc:4:inc vdd:1:full
backup vda:6:inc vdb:5:inc vdc:5:inc vdd:2:inc
qmp "$ctl" blockdev-del '{"node-name": "vdd"}' >"$tmp/qmp"
backup vda:7:inc vdb:6:inc vdc:6:inc
run_ok "$tidemark" verify "$repo"
no_leftovers "$repo"

# Clusters larger than granules: at most so much; and of an export exactly.
guest vda 'write -P 7 3k 1k' 'write -P 8 600k 1k'
run_ok "$tidemark" backup --estimate --cluster-size 256k --disk vda "$ctl" "$repo"
grep -q 'vda: incremental, at most 512.* to pull' "$tmp/out" ||
    fail "$(cat "$tmp/out")"
run_ok "$tidemark" backup --estimate --disk vda "nbd+unix:///vda?socket=$live" \
    "$tmp/new"
grep -q 'vda: full, at most 1.*M.* to pull (the repository has no backup' \
    "$tmp/out" || fail "$(cat "$tmp/out")"
