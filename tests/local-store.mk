# SPDX-License-Identifier: BSD-3-Clause
SCRIPT_TESTS += test-store-kill.sh
SCRIPT_TESTS += test-store-resize.sh test-store-trouble.sh
UNIT_TESTS += unit/test-store
unit_test_store_SOURCES = unit/test-store.c unit/unit.h
UNIT_TESTS += unit/test-intent
unit_test_intent_SOURCES = unit/test-intent.c unit/unit.h
