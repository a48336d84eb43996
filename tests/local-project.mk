# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += oracle/oracle-disk
oracle_oracle_disk_SOURCES = oracle/oracle-disk.c oracle/history.c oracle/history.h oracle/jitter.c oracle/jitter.h oracle/writer.c oracle/writer.h
LONG_TESTS += oracle/oracle-mutants.sh
check_PROGRAMS += oracle/oracle-programs
oracle_oracle_programs_SOURCES = oracle/oracle-programs.c oracle/history.c oracle/history.h oracle/world.c oracle/world.h oracle/writer.c oracle/writer.h
SCRIPT_TESTS += oracle/oracle-programs.sh
LONG_TESTS += oracle/oracle-long.sh
SCRIPT_TESTS += test-readme-tour.sh
SCRIPT_TESTS += test-install.sh test-run.sh
SOURCE_TESTS += test-dist-files.sh test-quickstart-packages.sh \
	test-source-style.sh
