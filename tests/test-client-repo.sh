#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Repositories that are missing, foreign, of another version, locked, damaged,
# or have leftovers.
. "${srcdir:-.}/client-test.sh"
requires flock
random_file "$tmp/vda.raw" 2
start_tidemarkd vda
backup=("$tidemark" backup "$ctl")

expect_status 1 "the folder that should hold the repository does not exist" \
    "${backup[@]}" "$tmp/no/repo"
touch "$tmp/file"
expect_status 1 "$tmp/file: not a folder" "${backup[@]}" "$tmp/file"
mkdir "$tmp/foreign"
touch "$tmp/foreign/photo.jpeg"
expect_status 1 "not a repository (it has no tidemark.json), and not empty" \
    "${backup[@]}" "$tmp/foreign"
expect_status 1 "not a repository (it has no tidemark.json)" \
    "${backup[@]}" --estimate "$tmp/foreign"
[ "$(ls "$tmp/foreign")" = photo.jpeg ] || fail "something was added"
for c in list info verify "restore"; do
    args=("$tmp/none")
    if [ $c = restore ]; then args+=("$tmp/out.raw"); fi
    expect_status 1 "there is no such repository" "$tidemark" $c "${args[@]}"
    args[0]=$tmp/foreign
    expect_status 1 "not a repository" "$tidemark" $c "${args[@]}"
    args[0]=$tmp/file
    expect_status 1 "not a folder" "$tidemark" $c "${args[@]}"
done
[ ! -e "$tmp/none" ] || fail "a repository was made"

# An empty folder will do, lost+found in it or not, and a slash at its end.
mkdir -p "$tmp/repo/lost+found"
repo=$tmp/repo
run_ok "${backup[@]}" "$repo/"
grep -q "^$repo: new repository" "$tmp/out" || fail "said"
run_ok "${backup[@]}" "$repo"
[ "$(nr_backups "$repo" vda)" = 2 ] || fail "two backups"
"$tidemark" list "$repo" | grep -q 'lost+found' && fail "lost+found is no disk"
expect_status 1 "has no backup of a disk 'vdb'" "$tidemark" list -d vdb "$repo"
expect_status 1 "has no backup of a disk 'vdb'" \
    "$tidemark" verify -d vdb "$repo"

# Locked: writers are kept out, readers are not.
exec 8<>"$repo/lock"
flock 8
expect_status 1 "the repository is locked by another tidemark" \
    "${backup[@]}" "$repo"
run_ok "$tidemark" verify "$repo"
run_ok "$tidemark" list "$repo"
exec 8>&-
[ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "a session was begun"

# Other versions, and a description that is none.
cp "$repo/tidemark.json" "$tmp/saved.json"
other ()                        # other TEXT JSON
{
    chmod u+w "$repo/tidemark.json"
    printf '%s' "$2" >"$repo/tidemark.json"
    expect_status 1 "$1" "${backup[@]}" "$repo"
    expect_status 1 "$1" "$tidemark" list "$repo"
}
id=$(json "j['id']" <"$tmp/saved.json")
other "a repository of format version 2; this program knows version 1 only" \
    "{\"format\": \"tidemark repository\", \"version\": 2, \"id\": \"$id\"}"
other "not the description of a repository" ""
other "not the description of a repository" "[]"
other "not the description of a repository" '{"format": "x", "version": 1}'
other '"id" is missing or not 32' \
    '{"format": "tidemark repository", "version": 1, "id": "12"}'
cp -f "$tmp/saved.json" "$repo/tidemark.json"

# A manifest of another version is an error for who needs it, not for others.
cp -a "$repo/vda" "$tmp/vda.saved"
chmod u+w "$repo"/vda/*
sed -i 's/"version": 1/"version": 9/' "$repo/vda/000002-inc.json"
expect_status 1 "format version 9; this program reads version 1" \
    "$tidemark" restore "$repo" "$tmp/out.raw"
run_ok "$tidemark" restore --at 1 "$repo" "$tmp/out.raw"
"$tidemark" list "$repo" | grep -q '2  damaged: .*format version 9' ||
    fail "list"
"$tidemark" list --json "$repo" |
    json "j['disks'][0]['backups'][1]['error']" | grep -q 'version 9' ||
    fail "list --json"
rm -rf "$repo/vda"
mv "$tmp/vda.saved" "$repo/vda"

# Leftovers of every kind go, with a message; what is no backup's stays.
touch "$repo/vda/000003-inc.qcow2.partial" "$repo/vda/000003-inc.sums.partial"
touch "$repo/vda/000004-full.sums.partial" "$repo/vda/000004-full.qcow2.partial"
touch "$repo/vda/000005-inc.json.partial" "$repo/vda/000005-inc.qcow2" \
    "$repo/vda/000005-inc.pending"
touch "$repo/vda/notes.txt" "$repo/readme.partial"
run_ok "${backup[@]}" "$repo"
for n in 3 4 5; do
    grep -q "removed the unfinished backup $n" "$tmp/out" || fail "said: $n"
done
[ "$(ls "$repo/vda" | tr '\n' ' ')" = "$(echo \
    000001-full.{json,qcow2,sums} 000002-inc.{json,qcow2,sums} \
    000003-inc.{json,qcow2,sums} notes.txt) " ] || {
    ls "$repo/vda" >&2
    fail "files"
}
[ -e "$repo/readme.partial" ] || fail "a stranger's file is gone"
# One that cannot be removed is named.
mkdir "$repo/vda/000004-inc.qcow2.partial"
expect_status 1 "the unfinished backup 4 cannot be removed" \
    "${backup[@]}" "$repo"
rmdir "$repo/vda/000004-inc.qcow2.partial"

# An image whose manifest was lost is never overwritten.
mv "$repo/vda/000003-inc.json" "$tmp/json3"
run_ok "${backup[@]}" "$repo"
[ -e "$repo/vda/000003-inc.qcow2" ] && [ -e "$repo/vda/000004-full.json" ] ||
    fail "number of the next"
mv "$tmp/json3" "$repo/vda/000003-inc.json"
run_ok "$tidemark" verify "$repo"

# Two first backups at once: one gets the repository, the other a message.
for i in 1 2; do
    "$tidemark" backup -q "$ctl" "$tmp/race" --bitmap race$i \
        2>"$tmp/race$i.err" &
    pids[i]=$!
    test_pids+=($!)
done
won=0
for i in 1 2; do
    if wait ${pids[i]}; then
        won=$((won + 1))
    else
        grep -q 'locked by another tidemark' "$tmp/race$i.err" ||
            fail "$(cat "$tmp/race$i.err")"
    fi
done
[ $won -ge 1 ] || fail "both lost"
[ "$(nr_backups "$tmp/race" vda)" = $won ] || fail "backups of the race"
run_ok "$tidemark" verify "$tmp/race"
