#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Our driver and qemu-io change one image in turn: both read the same and
# qemu-img check finds nothing, over versions, clusters, refcount widths,
# compression, snapshots and chains.
. ./functions.sh
requires qemu-img qemu-io python3

seed=${TIDEMARK_SEED:-$RANDOM}
share=1
if [ "$sanitizers" != no ]; then share=2; fi    # every second image
echo "seed $seed"
python3 "$srcdir/qcow2-random.py" "$top_builddir/tests/qcow2-io" "$tmp" \
    "$seed" "$share"
