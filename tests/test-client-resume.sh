#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Two backups are cut at 100 random moments together, by the network, or, as
# test-client-resume-killed.sh, by the death of the client, and go on: see
# client-resume.py.  SEED=N repeats a run.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
export TIDEMARK=$tidemark
kind=${1:-drop}
seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
cuts=50
if [ "$sanitizers" != no ]; then
    # Slow, and so are the saves.
    cuts=3
    export RESUME_SIZE=64 RESUME_RATE=6
fi
timeout 300 python3 "${srcdir:-.}/client-resume.py" "$tmp" "$kind" $cuts \
    "$seed" || fail "$kind, seed $seed"
