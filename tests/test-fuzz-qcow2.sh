#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# What the fuzz target claims holds for its seeds and for all inputs that once
# broke it.
. ./functions.sh
requires qemu-img qemu-io python3

"$top_srcdir/fuzzing/seeds-qcow2.py" "$tmp/seeds"
shopt -s nullglob
files=("$tmp"/seeds/* "$top_srcdir"/fuzzing/crashes/qcow2/*)
test "${#files[@]}" -ge 20 || fail "too few seeds"
"$top_builddir/fuzzing/replay-qcow2" "${files[@]}" >"$tmp/log" 2>&1 ||
    fail "replay-qcow2: $(tail -n 30 "$tmp/log")"
test "$(wc -l <"$tmp/log")" -eq "${#files[@]}" || fail "not all were run"
