#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The oracle tests for longer: ROUNDS (default 20) of 2000 points in one
# process, each with a seed of its own, and 1000 backups by the programs with
# each server.
. ./functions.sh

for _ in $(seq "${ROUNDS:-20}"); do
    "$top_builddir/tests/oracle/oracle-disk" 2000 || fail "in one process"
done
POINTS=1000 "$top_srcdir/tests/oracle/oracle-programs.sh"
