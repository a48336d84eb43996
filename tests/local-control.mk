# SPDX-License-Identifier: BSD-3-Clause
UNIT_TESTS += unit/test-qmp-parser
unit_test_qmp_parser_SOURCES = unit/test-qmp-parser.c
EXTRA_DIST += qmp_client.py
