#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The servers are killed over and over, see kill-torture.c: tidemarkd, and
# stock nbdkit with our plugin.  KILLS=N: kills of each.  SERVERS: of which, if
# not of both.
shm=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1) || shm=0
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && [ "$shm" -gt 1000000 ]; then
    export TMPDIR=/dev/shm
fi
. ./functions.sh
requires nbdkit qemu-img

kills=${KILLS:-160}
if [ "$sanitizers" != no ]; then kills=${KILLS:-12}; fi

# with_server NAME COMMAND...: the command serves in folder NAME.
with_server ()
{
    local name=$1
    shift
    case " ${SERVERS:-tidemarkd nbdkit} " in
        *" $name "*) ;;
        *) return ;;
    esac
    mkdir "$tmp/$name"
    "$top_builddir/tests/crash/kill-torture" "$tmp/$name" "$tidemark" \
        "$kills" "$@" || fail "with $name"
    rm -r "${tmp:?}/$name"
}

d=$tmp/tidemarkd
with_server tidemarkd "$tidemarkd" --disk "a,file=$d/a.raw" \
    --disk "b,file=$d/b.raw" --bitmap a/k --bitmap b/k --scratch-dir "$tmp" \
    --listen "unix:$d/live.sock" --backup-listen "unix:$d/backup.sock" \
    --control "unix:$d/ctl.sock"
d=$tmp/nbdkit
with_server nbdkit "${nbdkit[@]}" -f -U "$d/live.sock" "$plugin" \
    "disk=a,file=$d/a.raw" "disk=b,file=$d/b.raw" bitmap=a/k bitmap=b/k \
    "scratch-dir=$tmp" "backup=unix:$d/backup.sock" "control=unix:$d/ctl.sock"
