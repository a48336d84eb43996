#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Control servers that send nonsense: a clear error, nothing stored, nothing
# written outside the repository, memory bounded; and the session is ended if
# there is one.
. "${srcdir:-.}/client-test.sh"
repo=$tmp/repo
ctl=$tmp/ctl
export="nbd+unix:///vda?socket=$tmp/nbd.sock"
random_file "$tmp/vda.raw" 1
requires nbdkit
background nbdkit -f -r -e vda -U "$tmp/nbd.sock" file "$tmp/vda.raw"
wait_for 20 is_listening "$tmp/nbd.sock"

mkfifo "$tmp/plans" "$tmp/said"
python3 "${srcdir:-.}/fake-control.py" "$ctl" "$export" \
    "$tmp/seen" <"$tmp/plans" >"$tmp/said" &
test_pids+=($!)
exec 6>"$tmp/plans" 5<"$tmp/said"
read -r line <&5
[ "$line" = ready ] || fail "fake-control.py: $line"

# told PLAN STATUS TEXT [COMMAND...]: by a server with that plan; by default a
# backup.  What it was sent is in $seen.
told ()
{
    local plan=$1 status=$2 text=$3 line got=0
    shift 3
    if [ $# -eq 0 ]; then set -- "$tidemark" backup --retry 0 "$ctl" "$repo"
    fi
    echo "${plan//$'\n'/ }" >&6
    # 64 MiB are the longest answer; sanitizers need more for themselves.
    if [ "$sanitizers" = no ]; then
        (ulimit -v 1000000; timeout 60 "$@") >"$tmp/out" 2>"$tmp/err" || got=$?
    else
        timeout 60 "$@" >"$tmp/out" 2>"$tmp/err" || got=$?
    fi
    read -r line <&5
    seen=$(tail -n 1 "$tmp/seen")
    if [ $got -ne "$status" ] ||
        { [ -n "$text" ] && ! grep -qF -- "$text" "$tmp/err"; }; then
        cat "$tmp/err" >&2
        fail "status $got, no \"$text\": ${plan:0:200}"
    fi
    if LC_ALL=C grep -q $'[\x01-\x09\x0b-\x1f\x7f]' "$tmp/err" "$tmp/out"
    then
        cat -v "$tmp/err" "$tmp/out" >&2
        fail "control characters in the message: ${plan:0:200}"
    fi
}

# bad_begin JSON TEXT: an answer to backup-begin with these changes.  The
# session that it told of is ended.
bad_begin ()
{
    told "{\"backup-begin\": {\"set\": $1}}" 1 "$2"
    case $seen in
        *backup-begin*backup-end) ;;
        *) [ -n "${3:-}" ] || fail "the session was left alone: $seen" ;;
    esac
    [ "$(ls -A "$repo" | tr '\n' ' ')" = "lock tidemark.json " ] ||
        fail "$1: $(ls -AR "$repo")"
}

server="no Tidemark server"
told '{"greeting": {"close": true}}' 1 "closed the connection"
told '{"greeting": {"bytes": "SSH-2.0-OpenSSH\r\n"}}' 1 "$server"
told '{"greeting": {"bytes": "\n"}}' 1 "$server"
told '{"greeting": {"bytes": "[]\n"}}' 1 "$server"
told '{"greeting": {"bytes": "{\"QMP\": 5}\n"}}' 1 "$server"
told '{"greeting": {"bytes": "{\"QMP\": {\n"}}' 1 "$server"
told '{"greeting": {"bytes": "\u0000\u001b[31m\n"}}' 1 "$server"
told "{\"greeting\": {\"bytes\": \"$(printf '%05000d' 0 | tr 0 '[')\\n\"}}" 1 \
    "$server"
# Never a line's end.
told '{"greeting": {"repeat": "xxxxxxxxxxxxxxxx", "times": 5000000}}' 1 \
    "answer is too long"
told '{"qmp_capabilities": {"close": true}}' 1 "closed the connection"
told '{"qmp_capabilities": {"error": {"class": "GenericError",
    "desc": "not today"}}}' 1 "not today"
told '{"qmp_capabilities": {"error": {"desc":
    "\u001b[2J\u001b]0;title\u0007 \r\nlost"}}}' 1 "lost"
told '{"qmp_capabilities": {"error": 5}}' 1 "refused"
told '{"qmp_capabilities": {"bytes": "{\"return\": {}, \"id\": \"x\"}\n"}}' \
    4 "interrupted" timeout --preserve-status -s INT 2 \
    "$tidemark" backup "$ctl" "$repo"
told '{"backup-begin": {"close": true}}' 1 "closed the connection"
told '{"backup-begin": {"repeat": "{\"event\": \"X\", \"data\": {}}\r\n",
    "times": 20000}, "backup-end": {"close": true}}' 0 "not confirmed"
rm -rf "$repo"/vda
told '{"backup-begin": {"error": {"class": "GenericError",
    "desc": "Bitmap '"'b'"' is currently in use"}}}' 1 "currently in use"

# Answers to backup-begin.
M="backup-begin: malformed answer"
bad_begin '{"": 5}' "$M" none
bad_begin '{"": []}' "$M" none
bad_begin '{"id": 5}' "$M" none
bad_begin '{"id": "../../x"}' "$M" none
bad_begin '{"disks": []}' "$M"
bad_begin '{"disks": {}}' "$M"
bad_begin '{"disks": [5]}' "$M"
for m in disk uri mode size dirty-bytes; do
    bad_begin "{\"disk.$m\": null}" "$M"
    bad_begin "{\"disk.$m\": []}" "$M"
done
bad_begin '{"disk.size": 0}' "disk 'vda' has 0 bytes"
bad_begin '{"disk.size": -1}' "$M"
bad_begin '{"disk.size": 9223372036854775807}' "$M"
bad_begin '{"disk.dirty-bytes": -1}' "$M"
bad_begin '{"disk.mode": "incremental"}' "$M"
bad_begin '{"disk.mode": "incremental", "disk.base": "x",
    "disk.contexts": ["base:allocation", "qemu:dirty-bitmap:b"]}' "$M"
bad_begin '{"disk.mode": "top"}' "$M"
for name in ../evil /evil .. . "" a/b lock tidemark.json "\\n" .hidden; do
    bad_begin "{\"disk.disk\": \"$name\"}" "cannot be"
done
[ ! -e "$tmp/evil" ] || fail "written outside of the repository"
bad_begin '{"disk.size": 2097152}' "but the server had said 2097152"
for uri in "" file:///etc/passwd "$tmp/vda.raw" http://x/ nbd; do
    bad_begin "{\"disk.uri\": \"$uri\"}" "not an NBD URI"
done
bad_begin "{\"disk.uri\": \"nbd+unix:///vda?socket=$tmp/none\"}" "$tmp/none"
# In clear from elsewhere, unless that is allowed; names may lead anywhere.
for host in 192.0.2.1 localhost 127.0.0.1.example 1127.0.0.1 "[2001:db8::1]" \
    "[::1.2.3.4]" "[127.0.0.1]" 128.0.0.1 127.0.0.1@192.0.2.1; do
    bad_begin "{\"disk.uri\": \"nbd://$host:1/vda\"}" "needs --plain-tcp"
done
for host in 127.0.0.1 127.1.2.3; do
    bad_begin "{\"disk.uri\": \"nbd://$host:1/vda\"}" "Connection refused"
done
told '{"backup-begin": {"set": {"disk.uri": "nbd://localhost:1/vda"}}}' 1 \
    "Connection refused" "$tidemark" backup --retry 0 --plain-tcp "$ctl" "$repo"
# A server does not get to choose which of our files are read as keys.
echo "root:00112233" >"$tmp/psk"
bad_begin "{\"disk.uri\": \"nbds+unix:///vda?socket=$tmp/nbd.sock&tls-psk-file=$tmp/psk\"}" \
    "local file"
# A disk that was not asked for, one that is missing, one named twice.
told '{"backup-begin": {"set": {"disk.disk": "vdb"}}}' 1 "vdb" \
    "$tidemark" backup "$ctl" "$repo" --disk vda
[ ! -e "$repo/vdb" ] || fail "a disk that was not asked for"
disk="{\"disk\": \"vda\", \"uri\": \"$export\", \"size\": 1048576,
    \"dirty-bytes\": 0, \"mode\": \"full\", \"contexts\": []}"
bad_begin "{\"disks\": [$disk, $disk]}" "twice"
# An incremental for an empty chain, again and again.
bad_begin '{"disk.mode": "incremental", "disk.base":
    "11112222333344445555666677778888", "disk.contexts":
    ["base:allocation", "qemu:dirty-bitmap:b"]}' \
    "do not fit the repository"

# Answers to other commands.
for how in '{"set": {"": 5}}' '{"set": {"": {}}}'; do
    told "{\"query-block\": $how}" 1 "query-block: malformed answer" \
        "$tidemark" bitmap list "$ctl"
done
told '{"query-block": {"set": {"": [5, {}, {"inserted": {"dirty-bitmaps":
    [{}, 7, {"name": 5, "count": "x"}, {"name": "\u001b[31m"}]}}]}}}' 0 "" \
    "$tidemark" bitmap list "$ctl"
told '{"query-block": {"set": {"": [5, {}, {"inserted": {"dirty-bitmaps":
    [{}, 7, {"name": 5, "count": "x"}]}}]}}}' 0 "" \
    "$tidemark" bitmap list --json "$ctl"
json 1 <"$tmp/out" >"$tmp/expect.out"
told '{"backup-begin": {"set": {"disk.uri": 5}}}' 1 "$M" \
    "$tidemark" map "$ctl" -d vda -b b
told '{"backup-begin": {"set": {"": 5}}}' 1 "$M" \
    "$tidemark" map "$ctl" -d vda -b b

# Silence ends with an interrupt; when it must not, because the answer says
# what is to be ended, with a second one.
silent ()                       # silent COMMAND STATUS NR-SIGNALS
{
    local i status=0
    echo "{\"$1\": {\"silent\": true}}" >&6
    env --default-signal=INT "$tidemark" backup "$ctl" "$repo" \
        >"$tmp/out" 2>"$tmp/err" &
    client=$!
    test_pids+=($client)
    read -r line <&5
    [ "$line" = silent ] || fail "fake-control.py: $line"
    for ((i = 0; i < $3; i++)); do
        # What comes twice within a second is one.
        if [ $i -gt 0 ]; then read -r -t 1.1 <> <(:) || :; fi
        kill -INT $client
        kill -INT $client 2>/dev/null || :
    done
    wait $client || status=$?
    read -r line <&5
    [ $status -eq "$2" ] || {
        cat "$tmp/err" >&2
        fail "$1: status $status instead of $2"
    }
}
silent greeting 4 1
silent qmp_capabilities 4 1
silent backup-begin 130 2
silent backup-end 130 2
rm -rf "$repo"/vda

# What is for the user's eyes holds no control characters.
told '{"backup-begin": {"set": {"disk.why": "\u001b[2Jbecause\r\n"}}}' 0 ""
rm -rf "$repo"/vda

# A server names somebody's live disk: nothing of it is trimmed.
random_file "$tmp/live.raw" 16
cp "$tmp/live.raw" "$tmp/live.copy"
background nbdkit -f -e vda -U "$tmp/live.sock" --filter=log --filter=delay \
    file "$tmp/live.raw" logfile="$tmp/live.log" rdelay=20ms
wait_for 20 is_listening "$tmp/live.sock"
told "{\"backup-begin\": {\"set\": {\"disk.size\": 16777216,
    \"disk.uri\": \"nbd+unix:///vda?socket=$tmp/live.sock\",
    \"disk.dirty-bytes\": 16777216}}}" 0 ""
cmp "$tmp/live.raw" "$tmp/live.copy" || fail "the live disk has been changed"
grep -q ' Read ' "$tmp/live.log" || fail "the log says nothing"
! grep ' Trim ' "$tmp/live.log" || fail "the live disk has been trimmed"
rm -rf "$repo"/vda

# An honest one.
told '{}' 0 ""
[ "$seen" = "qmp_capabilities backup-begin backup-end" ] || fail "$seen"
check_backup "$repo" vda 1 "$tmp/vda.raw"
exec 6>&- 5<&-
