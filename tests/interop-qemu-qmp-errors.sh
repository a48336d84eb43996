#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Commands with missing, wrong-typed, unknown and contradictory arguments, sent
# to qemu-storage-daemon and to tidemarkd: the same class and message.  Where
# they differ on purpose the table says what ours is.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-storage-daemon
truncate -s 1M "$tmp/a.raw" "$tmp/b.raw"
for s in ours theirs; do
    mkdir "$tmp/$s"
    truncate -s 1M "$tmp/$s/a.raw" "$tmp/$s/b.raw"
    qemu-img create -q -f qcow2 "$tmp/$s/q.qcow2" 1M
    qemu-img create -q -f qcow2 "$tmp/$s/c.qcow2" 1M
done
timeout 120 python3 "${srcdir:-.}/qmp-errors.py" "$tmp"
