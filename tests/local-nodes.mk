# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-node-drivers unit/fault-nodes
unit_test_node_drivers_SOURCES = unit/test-node-drivers.c
unit_fault_nodes_SOURCES = unit/fault-nodes.c unit/fault-alloc.h
unit_fault_nodes_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc \
	-Wl,--wrap=calloc -Wl,--wrap=realloc -Wl,--wrap=strdup \
	-Wl,--wrap=asprintf -Wl,--wrap=posix_memalign
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
