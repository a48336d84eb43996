# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += crash/test-sim
crash_test_sim_SOURCES = crash/test-sim.c crash/sim.c crash/sim.h
