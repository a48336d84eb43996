# SPDX-License-Identifier: BSD-3-Clause
check_PROGRAMS += qcow2-io
qcow2_io_SOURCES = qcow2-io.c
