#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A backup of two disks in which the Nth call that changes or syncs a file fails,
# or is the last one before a crash, for one N after the other until none does:
# the set is stored as a whole or not at all, nothing unfinished counts, the next
# backup works, and no bit is lost.
. "${srcdir:-.}/client-test.sh"
export top_srcdir
shim=$top_builddir/tests/fail-nth.so
preload=$shim
case $sanitizers in
    *address*) preload="$(${CC:-gcc} -print-file-name=libasan.so) $shim" ;;
    *thread*) preload="$(${CC:-gcc} -print-file-name=libtsan.so) $shim" ;;
esac
head -c 192k /dev/urandom >"$tmp/vda.raw"
head -c 64k /dev/urandom >"$tmp/vdb.raw"
start_tidemarkd vda vdb
repo=$tmp/repo
fired=$tmp/fired

# faulty HOW N: sets $status.
faulty ()
{
    rm -f "$fired"
    status=0
    env FAIL_HOW="$1" FAIL_NTH="$2" FAIL_FIRED="$fired" LD_PRELOAD="$preload" \
        "$tidemark" backup "$ctl" "$repo" --bitmap b0 --full \
        >"$tmp/out" 2>"$tmp/err" || status=$?
}

nr_manifests ()
{
    find "$repo" -name '*.json' -path '*/vd*/*' 2>/dev/null | wc -l || :
}

same_sets ()
{
    [ "$(cd "$repo/vda" && echo *.json)" = "$(cd "$repo/vdb" && echo *.json)" ]
}

# What the lease would do after a crash.
end_sessions ()
{
    python3 - "$ctl" <<'END'
import os, sys
sys.path.insert (0, os.environ["top_srcdir"] + "/tests")
from qmp_client import Qmp
with Qmp (sys.argv[1]) as q:
    for b in q.execute ("query-backups"):
        q.execute ("backup-end", {"id": b["id"], "success": False})
END
}

next_backup ()
{
    run_ok "$tidemark" backup "$ctl" "$repo" --bitmap b0
    same_sets || fail "$how $n: parts of sets: $(ls "$repo"/*)"
    if find "$repo" -name '*.partial*' | grep .; then
        fail "$how $n: the above is left"
    fi
    run_ok "$tidemark" verify --threads 1 "$repo"
}

# Every second call, beginning at either; the sanitizers are slow: every seventh.
step=2
if [ "$sanitizers" != no ]; then step=7; fi
first=${FIRST:-$((RANDOM % step))}
echo "FIRST=$first"
for how in error crash; do
    n=$((first - step + 1))
    while :; do
        n=$((n + step))
        rm -rf "$repo"
        # Not the first of its repository, every other time.
        if [ $((n / step % 2)) -eq 0 ]; then next_backup; fi
        before=$(nr_manifests)
        faulty $how $n
        [ -e "$fired" ] || break
        [ $n -lt 300 ] || fail "it never ends"
        if [ $how = error ]; then
            # What it says is so.
            after=$(nr_manifests)
            case $status in
                0) [ "$after" -eq $((before + 2)) ] ;;
                1) [ "$after" -eq "$before" ] ||
                    grep -q 'the backup is stored' "$tmp/err" ;;
                *) false ;;
            esac || {
                cat "$tmp/err" >&2
                fail "$how $n: status $status, $before then $after manifests"
            }
        else
            [ $status -eq 99 ] || fail "$how $n: status $status"
            end_sessions
        fi
        next_backup
    done
    # The last one ran undisturbed.
    [ $status -eq 0 ] || fail "$how $n: $(cat "$tmp/err")"
    [ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "$how: a session is left"
    echo "$how: fewer than $n calls"
    [ $n -gt 20 ] || fail "only $n calls: is the library loaded?"
done
