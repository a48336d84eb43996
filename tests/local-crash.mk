# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += crash/test-sim
crash_test_sim_SOURCES = crash/test-sim.c crash/sim.c crash/sim.h
sim_sources = crash/sim.c crash/sim.h crash/sim-io.c crash/sim-io.h
check_PROGRAMS += crash/power-loss crash/kill-torture
crash_power_loss_SOURCES = crash/power-loss.c crash/model.c crash/model.h \
	crash/sim-image.c crash/sim-image.h $(sim_sources)
crash_kill_torture_SOURCES = crash/kill-torture.c
SCRIPT_TESTS += crash/power-loss.sh crash/kill-torture.sh
LONG_TESTS += crash/crash-long.sh
UNIT_TESTS += crash/test-steps
crash_test_steps_SOURCES = crash/test-steps.c crash/model.c crash/model.h \
	$(sim_sources)
UNIT_TESTS += crash/test-intent-bound
crash_test_intent_bound_SOURCES = crash/test-intent-bound.c $(sim_sources)
# It compiles files by itself, without a sanitizer.
EXTRA_DIST += crash/power-loss-mutants.sh
if !SANITIZERS
SCRIPT_TESTS += crash/power-loss-mutants.sh
endif
