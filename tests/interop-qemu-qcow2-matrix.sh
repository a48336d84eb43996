#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Our driver and qemu-io change images of the matrix of what qcow2 has, in
# chains: all pairs of values and a random sample, see qcow2-random.py.
. ./functions.sh
requires qemu-img qemu-io python3

seed=${TIDEMARK_SEED:-$RANDOM}
share=1
if [ "$sanitizers" != no ]; then share=3; fi    # every third chain
echo "seed $seed"
python3 "$srcdir/qcow2-random.py" "$top_builddir/tests/qcow2-io" "$tmp" \
    "$seed" "$share" matrix
