#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Who may include whom (docs/architecture.md): common <- block <- server <-
# plugin; client uses common and block, but not what holds a live disk, and the
# server only through service.h; the pure modules of block use common alone.
. ./functions.sh

cd "$top_srcdir"

# Every "..." include of the five folders, read once: included[FILE].
read_includes ()
{
    local file header
    unset included
    declare -gA included
    while IFS=: read -r file header; do
        included[$file]+="$header "
    done < <(grep -H '^ *# *include *"' \
                 {common,block,server,plugin,client}/*.[ch] |
             sed 's/^\([^:]*\):[^"]*"\([^"]*\)".*/\1:\2/')
}

# find_includes FILE DIR...: in $found, the includes of FILE that come from one
# of the directories, or, if its own is one of them, from there.  (The compiler
# looks there first.)
find_includes ()
{
    local file=$1 header dir own
    shift
    found=()
    own=${file%/*}
    for header in ${included[$file]-}; do
        for dir; do
            if [ "$dir" != "$own" ] && [ -e "$own/$header" ]; then
                continue
            fi
            if [ -e "$dir/${header##*/}" ]; then
                found+=("$header")
            fi
        done
    done
}

# forbid WHY DIR... -- FILE...: no FILE includes a header of a DIR.
forbid ()
{
    local why=$1 file header
    local dirs=()
    shift
    while [ "$1" != -- ]; do
        dirs+=("$1")
        shift
    done
    shift
    for file; do
        nr_checked=$((nr_checked + 1))
        find_includes "$file" "${dirs[@]}"
        for header in "${found[@]}"; do
            echo "$file includes $header: $why" >&2
            nr_wrong=$((nr_wrong + 1))
        done
    done
}

check_all ()
{
    nr_checked=0
    nr_wrong=0
    read_includes
    forbid "common is below all others" \
           block server plugin client -- common/*.[ch]
    forbid "block is below the server" server plugin client -- block/*.[ch]
    forbid "the server is below the plugin" plugin client -- server/*.[ch]
    forbid "the plugin is not the client" client -- plugin/*.[ch]

    local file header own
    for file in client/*.[ch]; do
        nr_checked=$((nr_checked + 1))
        find_includes "$file" block server plugin
        for header in "${found[@]}"; do
            case $file:$header in
                client/cmd-serve.c:service.h) ;;
                *:disk.h | *:cbw.h | *:session.h | *:dirty.h | *:gate.h)
                    echo "$file includes $header: a client has no live disk" >&2
                    nr_wrong=$((nr_wrong + 1)) ;;
                *)
                    if [ ! -e "block/$header" ]; then
                        echo "$file includes $header: client uses common and" \
                             "block" >&2
                        nr_wrong=$((nr_wrong + 1))
                    fi ;;
            esac
        done
    done

    for own in bitmap reqlist extents gate; do
        for file in "block/$own.h" "block/$own.c"; do
            nr_checked=$((nr_checked + 1))
            find_includes "$file" block
            for header in "${found[@]}"; do
                if [ "$header" != "$own.h" ]; then
                    echo "$file includes $header: it uses common only" >&2
                    nr_wrong=$((nr_wrong + 1))
                fi
            done
        done
    done
}

check_all
if [ $nr_checked -lt 40 ]; then fail "only $nr_checked files were found"; fi
if [ $nr_wrong -ne 0 ]; then fail "$nr_wrong wrong includes"; fi

# The check finds each kind of breach.
cp -r common block server plugin client "$tmp"
cd "$tmp"
breach ()
{
    cp "$1" "$tmp/saved"
    echo "#include \"$2\"" >> "$1"
    check_all 2>/dev/null
    if [ $nr_wrong -eq 0 ]; then fail "$1 including $2 was not found"; fi
    cp "$tmp/saved" "$1"
}
breach common/range.h blk.h
breach block/blk.c export.h
breach client/main.c disk.h
breach client/main.c service.h
breach block/bitmap.c blk.h
breach block/gate.h extents.h
