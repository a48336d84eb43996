#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Backing chains: 32 layers of both programs read alike and mapped alike,
# relative names, loops, too deep a chain.
. ./functions.sh
requires qemu-img qemu-io python3

srcdir=$(cd "$srcdir" && pwd)
io=$top_builddir/tests/qcow2-io
cd "$tmp"
mkdir sub

# Layers of different sizes, in turn by qemu-io and by us, one of them raw.
truncate -s 2M sub/0
qemu-io -f raw -c 'write -P 200 1M 1M' sub/0 >/dev/null
format=raw
for i in $(seq 1 32); do
    size=$((2097152 + (i % 5) * 65536 - 512 * (i % 3)))
    qemu-img create -q -f qcow2 -o cluster_size=$((4096 << (i % 3))) \
        -b $((i - 1)) -F $format sub/$i $size
    format=qcow2
    if [ $((i % 2)) = 0 ]; then
        qemu-io -c "write -P $i $((i * 60000 / 512 * 512)) 70k" \
            -c "write -z $((i * 3))k 5k" sub/$i >/dev/null
    else
        "$io" <<END
open sub/$i
write $((i * 60000)) 70000 $i
zero $((i * 3000)) 20000
END
    fi
done
"$io" >map <<END
open sub/32 ro
dump dump
map
END
qemu-img compare -q -f raw -F qcow2 dump sub/32 || fail "32 layers"
qemu-img map --output=json sub/32 >map.json
python3 "$srcdir/qcow2-map.py" map.json <map
# From another folder: names are relative to the overlay.
(cd / && echo "open $tmp/sub/32 ro" | "$io") || fail "names are not relative"

# A loop of two.
qemu-img create -q -f qcow2 a 1M
qemu-img create -q -f qcow2 -b a -F qcow2 b
qemu-img rebase -u -b b -F qcow2 a
expect_error "already in the chain" "$io" <<<"open a ro"

# 256 layers below the top are allowed, 257 are not.
qemu-img create -q -f qcow2 -b c-001 -F qcow2 -u c-000 1M
at=$(grep -abo c-001 c-000 | cut -d: -f1)
for i in $(seq 1 256); do
    cp c-000 "$(printf 'c-%03d' "$i")"
    printf 'c-%03d' $((i + 1)) |
        dd of="$(printf 'c-%03d' "$i")" bs=1 seek="$at" conv=notrunc status=none
done
qemu-img create -q -f qcow2 c-257 1M
expect_error "deeper than 256" "$io" <<<"open c-000 ro"
"$io" <<<"open c-001 ro" || fail "256 layers below the top are refused"
