# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-job unit/race-job unit/fault-job
EXTRA_DIST += job_util.py unit/job-util.h
unit_test_job_SOURCES = unit/test-job.c
unit_race_job_SOURCES = unit/race-job.c
unit_fault_job_SOURCES = unit/fault-job.c unit/fault-alloc.h
unit_fault_job_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc \
	-Wl,--wrap=calloc -Wl,--wrap=realloc -Wl,--wrap=strdup \
	-Wl,--wrap=asprintf -Wl,--wrap=posix_memalign
SCRIPT_TESTS += \
	interop-qemu-jobs.sh \
	test-job-faults.sh \
	test-job-grouped.sh \
	test-job-incremental.sh \
	test-job-modes.sh \
	test-job-pause.sh
