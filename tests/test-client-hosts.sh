#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Two hosts with addresses of their own, and a network between them that fails:
# see client-hosts.py.
. "${srcdir:-.}/control-test.sh"
requires unshare nsenter ip certtool qemu-io
export TIDEMARK=$tidemark
own=(unshare --net)
if [ "$(id -u)" -ne 0 ]; then own=(unshare --map-root-user --net); fi
timeout 240 "${own[@]}" python3 "${srcdir:-.}/client-hosts.py" "$tmp" \
    "$top_builddir/bench/relay" || { cat "$tmp/err" >&2; fail "see above"; }
