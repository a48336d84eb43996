#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Every cluster size, changing along a chain, on a disk that ends in the middle
# of one.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 3
truncate -s $((9 * 1048576 + 512)) "$tmp/vda.raw"
start_tidemarkd vda
repo=$tmp/repo
n=0
for size in 2M 512 64k 4k 1M 512 2M; do
    n=$((n + 1))
    guest vda "write -P $n $((n * 777216 + 512)) 3000" \
        "write -P 5$n 9M 512" "write -z $((n * 65536)) 70000"
    cp --sparse=always "$tmp/vda.raw" "$tmp/copy$n.raw"
    run_ok "$tidemark" backup "$ctl" "$repo" --cluster-size $size
    check_backup "$repo" vda $n "$tmp/copy$n.raw"
done
[ "$(member "$repo" vda 7 mode)" = incremental ] || fail "7"
[ "$(member "$repo" vda 2 cluster-size)" = 512 ] || fail "cluster size"
run_ok "$tidemark" verify "$repo"
run_ok "$tidemark" restore --format qcow2 "$repo" "$tmp/o.qcow2"
run_ok qemu-img compare -f qcow2 -F raw "$tmp/o.qcow2" "$tmp/vda.raw"
run_ok qemu-img check -f qcow2 "$tmp/o.qcow2"
