#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# All ends of a session: see client-ends.py.
. "${srcdir:-.}/control-test.sh"
requires qemu-io nbdinfo
export TIDEMARK=$tidemark
timeout 240 python3 "${srcdir:-.}/client-ends.py" "$tmp" ||
    { cat "$tmp/err" >&2; fail "see above"; }
