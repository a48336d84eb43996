# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += oracle/oracle-disk
oracle_oracle_disk_SOURCES = oracle/oracle-disk.c oracle/history.c oracle/history.h oracle/jitter.c oracle/jitter.h oracle/writer.c oracle/writer.h
LONG_TESTS += oracle/oracle-mutants.sh
