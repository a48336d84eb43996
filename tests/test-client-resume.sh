#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A backup is cut at 100 random moments, by the network and by the death of the
# client, and goes on: see client-resume.py.  SEED=N repeats a run.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
export TIDEMARK=$tidemark
seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
cuts=25
if [ "$sanitizers" != no ]; then
    # Slow, and so are the saves.
    cuts=3
    export RESUME_SIZE=64 RESUME_RATE=6
fi
for kind in drop kill; do
    mkdir "$tmp/$kind"
    timeout 300 python3 "${srcdir:-.}/client-resume.py" "$tmp/$kind" $kind $cuts \
        "$seed" || fail "$kind, seed $seed"
done
