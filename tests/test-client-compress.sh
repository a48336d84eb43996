#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# backup --compress: images that QEMU reads, with data that shrinks and data
# that does not; verify and restore; incrementals on top, of either kind.
. "${srcdir:-.}/client-test.sh"
requires qemu-img qemu-io

# 2 MiB of text, 2 MiB of noise, 2 MiB of both within clusters, a short end.
python3 - "$tmp/disk" <<'END'
import random
import sys
r = random.Random(1)
text = b"".join(b"line %d of a text that can be compressed\n" % i
                for i in range(60000))[:2 << 20]
noise = r.randbytes(2 << 20)
both = b"".join(text[i:i + 8192] + noise[i:i + 24576]
                for i in range(0, 2 << 20, 32768))
with open(sys.argv[1], "wb") as f:
    f.write(text + noise + both)
    f.seek(15 << 20)
    f.write(text[:70000 - 70000 % 512])
END
cp "$tmp/disk" "$tmp/first"
uri="nbd+unix:///d?socket=$tmp/s"
background "$tidemarkd" --disk "d,file=$tmp/disk" --bitmap d/b \
    --listen "unix:$tmp/s" --control "unix:$tmp/c" \
    --backup-listen "unix:$tmp/bs"
wait_for 20 is_listening "$tmp/c"

for how in zstd zlib zstd:19 zlib:1; do
    repo=$tmp/repo-$how
    run_ok "$tidemark" backup --full --compress $how --bitmap b "unix:$tmp/c" \
        "$repo"
    image=$repo/d/000001-full.qcow2
    qemu-img check -q "$image" || fail "$how: check"
    "$tidemark" check -q "$image" || fail "$how: our check"
    qemu-img compare -q -f raw -F qcow2 "$tmp/disk" "$image" ||
        fail "$how: contents"
    qemu-img info --output=json "$image" | json \
        'j["format-specific"]["data"]["compression-type"]' |
        grep -qx "${how%:*}" || fail "$how: type"
    qemu-img check --output=json "$image" |
        json 'j["compressed-clusters"] >= 32 and
              j["allocated-clusters"] - j["compressed-clusters"] >= 32' |
        grep -qx True || fail "$how: $(qemu-img check --output=json "$image")"
    # The text has gone to less than a quarter, the noise is there.
    size=$(stat -c %s "$image")
    [ $size -lt $((9 << 19)) ] || fail "$how: $size bytes"
done

# Incrementals: one compressed, one not, on clusters of both kinds.
repo=$tmp/repo-zstd
qemu-io -f raw -c 'write -P 1 64k 100k' -c 'write -P 2 3M 1M' "$uri" >/dev/null
run_ok "$tidemark" backup --compress zlib --bitmap b "unix:$tmp/c" "$repo"
qemu-io -f raw -c 'write -P 3 128k 4k' "$uri" >/dev/null
run_ok "$tidemark" backup --bitmap b "unix:$tmp/c" "$repo"
run_ok "$tidemark" verify "$repo"
run_ok "$tidemark" restore "$repo" "$tmp/last"
cmp "$tmp/disk" "$tmp/last" || fail "the last restored"
run_ok "$tidemark" restore --at 1 "$repo" "$tmp/restored"
cmp "$tmp/first" "$tmp/restored" || fail "the first restored"

# Damage of packed data is found.
image=$repo/d/000001-full.qcow2
chmod u+w "$image"
python3 - "$image" <<'END'
import struct
import sys
with open(sys.argv[1], "r+b") as f:
    d = f.read()
    l1 = struct.unpack_from(">Q", d, 40)[0]
    l2 = struct.unpack_from(">Q", d, l1)[0] & 0xfffffffffffe00
    entry = struct.unpack_from(">Q", d, l2 + 8 * 2)[0]
    assert entry >> 62 & 1
    at = (entry & ((1 << 54) - 1)) + 100
    f.seek(at)
    f.write(bytes([d[at] ^ 1]))
END
status=0
"$tidemark" verify "$repo" >"$tmp/out" 2>&1 || status=$?
[ $status = 3 ] || fail "verify of damaged data: status $status"

for wrong in gzip zstd:0 zstd:20 zlib:10 zstd:x zst zstdx; do
    status=0
    "$tidemark" backup --compress $wrong unix:/x "$tmp/r" 2>"$tmp/err" ||
        status=$?
    [ $status = 2 ] || fail "--compress $wrong: status $status"
    grep -q "allowed are" "$tmp/err" || fail "--compress $wrong"
done
