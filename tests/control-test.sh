# SPDX-License-Identifier: BSD-3-Clause
# Sourced by the tests of the control protocol and of tidemarkd: functions.sh,
# and what Python programs in them need.
. ./functions.sh
requires python3 nbdinfo qemu-io
export TIDEMARKD=$tidemarkd
export PYTHONDONTWRITEBYTECODE=1
PYTHONPATH=$(cd "${srcdir:-.}" && pwd)
export PYTHONPATH
