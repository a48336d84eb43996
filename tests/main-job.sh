# SPDX-License-Identifier: BSD-3-Clause
# Sourced by quickstart: the main job on real data, with proof.
#
# main_job BUILD-DIR WORK-DIR: a file system with thousands of real files on a
# disk that stock nbdkit serves with our plugin; four backups of it while it
# changes; every point restored and compared.

job_pids=()

job_end ()
{
    local p
    mountpoint -q "$work/mnt" && fusermount3 -u "$work/mnt"
    for p in "${job_pids[@]}"; do
        kill -CONT "$p" 2>/dev/null || :
        kill "$p" 2>/dev/null || :
    done
    for p in "${job_pids[@]}"; do
        timeout 20 tail --pid="$p" -f /dev/null || kill -9 "$p" || :
    done
    wait
}

job_fail ()
{
    printf 'quickstart: the main job failed: %s\n' "$*" >&2
    exit 1
}

# until_true SECONDS COMMAND...: polls; for what announces itself by no event.
until_true ()
{
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || job_fail "timed out: $*"
        read -r -t 0.02 <> <(:) || :
    done
}

# A disk image with real files: headers, documents and locales of this machine.
make_disk ()
{
    local d budget=500000
    mkdir -p "$work/tree/usr/share"
    cp -a /usr/include "$work/tree/usr/"
    for d in doc perl locale man zoneinfo; do
        [ -d /usr/share/$d ] || continue
        budget=$((budget - $(du -sk /usr/share/$d | cut -f1)))
        [ $budget -gt 0 ] || break
        cp -a /usr/share/$d "$work/tree/usr/share/"
    done
    truncate -s 2G "$work/vda.raw"
    mke2fs -q -t ext4 -d "$work/tree" "$work/vda.raw"
    nr_files=$(find "$work/tree" -type f | wc -l)
    [ "$nr_files" -ge 2000 ] || job_fail "only $nr_files files found here"
}

serve_disk ()
{
    nbdkit -f -U "$work/live.sock" -P "$work/nbdkit.pid" \
        "$build/plugin/.libs/nbdkit-tidemark-plugin.so" \
        disk=vda,file="$work/vda.raw" control=unix:"$work/control.sock" \
        backup=unix:"$work/backup.sock" &
    job_pids+=($!)
    until_true 10 test -e "$work/nbdkit.pid"
    # A guest stands in: the live export as a file that debugfs can write to.
    mkdir -p "$work/mnt"
    nbdfuse "$work/mnt/disk" "nbd+unix:///vda?socket=$work/live.sock" &
    job_pids+=($!)
    until_true 10 test -e "$work/mnt/disk"
}

# change_disk N: files added, changed and deleted inside the file system, by
# way of NBD.  N chooses which.
change_disk ()
{
    local n=$1 i=0 f
    {
        echo "mkdir /new$n"
        while read -r f; do
            i=$((i + 1))
            echo "write $f /new$n/f$i"
        done < <(find "$work/tree/usr/include" -type f ! -name '* *' |
                     sort | sed -n "$((n * 600 + 1)),$((n * 600 + 600))p")
        echo "write $work/big$n /new$n/big"
        # Changed: replaced by another content.  Deleted: the rest.
        find "$work/tree/usr/share/doc" -type f ! -name '* *' | sort |
            sed -n "$((n * 200 + 1)),$((n * 200 + 200))p" |
            sed "s,^$work/tree,,; s,.*,rm &," | awk -v w="$work/big$n" '
                NR % 10 == 1 { sub (/^rm /, ""); print "rm " $0
                               print "write /etc/passwd " $0; next }
                { print }'
    } >"$work/commands$n"
    debugfs -w -f "$work/commands$n" "$work/mnt/disk" \
        >"$work/debugfs$n.log" 2>&1
    if grep -E 'File not found|Could not|error' "$work/debugfs$n.log"; then
        job_fail "debugfs could not make its changes"
    fi
}

# take_backup KIND: one backup of the disk, which nothing changes before the
# point.  The copy is what the point must be equal to.
shadow ()                       # shadow N
{
    sync "$work/mnt/disk"
    cp --sparse=always "$work/vda.raw" "$work/copy$1.raw"
}

tidemark () { "$build/client/tidemark" "$@"; }

# The third backup: it is stopped as soon as its point is taken, the disk is
# changed, it goes on, and the disk is changed again while it pulls.
backup_under_changes ()
{
    local pid line
    mkfifo "$work/events"
    "$build/client/tidemark" backup --json "unix:$work/control.sock" \
        "$work/repo" >"$work/events" &
    pid=$!
    job_pids+=($pid)
    exec 7<"$work/events"
    : >"$work/events3.json"
    while read -r line <&7; do
        echo "$line" >>"$work/events3.json"
        case $line in *'"begin"'*) break ;; esac
    done
    kill -STOP $pid
    change_disk 3
    kill -CONT $pid
    change_disk 4
    cat <&7 >>"$work/events3.json"
    exec 7<&-
    wait $pid || job_fail "the backup under changes"
    cmp -s "$work/copy3.raw" "$work/vda.raw" &&
        job_fail "nothing has changed during the third backup"
    return 0
}

# field FILE EVENT KEY: a member of the client's last event of that name.
field ()
{
    python3 - "$@" <<'PYTHON'
import json, sys
value = None
for line in open (sys.argv[1]):
    event = json.loads (line)
    if event["event"] == sys.argv[2]:
        value = event[sys.argv[3]]
if value is None:
    sys.exit ("no %s event in %s" % (sys.argv[2], sys.argv[1]))
print (value)
PYTHON
}
