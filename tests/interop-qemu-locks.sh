#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# QEMU's tools refuse a file that we hold open for writing, and we refuse one
# that they hold; the lock ends with its process, however that ends.
. ./functions.sh
requires qemu-io qemu-nbd qemu-img

disk=$tmp/disk.raw
truncate -s 1M "$disk"

# hold MODE: our process with the file open; its pid in $holder.
hold ()
{
    rm -f "$tmp/out" "$tmp/in"
    mkfifo "$tmp/in"
    background sh -c 'exec ./hold-file "$1" "$2" < "$3" > "$4"' - \
               "$1" "$disk" "$tmp/in" "$tmp/out"
    holder=$!
    exec {hold_fd}> "$tmp/in"
    wait_for 10 grep -q open "$tmp/out"
}

release ()
{
    exec {hold_fd}>&-
    wait $holder || fail "hold-file failed"
}

# The outcome is an error that names the lock and the file.
qemu_refuses ()
{
    expect_error 'lock' qemu-io -f raw -c 'write 0 512' "$disk"
    expect_error "$disk" qemu-io -f raw -c 'write 0 512' "$disk"
    expect_error 'lock' qemu-nbd -f raw -k "$tmp/sock" "$disk"
}

qemu_accepts ()
{
    qemu-io -f raw -c 'write -P 1 0 512' "$disk" > "$tmp/qemu.out" ||
        fail "qemu-io cannot write"
}

hold rw
qemu_refuses
expect_error "$disk: in use" ./hold-file rw "$disk"
expect_error "$disk: in use" ./hold-file ro "$disk"
release
qemu_accepts

# kill -9 frees it.
hold rw
kill -9 $holder
wait $holder 2>/dev/null || :
exec {hold_fd}>&-
qemu_accepts

# A reader keeps writers out, readers in.
hold ro
qemu_refuses
./hold-file ro "$disk" < /dev/null > "$tmp/out2" || fail "a second reader"
qemu-img info -f raw "$disk" > /dev/null || fail "qemu-img info"
release

# The other way round.
background qemu-nbd -f raw -t -k "$tmp/rw.sock" --pid-file="$tmp/rw.pid" \
           "$disk"
server=$!
wait_for 10 test -s "$tmp/rw.pid"
expect_error "$disk: in use: another process (QEMU or Tidemark)" \
             ./hold-file rw "$disk" < /dev/null
expect_error "$disk: in use" ./hold-file ro "$disk" < /dev/null
kill -9 $server
wait $server 2>/dev/null || :
./hold-file rw "$disk" < /dev/null > /dev/null || fail "still locked"

# A reader of QEMU's does not keep us from reading.
background qemu-nbd -r -f raw -t -k "$tmp/ro.sock" \
           --pid-file="$tmp/ro.pid" "$disk"
wait_for 10 test -s "$tmp/ro.pid"
./hold-file ro "$disk" < /dev/null > /dev/null || fail "two readers"
