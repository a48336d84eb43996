#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdinfo, nbdcopy and nbdsh with our NBD server, over Unix and TCP sockets.
. ./functions.sh
requires nbdinfo nbdcopy python3 cmp

truncate -s 64M "$tmp/disk"
background ./nbd-test-server --until-signal --listen "unix:$tmp/s" \
    --listen "tcp:127.0.0.1:0" --listen "tcp:[::1]:0" \
    --disk "a,file=$tmp/disk,description=first disk" \
    --disk b,size=16T --disk ro,size=1M,readonly=on \
    --bitmap a/b0 --bitmap a/b1,granularity=4096 --bitmap b/b0
pid=$!
wait_for 10 nbdinfo --size "nbd+unix:///a?socket=$tmp/s"
uri () { echo "nbd+unix:///$1?socket=$tmp/s"; }

# nbdinfo.
test "$(nbdinfo --size "$(uri b)")" = $((16 << 40)) || fail "size"
for what in "can multi-conn" "can trim" "can zero" "can fast-zero" "can df" \
            "can fua" "can flush" "can cache" "can write"; do
    # shellcheck disable=SC2086
    nbdinfo --$what "$(uri a)" || fail "$what"
done
nbdinfo --is read-only "$(uri ro)" || fail "not read-only"
if nbdinfo --is read-only "$(uri a)"; then fail "read-only"; fi
if nbdinfo --can trim "$(uri ro)"; then fail "can be trimmed"; fi
nbdinfo --list --json "nbd+unix:///?socket=$tmp/s" >"$tmp/list"
python3 - "$tmp/list" <<'PY'
import json, sys
exports = json.load(open(sys.argv[1]))["exports"]
assert [e["export-name"] for e in exports] == ["a", "b", "ro"]
assert exports[0]["description"] == "first disk"
assert exports[0]["contexts"] == [
    "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0",
    "qemu:dirty-bitmap:b1"]
PY

# TCP: the ports that it was given.
seen=0
for fd in "/proc/$pid/fd"/*; do
    inode=$(readlink "$fd" | sed -n 's/socket:\[\(.*\)\]/\1/p')
    for family in tcp tcp6; do
        port=$(awk -v i="$inode" '$10 == i && $4 == "0A" {
            sub(/.*:/, "", $2); print $2 }' "/proc/$pid/net/$family")
        if [ -z "$inode" ] || [ -z "$port" ]; then continue; fi
        host=127.0.0.1
        if [ $family = tcp6 ]; then host='[::1]'; fi
        test "$(nbdinfo --size "nbd://$host:$((16#$port))/ro")" = 1048576 ||
            fail "$family"
        seen=$((seen + 1))
    done
done
test $seen = 2 || fail "$seen TCP listeners"

# nbdcopy, both ways; the bitmap tells what was written.
head -c 3M /dev/urandom >"$tmp/data"
truncate -s 64M "$tmp/data"
nbdcopy "$tmp/data" "$(uri a)"
nbdcopy "$(uri a)" "$tmp/back"
cmp "$tmp/data" "$tmp/back"
nbdcopy "$(uri a)" - | cmp "$tmp/data" -
nbdcopy "$(uri a)" "$(uri b)" 2>/dev/null || fail "from export to export"
test "$(nbdinfo --map=qemu:dirty-bitmap:b0 "$(uri b)" | head -1 |
        awk '{ print $1, $3 }')" = "0 1" || fail "not dirty"
nbdinfo --map --totals "$(uri b)" | grep -q 'hole,zero' || fail "no holes"
nbdinfo --map=qemu:dirty-bitmap:b0 --json "$(uri b)" >"$tmp/map"
python3 -c "
import json
assert sum(e['length'] for e in json.load(open('$tmp/map'))) == 16 << 40
"

# nbdsh: what is written is dirty, granule by granule.
/usr/bin/python3 - "$(uri b)" <<'PY'
import errno, sys, nbd
h = nbd.NBD()
h.add_meta_context("qemu:dirty-bitmap:b0")
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
size = h.get_size()
h.zero(2**31, 0)
h.pwrite(b"x" * 100, 2**43 + 65536 * 3 + 70)
seen = {}
def extents(context, offset, entries, error):
    seen[context] = entries
h.block_status(2**31, 2**43, extents)
e = seen["qemu:dirty-bitmap:b0"]
assert e[:4] == [65536 * 3, 0, 65536, 1], e
assert sum(e[::2]) <= 2**31
assert h.pread(100, 2**43 + 65536 * 3 + 70) == b"x" * 100

# Structured reads, with and without "don't fragment".
h.pwrite(b"d" * 65536, 2**42)
kinds = []
def chunk(buf, offset, status, error):
    kinds.append(status)
assert h.pread_structured(3 * 65536, 2**42 - 65536, chunk)[65536:65540] \
    == b"dddd"
assert sorted(kinds) == [nbd.READ_DATA, nbd.READ_HOLE, nbd.READ_HOLE], kinds
kinds.clear()
h.pread_structured(3 * 65536, 2**42 - 65536, chunk, nbd.CMD_FLAG_DF)
assert kinds == [nbd.READ_DATA], kinds

# Errors come as themselves.
h.set_strict_mode(0)
for call, expected in ((lambda: h.pread(512, size), errno.EINVAL),
                       (lambda: h.pwrite(b"x", size), errno.ENOSPC),
                       (lambda: h.zero(1, size), errno.ENOSPC),
                       (lambda: h.trim(1, size), errno.EINVAL),
                       (lambda: h.pread(33 << 20, 0), errno.EOVERFLOW),
                       (lambda: h.pread(512, 0, 1 << 3), errno.EINVAL),
                       (lambda: h.pwrite(bytes(33 << 20), 0), errno.EINVAL)):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == expected, (e, expected)
    else:
        raise AssertionError("should have failed")
h.shutdown()

# The other negotiations: no structured replies; the old way to choose.
for setting in ("h.set_request_structured_replies(False)",
                "h.set_handshake_flags(0)",
                "h.set_handshake_flags(nbd.HANDSHAKE_FLAG_NO_ZEROES)"):
    h = nbd.NBD()
    exec(setting)
    h.connect_uri(sys.argv[1])
    assert h.pread(100, 2**43 + 65536 * 3 + 70) == b"x" * 100, setting
    h.shutdown()
PY

# It ends by itself, with a client still connected.
/usr/bin/python3 -c "
import nbd, os, signal, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
os.kill(int(sys.argv[2]), signal.SIGTERM)
while h.poll(-1) == 1 and not h.aio_is_closed() and not h.aio_is_dead():
    pass
" "$(uri a)" "$pid" || fail "client"
wait "$pid" || fail "server ended with $?"
