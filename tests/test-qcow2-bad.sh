#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Damaged images: a clear error each, no crash, no large allocation.
. ./functions.sh
requires qemu-img qemu-io python3

if [ "$sanitizers" != no ]; then export ASAN=1; fi
python3 "$srcdir/qcow2-bad.py" "$top_builddir/tests/qcow2-io" "$tmp"
