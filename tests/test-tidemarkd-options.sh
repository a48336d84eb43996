#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# tidemarkd's command line: each mistake has its message and exit status.
. "${srcdir:-.}/control-test.sh"
requires mkfifo qemu-img

# bad STATUS TEXT OPTION...: fails with that status and text.
bad ()
{
    local status=$1 text=$2 got=0
    shift 2
    timeout 20 "$tidemarkd" "$@" >"$tmp/out" 2>"$tmp/err" || got=$?
    if [ $got -ne "$status" ]; then
        cat "$tmp/err" >&2
        fail "status $got instead of $status: $*"
    fi
    if ! grep -qF -- "$text" "$tmp/err"; then
        cat "$tmp/err" >&2
        fail "no \"$text\" in the message of: $*"
    fi
    if [ "$(wc -l <"$tmp/err")" -gt 2 ]; then
        cat "$tmp/err" >&2
        fail "too many lines of messages: $*"
    fi
}

cd "$tmp"
truncate -s 1M a.raw b.raw
truncate -s 1000 odd.raw
mkdir dir
mkfifo fifo
: >file
A=(--disk a,file=a.raw --control unix:ctl)
long=$(printf 'x%.0s' {1..1100})

# Options.
bad 2 "unrecognized option" --no-such-option
bad 2 "requires an argument" --disk
bad 2 "invalid option" -x
bad 2 "'extra' is not an option" "${A[@]}" extra
bad 2 "no --disk is given"
bad 2 "nothing to serve: give --listen, --backup-listen or --control" \
    --disk a,file=a.raw

# Disks.
bad 2 "a name is needed" --disk file=a.raw --control unix:ctl
bad 2 "disk 'a': file=PATH is missing" --disk a --control unix:ctl
bad 2 "disk 'a': file=PATH is missing" --disk a,file= --control unix:ctl
bad 2 "only letters, digits, '-', '_' and '.'" --disk a/b,file=a.raw
bad 2 "is too long (at most 255 bytes)" --disk "${long:0:256},file=a.raw"
bad 2 "disk 'a' is given twice" "${A[@]}" --disk a,file=b.raw
bad 2 "fiel" --disk a,fiel=a.raw
bad 2 "file" --disk a,file=a.raw,file=b.raw
bad 2 "disk 'a': format=vmdk: must be 'raw' or 'qcow2'" \
    --disk a,file=a.raw,format=vmdk
bad 2 "disk 'a': readonly=yes: must be 'off' or 'on'" \
    --disk a,file=a.raw,readonly=yes
bad 2 "disk 'a': backing=on: must be 'deny' or 'allow'" \
    --disk a,file=a.raw,backing=on
bad 2 "must be 'break-backup' or 'break-guest-write'" \
    --disk a,file=a.raw,on-scratch-error=stop
bad 2 "scratch-limit" --disk a,file=a.raw,scratch-limit=lots
bad 2 "disk 'a': cache-size is for format=qcow2 only" \
    --disk a,file=a.raw,cache-size=1M
bad 2 "disk 'a': refcount-cache-size is for format=qcow2 only" \
    --disk a,file=a.raw,refcount-cache-size=1M
bad 2 "l2-cache-size" --disk a,file=a.raw,format=qcow2,l2-cache-size=lots
caches=cache-size=2M,l2-cache-size=1M,refcount-cache-size=1M
bad 2 "disk 'a': cache-size, l2-cache-size and refcount-cache-size may not be \
set at the same time" --disk a,file=a.raw,format=qcow2,$caches
bad 2 "disk 'a': l2-cache-size may not exceed cache-size" \
    --disk a,file=a.raw,format=qcow2,cache-size=1M,l2-cache-size=2M
bad 2 "disk 'a': refcount-cache-size may not exceed cache-size" \
    --disk a,file=a.raw,format=qcow2,cache-size=1M,refcount-cache-size=2M
bad 2 "disk 'a': l2-cache-entry-size is for format=qcow2 only" \
    --disk a,file=a.raw,l2-cache-entry-size=4k
qemu-img create -q -f qcow2 a.qcow2 1M
bad 1 "L2 cache entry size must be a power of two between 512 and the cluster \
size (65536)" --disk a,file=a.qcow2,format=qcow2,l2-cache-entry-size=128k \
    --control unix:ctl
bad 1 "disk 'a'" --disk a,file=missing.raw --control unix:ctl
bad 1 "disk 'a'" --disk a,file=dir --control unix:ctl
bad 1 "disk 'a'" --disk a,file=fifo --control unix:ctl
bad 1 "odd.raw: its size, 1000 bytes, is not a multiple of 512" \
    --disk a,file=odd.raw --control unix:ctl
bad 1 "/dev/zero: is a character device" \
    --disk a,file=/dev/zero --control unix:ctl
bad 1 "/nowhere/s: " --disk "a,file=nbd+unix:///x?socket=/nowhere/s" \
    --control unix:ctl
bad 1 "cannot parse socket parameter" --disk "a,file=nbd+unix:///x" \
    --control unix:ctl
cat >ro.sh <<'END'
set -e
mkdir ro
mount -t tmpfs none ro
truncate -s 1M ro/a.raw
mount -o remount,ro ro
"$@" --disk a,file=ro/a.raw,readonly=on --daemon --pid-file ro.pid
kill "$(cat ro.pid)"
exec "$@" --disk a,file=ro/a.raw
END
tidemarkd=unshare bad 1 "ro/a.raw: cannot be opened for writing: Read-only" \
    -rm bash ro.sh "$tidemarkd" --control unix:ro.ctl
bad 1 "disk 'b'" "${A[@]}" --disk b,file=a.raw
bad 1 "disk 'a'" --disk a,file=a.raw,format=qcow2 --control unix:ctl

# Bitmaps.
for name in b a/ /b /; do
    bad 2 "must be DISK/NAME" "${A[@]}" --bitmap $name
done
bad 2 "KEY=VALUE is expected" "${A[@]}" --bitmap ""
bad 2 "there is no disk 'no'" "${A[@]}" --bitmap no/b
bad 2 "bitmap 'a/b' is given twice" "${A[@]}" --bitmap a/b --bitmap a/b
bad 2 "the name is too long (at most 1023 bytes)" "${A[@]}" \
    --bitmap "a/${long:0:1024}"
for size in 0 256 1000 64000 4G; do
    bad 2 "granularity=$size: must be a power of 2 from 512 to 2G" \
        "${A[@]}" --bitmap "a/b,granularity=$size"
done
bad 2 "granularity" "${A[@]}" --bitmap a/b,granularity=-1
bad 2 "granularity" "${A[@]}" --bitmap a/b,granularity=64q
bad 2 "bitmap 'a/b': disabled=maybe: must be 'off' or 'on'" \
    "${A[@]}" --bitmap a/b,disabled=maybe
bad 2 "persistent=maybe: must be 'on' or 'off'" "${A[@]}" \
    --bitmap a/b,persistent=maybe

# Addresses.
bad 2 "live address" "${A[@]}" --listen ""
bad 2 "backup address" "${A[@]}" --backup-listen host:99999
bad 2 "control address '127.0.0.1:10811': TCP needs TLS" \
    "${A[@]}" --control tcp:127.0.0.1:10811
bad 2 "control address ':0': TCP needs TLS" "${A[@]}" --control :0
bad 2 "is given twice" "${A[@]}" --control unix:ctl
bad 2 "is given twice" "${A[@]}" --listen unix:ctl
bad 2 "is given twice" "${A[@]}" --listen "$tmp/ctl"
bad 2 "is given twice" "${A[@]}" --listen :12345 --backup-listen :12345
bad 1 "no-such-dir" "${A[@]}" --listen unix:no-such-dir/s
bad 1 "file" "${A[@]}" --listen unix:file
[ -f file ] || fail "a file that is no socket was replaced"
bad 1 "198.51.100.1" "${A[@]}" --listen 198.51.100.1:0
[ ! -e ctl ] || fail "a socket file of a failed start was left"

# The rest.
bad 2 "--scratch-limit" "${A[@]}" --scratch-limit 1X
bad 2 "scratch-dir: a directory is needed" "${A[@]}" --scratch-dir ""
bad 2 "scratch-dir: $tmp/none: No such file" "${A[@]}" --scratch-dir "$tmp/none"
bad 2 "scratch-dir: $tmp/a.raw: Not a directory" "${A[@]}" \
    --scratch-dir "$tmp/a.raw"
bad 1 "disk 'a': scratch-dir: $tmp/none: No such file" \
    --disk "a,file=$tmp/a.raw,scratch-dir=$tmp/none" --control unix:ctl
bad 2 "--max-connections: '10x': must be from 1 to 10000" "${A[@]}" \
    --max-connections 10x
bad 1 "--pid-file '$tmp/no-such-dir/pid'" "${A[@]}" --pid-file no-such-dir/pid
bad 1 "disk 'a'" --disk a,file=missing.raw --control unix:ctl --daemon
[ ! -e ctl ] || fail "a socket file of a failed start was left"

# A socket that someone answers on is not taken over.  (Bitmaps may come before
# their disks.)
background "$tidemarkd" --bitmap a/b "${A[@]}"
wait_for 20 python3 "$PYTHONPATH/qmp_client.py" ctl query-version
bad 1 "ctl" --disk b,file=b.raw --control unix:ctl
# Nor is a disk.
bad 1 "disk 'a'" --disk a,file=a.raw --control unix:other
python3 "$PYTHONPATH/qmp_client.py" ctl quit >/dev/null

# Answers.
"$tidemarkd" --version | grep -qE '^tidemarkd [0-9.]+$' || fail "--version"
"$tidemarkd" --help >help
for option in $("$tidemarkd" --long-options); do
    case $option in
        --long-options | --short-options) ;;
        *) grep -qF -- "$option" help || fail "$option is not in --help" ;;
    esac
done
[ "$("$tidemarkd" --short-options | tr '\n' ' ')" = "-h -v -V " ] ||
    fail "--short-options"
# Nobody reads the answer.
status=0
"$tidemarkd" --help >/dev/full 2>/dev/null || status=$?
[ $status -eq 1 ] || fail "--help to a full device: status $status"
