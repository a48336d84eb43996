# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-bitmap
unit_test_bitmap_SOURCES = unit/test-bitmap.c
UNIT_TESTS += unit/test-dirty
unit_test_dirty_SOURCES = unit/test-dirty.c
UNIT_TESTS += unit/test-copy
unit_test_copy_SOURCES = unit/test-copy.c
