#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# What the user gets wrong is said, by name, before nbdkit starts to serve.
. ./functions.sh
requires nbdkit qemu-img

cd "$tmp"
truncate -s 1M ok.raw
truncate -s 1000 odd.raw
mkdir dir
qemu-img create -q -f qcow2 -b ok.raw -F raw over.qcow2
ok=disk=vda,file=ok.raw

# bad TEXT PARAMETER...
bad ()
{
    local text=$1
    shift
    expect_error "$text" "${nbdkit[@]}" -U - "$plugin" "$@" \
        --run 'echo served >&2'
    grep -q served expect.err && fail "it went on with: $*"
    return 0
}

bad "no disk given"
bad "nope.raw" nope.raw
bad "dir" dir
bad "1000" odd.raw
bad "unknown parameter \"dsk\"" ok.raw dsk=x
bad "unknown parameter" ok.raw other.raw=1
bad "vda" disk=vda
bad "bogus" $ok,bogus=1
bad "qcow3" $ok,format=qcow3
bad "ok.raw" $ok,format=qcow2
bad "l2-cache-size may not exceed cache-size" \
    disk=v,file=over.qcow2,format=qcow2,cache-size=1M,l2-cache-size=2M
bad "over.qcow2" disk=v,file=over.qcow2,format=qcow2
bad "maybe" $ok,readonly=maybe
bad "a/b" disk=a/b,file=ok.raw
bad "vda" $ok disk=vda,file=ok.raw
bad "bitmap" $ok bitmap=nope
bad "vdb" $ok bitmap=vdb/b0
bad "3000" $ok bitmap=vda/b0,granularity=3000
bad "256" $ok bitmap=vda/b0,granularity=256
bad "b0" $ok bitmap=vda/b0 bitmap=vda/b0
bad "4x" $ok scratch-limit=4x
bad "scratch-limit" $ok,scratch-limit=-1
bad "max-connections: '0': must be from 1 to 10000" $ok control=unix:good max-connections=0
bad "max-connections" $ok control=unix:good max-connections=many
bad "l2-cache-entry-size" $ok,l2-cache-entry-size=4k
bad "nope-dir" $ok scratch-dir=nope-dir
bad "control" $ok control=
bad "nowhere" $ok control=unix:/nowhere/ctl
bad "control" $ok control=127.0.0.1:1
bad "backup" $ok backup=host:99999
bad "nowhere" $ok control=unix:good backup=unix:/nowhere/b
test ! -e good || fail "a socket file was left behind"
bad "nbd+unix:///x" 'file=nbd+unix:///x?socket=/nowhere/s'

# The same file twice, and in another process.
bad "ok.raw" ok.raw ok.raw
start_plugin s ok.raw control=unix:c
bad "ok.raw" ok.raw
truncate -s 1M other.raw
bad "c" other.raw control=unix:c
