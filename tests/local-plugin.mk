# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-blk-nbd
unit_test_blk_nbd_SOURCES = unit/test-blk-nbd.c unit/fake-nbd.c \
	unit/fake-nbd.h
