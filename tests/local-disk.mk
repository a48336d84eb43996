# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-gate unit/test-reqlist unit/test-cbw unit/race-cbw \
	unit/fault-cbw
EXTRA_DIST += unit/disk-util.h
unit_test_gate_SOURCES = unit/test-gate.c
unit_test_reqlist_SOURCES = unit/test-reqlist.c
unit_test_cbw_SOURCES = unit/test-cbw.c
unit_race_cbw_SOURCES = unit/race-cbw.c
unit_fault_cbw_SOURCES = unit/fault-cbw.c
UNIT_TESTS += unit/test-disk unit/test-session
unit_test_disk_SOURCES = unit/test-disk.c
unit_test_session_SOURCES = unit/test-session.c
UNIT_TESTS += unit/race-session
unit_race_session_SOURCES = unit/race-session.c
UNIT_TESTS += unit/oracle-session
unit_oracle_session_SOURCES = unit/oracle-session.c
UNIT_TESTS += unit/fault-session
unit_fault_session_SOURCES = unit/fault-session.c unit/fault-alloc.h
unit_fault_session_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc \
	-Wl,--wrap=calloc -Wl,--wrap=realloc -Wl,--wrap=strdup \
	-Wl,--wrap=asprintf -Wl,--wrap=posix_memalign
