# SPDX-License-Identifier: BSD-3-Clause
EXTRA_DIST += qmp_pair.py qmp-errors.py
SCRIPT_TESTS += \
	interop-qemu-bitmaps-qmp.sh \
	interop-qemu-blkdebug.sh \
	interop-qemu-qmp-errors.sh \
	test-nodes-blkdebug.sh \
	test-nodes-thin.sh
