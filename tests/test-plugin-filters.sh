#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit's filters work on top of the plugin.
. ./functions.sh
requires nbdkit nbdinfo qemu-io nbdcopy

cd "$tmp"
truncate -s 8M d.raw
args=(disk=vda,file=d.raw bitmap=vda/b0)

# with FILTER... -- PARAMETER... -- COMMAND: nbdkit with the plugin.
with ()
{
    local filters=() params=()
    while [ "$1" != -- ]; do filters+=(--filter="$1"); shift; done
    shift
    while [ "$1" != -- ]; do params+=("$1"); shift; done
    "${nbdkit[@]}" -U - "${filters[@]}" "$plugin" "${args[@]}" \
        "${params[@]}" --run "$2" || fail "filters ${filters[*]}"
}

verify='! grep -q "verification failed" io'
write='qemu-io -f raw "$uri" -c "write -P 5 1M 64k" -c "read -P 5 1M 64k" \
    -c "write -f -P 6 2M 4k" -c "write -z 3M 64k" > io && '$verify
dirty='nbdinfo --map "nbd+unix:///dirty:vda/b0?socket=$unixsocket" |
    grep -q " 1048576 *65536 *0"'

with log -- logfile=log -- "$write"
grep -q 'Write.*offset=0x100000' log || fail "log: $(cat log)"
with stats -- statsfile=stats -- "$write"
grep -q '^write: 2 ops' stats || fail "stats: $(cat stats)"
with rate -- rate=100M -- "$write && $dirty"
for mode in emulate native force; do
    with fua log -- fuamode=$mode logfile=log.$mode -- "$write"
done
grep -q 'Flush' log.emulate || fail "fua=emulate does not flush"
grep -q 'Write.*fua=1' log.native || fail "fua=native is not passed on"
with readahead -- -- "$write"
with cache -- -- "$write"
with blocksize -- minblock=512 maxdata=64k -- "$write && $dirty"

# cow: the live disk stays as it is.
cp d.raw before
with cow -- -- 'qemu-io -f raw "$uri" -c "write -P 9 0 64k" \
    -c "read -P 9 0 64k" > io && '"$verify"
cmp d.raw before
# offset: what is dirty is where it is on the disk.
with offset -- offset=1M range=1M -- \
    'qemu-io -f raw "$uri" -c "write -P 5 0 64k" > io'
