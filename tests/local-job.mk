# SPDX-License-Identifier: BSD-3-Clause
EXTRA_DIST += job_util.py
SCRIPT_TESTS += \
	interop-qemu-jobs.sh \
	test-job-faults.sh \
	test-job-grouped.sh \
	test-job-incremental.sh \
	test-job-modes.sh \
	test-job-pause.sh
