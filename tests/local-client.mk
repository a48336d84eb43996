# SPDX-License-Identifier: BSD-3-Clause
client_ldadd = $(CLIENT_LIBS) $(CMOCKA_LIBS)
UNIT_TESTS += unit/test-sums
unit_test_sums_SOURCES = unit/test-sums.c
unit_test_sums_LDADD = $(client_ldadd)
UNIT_TESTS += unit/test-dirtymap
unit_test_dirtymap_SOURCES = unit/test-dirtymap.c
unit_test_dirtymap_LDADD = $(client_ldadd)
UNIT_TESTS += unit/test-cmdline
unit_test_cmdline_SOURCES = unit/test-cmdline.c
unit_test_cmdline_LDADD = $(client_ldadd)
UNIT_TESTS += unit/test-chain
unit_test_chain_SOURCES = unit/test-chain.c
unit_test_chain_LDADD = $(client_ldadd)
EXTRA_DIST += client-test.sh lying-nbd.py
SCRIPT_TESTS += \
	interop-client-qemu.sh \
	test-client-abort.sh \
	test-client-base.sh \
	test-client-chain.sh \
	test-client-live.sh \
	test-client-set.sh \
	test-client-unconfirmed.sh \
	test-client-verify.sh
# Preloaded by fault-client-backup.sh.
check_PROGRAMS += fail-nth.so
fail_nth_so_SOURCES = fail-nth.c
fail_nth_so_CFLAGS = $(AM_CFLAGS) -fno-sanitize=all
fail_nth_so_LDFLAGS = -shared
fail_nth_so_LDADD =
SCRIPT_TESTS += \
	fault-client-backup.sh \
	test-client-bitmap.sh \
	test-client-clusters.sh \
	test-client-compress.sh \
	test-client-full.sh \
	test-client-options.sh \
	test-client-output.sh \
	test-client-repo.sh \
	test-client-restore.sh \
	test-client-servers.sh
check_PROGRAMS += fake-nbd-server
fake_nbd_server_SOURCES = fake-nbd-server.c unit/fake-nbd.c unit/fake-nbd.h
SCRIPT_TESTS += test-client-hostile-nbd.sh
SCRIPT_TESTS += test-client-hostile-control.sh
EXTRA_DIST += fake-control.py
SCRIPT_TESTS += test-client-device.sh test-client-tls.sh
EXTRA_DIST += relay.py client-resume.py
SCRIPT_TESTS += test-client-resume.sh test-client-resume-killed.sh \
	test-client-partial.sh \
	test-client-modes.sh test-client-reasons.sh test-client-disks.sh \
	test-client-parallel.sh \
	test-client-ends.sh
UNIT_TESTS += unit/test-bandwidth
unit_test_bandwidth_SOURCES = unit/test-bandwidth.c
unit_test_bandwidth_LDADD = $(client_ldadd)
SCRIPT_TESTS += test-client-hooks.sh
SCRIPT_TESTS += test-client-trim.sh test-systemd-units.sh
EXTRA_DIST += client-trim.py client-memory.py test-client-memory.sh
# Sanitizers need several times the memory.
if !SANITIZERS
SCRIPT_TESTS += test-client-memory.sh
endif
EXTRA_DIST += client_world.py client-ends.py client-resume-more.py
SCRIPT_TESTS += test-client-resume-more.sh
UNIT_TESTS += unit/test-backup-memory unit/test-journal unit/test-wire
unit_test_backup_memory_SOURCES = unit/test-backup-memory.c
unit_test_backup_memory_LDADD = $(client_ldadd)
unit_test_journal_SOURCES = unit/test-journal.c
unit_test_journal_LDADD = $(client_ldadd)
unit_test_wire_SOURCES = unit/test-wire.c
unit_test_wire_LDADD = $(client_ldadd)
