#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# See test-client-resume.sh.
exec "${srcdir:-.}/test-client-resume.sh" kill
