# SPDX-License-Identifier: BSD-3-Clause
SCRIPT_TESTS += test-store-kill.sh test-store-qcow2.sh
SCRIPT_TESTS += test-store-nodes.sh test-store-resize.sh test-store-trouble.sh
UNIT_TESTS += unit/test-store
unit_test_store_SOURCES = unit/test-store.c unit/unit.h
UNIT_TESTS += unit/test-intent
unit_test_intent_SOURCES = unit/test-intent.c unit/unit.h
# The address sanitizer makes mlock do nothing; an instrumented plugin does not
# go into a stock nbdkit.
EXTRA_DIST += test-store-locked.sh
if !SANITIZERS
SCRIPT_TESTS += test-store-locked.sh
endif
SCRIPT_TESTS += test-store-fails.sh test-store-full.sh test-store-power.sh
SCRIPT_TESTS += test-store-notes.sh
EXTRA_DIST += store_util.py
# Preloaded by test-store-fails.sh and test-store-full.sh.
check_PROGRAMS += fail-store.so
fail_store_so_SOURCES = fail-store.c
fail_store_so_CFLAGS = $(AM_CFLAGS) -fno-sanitize=all
fail_store_so_LDFLAGS = -shared
fail_store_so_LDADD =
