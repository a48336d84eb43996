# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-node-drivers
unit_test_node_drivers_SOURCES = unit/test-node-drivers.c
EXTRA_DIST += qmp_pair.py qmp-errors.py
SCRIPT_TESTS += \
	interop-qemu-bitmaps-qmp.sh \
	interop-qemu-blkdebug.sh \
	interop-qemu-python.sh \
	interop-qemu-qmp-errors.sh \
	test-nodes-blkdebug.sh \
	test-nodes-client.sh \
	test-nodes-concurrent.sh \
	test-nodes-drivers.sh \
	test-nodes-thin.sh
