#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit -r, readonly=on, and files that cannot be written.
. ./functions.sh
requires nbdkit nbdinfo

cd "$tmp"
head -c 1M /dev/urandom > d.raw
cp d.raw orig

is_read_only='nbdinfo --json "$uri" | grep -q "\"is_read_only\": true" &&
    nbdinfo --can write "$uri" && exit 1
    nbdcopy "$uri" copy'
"${nbdkit[@]}" -r -U - "$plugin" d.raw --run "$is_read_only"
cmp copy d.raw
rm copy
"${nbdkit[@]}" -U - "$plugin" disk=a,file=d.raw,readonly=on \
    --run "$is_read_only"
cmp copy orig
cmp d.raw orig

# Readers share a file; two qemu-img see that it is in use for writing.
"${nbdkit[@]}" -U - "$plugin" disk=a,file=d.raw,readonly=on \
    disk=b,file=d.raw,readonly=on --run 'nbdinfo --list "$uri"' > list
grep -q 'export="b"' list || fail "$(cat list)"
"${nbdkit[@]}" -U - "$plugin" d.raw --run \
    'qemu-io -f raw d.raw -c "write 0 4k" 2>&1; true' > out
grep -qi "lock" out || fail "qemu-io wrote to a disk in use: $(cat out)"
cmp d.raw orig
