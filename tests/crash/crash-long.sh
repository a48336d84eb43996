#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The crash tests for longer: 10000 kills of the servers, both side by side, and
# a million machines after power cuts.
. ./functions.sh

status=0
kills=$top_srcdir/tests/crash/kill-torture.sh
SERVERS=tidemarkd KILLS=5000 "$kills" &
pid=$!
SERVERS=nbdkit KILLS=5000 "$kills" || status=1
wait $pid || status=1
[ $status -eq 0 ] || fail "kills"
STATES=1000000 "$top_srcdir/tests/crash/power-loss.sh"
