#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# --pre, --post, --freeze-hook: when they run, with what, and that a guest is
# thawed whatever happens; --bandwidth.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 2
start_tidemarkd vda
repo=$tmp/repo
log=$tmp/log
export live log server

# hook NAME: a script in $tmp; what it does is on standard input.
hook () { { echo "#!/bin/bash"; cat; } >"$tmp/$1"; chmod +x "$tmp/$1"; }
# ran LINES: what the hooks have written.
ran ()
{
    local want
    want=$(printf '%s\n' "$@")
    [ "$(cat "$log")" = "$want" ] || fail "hooks: $(cat "$log") instead of $want"
    rm "$log"
}
hook note <<'END'
echo "$* $TIDEMARK_HOOK $TIDEMARK_SOURCE ${TIDEMARK_REPOSITORY##*/} ${TIDEMARK_STATUS:-}" >>"$log"
echo "on the standard output"
END
hook freeze <<'END'
echo "$1" >>"$log"
case $1 in freeze) p=65 ;; *) p=66 ;; esac
qemu-io -f raw -c "write -P $p 0 64k" "nbd+unix:///vda?socket=$live" >/dev/null
END

# All in order; what is written while freezing is in the backup.
run_ok "$tidemark" backup --json --pre "$tmp/note x" --post "$tmp/note" \
    --freeze-hook "$tmp/freeze" "$ctl" "$repo"
ran "x pre pre $ctl repo " freeze thaw "post post $ctl repo 0"
if grep -q standard "$tmp/out"; then fail "a hook's output is among the events"; fi
grep -q standard "$tmp/err" || fail "a hook's output is not on standard error"
run_ok "$tidemark" restore "$repo" "$tmp/out.raw"
[ "$(head -c 65536 "$tmp/out.raw" | tr -d A | wc -c)" -eq 0 ] ||
    fail "the point is not between freeze and thaw"
[ "$(head -c 65536 "$tmp/vda.raw" | tr -d B | wc -c)" -eq 0 ] || fail "thaw"

# A hook finds the signals as our caller has them, though we wait for some: the
# first 31, as the C library has others for itself.  (dash unblocks all.)
look="grep -E '^Sig(Blk|Ign)' /proc/self/status >$log; :"
signals ()
{
    local what mask
    while read -r what mask; do
        echo "$what $((16#$mask & 0x7fffffff))"
    done <"$log"
    rm "$log"
}
sh -c "$look"
expected=$(signals)
run_ok "$tidemark" backup --mode copy --pre "$look" "$ctl" "$repo-copy"
found=$(signals)
[ "$found" = "$expected" ] || fail "signals: $found instead of $expected"

# nothing_done STATUS TEXT OPTION...: no second backup, no bit is lost.
bitmap=$(repo_bitmap "$repo")
nothing_done ()
{
    local status=$1 text=$2
    shift 2
    expect_status "$status" "$text" "$tidemark" backup "$@" "$ctl" "$repo"
    [ "$(nr_backups "$repo" vda)" = 1 ] || fail "$text: a backup"
    [ "$(dirty_bytes vda "$bitmap")" = 65536 ] || fail "$text: bits"
    [ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "$text: a session"
    no_leftovers "$repo"
}
nothing_done 1 "false pre: failed with status 1" --pre false --post "$tmp/note"
ran "post post $ctl repo 1"
nothing_done 2 "--freeze-timeout 0" --freeze-timeout 0
expect_status 2 "has to be a control socket" "$tidemark" backup \
    --freeze-hook true --disk vda "nbd+unix:///vda?socket=$live" "$repo"
expect_status 2 "--bandwidth" "$tidemark" backup --bandwidth 5 "$ctl" "$repo"

# Freezing fails, or is not done in time: thawed, and no backup.
hook fails <<'END'
echo "$1" >>"$log"
[ $1 = thaw ]
END
nothing_done 1 "the guest could not be frozen" --freeze-hook "$tmp/fails"
ran freeze thaw
hook hangs <<'END'
echo "$1" >>"$log"
[ $1 = thaw ] || sleep 1000
END
nothing_done 1 "hangs freeze: not done after 1 s" --freeze-hook "$tmp/hangs" \
    --freeze-timeout 1
ran freeze thaw

# The server does not answer in time: thawed, and the point does not count.
hook stops <<'END'
echo "$1" >>"$log"
case $1 in
    freeze) kill -STOP $server ;;
    *) kill -CONT $server ;;
esac
END
nothing_done 1 "the guest was thawed after 1 s, before" --freeze-timeout 1 \
    --freeze-hook "$tmp/stops"
ran freeze thaw

# The client is killed while the guest is frozen.
hook kills <<'END'
echo "$1" >>"$log"
case $1 in
    freeze) kill -STOP $server; kill -KILL $(cat "$log.pid") ;;
    *) kill -CONT $server; touch "$log.thawed" ;;
esac
END
status=0
sh -c 'echo $$ >"$log.pid"; exec "$@"' sh "$tidemark" backup --freeze-timeout 100 \
    --freeze-hook "$tmp/kills" "$ctl" "$repo" 2>"$tmp/err" || status=$?
[ $status -eq 137 ] || fail "status $status of a client that was killed"
wait_for 20 test -e "$log.thawed"
ran freeze thaw

# A rate: no more than that, and what the bucket holds, has been moved; and the
# backup is right.
start=$(date +%s%N)
run_ok "$tidemark" backup --json --full --bandwidth 1500k "$ctl" "$repo"
took=$((($(date +%s%N) - start) / 1000000))
moved=$(sed -n 's/.*"moved-bytes":\([0-9]*\).*/\1/p' "$tmp/out")
[ "$moved" -eq $((2 << 20)) ] || fail "$moved bytes moved"
# The first item and a bucket of 100 ms are free.
[ $took -ge $(((moved - 262144) * 1000 / 1536000 - 100)) ] ||
    fail "$moved bytes in $took ms"
check_restore "$repo" vda 2 "$tmp/vda.raw"
