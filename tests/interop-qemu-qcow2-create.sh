#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# New images of ours under QEMU's tools: sizes that end within a cluster,
# every cluster size, backing files shorter and longer, preallocation, 16 TiB.
. ./functions.sh
requires qemu-img qemu-io

io=$top_builddir/tests/qcow2-io
cd "$tmp"

check_equal ()
{
    qemu-img check -q -f qcow2 new.qcow2 ||
        { qemu-img check -f qcow2 new.qcow2; fail "qemu-img check: $1"; }
    qemu-img compare -q -f raw -F qcow2 dump new.qcow2 ||
        fail "qemu-img compare: $1"
}

qemu-img create -q -f qcow2 base.qcow2 3M
qemu-io -c 'write -P 1 0 3M' -c 'write -z 1M 64k' base.qcow2 >/dev/null
qemu-img convert -O raw base.qcow2 base.raw
truncate -s 7M base.raw
qemu-io -f raw -c 'write -P 2 6M 1M' base.raw >/dev/null

for cluster in 512 4096 65536 2097152; do
    for size in 512 $((cluster * 3)) $((5 * 1048576 + 1536)); do
        for base in "" "base.qcow2 qcow2" "base.raw raw"; do
            last=$((size - 512))
            "$io" <<END
create new.qcow2 $size $cluster $base
write 0 512 7
write $last 512 8
zero $((size / 2)) $((size / 4))
flush
trim $((size / 4)) $((size / 4))
dump dump
close
END
            check_equal "cluster $cluster size $size base $base"
        done
    done
done

# QEMU goes on where we stopped, and we read that.
qemu-io -c 'write -P 9 1M 1M' -c 'write -z -u 3M 1M' new.qcow2 >/dev/null
"$io" <<END
open new.qcow2 ro
dump dump
END
check_equal "written by QEMU"

# Preallocation: as many clusters have a place as with QEMU, and they have their
# space on the disk or not.
allocated ()
{
    qemu-img check -f qcow2 --output=json "$1" |
        json 'j.get("allocated-clusters", 0)'
}
for how in off metadata falloc full; do
    for more in "" data_file=ours.data; do
        rm -f ours.* theirs.*
        "$io" <<<"new ours.qcow2 8388608 preallocation=$how $more" ||
            fail "preallocation=$how $more"
        qemu-img create -q -f qcow2 -o "preallocation=$how" \
            ${more:+-o "${more/ours/theirs}"} theirs.qcow2 8M
        [ "$(allocated ours.qcow2)" = "$(allocated theirs.qcow2)" ] ||
            fail "$how $more: $(allocated ours.qcow2) clusters have a place"
        blocks=$(stat -c %b ours.* | paste -s -d +)
        case $how in
            falloc | full) [ $((blocks)) -ge 16384 ] ;;
            *) [ $((blocks)) -lt 4096 ] ;;
        esac || fail "$how $more: $blocks blocks of space"
        qemu-img check -q -f qcow2 ours.qcow2 || fail "$how $more: check"
    done
done

# 16 TiB, the first, a middle and the last cluster used; nothing else is.
tib=$((1 << 40))
"$io" <<END
create new.qcow2 $((16 * tib)) 65536
reserve 0 65536
write 0 65536 1
write $((9 * tib)) 512 2
write $((16 * tib - 65536)) 65536 3
END
qemu-img check -q -f qcow2 new.qcow2 || fail "qemu-img check of 16 TiB"
qemu-io -f qcow2 -r -c "read -P 1 0 64k" -c "read -P 0 64k 64k" \
    -c "read -P 2 9T 512" -c "read -P 3 $((16 * tib - 65536)) 64k" \
    new.qcow2 >/dev/null || fail "contents of 16 TiB"
if [ "$(du -k new.qcow2 | cut -f1)" -gt 2048 ]; then
    fail "16 TiB with 3 clusters take $(du -k new.qcow2)"
fi

# What other programs print of the header.
"$io" <<END
create new.qcow2 1048576 0 base.qcow2 qcow2
END
qemu-img info new.qcow2 >info
grep -q 'backing file: base.qcow2' info || fail "no backing file in the header"
grep -q 'backing file format: qcow2' info || fail "no backing format"
grep -q 'compat: 1.1' info || fail "not version 3"
grep -q 'cluster_size: 65536' info || fail "cluster size"
