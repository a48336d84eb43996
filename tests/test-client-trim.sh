#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The client trims what it has stored: see client-trim.py.
. "${srcdir:-.}/control-test.sh"
requires qemu-io
export TIDEMARK=$tidemark
rate=$((4 << 20))
if [ "$sanitizers" != no ]; then rate=$((2 << 20)); fi
timeout 120 python3 "${srcdir:-.}/client-trim.py" "$tmp" $rate ||
    { cat "$tmp/err" >&2; fail "see above"; }
