#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The commands of the README's tour do what it says.
. ./functions.sh
requires nbdkit qemu-io qemu-img qemu-nbd

# block N: the Nth code block of the tour, in our directory.
block ()
{
    awk -v want="$1" '
        /^## / { inside = /A tour of five minutes/ }
        inside && /^```/ { if (++fence % 2) n++; next }
        inside && fence % 2 && n == want' "$top_srcdir/README.md" |
        grep -v '^cd ' | sed "s,/tmp/,$tmp/,g"
}

cd "$top_builddir"
test_cleanup+=('[ ! -s "$tmp/vm.pid" ] || kill "$(cat "$tmp/vm.pid")"')
block 1 >"$tmp/tour1"
grep -q 'tidemark backup' "$tmp/tour1" || fail "no tour in README.md"
timeout 60 bash -eux "$tmp/tour1" || fail "the tour's first block"
rm -f "$tmp/vm.pid"             # its last command ended the server

# What it promises: two backups, the second incremental, each point right.
./run tidemark list "$tmp/repo" | grep -q ' 2  incremental'
for i in 0 1; do qemu-img create -q -f raw "$tmp/expect$i.raw" 10G; done
for i in 0 1; do
    qemu-io -f raw -c 'write -P 1 0 64M' "$tmp/expect$i.raw" >/dev/null
done
qemu-io -f raw -c 'write -P 2 1M 1M' "$tmp/expect1.raw" >/dev/null
qemu-img compare -f raw -F raw "$tmp/first.raw" "$tmp/expect0.raw"
qemu-img compare -f raw -F raw "$tmp/second.raw" "$tmp/expect1.raw"

# The second block: a disk of QEMU's.
cd "$tmp"
qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-img bitmap --add disk.qcow2 b0
qemu-io -f qcow2 -c 'write -P 3 1M 1M' disk.qcow2 >/dev/null
block 2 | sed "s,\./run,$top_builddir/run,; s/^qemu-nbd /&--pid-file=q.pid /" |
    sed '/&$/ a\while [ ! -e q.pid ]; do read -r -t 0.02 <> <(:) || :; done' \
    >tour2
grep -q qemu-nbd tour2 || fail "no second block in the tour"
# It ends after its last client, and has the image until then.
echo wait >>tour2
timeout 60 bash -eux tour2 || fail "the tour's second block"
qemu-img compare -f qcow2 -F qcow2 disk.qcow2 repo2/vda/000001-full.qcow2
