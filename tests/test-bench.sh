#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Every case of the benchmark runs, and its JSON has all contestants.  What it
# measures is not looked at.
. ./functions.sh
requires nbdkit nbdcopy qemu-img qemu-nbd qemu-storage-daemon python3 certtool

timeout 270 "$top_srcdir/bench/bench" all --runs 1 --size $((16 << 20)) \
    --count 2000 --build "$top_builddir" --dir "$tmp" --json "$tmp/r.json" \
    > "$tmp/out" 2> "$tmp/err" || fail "$(cat "$tmp/err")"
json '{k: [(c["name"], c["median"] > 0) for c in v["contestants"]]
       for k, v in j["cases"].items ()}' < "$tmp/r.json" > "$tmp/got"
grep -q "'qcow2-write': \[([^]]*True), ([^]]*True)\]" "$tmp/got" ||
    fail "qcow2-write: $(cat "$tmp/got")"
for case in far-full very-far-full far-disks qcow2-write-random; do
    grep -q "'$case': \[([^]]*True), ([^]]*True)\]" "$tmp/got" ||
        fail "$case: $(cat "$tmp/got")"
done
for case in full far-incremental very-far-incremental incremental write \
        write-depth1 memory qcow2-chain restore-chain write-store \
        write-store-cold guest-rate guest-latency guest-paced guest-stall; do
    grep -q "'$case': \[([^]]*True), ([^]]*True), ([^]]*True)\]" "$tmp/got" ||
        fail "$case: $(cat "$tmp/got")"
    grep -q "^$case:" "$tmp/out" || fail "no table of $case"
done
grep -q "'tls-full': \[([^]]*True), ([^]]*True), ([^]]*True), ([^]]*True)\]" \
    "$tmp/got" || fail "tls-full: $(cat "$tmp/got")"
grep -q "'tls-idle': \[('tidemarkd, TLS', [^]]*'nbdkit --tls', " "$tmp/got" ||
    fail "tls-idle: $(cat "$tmp/got")"
for case in store-open store-point store-bytes far-clean point-200 \
        idle-clients; do
    grep -q "'$case': \[('tidemark', " "$tmp/got" ||
        fail "$case: $(cat "$tmp/got")"
done
test -z "$(ls -d "$tmp"/tidemark-bench.* 2>/dev/null)" || fail "left behind"
