#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What a backup that was cut goes on with, and what it does when it cannot: see
# client-resume-more.py.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-io
export TIDEMARK=$tidemark
shim=$top_builddir/tests/fail-nth.so
step=3
case $sanitizers in
    *address*) shim="$(${CC:-gcc} -print-file-name=libasan.so) $shim" ;;
    *thread*) shim="$(${CC:-gcc} -print-file-name=libtsan.so) $shim" ;;
esac
if [ "$sanitizers" != no ]; then step=7; fi
timeout 240 python3 "${srcdir:-.}/client-resume-more.py" "$tmp" "$shim" $step ||
    { cat "$tmp/err" >&2; fail "see above"; }
