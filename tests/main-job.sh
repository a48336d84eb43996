# SPDX-License-Identifier: BSD-3-Clause
# Sourced by quickstart: the main job on real data, with proof.
#
# main_job BUILD-DIR WORK-DIR: a file system with thousands of real files on a
# disk that stock nbdkit serves with our plugin; four backups of it while it
# changes; every point restored and compared.  Runs in a subshell of its own.

job_fail ()
{
    printf 'quickstart: the main job failed: %s\n' "$*" >&2
    exit 1
}

job_end ()
{
    local status=$? p
    trap - EXIT INT TERM HUP
    if mountpoint -q "$work/mnt"; then fusermount3 -u "$work/mnt" || :; fi
    for p in "${job_pids[@]}"; do
        kill -CONT "$p" 2>/dev/null || :
        kill "$p" 2>/dev/null || :
    done
    for p in "${job_pids[@]}"; do
        timeout 20 tail --pid="$p" -f /dev/null || kill -9 "$p" || :
    done
    exit $status
}

# until_true SECONDS COMMAND...: polls, for what announces itself by no event.
until_true ()
{
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || job_fail "timed out: $*"
        read -r -t 0.02 <> <(:) || :
    done
}

# quietly COMMAND...: its output is shown only if it fails.
quietly ()
{
    local output
    output=$("$@" 2>&1) && return
    printf '%s\n' "$output" >&2
    job_fail "$*"
}

# A disk image with real files: headers and documents of this machine.
make_disk ()
{
    local d size budget=500000
    mkdir -p "$work/tree/usr/share"
    cp -a /usr/include "$work/tree/usr/"
    for d in doc perl locale zoneinfo; do
        [ -d /usr/share/$d ] || continue
        size=$(du -sk /usr/share/$d | cut -f1)
        [ "$size" -le $budget ] || continue
        budget=$((budget - size))
        cp -a /usr/share/$d "$work/tree/usr/share/"
    done
    nr_files=$(find "$work/tree" -type f | wc -l)
    [ "$nr_files" -ge 2000 ] || job_fail "only $nr_files files found here"
    find "$work/tree/usr" -type f ! -name '* *' | sort >"$work/files"
    truncate -s 1536M "$work/vda.raw"
    quietly mke2fs -q -t ext4 -d "$work/tree" "$work/vda.raw"
}

serve_disk ()
{
    [ -e /dev/fuse ] || job_fail "/dev/fuse is missing: nbdfuse needs it"
    nbdkit -f -U "$work/live.sock" -P "$work/nbdkit.pid" \
        "$build/plugin/nbdkit-tidemark-plugin.so" \
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

# change_disk N: in the file system on the served disk, by way of NBD, 500
# files and 24 MiB are added, 100 files get a new content, 100 are deleted.
# N chooses which.
change_disk ()
{
    local n=$1 log=$work/debugfs$1.log
    head -c 24M /dev/urandom >"$work/big"
    awk -v n="$n" -v tree="$work/tree" -v big="$work/big" '
        BEGIN { print "mkdir /new" n; print "write " big " /new" n "/big" }
        NR % 16 == n && added < 500 {
            print "write " $0 " /new" n "/f" ++added
        }
        NR % 16 == n + 8 && gone < 200 {
            path = substr ($0, length (tree) + 1)
            print "rm " path
            if (gone++ % 2) print "write /etc/passwd " path
        }' "$work/files" >"$work/commands"
    debugfs -w -f "$work/commands" "$work/mnt/disk" >"$log" 2>&1 ||
        job_fail "debugfs; see $log"
    if grep -vE '^debugfs|^Allocated inode' "$log" | grep .; then
        job_fail "debugfs; see $log"
    fi
    sync "$work/mnt/disk"
}

# What the disk is now, while nothing writes to it.
copy_disk ()
{
    cp --sparse=always "$work/vda.raw" "$work/copy$1.raw"
}

tidemark () { "$build/client/tidemark" "$@"; }

backup ()                       # backup N
{
    copy_disk "$1"
    tidemark backup --json "unix:$work/control.sock" "$work/repo" \
        >"$work/events$1" || job_fail "backup $1"
}

# As soon as its point is taken the client is stopped, the disk changed, the
# client let go on, and the disk changed again while it pulls.
backup_under_changes ()         # backup_under_changes N
{
    local pid line
    copy_disk "$1"
    mkfifo "$work/pipe"
    "$build/client/tidemark" backup --json "unix:$work/control.sock" \
        "$work/repo" >"$work/pipe" &
    pid=$!
    job_pids+=($pid)
    exec 7<"$work/pipe"
    while read -r line <&7; do
        echo "$line"
        case $line in *'"disk-begin"'*) break ;; esac
    done >"$work/events$1"
    kill -STOP $pid
    change_disk 4
    kill -CONT $pid
    change_disk 5
    cat <&7 >>"$work/events$1"
    exec 7<&-
    wait $pid || job_fail "the backup under changes"
    if cmp -s "$work/copy$1.raw" "$work/vda.raw"; then
        job_fail "nothing has changed during backup $1"
    fi
}

# The point's image in the repository, from the last event of its backup.
image_of ()
{
    echo "$work/repo/$(field "$1" stored image)"
}

# field N EVENT KEY: a member of that event of backup N.
field ()
{
    sed -n "/\"event\": *\"$2\"/s/.*\"$3\": *\"\{0,1\}\([^\",}]*\).*/\1/p" \
        "$work/events$1" | tail -n 1
}

# same_bytes A B: as cmp does, but what is a hole in both is not read.
same_bytes ()
{
    python3 -I -S - "$1" "$2" <<'PYTHON'
import os, sys

def next_data (f, at):
    try:
        return os.lseek (f.fileno (), at, os.SEEK_DATA)
    except OSError:
        return os.fstat (f.fileno ()).st_size

files = [open (name, "rb", buffering=0) for name in sys.argv[1:]]
sizes = [os.fstat (f.fileno ()).st_size for f in files]
if sizes[0] != sizes[1]:
    sys.exit ("%s and %s differ in size" % tuple (sys.argv[1:]))
at = 0
while at < sizes[0]:
    at = min (next_data (f, at) for f in files)
    x, y = (os.pread (f.fileno (), 1 << 20, at) for f in files)
    if x != y:
        sys.exit ("%s and %s differ after byte %d" % (*sys.argv[1:], at))
    at += max (len (x), 1)
PYTHON
}

# Prove the point of backup N.
verify_point ()
{
    local n=$1 image out=$work/restored$1.raw
    image=$(image_of "$n")
    quietly tidemark restore "$work/repo" --disk vda --at "$n" "$out"
    quietly same_bytes "$out" "$work/copy$n.raw"
    quietly e2fsck -fn "$out"
    quietly qemu-img check "$image"
    quietly qemu-img compare -f qcow2 -F raw "$image" "$work/copy$n.raw"
    if [ "$n" -eq 3 ]; then
        quietly qemu-img convert -f qcow2 -O raw "$image" "$work/convert.raw"
        quietly same_bytes "$work/convert.raw" "$work/copy$n.raw"
    fi
    rm "$out"
}

# Each in a process of its own.
verify_points ()
{
    local n pids=()
    for n; do
        (trap - EXIT; verify_point "$n") &
        pids+=($!)
    done
    for n; do
        wait "${pids[0]}" || exit 1
        pids=("${pids[@]:1}")
        printf 'point %s: restored, compared, checked\n' "$n"
    done
}

# An incremental moves what is dirty and little more than was changed.
check_moved ()
{
    local n=$1 dirty moved
    dirty=$(field "$n" disk-begin dirty-bytes)
    moved=$(field "$n" disk-end moved-bytes)
    [ "$(field "$n" disk-begin mode)" = incremental ] ||
        job_fail "backup $n is not incremental"
    [ "$moved" -gt 0 ] && [ "$moved" -le "$dirty" ] &&
        [ "$dirty" -lt 400000000 ] ||
        job_fail "backup $n: $dirty bytes dirty, $moved moved"
}

print_table ()
{
    local n
    printf '\n%-7s %-12s %10s %10s %8s %8s  %s\n' backup kind dirty moved \
        time MB/s verified
    for n in 1 2 3 4; do
        awk -v n="$n" -v kind="$(field "$n" disk-begin mode)" \
            -v dirty="$(field "$n" disk-begin dirty-bytes)" \
            -v moved="$(field "$n" disk-end moved-bytes)" \
            -v secs="$(field "$n" disk-end seconds)" 'BEGIN {
            printf "%-7s %-12s %6d MiB %6d MiB %6.2f s %8d  %s\n", n, kind,
              dirty / 1048576, moved / 1048576, secs, moved / 1e6 / secs,
              "bytes, e2fsck, check, compare" (n == 3 ? ", convert" : "") }'
    done
}

run_job ()
{
    say "a 1.5 GiB disk with a real file system"
    make_disk
    serve_disk
    printf '%s files; served by %s with our plugin\n' "$nr_files" \
        "$(nbdkit --version)"

    say "backups"
    echo "1: the whole disk"
    backup 1
    change_disk 1
    echo "2: after files were added, changed and deleted through NBD"
    backup 2
    change_disk 2
    change_disk 3
    echo "3: after more changes, and with others while it is pulled"
    backup_under_changes 3
    echo "4: what was changed during the third"
    backup 4

    say "proof"
    for n in 2 3 4; do check_moved $n; done
    verify_points 1 2
    verify_points 3 4
    quietly tidemark verify "$work/repo"
    print_table
    cat <<TEXT

the disk               $work/vda.raw
the repository         $work/repo
copies at each point   $work/copy[1-4].raw

Look at it:    $build/run tidemark list $work/repo
Without us:    qemu-img convert -O raw $(image_of 4) out.raw
TEXT
}

main_job () (
    build=$1
    work=$2
    job_pids=()
    rm -rf "$work"
    mkdir -p "$work"
    trap job_end EXIT
    trap 'exit 130' INT TERM HUP
    run_job
)
