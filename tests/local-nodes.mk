# SPDX-License-Identifier: BSD-3-Clause
EXTRA_DIST += qmp_pair.py
SCRIPT_TESTS += \
	interop-qemu-blkdebug.sh \
	test-nodes-blkdebug.sh \
	test-nodes-thin.sh
