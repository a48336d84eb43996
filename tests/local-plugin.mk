# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-blk-nbd
unit_test_blk_nbd_SOURCES = unit/test-blk-nbd.c unit/fake-nbd.c \
	unit/fake-nbd.h
SCRIPT_TESTS += \
	test-plugin-dirty-export.sh \
	test-plugin-filters.sh \
	test-plugin-info.sh \
	test-plugin-install.sh \
	test-plugin-lifecycle.sh \
	test-plugin-options.sh \
	test-plugin-readonly.sh \
	test-plugin-serve.sh \
	test-plugin-session.sh \
	test-plugin-tls.sh
# Figures of a sanitizer's build mean nothing.
EXTRA_DIST += test-bench.sh
if !SANITIZERS
SCRIPT_TESTS += test-bench.sh
endif
# What stock nbdkit needs besides a sanitizer's runtime, see functions.sh.
check_PROGRAMS += sanitized-nbdkit.so
sanitized_nbdkit_so_SOURCES = sanitized-nbdkit.c
sanitized_nbdkit_so_CFLAGS = $(AM_CFLAGS) -fno-sanitize=all
sanitized_nbdkit_so_LDFLAGS = -shared
sanitized_nbdkit_so_LDADD =
