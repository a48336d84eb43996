#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# What a loss of power leaves of images of all kinds: unit/test-qcow2-crash.c
# looks at all of it, and qemu-img check finds no corruption in a sample either.
. ./functions.sh
requires qemu-img

mkdir "$tmp/states"
"$top_builddir/tests/unit/test-qcow2-crash" "$tmp/states" ||
    fail "power is lost"
nr=0
for d in "$tmp"/states/*; do
    # Lazy refcounts are wrong until the image is opened for writing.
    repair=; if [[ $d = *-dirty ]]; then repair="-r all"; fi
    # shellcheck disable=SC2086
    out=$(cd "$d" && qemu-img check -f qcow2 $repair image 2>&1) &&
        status=0 || status=$?
    # 3: only leaks.
    [ $status = 0 ] || [ $status = 3 ] || fail "$d: status $status: $out"
    nr=$((nr + 1))
done
[ $nr -gt 0 ] || fail "no states were kept"
echo "qemu-img check has looked at $nr states"
