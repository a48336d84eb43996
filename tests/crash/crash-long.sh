#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The crash tests for longer: a million machines after power cuts, and 10000
# kills of the servers.
. ./functions.sh

STATES=1000000 "$top_srcdir/tests/crash/power-loss.sh"
KILLS=5000 "$top_srcdir/tests/crash/kill-torture.sh"
