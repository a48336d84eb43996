#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Every reason why a backup has to be full: one that was to be incremental is
# refused for it and changes nothing, and one in mode auto is full and says it, as
# --estimate has said before.
. "${srcdir:-.}/client-test.sh"
random_file "$tmp/vda.raw" 1
start_tidemarkd vda
repo=$tmp/repo

no_bitmap_yet () { :; }
asked_for () { modes=(--mode full --full); }
asked_for_a_copy () { modes=(--mode copy); }
removed ()  { on_bitmap block-dirty-bitmap-remove; }
disabled () { on_bitmap block-dirty-bitmap-disable; }
cleared ()  { on_bitmap block-dirty-bitmap-clear; }
base_is_gone () { rm "$repo/vda/$(newest)".*; }
image_is_gone () { rm "$repo/vda/$(newest).qcow2"; }
image_is_cut_off () { truncate_file "$repo/vda/$(newest).qcow2"; }
manifest_is_damaged () { truncate_file "$repo/vda/$(newest).json"; }
resized ()
{
    qmp "$ctl" block_resize '{"device": "vda", "size": 2097152}' >"$tmp/qmp"
}
changed_behind_our_back ()
{
    stop_server
    printf x | dd of="$tmp/vda.raw" bs=1 seek=5 conv=notrunc status=none
    rm -f "$tmp"/*.sock
    start_tidemarkd vda
}
# What a backup in another repository with the same bitmap is to this one.
used_elsewhere ()
{
    run_ok "$tidemark" backup --bitmap "$bitmap" "$ctl" "$tmp/elsewhere"
}
chain_is_gone () { rm -r "$repo/vda"; }

on_bitmap ()
{
    qmp "$ctl" "$1" "{\"node\": \"vda\", \"name\": \"$bitmap\"}" >"$tmp/qmp"
}
newest () { find "$repo/vda" -name '*.json' | sort | tail -n 1 | xargs basename -s .json; }
truncate_file () { chmod u+w "$1"; truncate -s 100 "$1"; }

# Mode, reason, size and bytes of an event.
members ()
{
    sed -n "/\"event\":\"$1\"/s/.*\(\"mode\":.*dirty-bytes\":[0-9]*\).*/\1/p" "$tmp/out"
}
trim () { sed 's/^ *//; s/ *$//' <<<"$1"; }

# What happens | what an incremental says | what a full one says.
table="
no_bitmap_yet           | Dirty bitmap .* not found        | ^no bitmap
asked_for               |                                  | ^asked for$
asked_for_a_copy        |                                  | ^asked for$
removed                 | Dirty bitmap .* not found        | ^no bitmap
disabled                | 'vda' is possible: .* is disabled | is disabled$
cleared                 | 'vda' is possible: .* no base point yet | no base point yet$
changed_behind_our_back | is inconsistent .* used: .*changed | is inconsistent: .*changed
base_is_gone            | not in this chain                | not in this chain$
image_is_gone           | damaged: .*qcow2: No such file   | ^the chain is damaged: .*qcow2
image_is_cut_off        | damaged: .*qcow2 has 100 bytes   | ^the chain is damaged: .*qcow2
manifest_is_damaged     | damaged: .*not a JSON object     | ^the chain is damaged: .*json
used_elsewhere          | not in this chain                | not in this chain$
chain_is_gone           | no backup of disk 'vda' yet      | no backup of disk 'vda' yet$
resized                 | size of the disk changed from 1048576 to 2097152 | ^the size of
"
rows=0
while IFS='|' read -r what refused full; do
    [ -n "$what" ] || continue
    what=${what// /} refused=$(trim "$refused") full=$(trim "$full")
    modes=()
    rows=$((rows + 1))
    $what
    if [ -n "$refused" ]; then
        status=0
        "$tidemark" backup --mode incremental "$ctl" "$repo" >"$tmp/out" \
            2>"$tmp/err" || status=$?
        [ $status -eq 1 ] || fail "$what: status $status of an incremental"
        grep -q -- "$refused" "$tmp/err" || fail "$what: $(cat "$tmp/err")"
        [ "$(qmp "$ctl" query-backups)" = "[]" ] || fail "$what: a session"
        no_leftovers "$repo"
        expect_status 1 "vda': no incremental backup is possible: " "$tidemark" \
            backup --estimate --mode incremental "$ctl" "$repo"
    fi
    run_ok "$tidemark" backup --estimate --json "${modes[@]}" "$ctl" "$repo"
    estimate=$(members estimate)
    run_ok "$tidemark" backup --json "${modes[@]}" "$ctl" "$repo"
    bitmap=$(repo_bitmap "$repo")
    mode=$(members disk-begin | sed 's/"mode":"\([a-z]*\)".*/\1/')
    why=$(members disk-begin | sed 's/.*"why":"\(.*\)","size".*/\1/; s/\\"/"/g')
    number=$(sed -n 's/.*"stored".*"number":\([0-9]*\).*/\1/p' "$tmp/out")
    echo "$what: backup $number, $mode: $why"
    [ $what = no_bitmap_yet ] || [ "$estimate" = "$(members disk-begin)" ] ||
        fail "$what: estimated $estimate"
    case $mode,$what in
        copy,asked_for_a_copy) ;;
        full,*) ;;
        *) fail "$what: mode $mode" ;;
    esac
    echo "$why" | grep -q -- "$full" || fail "$what: the reason"
    grep -qF "(${why%%\\*}" <("$tidemark" info --at $number "$repo") ||
        fail "$what: manifest"
    check_restore "$repo" vda $number "$tmp/vda.raw"
    # After which an incremental is possible again.
    guest vda "write -P 3 ${number}k 1k"
    run_ok "$tidemark" backup --mode incremental "$ctl" "$repo"
    check_restore "$repo" vda $((number + 1)) "$tmp/vda.raw"
done <<<"$table"
[ $rows -eq 14 ] || fail "only $rows rows"
