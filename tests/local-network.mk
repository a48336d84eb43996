# SPDX-License-Identifier: BSD-3-Clause
SCRIPT_TESTS += test-relay.sh
UNIT_TESTS += unit/test-window
unit_test_window_SOURCES = unit/test-window.c
