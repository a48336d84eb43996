# SPDX-License-Identifier: BSD-3-Clause
check_PROGRAMS += qcow2-io
qcow2_io_SOURCES = qcow2-io.c
UNIT_TESTS += unit/test-qcow2
unit_test_qcow2_SOURCES = unit/test-qcow2.c unit/qcow2-image.c \
	unit/qcow2-image.h
