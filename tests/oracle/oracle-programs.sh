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

# The last granule and the last cluster are short ones.
short=$((3 * 512))

# with_server NAME POINTS MIB DISKS COMMAND...: the command serves in folder
# NAME.  Fewer backups where there are more disks.
with_server ()
{
    local name=$1 points=${POINTS:-$2} size=$(($3 * 1024 * 1024 + short))
    local d=$tmp/$1 disks=$4 disk letters
    letters=$(echo abcd | cut -c "1-$disks" | sed 's/./& /g')
    if [ "$sanitizers" != no ]; then points=${POINTS:-12}; fi
    shift 4
    for disk in $letters; do truncate -s $size "$d/$disk.raw"; done
    timeout 1500 "$top_builddir/tests/oracle/oracle-programs" "$d" \
        "$tidemark" "$top_builddir/bench/relay" "$points" "$disks" "$@" ||
        fail "with $name"
    for disk in $letters; do
        cmp "$d/$disk.raw" "$d/final-$disk.raw" ||
            fail "$name: the last backup is not what disk $disk holds"
    done
    rm -r "$d"
}

d=$tmp/tidemarkd
mkdir "$d"
with_server tidemarkd 90 8 4 "$tidemarkd" --disk "a,file=$d/a.raw" \
    --disk "b,file=$d/b.raw" --disk "c,file=$d/c.raw" \
    --disk "d,file=$d/d.raw" --scratch-dir "$tmp" \
    --listen "unix:$d/live.sock" --backup-listen "unix:$d/backup.sock" \
    --control "unix:$d/ctl.sock"
d=$tmp/nbdkit
mkdir "$d"
with_server nbdkit 90 16 2 "${nbdkit[@]}" -f -U "$d/live.sock" "$plugin" \
    "disk=a,file=$d/a.raw" "disk=b,file=$d/b.raw" "scratch-dir=$tmp" \
    "backup=unix:$d/backup.sock" "control=unix:$d/ctl.sock"
