#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A pull session while nbdkit serves: the view stays at its point, the dirty
# context tells what changed, an end in success clears it.
. ./functions.sh
requires nbdkit nbdinfo nbdcopy qemu-io qemu-img

cd "$tmp"
head -c 8M /dev/urandom > d.raw
start_plugin s control=unix:c backup=unix:b disk=vda,file=d.raw
live="nbd+unix:///vda?socket=$tmp/s"

begin ()
{
    qmp c backup-begin "{\"bitmap\": \"b0\", \"mode\": \"$1\"}" > begin
    uri=$(json 'j["disks"][0]["uri"]' < begin)
    id=$(json 'j["id"]' < begin)
}
end ()
{
    qmp c backup-end "{\"id\": \"$id\", \"success\": true}" > end
}

begin full
cp d.raw point1
qemu-io -f raw "$live" -c "write -P 1 1M 64k" -c "write -z 3M 128k" \
    -c "discard 5M 64k" > io
nbdcopy "$uri" copy1
cmp copy1 point1
expect_error "" nbdcopy point1 "$uri"
end
expect_error "" nbdinfo --size "$uri"

begin incremental
cp d.raw point2
nbdinfo --map=qemu:dirty-bitmap:b0 "$uri" | awk '$3 == 1 { print $1, $2 }' \
    > map
diff -u - map <<'END'
1048576 65536
3145728 131072
5242880 65536
END
qemu-io -f raw "$live" -c "write -P 2 1M 4k" > io
nbdcopy "$uri" copy2
cmp copy2 point2
end
nbdinfo --map "nbd+unix:///dirty:vda/b0?socket=$tmp/s" |
    awk '$3 == 0 { print $1, $2 }' > map
test "$(cat map)" = "1048576 65536" || fail "$(cat map)"
