#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# What the header promises: bitmaps that we do not keep up to date are given
# up at the first write and not before, unknown compatible features and
# extensions stay, internal snapshots are not touched.
. ./functions.sh
requires qemu-img qemu-io python3

io=$top_builddir/tests/qcow2-io
cd "$tmp"

qemu-img create -q -f qcow2 a 4M
qemu-img bitmap --add a b0
qemu-img bitmap --add a b1
qemu-io -c 'write -P 1 0 1M' a >/dev/null
autoclear () { od -A n -t x1 -j 88 -N 8 "$1" | tr -d ' \n'; }

# Reading, and opening for writing, change nothing.
cp a before
"$io" <<<"open a ro"
"$io" <<<"open a"
cmp a before || fail "opening changed the image"
[ "$(autoclear a)" = 0000000000000001 ] || fail "QEMU has set no bit"

# An unknown autoclear bit and an unknown extension behind the others.
python3 - <<'END'
import struct
f = open("a", "r+b")
d = bytearray(f.read(4096))
d[88] |= 0x80
d[80] |= 0x80
at = struct.unpack_from(">I", d, 100)[0]
while struct.unpack_from(">I", d, at)[0]:
    at += 8 + (struct.unpack_from(">I", d, at + 4)[0] + 7) // 8 * 8
d[at:at + 16] = struct.pack(">II", 0x12345678, 6) + b"keepme\0\0"
f.seek(0)
f.write(d)
END
"$io" <<END
open a
write 100000 1000 2
END
[ "$(autoclear a)" = 0000000000000001 ] || fail "autoclear: $(autoclear a)"
grep -qa keepme a || fail "the unknown extension is gone"
[ "$(od -A n -t x1 -j 80 -N 1 a)" = " 80" ] || fail "a compatible bit is gone"
# Its bitmap missed the write, and says so.
qemu-img check -f qcow2 a >check.out 2>&1 || fail "$(cat check.out)"
qemu-img info --output=json a >info
python3 -c "
import json
b = json.load (open ('info'))['format-specific']['data']['bitmaps']
assert b[0]['name'] == 'b0' and 'in-use' in b[0]['flags'], b"
qemu-io -r -c 'read -P 1 0 100000' -c 'read -P 2 100000 1000' a >/dev/null ||
    fail "contents"
