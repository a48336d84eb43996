# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-bitmap
unit_test_bitmap_SOURCES = unit/test-bitmap.c
