# SPDX-License-Identifier: BSD-3-Clause
check_PROGRAMS += nbd-test-server
nbd_test_server_SOURCES = nbd-test-server.c
EXTRA_DIST += raw_nbd.py tls_util.py
SCRIPT_TESTS += server-handshake.py server-commands.py server-status.py \
	server-hostile.py server-tls.py interop-libnbd-server.sh \
	interop-qemu-server.sh
SOURCE_TESTS += test-docs-protocol.sh
UNIT_TESTS += unit/test-nbd-pure unit/test-export unit/fault-nbd-server \
	unit/race-nbd-server
unit_test_nbd_pure_SOURCES = unit/test-nbd-pure.c
unit_test_export_SOURCES = unit/test-export.c
unit_fault_nbd_server_SOURCES = unit/fault-nbd-server.c
unit_race_nbd_server_SOURCES = unit/race-nbd-server.c
