#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# verify finds each kind of damage, names it, and finds nothing without.  Each
# case damages a fresh copy of a good repository.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 4
truncate -s 16M "$tmp/vda.raw"
start_tidemarkd vda
good=$tmp/good
run_ok "$tidemark" backup "$ctl" "$good"
guest vda 'write -P 1 1M 1M' 'write -z 3M 256k'
run_ok "$tidemark" backup "$ctl" "$good"
guest vda 'write -P 2 8M 100k'
run_ok "$tidemark" backup "$ctl" "$good"
stop_server
run_ok "$tidemark" verify "$good"
grep -q '3 backups checked, .*: all good' "$tmp/out" || fail "good"
bad=$tmp/bad

fresh ()
{
    rm -rf "$bad"
    cp -a "$good" "$bad"
    chmod -R u+w "$bad"
}

damaged ()                      # damaged TEXT [OPTION...]
{
    local text=$1
    shift
    expect_status 3 "$text" "$tidemark" verify "$@" "$bad"
    # The same as events.
    "$tidemark" verify --json "$@" "$bad" >"$tmp/events" || :
    grep '"event":"damage"' "$tmp/events" | grep -qF "$text" ||
        fail "no event: $text"
    grep '"event":"summary"' "$tmp/events" | json "j['damages']" |
        grep -qv '^0$' || fail "summary"
}

flip ()                         # flip FILE OFFSET: the lowest bit of a byte
{
    python3 - "$@" <<'END'
import sys
with open (sys.argv[1], "r+b") as f:
    f.seek (int (sys.argv[2]))
    b = f.read (1)[0]
    f.seek (int (sys.argv[2]))
    f.write (bytes ([b ^ 1]))
END
}

# Where cluster N of the disk lies in an image.
host_offset ()                  # host_offset IMAGE OFFSET
{
    qemu-img map --output=json -U "$1" |
        json "[e['offset'] + $2 - e['start'] for e in j if e['start'] <= $2 < e['start'] + e['length']][0]"
}

v=$bad/vda
fresh
flip "$v/000001-full.qcow2" \
    $(($(host_offset "$v/000001-full.qcow2" $((2 << 20))) + 4097))
damaged 'cluster 32 (offset 2097152) does not match'
grep -q 'backup 1' "$tmp/err" || fail "which backup"
# Without the data it is not seen; another backup's check finds it below.
run_ok "$tidemark" verify --no-data "$bad"
damaged 'cluster 32' --at 3
expect_status 3 "nothing has been restored" \
    "$tidemark" restore --verify --at 2 "$bad" "$tmp/out.raw"
[ ! -e "$tmp/out.raw" ] || fail "restored"

fresh
truncate -s -512 "$v/000001-full.qcow2"
damaged 'bytes instead of'
fresh
truncate -s 1M "$v/000002-inc.qcow2"
damaged 'has 1048576 bytes instead of'
fresh
rm "$v/000002-inc.qcow2"
damaged '000002-inc.qcow2: No such file'
fresh
rm "$v/000002-inc.sums"
damaged '000002-inc.sums: No such file'
fresh
rm "$v/000003-inc.json"
damaged '000003-inc.qcow2 is there, but its manifest is missing'
fresh
rm "$v"/000002-inc.*
damaged 'it is based on backup 2, which is not there'
fresh
rm "$v/000002-inc.json"
damaged 'it is based on backup 2, which is not there'
fresh
flip "$v/000002-inc.json" 100
damaged '000002-inc.json'
fresh
flip "$v/000002-inc.sums" 100
damaged 'not the one that the manifest names'
fresh
truncate -s -1 "$v/000002-inc.sums"
damaged 'truncated'
fresh
cp -f "$v/000001-full.sums" "$v/000002-inc.sums"
damaged 'belongs to another backup'

# Clusters more and less than there should be, and of another kind.
fresh
run_ok qemu-io -f qcow2 -c 'write -P 9 12M 64k' "$v/000003-inc.qcow2"
damaged 'clusters 192 to 192 hold data instead of nothing'
fresh
run_ok qemu-io -f qcow2 -c 'write -z 1M 64k' "$v/000002-inc.qcow2"
damaged 'clusters 16 to 16 hold zeroes instead of data'
fresh
run_ok qemu-io -f qcow2 -c 'write -P 0 3M 64k' "$v/000002-inc.qcow2"
damaged 'clusters 48 to 48 hold data instead of zeroes'
fresh
run_ok qemu-img rebase -u -f qcow2 -F qcow2 -b 000001-full.qcow2 \
    "$v/000003-inc.qcow2"
damaged "backing file is '000001-full.qcow2' instead of '000002-inc.qcow2'"
fresh
run_ok qemu-img rebase -u -f qcow2 -F raw -b 000002-inc.qcow2 \
    "$v/000003-inc.qcow2"
damaged "backing format is 'raw' instead of 'qcow2'"

# A repository that names files outside of itself gets nobody to open them: the
# image there could be restored as well as any other.
cp "$good/vda/000002-inc.qcow2" "$good/vda/000001-full.qcow2" "$tmp"
refused ()                      # refused TEXT
{
    damaged "$1"
    rm -f "$tmp/restored.raw"
    expect_status 1 "is not in the image" \
        "$tidemark" restore "$bad" "$tmp/restored.raw"
    [ ! -e "$tmp/restored.raw" ] || fail "restored from outside"
}
for name in "$tmp/000002-inc.qcow2" ../../000002-inc.qcow2 \
    ../vda/000002-inc.qcow2 ./000002-inc.qcow2; do
    fresh
    run_ok qemu-img rebase -u -f qcow2 -F qcow2 -b "$name" "$v/000003-inc.qcow2"
    refused "backing file is '$name' instead of '000002-inc.qcow2'"
done
# In the middle of the chain; and a data file.
fresh
run_ok qemu-img rebase -u -f qcow2 -F qcow2 -b ../../000001-full.qcow2 \
    "$v/000002-inc.qcow2"
refused "backing file is '../../000001-full.qcow2' instead"
fresh
rm "$v/000003-inc.qcow2"
run_ok qemu-img create -q -f qcow2 -o "data_file=$tmp/outside.raw" \
    -b 000002-inc.qcow2 -F qcow2 "$v/000003-inc.qcow2" 16M
truncate -s 1M "$v/000003-inc.qcow2"
refused "data file"
fresh
printf 'XXXX' | dd of="$v/000002-inc.qcow2" conv=notrunc status=none
damaged '000002-inc.qcow2'

# All of several damages.
fresh
flip "$v/000003-inc.sums" 80
rm "$v/000001-full.sums"
truncate -s +64k "$v/000002-inc.qcow2"
damaged '000001-full.sums'
for n in 1 2 3; do
    grep -q "backup $n:" "$tmp/err" || fail "backup $n is not reported"
done

# What is not finished is no damage.
fresh
touch "$v/000004-inc.qcow2.partial" "$v/000004-inc.sums.partial"
run_ok "$tidemark" verify "$bad"
for t in 1 5; do run_ok "$tidemark" verify --threads $t "$good"; done
