#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The oracle test of the whole programs, see oracle-programs.c: first with
# tidemarkd, then with stock nbdkit and our plugin.  POINTS=N: backups with
# each.
#
# Each backup is flushed to stable storage several times: in memory, if there
# is room, the test takes a quarter of the time.
shm=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1) || shm=0
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && [ "$shm" -gt 2000000 ]; then
    export TMPDIR=/dev/shm
fi
. ./functions.sh
requires nbdkit qemu-img

points=${POINTS:-130}
if [ "$sanitizers" != no ]; then points=${POINTS:-20}; fi
# The last granule and the last cluster are short ones.
size=$((16 * 1024 * 1024 + 3 * 512))

# with_server NAME COMMAND...: the command serves in folder NAME.
with_server ()
{
    local name=$1 d=$tmp/$1 disk pid
    shift
    mkdir "$d"
    truncate -s $size "$d/a.raw" "$d/b.raw"
    background "$@"
    pid=$!
    wait_for 20 is_listening "$d/ctl.sock"
    wait_for 20 is_listening "$d/live.sock"
    "$top_builddir/tests/oracle/oracle-programs" "$d" "$d/live.sock" \
        "$d/ctl.sock" "$tidemark" "$points" || fail "with $name"
    kill "$pid"
    wait "$pid" || fail "$name ended with status $?"
    for disk in a b; do
        cmp "$d/$disk.raw" "$d/final-$disk.raw" ||
            fail "$name: the last backup is not what disk $disk holds"
    done
    rm -r "$d"
}

d=$tmp/tidemarkd
with_server tidemarkd "$tidemarkd" --disk "a,file=$d/a.raw" \
    --disk "b,file=$d/b.raw" --scratch-dir "$tmp" \
    --listen "unix:$d/live.sock" --backup-listen "unix:$d/backup.sock" \
    --control "unix:$d/ctl.sock"
d=$tmp/nbdkit
with_server nbdkit "${nbdkit[@]}" -f -U "$d/live.sock" "$plugin" \
    "disk=a,file=$d/a.raw" "disk=b,file=$d/b.raw" "scratch-dir=$tmp" \
    "backup=unix:$d/backup.sock" "control=unix:$d/ctl.sock"
