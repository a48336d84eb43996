#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# bitmap add, remove, clear, list, and map over the control socket: what they do,
# and errors that name what is wrong.
. "${srcdir:-.}/client-test.sh"
truncate -s 16M "$tmp/vda.raw"
truncate -s 16M "$tmp/vdb.raw"
start_tidemarkd vda vdb
bitmap=("$tidemark" bitmap)

expect_status 1 "the server has 2 disks; choose one with --disk: vda vdb" \
    "${bitmap[@]}" add "$ctl" b0
run_ok "${bitmap[@]}" add "unix:$ctl" b0 --disk vda -g 4k
run_ok "${bitmap[@]}" add "tidemark+unix://$ctl" b1 --disk vdb --disabled
guest vda 'write -P 1 0 100' 'write -P 2 64k 4k' 'write -z 1M 64k'
run_ok "${bitmap[@]}" list "$ctl" --json
[ "$(json "[(b['disk'], b['name'], b['count'], b['granularity'], b['status']) for b in j]" <"$tmp/out")" = \
  "[('vda', 'b0', 73728, 4096, 'active'), ('vdb', 'b1', 0, 65536, 'disabled')]" ] || {
    cat "$tmp/out" >&2
    fail "list --json"
}
run_ok "${bitmap[@]}" list "$ctl" --disk vdb
grep -q 'vdb  *b1  *disabled  *0 B  *64 KiB  *none' "$tmp/out" || fail "list"
grep -q b0 "$tmp/out" && fail "list --disk"
expect_status 1 "the server has no disk 'vdx'" \
    "${bitmap[@]}" list "$ctl" --disk vdx
[ ! -s "$tmp/out" ] || fail "a list of no disk"
expect_status 1 "an NBD socket of a server, not its control socket" \
    "${bitmap[@]}" list "$live"

expect_status 1 "already exists: b0" "${bitmap[@]}" add "$ctl" b0 -d vda
expect_status 1 "Granularity must be power of 2" \
    "${bitmap[@]}" add "$ctl" x -d vda -g 5000
expect_status 1 "empty" "${bitmap[@]}" add "$ctl" "" -d vda
expect_status 1 "too long" \
    "${bitmap[@]}" add "$ctl" "$(printf '%01024d' 0)" -d vda
expect_status 1 "vdx" "${bitmap[@]}" add "$ctl" x -d vdx
expect_status 1 "'x' not found" "${bitmap[@]}" clear "$ctl" x -d vda
expect_status 1 "'x' not found" "${bitmap[@]}" remove "$ctl" x -d vda

# A map needs a base point: a first backup gives one.
expect_status 1 "b0" "$tidemark" map "$ctl" --disk vda --bitmap b0
run_ok "$tidemark" backup "$ctl" "$tmp/repo" --disk vda --bitmap b0
guest vda 'write -P 1 0 100' 'write -P 2 64k 4k' 'write -z 1M 64k'
run_ok "$tidemark" map "$ctl" --disk vda --bitmap b0 --json
[ "$(json "[(e['start'], e['length'], e['zero']) for e in j]" <"$tmp/out")" = \
  "[(0, 4096, False), (65536, 4096, False), (1048576, 65536, True)]" ] || {
    cat "$tmp/out" >&2
    fail "map --json"
}
run_ok "$tidemark" map "$ctl" --disk vda --bitmap b0
[ "$(head -n 1 "$tmp/out" | tr -s ' ')" = " 0 4096 dirty" ] || fail "map"
[ "$(dirty_bytes vda b0)" = 73728 ] || fail "map changed the bitmap"
[ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "map left a session"
expect_status 1 "'x' not found" "$tidemark" map "$ctl" --disk vda --bitmap x
expect_status 1 "vdx" "$tidemark" map "$ctl" --disk vdx --bitmap x

# In use by a session.
id=$(qmp "$ctl" backup-begin '{"bitmap": "b0", "disks": [{"disk": "vda"}]}' |
    json "j['id']")
for c in clear remove; do
    expect_status 1 "currently in use" "${bitmap[@]}" $c "$ctl" b0 -d vda
done
expect_status 1 "currently in use" "$tidemark" map "$ctl" -d vda -b b0
expect_status 1 "currently in use" \
    "$tidemark" backup "$ctl" "$tmp/repo" --disk vda --bitmap b0
[ "$(nr_backups "$tmp/repo" vda)" = 1 ] || fail "a backup appeared"
qmp "$ctl" backup-end "{\"id\": \"$id\", \"success\": false}" >"$tmp/out"

run_ok "${bitmap[@]}" clear "$ctl" b0 -d vda
[ "$(dirty_bytes vda b0)" = 0 ] || fail "clear"
run_ok "${bitmap[@]}" remove "$ctl" b0 -d vda
run_ok "${bitmap[@]}" remove "$ctl" b1 -d vdb
[ "$("${bitmap[@]}" list "$ctl" --json)" = "[]" ] || fail "remove"
