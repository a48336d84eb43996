# SPDX-License-Identifier: BSD-3-Clause
SCRIPT_TESTS += test-store-kill.sh
