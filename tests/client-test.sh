# SPDX-License-Identifier: BSD-3-Clause
# Sourced by the tests of tidemark: functions.sh, and servers to back up from.
. ./functions.sh
requires qemu-img qemu-io qemu-nbd python3 cmp

# start_tidemarkd DISK...: each a raw file $tmp/DISK.raw that is there.  The
# sockets are $ctl and $live; the process is $server.
start_tidemarkd ()
{
    local d args=()
    for d; do args+=(--disk "$d,file=$tmp/$d.raw"); done
    ctl=$tmp/ctl.sock
    live=$tmp/live.sock
    background "$tidemarkd" "${args[@]}" --control "unix:$ctl" \
        --listen "unix:$live" --backup-listen "unix:$tmp/backup.sock" \
        --scratch-dir "$tmp"
    server=$!
    wait_for 20 qmp "$ctl" query-version
}

# start_stoppable DISK: as start_tidemarkd, with the disk on an nbdkit in between,
# $backend.  While that is stopped by SIGSTOP no block of the disk can be read,
# so that a backup stays where it is.
start_stoppable ()
{
    requires nbdkit
    background nbdkit -f -U "$tmp/backend.sock" file "$tmp/$1.raw"
    backend=$!
    test_cleanup+=("kill -CONT $backend")
    wait_for 20 is_listening "$tmp/backend.sock"
    ctl=$tmp/ctl.sock
    live=$tmp/live.sock
    background "$tidemarkd" \
        --disk "$1,file=nbd+unix:///?socket=$tmp/backend.sock" \
        --control "unix:$ctl" --listen "unix:$live" \
        --backup-listen "unix:$tmp/backup.sock" --scratch-dir "$tmp"
    server=$!
    wait_for 20 qmp "$ctl" query-version
}

# start_stuck REPO DISK: a backup in the background, $client, that pulls and
# does not get on.
start_stuck ()
{
    local line
    kill -STOP "$backend"
    rm -f "$tmp/pipe"
    mkfifo "$tmp/pipe"
    # A shell lets what it puts into the background ignore SIGINT, and nohup
    # SIGHUP.
    env --default-signal=INT,TERM,HUP "$tidemark" backup --json --retry 0 "$ctl" "$1" \
        >"$tmp/pipe" 2>"$tmp/err" &
    client=$!
    test_pids+=($client)
    exec 7<"$tmp/pipe"
    while read -r line <&7; do
        case $line in *'"disk-begin"'*) break ;; esac
    done
    wait_for 20 partial_exists "$1/$2"
}

partial_exists ()
{
    find "$1" -name '*.partial' | grep -q .
}

# end_stuck STATUS: let it go on; it ends with STATUS.
end_stuck ()
{
    local status=0
    kill -CONT "$backend"
    cat <&7 >"$tmp/events"
    exec 7<&-
    wait $client || status=$?
    if [ $status -ne "$1" ]; then
        cat "$tmp/err" >&2
        fail "status $status instead of $1"
    fi
}

# stop_server [SIGNAL]: the process $server, and wait for its end.
stop_server ()
{
    local pid=$server p left=()
    kill "-${1:-TERM}" "$pid"
    timeout 30 tail --pid="$pid" -f /dev/null || fail "the server lives on"
    wait "$pid" 2>/dev/null || :
    for p in "${test_pids[@]}"; do
        if [ "$p" != "$pid" ]; then left+=("$p"); fi
    done
    test_pids=("${left[@]:-}")
}

# guest DISK COMMAND...: qemu-io commands through the live listener.
guest ()
{
    local disk=$1 c args=()
    shift
    for c; do args+=(-c "$c"); done
    qemu-io -f raw "${args[@]}" "nbd+unix:///$disk?socket=$live" \
        >"$tmp/qemu-io.out" 2>&1 || {
        cat "$tmp/qemu-io.out" >&2
        fail "qemu-io: $*"
    }
    if grep -qi 'fail\|error' "$tmp/qemu-io.out"; then
        cat "$tmp/qemu-io.out" >&2
        fail "qemu-io: $*"
    fi
}

# run_ok COMMAND...: its output is in $tmp/out, shown if it fails.
run_ok ()
{
    "$@" >"$tmp/out" 2>"$tmp/err" && return
    cat "$tmp/out" "$tmp/err" >&2
    fail "failed: $*"
}

# expect_status STATUS TEXT COMMAND...: it ends with STATUS and a message that
# holds TEXT.
expect_status ()
{
    local want=$1 text=$2 status=0
    shift 2
    "$@" >"$tmp/out" 2>"$tmp/err" || status=$?
    if [ $status -ne "$want" ]; then
        cat "$tmp/out" "$tmp/err" >&2
        fail "status $status instead of $want: $*"
    fi
    if ! grep -qF -- "$text" "$tmp/err"; then
        cat "$tmp/err" >&2
        fail "no \"$text\" in the message of: $*"
    fi
}

# check_restore REPO DISK NUMBER RAW-FILE: it restores to that.
check_restore ()
{
    rm -f "$tmp/restored.raw"
    run_ok "$tidemark" restore "$1" --disk "$2" --at "$3" "$tmp/restored.raw"
    cmp "$tmp/restored.raw" "$4" || fail "backup $3 of $2"
}

# check_backup REPO DISK NUMBER RAW-FILE: likewise, and by qemu-img alone; the
# image is sound.
check_backup ()
{
    local image
    image=$(echo "$1/$2/$(printf %06d "$3")"-*.qcow2)
    check_restore "$@"
    run_ok qemu-img check -f qcow2 "$image"
    run_ok qemu-img compare -f qcow2 -F raw "$image" "$4"
    run_ok qemu-img convert -f qcow2 -O raw "$image" "$tmp/converted.raw"
    cmp "$tmp/converted.raw" "$4" || fail "convert $3 of $2"
}

# nr_backups REPO DISK: by our list.
nr_backups ()
{
    "$tidemark" list --json --disk "$2" "$1" |
        json "len (j['disks'][0]['backups'])"
}

# member REPO DISK NUMBER KEY: of a manifest.
member ()
{
    "$tidemark" list --json --disk "$2" "$1" |
        json "[b for b in j['disks'][0]['backups'] if b['number'] == $3][0]['$4']"
}

# dirty_bytes DISK BITMAP: as the server counts.
dirty_bytes ()
{
    qmp "$ctl" query-block |
        json "[b['count'] for d in j if d['device'] == '$1' for b in d['inserted'].get ('dirty-bitmaps', []) if b['name'] == '$2'][0]"
}

# repo_bitmap REPO: the name of the bitmap that the client uses by itself.
repo_bitmap ()
{
    echo "tidemark-$(json "j['id']" <"$1/tidemark.json")"
}

# no_leftovers REPO: nothing unfinished is in it.
no_leftovers ()
{
    local found
    found=$(find "$1" -name '*.partial*' -o -name '*.pending')
    if [ -n "$found" ]; then fail "left in the repository: $found"; fi
}

# random_file FILE MIB
random_file ()
{
    head -c "${2}M" /dev/urandom >"$1"
}

# start_pair MIB MIB: serve vda and vdb, of random data; sets $repo, $ctl, $live.
# Reads of vdb fail while there is a file "$tmp/inject".
start_pair ()
{
    requires nbdkit
    repo=$tmp/repo
    ctl=$tmp/ctl.sock
    live=$tmp/live.sock
    random_file "$tmp/vda.raw" "$1"
    random_file "$tmp/vdb.raw" "$2"
    background nbdkit -f -U "$tmp/vdb.sock" --filter=error \
        file "$tmp/vdb.raw" \
        error-pread=EIO error-pread-rate=1 error-pread-file="$tmp/inject"
    wait_for 20 is_listening "$tmp/vdb.sock"
    background "$tidemarkd" --disk "vda,file=$tmp/vda.raw" \
        --disk "vdb,file=nbd+unix:///?socket=$tmp/vdb.sock" \
        --control "unix:$ctl" --listen "unix:$live" \
        --backup-listen "unix:$tmp/backup.sock" --scratch-dir "$tmp"
    wait_for 20 qmp "$ctl" query-version
}

# killed_after_commit FILE COMMAND...: run until its death by a crash that was
# the first after it had stored FILE, and before the server knew.
killed_after_commit ()
{
    local file=$1 shim=$top_builddir/tests/fail-nth.so preload n=18 status s
    shift
    preload=$shim
    case $sanitizers in
        *address*) preload="$(${CC:-gcc} -print-file-name=libasan.so) $shim" ;;
        *thread*) preload="$(${CC:-gcc} -print-file-name=libtsan.so) $shim" ;;
    esac
    while :; do
        n=$((n + 1))
        status=0
        FAIL_HOW=crash FAIL_NTH=$n FAIL_FIRED=$tmp/fired LD_PRELOAD=$preload \
            "$@" >"$tmp/out" 2>"$tmp/err" || status=$?
        [ $status -eq 99 ] || fail "crash $n: status $status"
        if [ -e "$file" ]; then return; fi
        # The next one is to begin anew.
        s=$(qmp "$ctl" query-backups | json "j[0]['id'] if j else ''")
        if [ -n "$s" ]; then
            qmp "$ctl" backup-end "{\"id\": \"$s\", \"success\": false}" >"$tmp/qmp"
        fi
    done
}
