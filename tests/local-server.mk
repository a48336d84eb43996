# SPDX-License-Identifier: BSD-3-Clause
check_PROGRAMS += nbd-test-server
nbd_test_server_SOURCES = nbd-test-server.c
