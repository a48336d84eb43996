#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What backup, verify and restore print: a bar on a terminal and no trace of it
# otherwise, lines of JSON with --json, nothing with --quiet.
. "${srcdir:-.}/client-test.sh"
requires nbdkit
random_file "$tmp/vda.raw" 32
# Slow enough for a bar, and for an event each second.
background nbdkit -f -U "$tmp/s.sock" --filter=delay file "$tmp/vda.raw" \
    rdelay=200ms
wait_for 20 is_listening "$tmp/s.sock"
backup=("$tidemark" backup "nbd+unix:///?socket=$tmp/s.sock" "$tmp/repo"
        --disk vda --full --connections 1)

# on_terminal COMMAND...: stderr is a terminal; what came there is in $tmp/tty.
on_terminal ()
{
    python3 - "$tmp/tty" "$@" >"$tmp/out" <<'END'
import os, pty, subprocess, sys
ours, theirs = pty.openpty ()
p = subprocess.Popen (sys.argv[2:], stderr=theirs)
os.close (theirs)
with open (sys.argv[1], "wb") as f:
    while True:
        try:
            data = os.read (ours, 65536)
        except OSError:
            break
        if not data:
            break
        f.write (data)
sys.exit (p.wait ())
END
}

on_terminal "${backup[@]}" || fail "backup on a terminal"
grep -q 'vda \[#*\.*\]  *[0-9]*%  .* of 32 MiB' "$tmp/tty" || {
    cat -v "$tmp/tty" >&2
    fail "no bar"
}
tail -c 4 "$tmp/tty" | cmp -s - <(printf '\r\033[K') || fail "the bar is left"
grep -q '^vda: stored as' "$tmp/out" || fail "lines"

run_ok "${backup[@]}"
[ ! -s "$tmp/err" ] || fail "a bar without a terminal"
grep -q '^vda: full, 32 MiB to pull (asked for)$' "$tmp/out" || fail "lines"

run_ok "${backup[@]}" --json
python3 - "$tmp/out" <<'END' || fail "events"
import json, sys
events = [json.loads (line) for line in open (sys.argv[1])]
names = [e["event"] for e in events]
print (names)
assert names[0] == "disk-begin" and names[-2:] == ["disk-end", "stored"]
assert set (names[1:-2]) == {"progress"}, "no progress"
done = [e["done"] for e in events if e["event"] == "progress"]
assert done == sorted (done) and 0 < done[-1] <= 32 << 20
END

run_ok "${backup[@]}" --quiet
run_ok "$tidemark" verify -q "$tmp/repo"
run_ok "$tidemark" restore -q "$tmp/repo" "$tmp/o.raw"
[ ! -s "$tmp/out" ] && [ ! -s "$tmp/err" ] || fail "--quiet"
# An error is an event as well, and a line on stderr with --quiet.
expect_status 1 "exists" "$tidemark" restore --json "$tmp/repo" "$tmp/o.raw"
[ "$(json "j['event']" <"$tmp/out")" = error ] || fail "error event"
expect_status 1 "exists" "$tidemark" restore -q "$tmp/repo" "$tmp/o.raw"
run_ok "$tidemark" verify --json "$tmp/repo"
[ "$(tail -n 1 "$tmp/out" | json "(j['event'], j['backups'], j['damages'])")" \
  = "('summary', 4, 0)" ] || fail "summary"
