# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-qmp-parser
unit_test_qmp_parser_SOURCES = unit/test-qmp-parser.c
UNIT_TESTS += unit/test-qmp-server
unit_test_qmp_server_SOURCES = unit/test-qmp-server.c
UNIT_TESTS += unit/test-listeners
unit_test_listeners_SOURCES = unit/test-listeners.c
UNIT_TESTS += unit/fault-qmp
unit_fault_qmp_SOURCES = unit/fault-qmp.c
EXTRA_DIST += control-test.sh qmp_client.py tidemarkd_util.py
SCRIPT_TESTS += \
	test-control-backup.sh \
	test-control-bitmaps.sh \
	test-control-commands.sh \
	test-control-concurrent.sh \
	test-control-hostile.sh \
	test-control-lease.sh \
	test-docs-tidemarkd.sh \
	test-tidemarkd-activation.sh \
	test-tidemarkd-memory.sh \
	test-tidemarkd-options.sh \
	test-tidemarkd-stop.sh
