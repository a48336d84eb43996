#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The run script finds the programs and the plugin of the build tree, from any
# folder, and passes arguments and the exit status on.
. ./functions.sh
requires nbdkit

run=$top_builddir/run
cd "$tmp"
"$run" tidemark --version | grep -q '^tidemark [0-9]' || fail "tidemark"
"$run" tidemarkd --version | grep -q '^tidemarkd [0-9]' || fail "tidemarkd"
status=0
"$run" tidemark backup --no-such-option 2>err || status=$?
test $status -eq 2 || fail "status $status"
"$run" sh -c 'command -v tidemark' >which
test "$(cat which)" = "$top_builddir/client/tidemark" || fail "$(cat which)"
"$run" printf '<%s>' 'a b' '' '*' >out
test "$(cat out)" = '<a b><><*>' || fail "arguments: $(cat out)"

truncate -s 1M 'a disk.raw'
"$run" nbdkit -U - tidemark disk=vda,file='a disk.raw' \
    --run 'nbdinfo --size "nbd+unix:///vda?socket=$unixsocket"' >size
test "$(cat size)" = 1048576 || fail "size: $(cat size)"
