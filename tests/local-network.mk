# SPDX-License-Identifier: BSD-3-Clause
SCRIPT_TESTS += test-relay.sh
UNIT_TESTS += unit/test-window
unit_test_window_SOURCES = unit/test-window.c
UNIT_TESTS += unit/test-nbd-status
unit_test_nbd_status_SOURCES = unit/test-nbd-status.c unit/fake-nbd.c \
	unit/fake-nbd.h
SCRIPT_TESTS += test-client-hosts.sh
SCRIPT_TESTS += test-tidemarkd-scale.sh
EXTRA_DIST += client-hosts.py
