#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qemu-img, qemu-io, qemu-nbd and fio with our NBD server.
. ./functions.sh
requires qemu-img qemu-io qemu-nbd python3 cmp fio

truncate -s 256M "$tmp/disk"
background ./nbd-test-server --until-signal --listen "unix:$tmp/s" \
    --disk "a,file=$tmp/disk" --disk b,size=256M --bitmap a/b0 --bitmap b/b0
pid=$!
wait_for 20 is_listening "$tmp/s"
uri () { echo "nbd+unix:///$1?socket=$tmp/s"; }
dirty_map ()
{
    qemu-img map --output=json --image-opts \
"driver=nbd,server.type=unix,server.path=$tmp/s,export=$1,x-dirty-bitmap=qemu:dirty-bitmap:b0" |
        python3 -c "
import json, sys
print(json.dumps([[e['start'], e['length']] for e in json.load(sys.stdin)
                  if not e['data']], separators=(',', ':')))
"
}

qemu-nbd --list -k "$tmp/s" >"$tmp/list"
grep -q "export: 'a'" "$tmp/list" || fail "not listed"
grep -q "qemu:dirty-bitmap:b0" "$tmp/list" || fail "no bitmap"

test "$(dirty_map a)" = "[]" || fail "dirty before"
qemu-io -f raw -c 'write -P 5 1M 64k' -c 'write -f -P 6 100M 4k' \
    -c 'read -P 5 1M 64k' -c 'write -z 10M 1M' -c 'write -z -u 20M 1M' \
    -c 'discard 30M 1M' -c 'flush' -c 'aio_write -P 7 200M 1M' -c 'aio_flush' \
    -c 'read -P 7 200M 1M' -c 'read -P 0 10M 1M' "$(uri a)" >"$tmp/io"
if grep -qi "error\|fail\|different" "$tmp/io"; then fail "$(cat "$tmp/io")"; fi
expected=$(printf '[[%d,%d],[%d,%d],[%d,%d],[%d,%d],[%d,%d],[%d,%d]]' \
    $((1 << 20)) 65536 $((10 << 20)) $((1 << 20)) $((20 << 20)) $((1 << 20)) \
    $((30 << 20)) $((1 << 20)) $((100 << 20)) 65536 $((200 << 20)) $((1 << 20)))
test "$(dirty_map a)" = "$expected" || fail "dirty: $(dirty_map a)"

# To qcow2 and back, and to the other disk.
qemu-img convert -f raw -O qcow2 "$(uri a)" "$tmp/copy.qcow2"
qemu-img compare -f qcow2 -F raw "$tmp/copy.qcow2" "$(uri a)"
qemu-img convert -n -f qcow2 -O raw "$tmp/copy.qcow2" "$(uri b)"
qemu-img compare -f raw -F raw "$(uri a)" "$(uri b)"
qemu-img convert -n -W -m 16 -f raw -O raw "$(uri a)" "$(uri b)"
cmp "$tmp/disk" <(qemu-img dd -f raw -O raw bs=1M "if=$(uri b)" \
    of="$tmp/dd" >/dev/null && cat "$tmp/dd")

# fio writes and verifies.
fio --name=v --ioengine=nbd --uri="$(uri b)" --rw=randwrite --bs=4k-64k \
    --iodepth=32 --size=256M --io_size=64M --verify=crc32c \
    --verify_fatal=1 --verify_state_save=0 --output="$tmp/fio" ||
    fail "$(cat "$tmp/fio")"

kill "$pid"
wait "$pid" || fail "server ended with $?"
