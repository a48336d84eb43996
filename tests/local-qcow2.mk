# SPDX-License-Identifier: BSD-3-Clause
check_PROGRAMS += qcow2-io
qcow2_io_SOURCES = qcow2-io.c
UNIT_TESTS += unit/test-qcow2
unit_test_qcow2_SOURCES = unit/test-qcow2.c unit/qcow2-image.c \
	unit/qcow2-image.h
UNIT_TESTS += unit/test-qcow2-cache
unit_test_qcow2_cache_SOURCES = unit/test-qcow2-cache.c unit/qcow2-image.c \
	unit/qcow2-image.h
UNIT_TESTS += unit/test-qcow2-fault
unit_test_qcow2_fault_SOURCES = unit/test-qcow2-fault.c unit/qcow2-image.c \
	unit/qcow2-image.h
check_PROGRAMS += unit/test-qcow2-crash
unit_test_qcow2_crash_SOURCES = unit/test-qcow2-crash.c unit/qcow2-image.c \
	unit/qcow2-image.h
UNIT_TESTS += unit/test-qcow2-bitmap
unit_test_qcow2_bitmap_SOURCES = unit/test-qcow2-bitmap.c \
	unit/qcow2-image.c unit/qcow2-image.h
UNIT_TESTS += unit/test-qcow2-pack
unit_test_qcow2_pack_SOURCES = unit/test-qcow2-pack.c \
	unit/qcow2-image.c unit/qcow2-image.h
UNIT_TESTS += unit/test-qcow2-check
unit_test_qcow2_check_SOURCES = unit/test-qcow2-check.c \
	unit/qcow2-image.c unit/qcow2-image.h
SCRIPT_TESTS += test-fuzz-qcow2.sh test-qcow2-bad.sh \
	test-qcow2-other-files.sh interop-qemu-bitmaps.sh \
	interop-qemu-qcow2-check.sh interop-qemu-qcow2-chain.sh \
	interop-qemu-qcow2-crash.sh interop-qemu-qcow2-create.sh \
	interop-qemu-qcow2-features.sh \
	interop-qemu-qcow2-lazy.sh interop-qemu-qcow2-matrix.sh \
	interop-qemu-qcow2-random.sh
EXTRA_DIST += qcow2-bad.py qcow2-check.py qcow2-map.py qcow2-random.py
