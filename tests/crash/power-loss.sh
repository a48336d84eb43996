#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Power loss, see power-loss.c: STATES=N machines after power cuts, a sixth of
# them each under several writers, after failures of the store, and of a qcow2
# image; and the mutants that it has to find.
. ./functions.sh

states=${STATES:-66000}
if [ "$sanitizers" != no ]; then states=${STATES:-3000}; fi
run=$top_builddir/tests/crash/power-loss

"$run" $((states / 2)) || fail "one writer"
"$run" $((states / 6)) right 3 || fail "several writers"
"$run" $((states / 6)) fail || fail "a store that fails"
"$run" $((states / 6)) image || fail "a qcow2 image"

# The intents are not made durable; or they are, but after the write that they
# are to announce.
for mutant in lose late; do
    "$run" 20000 $mutant >"$tmp/out" 2>&1 ||
        fail "the mutant \"$mutant\" is not found: $(cat "$tmp/out")"
    echo "found: $(tail -n 1 "$tmp/out")"
done
