# SPDX-License-Identifier: BSD-3-Clause
check_PROGRAMS += nbd-test-server
nbd_test_server_SOURCES = nbd-test-server.c
EXTRA_DIST += raw_nbd.py
SCRIPT_TESTS += server-handshake.py server-commands.py server-status.py \
	server-hostile.py
