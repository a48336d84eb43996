#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The plugin serves live disks to everybody's clients: several exports, the
# default one, every kind of request, and data that arrives in the file.
. ./functions.sh
requires nbdkit nbdinfo nbdcopy qemu-io qemu-img cmp

cd "$tmp"
truncate -s 8M a.raw
head -c 4M /dev/urandom > b.raw
cp b.raw b.orig

# A bare file name; the disk is called disk0 and is the default export.
"${nbdkit[@]}" -U - "$plugin" a.raw --run '
    nbdinfo --size "$uri" &&
    nbdinfo --size "nbd+unix:///disk0?socket=$unixsocket" &&
    qemu-io -f raw "$uri" \
        -c "write -P 1 0 64k" -c "write -f -P 2 1M 4k" \
        -c "write -P 3 2M 1M" -c "write -z 2M 64k" \
        -c "write -z -u 2176k 64k" -c "discard 2560k 64k" -c flush \
        -c "read -P 1 0 64k" -c "read -P 2 1M 4k" -c "read -P 0 2M 64k" \
        -c "read -P 3 2112k 64k" -c "read -P 0 2176k 64k"' > out
test "$(head -2 out | sort -u)" = 8388608 || fail "sizes: $(cat out)"
grep -q "Pattern verification failed" out && fail "$(cat out)"
qemu-io -r -f raw a.raw -c "read -P 2 1M 4k" -c "read -P 0 2176k 64k" |
    grep -q "Pattern verification failed" && fail "the file differs"

# nbdcopy out of one disk and into the other.
"${nbdkit[@]}" -U - "$plugin" disk=a,file=a.raw disk=b-2.x,file=b.raw --run '
    s=$unixsocket
    nbdcopy "nbd+unix:///b-2.x?socket=$s" out.raw &&
    nbdcopy a.raw "nbd+unix:///b-2.x?socket=$s" 2>err; echo $? >status
    nbdcopy out.raw "nbd+unix:///a?socket=$s"'
cmp out.raw b.orig
cmp -n 4M a.raw b.orig
test "$(cat status)" != 0 || fail "8 MiB fitted into 4 MiB"

# A file in both names, a comma in its name, more than one magic file.
cp b.orig 'x,y.raw'
"${nbdkit[@]}" -U - "$plugin" 'x,y.raw' file=b.raw --run '
    nbdinfo --list --json "$uri"' > list.json
json '[e["export-name"] for e in j["exports"]]' < list.json > names
test "$(cat names)" = "['disk0', 'disk1']" || fail "$(cat names)"
json 'all (e["can_multi_conn"] and e["can_fua"] and e["can_flush"] and
           e["can_zero"] and e["can_trim"] and e["can_fast_zero"] and
           not e["is_read_only"] and e["block_size_minimum"] == 1 and
           e["description"] for e in j["exports"])' < list.json > all
test "$(cat all)" = True || fail "flags: $(cat list.json)"

# Names that are not there.
if [ "$sanitizers" != no ]; then exit 0; fi
for name in nope dirty:disk0 dirty:disk0/nope dirty:nope/b dirty:; do
    expect_error "" "${nbdkit[@]}" -U - "$plugin" a.raw --run \
        "nbdinfo --size \"nbd+unix:///$name?socket=\$unixsocket\""
    grep -qF "there is no export \"$name\"" expect.err || fail "$(cat expect.err)"
done
