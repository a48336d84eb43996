#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# NBD servers that lie, hang up or fall silent while they are backed up: a clear
# error, nothing stored, and the next backup from an honest one is right.
. "${srcdir:-.}/client-test.sh"
uri="nbd+unix:///?socket=$tmp/s"
repo=$tmp/repo

# with LIE COMMAND...: while fake-nbd-server tells it.
with ()
{
    local lie=$1 pid line
    shift
    rm -f "$tmp/in" "$tmp/said"
    mkfifo "$tmp/in" "$tmp/said"
    ./fake-nbd-server "$tmp/s" "$lie" <"$tmp/in" >"$tmp/said" &
    pid=$!
    test_pids+=($pid)
    exec 6>"$tmp/in" 5<"$tmp/said"
    read -r line <&5
    [ "$line" = ready ] || fail "fake-nbd-server: $line"
    "$@"
    exec 6>&- 5<&-
    # With no request it waits for one.
    kill $pid 2>/dev/null || :
    wait $pid 2>/dev/null || :
}

backup=(timeout 60 "$tidemark" backup "$uri" "$repo" --disk d)

# not_stored LIE TEXT OPTION...: refused, for what TEXT says.
not_stored ()
{
    local lie=$1 text=$2 before
    shift 2
    before=$(ls -A "$repo" "$repo"/*/ 2>/dev/null || :)
    with "$lie" expect_status 1 "$text" "${backup[@]}" "$@"
    [ "$(ls -A "$repo" "$repo"/*/ 2>/dev/null || :)" = "$before" ] ||
        fail "$lie: $(ls -AR "$repo")"
}

with honest run_ok "${backup[@]}"
head -c 1M /dev/zero | tr '\0' '\125' >"$tmp/expected.raw"
check_backup "$repo" d 1 "$tmp/expected.raw"
for options in "--full" "--bitmap b"; do
    # shellcheck disable=SC2086
    {
        not_stored zero-length "Protocol error" $options
        not_stored beyond-end "Protocol error" $options
        not_stored missing-context "Protocol error" $options
        not_stored duplicate-context "Protocol error" $options
        not_stored no-extents "Protocol error" $options
        not_stored short-read "Protocol error" $options
        not_stored bad-magic "$uri" $options
        not_stored close "$uri" $options
        not_stored odd-size "not a multiple of its minimum block size" \
            $options
    }
done

with honest run_ok "${backup[@]}" --bitmap b
check_backup "$repo" d 2 "$tmp/expected.raw"
run_ok "$tidemark" verify "$repo"

has_request () { read -r line <&5 && [ "$line" = request ]; }

# Silence ends with an interrupt, at once and without leftovers.
interrupted ()                  # interrupted COMMAND...
{
    local line status=0 client
    env --default-signal=INT "$@" >"$tmp/out" 2>"$tmp/err" &
    client=$!
    test_pids+=($client)
    wait_for 20 $silence
    kill -INT $client
    timeout 20 tail --pid=$client -f /dev/null || fail "it does not end"
    wait $client || status=$?
    [ $status -eq 4 ] || {
        cat "$tmp/err" >&2
        fail "status $status instead of 4"
    }
    [ "$(grep -v '^d: ' "$tmp/err")" = "tidemark: interrupted by SIGINT" ] ||
        fail "messages: $(cat "$tmp/err")"
    no_leftovers "$repo"
}
silence=has_request
for lie in silent silent-reads; do
    with $lie interrupted "${backup[@]:2}" --full
    with $lie interrupted "${backup[@]:2}" --bitmap b
done
with silent interrupted "$tidemark" map "$uri" --bitmap b
with silent interrupted "$tidemark" restore "$repo" "$uri"

# So it does before there is a connection.
for lie in silent-greeting silent-list; do
    with $lie interrupted "$tidemark" bitmap list "$uri"
done
with silent-greeting interrupted "${backup[@]:2}" --full
with silent-greeting interrupted "${backup[@]:2}" --estimate --full
with silent-greeting interrupted "$tidemark" map "$uri" --bitmap b
with silent-greeting interrupted "$tidemark" restore "$repo" "$uri"

# A host that cannot be reached: the queue of those who want to connect is full,
# and the kernel drops who comes.
mkfifo "$tmp/port"
exec 7<>"$tmp/port"
background python3 -c '
import select, signal, socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=0)
waiting = []
while True:
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(listener.getsockname())
    if not select.select([], [s], [], 1)[1]:
        break
    waiting.append(s)
s.close()
print("%04X %d" % ((listener.getsockname()[1],) * 2), flush=True)
signal.pause()' >&7
read -r hex port <&7
is_connecting () { grep -q ":$hex 02 " /proc/net/tcp; }
silence=is_connecting
for to in nbd tidemarks; do
    interrupted "$tidemark" backup "$to://127.0.0.1:$port" "$repo" --disk d \
        --full
done
interrupted "$tidemark" restore "$repo" "nbd://127.0.0.1:$port"
interrupted "$tidemark" bitmap list "nbd://127.0.0.1:$port"

[ "$(nr_backups "$repo" d)" = 2 ] || fail "backups"
