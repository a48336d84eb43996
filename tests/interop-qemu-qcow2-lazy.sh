#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Lazy refcounts: an image that we were killed on is mended by QEMU when it
# opens it, and the other way round; read-only it is used as it is.
. ./functions.sh
requires qemu-img qemu-io

io=$top_builddir/tests/qcow2-io
cd "$tmp"
is_dirty () { [ "$(od -A n -t x1 -j 79 -N 1 "$1")" = " 01" ]; }
is_sound () { qemu-img check -q -f qcow2 "$1" >out 2>&1 || fail "$(cat out)"; }

# holds IMAGE BYTE: as written below, in QEMU's eyes.
holds ()
{
    qemu-io -r -f qcow2 -c "read -P $2 1M 300k" -c 'read -P 0 0 1M' "$1" \
        >out || fail "$1: $(cat out)"
    if grep -q "verification failed" out; then fail "$1: $(cat out)"; fi
}

# Closed as it should be, nothing is left to do.
qemu-img create -q -f qcow2 -o lazy_refcounts=on good 8M
"$io" <<<"open good"
is_dirty good && fail "opening has marked it"
printf '%s\n' "open good" "write 1048576 307200 5" "flush" | "$io"
is_dirty good && fail "marked after a clean close"
is_sound good
holds good 5

# Killed.
qemu-img create -q -f qcow2 -o lazy_refcounts=on ours 8M
printf '%s\n' "open ours" "write 1048576 307200 6" "flush" "kill" | "$io"
is_dirty ours || fail "not marked"
cp ours before
printf '%s\n' "open ours ro" "dump dump" | "$io"
cmp ours before || fail "reading has changed it"
qemu-img compare -q -f raw -F qcow2 dump ours || fail "read as it is"
cp ours for-qemu
qemu-io -f qcow2 -c 'write -P 9 4M 4k' for-qemu >out 2>&1
is_dirty for-qemu && fail "QEMU has not mended it: $(cat out)"
is_sound for-qemu
holds for-qemu 6
printf '%s\n' "open ours" "write 4194304 4096 9" | "$io"
is_dirty ours && fail "not mended"
is_sound ours
holds ours 6
qemu-img compare -q ours for-qemu || fail "not the same"

# One that is refused for the other file that it names is not mended first.
qemu-img create -q -f qcow2 base 8M
qemu-img create -q -f qcow2 -o lazy_refcounts=on -b base -F qcow2 over
printf '%s\n' "open over" "write 1048576 307200 8" "flush" "kill" | "$io"
is_dirty over || fail "not marked"
cp over before
# refused TEXT OPEN-OPTION...
refused ()
{
    local text=$1
    shift
    printf '%s\n' "expect $text" "open over $*" | "$io" || fail "not refused"
    cmp over before || fail "modified, though refused: $text"
}
refused "following it was not allowed" deny rw
mv base elsewhere
refused "No such file" allow rw
cp before sound
LC_ALL=C sed -i 's/base/b:se/' over
cp over before
refused "is not a plain file" allow rw
cp sound over
mv elsewhere base
printf '%s\n' "open over neighbours rw" | "$io"
is_dirty over && fail "not mended"
is_sound over
holds over 8

# QEMU was killed.
qemu-img create -q -f qcow2 -o lazy_refcounts=on theirs 8M
qemu-io -f qcow2 -c 'write -P 7 1M 300k' -c flush -c abort theirs \
    >out 2>&1 || :
is_dirty theirs || fail "QEMU has not marked it: $(cat out)"
"$io" <<<"open theirs"
is_dirty theirs && fail "opening has not mended it"
is_sound theirs
holds theirs 7
