#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Servers that lie, leave things out or vanish: an error that says so, nothing
# stored, and never a block taken for clean.
. "${srcdir:-.}/client-test.sh"
repo=$tmp/repo
sock=$tmp/lying.sock
uri="nbd+unix:///?socket=$sock"

lie ()
{
    rm -f "$sock"
    background python3 "$top_srcdir/tests/lying-nbd.py" "$sock" "$1"
    server=$!
    wait_for 20 is_listening "$sock"
}

backup=("$tidemark" backup "$uri" "$repo" --disk vda --bitmap b0)

# refused LIE TEXT: an incremental from a server that lies like this.
refused ()
{
    lie "$1"
    expect_status 1 "$2" timeout 30 "${backup[@]}"
    stop_server
    [ "$(nr_backups "$repo" vda)" = 1 ] || fail "$1: a backup appeared"
    no_leftovers "$repo"
}

lie none
run_ok "${backup[@]}"
stop_server
refused no-bitmap 'metadata context "qemu:dirty-bitmap:b0"'
refused no-contexts 'metadata context "qemu:dirty-bitmap:b0"'
for l in empty-status long-status missing-status error-status clean-status; do
    refused $l 'block status at offset 0'
done
refused vanish-status 'block status at offset 0'
refused short-read 'lying.sock: read of'
refused outside-read 'lying.sock: read of'
refused error-read 'Input/output error'
refused vanish 'lying.sock: read of'
refused odd-size 'the export has 1000001 bytes; allowed are multiples of 512'
refused empty 'the export has 0 bytes'
run_ok "$tidemark" verify "$repo"

# Nor does map take a lie.
lie missing-status
expect_status 1 'block status at offset 0' "$tidemark" map "$uri" -b b0
stop_server

# Little at a time is no lie: all of it comes.
lie short-status
run_ok "$tidemark" map "$uri" -b b0 --totals
grep -q '^1 MiB dirty .* in 1 extents' "$tmp/out" || fail "map in small pieces"
run_ok "${backup[@]}"
stop_server
[ "$(member "$repo" vda 2 data-bytes)" = $((1 << 20)) ] || fail "small pieces"
python3 -c '
import sys
sys.stdout.buffer.write(b"".join(bytes([1 + i]) * 65536
                                 for i in range(16)))' >"$tmp/expected.raw"
check_restore "$repo" vda 2 "$tmp/expected.raw"

# A control socket that is none.
python3 - "$tmp/ctl" <<'END' &
import socket, sys
s = socket.socket (socket.AF_UNIX)
s.bind (sys.argv[1])
s.listen (1)
greeting = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
for answer in (b"SSH-2.0-x\r\n", b"{}\r\n", b"", greeting + b'{"id": 1}\r\n',
               greeting + b'[1, 2]\r\n',
               greeting + b'{"return": {}, "id": 1}\r\n'
               b'{"return": {"id": "x", "disks": [{}]}, "id": 2}\r\n'):
    c, _ = s.accept ()
    c.sendall (answer)
    c.shutdown (socket.SHUT_WR)
    while c.recv (1000):
        pass
    c.close ()
END
test_pids+=($!)
wait_for 20 is_listening "$tmp/ctl"
control=("$tidemark" backup "$tmp/ctl" "$repo")
expect_status 1 "what answers is no Tidemark server" "${control[@]}"
expect_status 1 "what answers is no Tidemark server" "${control[@]}"
expect_status 1 "the server has closed the connection" "${control[@]}"
expect_status 1 "malformed answer" "${control[@]}"
expect_status 1 "what answers is no Tidemark server" "${control[@]}"
expect_status 1 "backup-begin: malformed answer" "${control[@]}"
no_leftovers "$repo"
