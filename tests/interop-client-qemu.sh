#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Incrementals from the bitmaps that qemu-nbd -B and qemu-storage-daemon export,
# their life managed by qemu-img and by QMP.
. "${srcdir:-.}/client-test.sh"
requires qemu-storage-daemon
repo=$tmp/repo
disk=$tmp/vda.qcow2
io ()
{
    local c args=()
    for c; do args+=(-c "$c"); done
    run_ok qemu-io -f qcow2 "${args[@]}" "$disk"
}

serve ()                        # serve OPTION...: by qemu-nbd
{
    rm -f "$tmp/nbd.sock"
    background qemu-nbd -k "$tmp/nbd.sock" -r -t -e 8 -x vda "$@" -f qcow2 \
        "$disk"
    server=$!
    wait_for 20 is_listening "$tmp/nbd.sock"
}
uri="nbd+unix:///vda?socket=$tmp/nbd.sock"

backup ()                       # backup N MODE OPTION...
{
    local n=$1 mode=$2
    shift 2
    run_ok qemu-img convert -f qcow2 -O raw -U "$disk" "$tmp/copy$n.raw"
    run_ok "$tidemark" backup "$uri" "$repo" --disk vda "$@"
    [ "$(member "$repo" vda "$n" mode)" = "$mode" ] || fail "$n is not $mode"
}

run_ok qemu-img create -q -f qcow2 "$disk" 64M
io 'write -P 1 0 9M' 'write -P 2 40M 100k'
serve
backup 1 full
expect_status 1 "name the server's bitmap" \
    "$tidemark" backup "$uri" "$repo" --disk vda
expect_status 1 "the export offers no bitmap" \
    "$tidemark" backup "$uri" "$repo" --disk vda --bitmap b0
stop_server

run_ok qemu-img bitmap --add -g 32k "$disk" b0
io 'write -P 3 1M 100' 'write -z 2M 1M' 'discard 4M 1M' 'write -P 4 63M 1M'
run_ok qemu-img bitmap --add "$disk" b1
serve -B b0 -B b1
run_ok "$tidemark" bitmap list "$uri"
[ "$(sort "$tmp/out" | tr '\n' ' ')" = "b0 b1 " ] || fail "bitmap list"
run_ok "$tidemark" map "$uri" --bitmap b0 --json
[ "$(json "[(e['start'], e['length'], e['zero']) for e in j]" <"$tmp/out")" = \
  "[(1048576, 32768, False), (2097152, 1048576, True), (4194304, 1048576, True), (66060288, 1048576, False)]" ] || {
    cat "$tmp/out" >&2
    fail "map"
}
run_ok "$tidemark" map "$uri" --bitmap b0 --totals
grep -q '3.031 MiB dirty (2 MiB of it zero) of 64 MiB, in 4 extents' \
    "$tmp/out" || fail "map --totals"
expect_status 1 "the export offers the bitmaps 'b" \
    "$tidemark" backup "$uri" "$repo" --disk vda --bitmap b2
backup 2 incremental --bitmap b0
[ "$(member "$repo" vda 2 data-bytes)" = $((65536 + (1 << 20))) ] ||
    fail "data, 2"
[ "$(member "$repo" vda 2 zero-bytes)" = $((2 << 20)) ] || fail "zeroes, 2"
backup 3 incremental --bitmap qemu:dirty-bitmap:b1
[ "$(member "$repo" vda 3 data-bytes)" = 0 ] || fail "data, 3"
stop_server

# Its size changes: full.
run_ok qemu-img bitmap --remove "$disk" b0
run_ok qemu-img bitmap --remove "$disk" b1
run_ok qemu-img resize "$disk" 65M
run_ok qemu-img bitmap --add "$disk" b0
serve -B b0
backup 4 full --bitmap b0
member "$repo" vda 4 why | grep -q "size of the disk changed from 67108864" ||
    fail "why, 4"
stop_server

# A live disk in qemu-storage-daemon, its bitmap disabled for the backup.
cat >"$tmp/qmp" <<END
{"execute": "qmp_capabilities"}
{"execute": "blockdev-add", "arguments": {"driver": "qcow2",
  "node-name": "d", "file": {"driver": "file", "filename": "$disk"}}}
{"execute": "nbd-server-start", "arguments": {"addr": {"type": "unix",
  "data": {"path": "$tmp/nbd.sock"}}}}
{"execute": "block-export-add", "arguments": {"type": "nbd", "id": "w",
  "node-name": "d", "name": "live", "writable": true}}
END
rm -f "$tmp/nbd.sock"
background qemu-storage-daemon --chardev "socket,id=m,path=$tmp/qsd.sock,server=on,wait=off" \
    --monitor chardev=m
server=$!
wait_for 20 is_listening "$tmp/qsd.sock"
cat >"$tmp/qsd.py" <<'END'
import json, socket, sys
s = socket.socket (socket.AF_UNIX)
s.connect (sys.argv[1])
f = s.makefile ("rwb")
f.readline ()
decoder, text = json.JSONDecoder (), sys.stdin.read ().strip ()
while text:
    request, end = decoder.raw_decode (text)
    text = text[end:].strip ()
    f.write (json.dumps (request).encode ()); f.flush ()
    while True:
        answer = json.loads (f.readline ())
        if "return" in answer or "error" in answer:
            break
    assert "return" in answer, (request, answer)
END
run_ok python3 "$tmp/qsd.py" "$tmp/qsd.sock" <"$tmp/qmp"
run_ok qemu-io -f raw -c 'write -P 7 10M 1M' -c 'write -P 8 64M 1M' \
    "nbd+unix:///live?socket=$tmp/nbd.sock"
run_ok python3 "$tmp/qsd.py" "$tmp/qsd.sock" <<'END'
{"execute": "qmp_capabilities"}
{"execute": "block-dirty-bitmap-disable", "arguments": {"node": "d",
  "name": "b0"}}
{"execute": "block-export-add", "arguments": {"type": "nbd", "id": "r",
  "node-name": "d", "name": "vda", "bitmaps": ["b0"]}}
END
run_ok "$tidemark" backup "$uri" "$repo" --disk vda --bitmap b0
expect_status 1 "is this QEMU's monitor? its exports are read by their NBD" \
    "$tidemark" backup "$tmp/qsd.sock" "$repo"
stop_server
run_ok qemu-img convert -f qcow2 -O raw "$disk" "$tmp/copy5.raw"
[ "$(member "$repo" vda 5 mode)" = incremental ] || fail "5"
[ "$(member "$repo" vda 5 data-bytes)" = $((2 << 20)) ] || fail "data, 5"

for n in 1 2 3 4 5; do check_backup "$repo" vda $n "$tmp/copy$n.raw"; done
run_ok "$tidemark" verify "$repo"
no_leftovers "$repo"
