#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server cannot be told of the success: the backup is stored all the same,
# and the next one, which counts from an older point, is right.  A server whose
# confirmation came and that still counts from the older point was rolled back.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 16
start_tidemarkd vda
repo=$tmp/repo

# A control proxy that lets everything through but backup-end with success,
# upon which it hangs up: with ARGUMENT "before" the server never sees it, with
# "after" it has done it.
cat >"$tmp/proxy.py" <<'END'
import json, socket, sys
path, server, when = sys.argv[1:]
s = socket.socket (socket.AF_UNIX)
s.bind (path)
s.listen (1)
c, _ = s.accept ()
u = socket.socket (socket.AF_UNIX)
u.connect (server)
up, down = u.makefile ("rwb"), c.makefile ("rwb")
down.write (up.readline ()); down.flush ()
for line in down:
    request = json.loads (line)
    last = request["execute"] == "backup-end" and request["arguments"]["success"]
    if last and when == "before":
        break
    up.write (line); up.flush ()
    while True:
        answer = up.readline ()
        if last and b'"return"' in answer:
            break
        down.write (answer); down.flush ()
        if b'"event"' not in answer:
            break
    if last:
        break
END

lossy_backup ()                 # lossy_backup before|after
{
    rm -f "$tmp/proxy.sock"
    background python3 "$tmp/proxy.py" "$tmp/proxy.sock" "$ctl" "$1"
    wait_for 20 is_listening "$tmp/proxy.sock"
    run_ok "$tidemark" backup --retry 0 "$tmp/proxy.sock" "$repo"
    grep -q 'stored, but the server has not confirmed it' "$tmp/err" || {
        cat "$tmp/err" >&2
        fail "no warning"
    }
}

end_sessions ()                 # as the lease would
{
    local id
    for id in $(qmp "$ctl" query-backups | json "*[b['id'] for b in j]"); do
        qmp "$ctl" backup-end "{\"id\": \"$id\", \"success\": false}" \
            >"$tmp/out"
    done
}

run_ok "$tidemark" backup "$ctl" "$repo"
guest vda 'write -P 1 1M 64k'
cp "$tmp/vda.raw" "$tmp/copy2.raw"
lossy_backup before
[ -e "$repo/vda/000002-inc.pending" ] || fail "not marked as pending"
"$tidemark" info "$repo" | grep -q 'has not confirmed' || fail "info"
end_sessions
guest vda 'write -P 2 2M 64k'
cp "$tmp/vda.raw" "$tmp/copy3.raw"
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(member "$repo" vda 3 mode)" = incremental ] || fail "3 is not incremental"
[ "$(member "$repo" vda 3 base-point)" = "$(member "$repo" vda 1 point)" ] ||
    fail "base of 3"
[ "$(member "$repo" vda 3 parent-point)" = "$(member "$repo" vda 2 point)" ] ||
    fail "parent of 3"
check_restore "$repo" vda 2 "$tmp/copy2.raw"
check_restore "$repo" vda 3 "$tmp/copy3.raw"

# The answer is lost, but the server has done it: it counts from there.
guest vda 'write -P 3 3M 64k'
lossy_backup after
guest vda 'write -P 4 4M 64k'
cp "$tmp/vda.raw" "$tmp/copy5.raw"
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(member "$repo" vda 5 base-point)" = "$(member "$repo" vda 4 point)" ] ||
    fail "base of 5"
check_restore "$repo" vda 5 "$tmp/copy5.raw"
run_ok "$tidemark" verify "$repo"

# The same as the first time, but the mark of the unconfirmed one is gone: for
# all we know the server had confirmed it and is an older self now.
guest vda 'write -P 5 5M 64k'
lossy_backup before
end_sessions
rm "$repo/vda/000006-inc.pending"
run_ok "$tidemark" backup "$ctl" "$repo"
[ "$(member "$repo" vda 7 mode)" = full ] || fail "7 is not full"
member "$repo" vda 7 why | grep -q 'rolled back or copied' || fail "why, 7"
check_restore "$repo" vda 7 "$tmp/vda.raw"
