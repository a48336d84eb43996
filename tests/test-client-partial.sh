#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# One disk of a set fails: with --partial-ok the other one is stored and its
# bitmap advances, that of the failed one stays as it was; also after a crash
# before the server knew.
. "${srcdir:-.}/client-test.sh"
start_pair 2 2
run_ok "$tidemark" backup "$ctl" "$repo"
bitmap=$(repo_bitmap "$repo")
cp "$tmp/vdb.raw" "$tmp/vdb1.raw"
guest vda 'write -P 1 0 128k'
guest vdb 'write -P 2 0 256k'

# has NR-OF-VDA NR-OF-VDB DIRTY-OF-VDA: so it is; vdb has lost no bit.
has ()
{
    [ "$(nr_backups "$repo" vda)" = "$1" ] || fail "backups of vda"
    [ "$(nr_backups "$repo" vdb)" = "$2" ] || fail "backups of vdb"
    [ "$(dirty_bytes vda "$bitmap")" = "$3" ] || fail "bits of vda"
    [ "$(dirty_bytes vdb "$bitmap")" = $((256 << 10)) ] || fail "bits of vdb"
    [ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "a session is left"
    no_leftovers "$repo"
}

touch "$tmp/inject"
expect_status 1 "Input/output error" "$tidemark" backup "$ctl" "$repo"
has 1 1 $((128 << 10))
expect_status 5 "disk 'vdb' is not backed up" \
    "$tidemark" backup --json --partial-ok "$ctl" "$repo"
has 2 1 0
grep -q '"event":"disk-failed","disk":"vdb","reason":' "$tmp/out" ||
    fail "event: $(cat "$tmp/out")"
[ "$(member "$repo" vda 2 disks)" = "['vda']" ] || fail "disks"
check_backup "$repo" vda 2 "$tmp/vda.raw"

# All of them: nothing is stored.
expect_status 1 "Input/output error" \
    "$tidemark" backup --partial-ok --disk vdb "$ctl" "$repo"
has 2 1 0

# Its scratch is full: the session of the others lives.
rm "$tmp/inject"
run_ok python3 - "$ctl" "$live" <<'END'
import os, subprocess, sys
sys.path.insert (0, os.environ["top_srcdir"] + "/tests")
from qmp_client import Qmp
with Qmp (sys.argv[1]) as q:
    s = q.execute ("backup-begin", {"bitmap": "c", "partial-ok": True,
                                    "scratch-limit": 65536})
    subprocess.run (["qemu-io", "-f", "raw", "-c", "write -P 2 0 256k",
                     "nbd+unix:///vdb?socket=" + sys.argv[2]], check=True)
    b = q.execute ("query-backups")[0]
    assert ["error" in d for d in b["disks"]] == [False, True], b
    q.execute ("backup-end", {"id": s["id"], "success": True,
                              "keep": ["vdb"]})
    bitmaps = [[x["name"] for x in d["inserted"]["dirty-bitmaps"]]
               for d in q.execute ("query-block")]
    assert ["c" in names for names in bitmaps] == [True, False], bitmaps
END

# The last call before a crash is the first one after the set was stored: the
# next run tells the server, and not of vdb.
touch "$tmp/inject"
killed_after_commit "$repo/vda/000003-inc.json" \
    "$tidemark" backup --partial-ok "$ctl" "$repo"
rm "$tmp/inject"
cp "$tmp/vdb.raw" "$tmp/vdb2.raw"
run_ok "$tidemark" backup "$ctl" "$repo" --disk vda
grep -q 'the server was told' "$tmp/out" || fail "not confirmed"
has 4 1 0
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(member "$repo" vdb 2 mode)" = incremental ] || fail "vdb is not incremental"
check_backup "$repo" vdb 1 "$tmp/vdb1.raw"
check_backup "$repo" vdb 2 "$tmp/vdb2.raw"
run_ok "$tidemark" verify "$repo"
