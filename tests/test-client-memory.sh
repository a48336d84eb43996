#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The client's memory: see client-memory.py.
. "${srcdir:-.}/control-test.sh"
requires qemu-io
export TIDEMARK=$tidemark
timeout 240 python3 "${srcdir:-.}/client-memory.py" "$tmp" || fail "see above"
