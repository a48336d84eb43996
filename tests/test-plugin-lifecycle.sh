#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Control socket and backup listener start with nbdkit, also when it goes to
# the background, and end with it: nothing is left behind.
. ./functions.sh
requires nbdkit nbdinfo python3

cd "$tmp"
truncate -s 1M d.raw
mkdir scratch
args=(disk=vda,file=d.raw bitmap=vda/b0 control=unix:ctl backup=unix:bk
      scratch-dir=scratch)

gone ()
{
    ! test -e ctl && ! test -e bk
}

# --run: nbdkit does not wait for the server that it ends, so we do.
"${nbdkit[@]}" -U - "$plugin" "${args[@]}" --run '
    python3 '"$top_srcdir"'/tests/qmp_client.py ctl query-version &&
    nbdinfo --list "nbd+unix:///?socket=bk" || :
    test -S bk' > out
grep -q '"package": "tidemark' out || fail "$(cat out)"
wait_for 20 gone
"${nbdkit[@]}" -U - "$plugin" "${args[@]}" --run 'exit 7' && fail "status lost"
wait_for 20 gone

# In the background: relative paths still work after nbdkit's chdir, a session
# in progress does not keep it alive, and its scratch space goes.
"${nbdkit[@]}" -U "$tmp/s" -P pid "$plugin" "${args[@]}"
test_cleanup+=('kill $(cat pid) 2>/dev/null')
qmp ctl query-version > out
qmp ctl backup-begin '{"bitmap": "b0", "mode": "full"}' > begin
uri=$(json 'j["disks"][0]["uri"]' < begin)
test "$(nbdinfo --size "$uri")" = 1048576 || fail "view: $uri"
python3 - "$top_srcdir/tests" <<'END' &
import sys
sys.path.insert (0, sys.argv[1])
from qmp_client import Qmp
with Qmp ("ctl") as qmp:        # an idle control connection
    open ("connected", "w").close ()
    while qmp.receive ():
        pass
END
client=$!
wait_for 10 test -e connected
pid=$(cat pid)
kill "$pid"
wait_for 20 sh -c "! kill -0 $pid"
wait $client || fail "the control client was not hung up on"
gone || fail "socket files: $(ls)"
test -z "$(ls -A scratch)" || fail "scratch: $(ls scratch)"

# And the next one can have the disk at once.
"${nbdkit[@]}" -U - "$plugin" "${args[@]}" --run 'nbdinfo --size "$uri"' > out
test "$(cat out)" = 1048576
wait_for 20 gone
