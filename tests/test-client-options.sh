#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Options and arguments, right and wrong; the manual page has every option of
# every command, and no other.
. "${srcdir:-.}/client-test.sh"
requires podchecker
pod=$top_srcdir/docs/tidemark.pod
commands="backup bitmap check info list map restore store verify"

"$tidemark" --version | grep -q '^tidemark [0-9]' || fail "--version"
run_ok "$tidemark" --help
for c in $commands; do
    grep -q "^  $c " "$tmp/out" || fail "--help does not name $c"
    grep -q "^ tidemark $c " "$pod" || fail "the synopsis lacks $c"
done
for c in $commands; do
    wrong=2
    if [ $c = check ]; then wrong=1; fi
    run_ok "$tidemark" $c --help
    cp "$tmp/out" "$tmp/help"
    grep -q "^Usage: tidemark $c " "$tmp/help" || fail "$c --help"
    # Help comes whatever else is wrong.
    run_ok "$tidemark" $c --nonsense --help
    for o in $("$tidemark" $c --long-options); do
        grep -q -e " $o\( \|\$\)" "$tmp/help" || fail "$c --help lacks $o"
    done
    expect_status $wrong "unknown option '--nonsense'" "$tidemark" $c --nonsense
    first=$("$tidemark" $c --long-options | head -n 1)
    grep -q "Allowed options: .*$first" "$tmp/err" || fail "$c: what is allowed"
    expect_status $wrong "unknown option '-Z'" "$tidemark" $c -Z
    expect_status $wrong "missing argument" "$tidemark" $c
    expect_status $wrong "unexpected argument '" "$tidemark" $c a b c d
done

podchecker "$pod" 2>"$tmp/err" || { cat "$tmp/err" >&2; fail "tidemark.pod"; }
! grep WARNING "$tmp/err" || fail "tidemark.pod"
for c in $commands; do
    "$tidemark" $c --long-options | sort >"$tmp/program"
    awk -v c="$c" '/^=head/ { on = $1 == "=head2" && $2 == c } on' "$pod" |
        sed -n 's/^=item .*B<\(--[a-z-]*\)>.*/\1/p' | sort >"$tmp/manual"
    diff "$tmp/program" "$tmp/manual" || fail "$c: program and manual differ"
done

expect_status 2 "a command is missing" "$tidemark"
expect_status 2 "unknown command 'frob'" "$tidemark" frob
grep -q '^  restore ' "$tmp/err" || fail "the commands are not named"
expect_status 2 "unknown option '--frob'" "$tidemark" --frob

bad ()                          # bad TEXT ARGUMENT...
{
    local text=$1
    shift
    expect_status 2 "$text" "$tidemark" "$@"
}
sock=unix:/nonexistent
bad "--cluster-size 1000: not a power of two" \
    backup --cluster-size 1000 $sock "$tmp/r"
bad "--cluster-size 256: allowed are 512 B to 2 MiB" \
    backup --cluster-size 256 $sock "$tmp/r"
bad "--cluster-size" backup --cluster-size 4M $sock "$tmp/r"
bad "--cluster-size" backup --cluster-size big $sock "$tmp/r"
bad "--connections 0: allowed are whole numbers from 1 to 64" \
    backup --connections 0 $sock "$tmp/r"
bad "--lease 1e5: allowed are whole numbers from 1 to 86400" \
    backup --lease 1e5 $sock "$tmp/r"
bad "--disk needs a value: --disk NAME" backup $sock "$tmp/r" --disk
bad "--full takes no value" backup --full=yes $sock "$tmp/r"
bad "'../x' cannot be a disk in a repository: allowed are" \
    backup --disk ../x $sock "$tmp/r"
bad "cannot be empty" backup --disk= $sock "$tmp/r"
bad "give its name in the repository with one --disk NAME" \
    backup nbd://localhost "$tmp/r"
bad "give its name" backup nbd://localhost "$tmp/r" --disk a --disk b
for s in "$tmp/nothing" http://x x "" "tidemark:/x"; do
    bad "not a source; allowed are a control socket" backup "$s" "$tmp/r"
done
touch "$tmp/file"
bad "not a socket" backup "$tmp/file" "$tmp/r"
for s in tidemarks:// tidemarks://host tidemarks://:10811 \
    tidemarks://unix:/x tidemarks://host:10811/x; do
    bad "write tidemarks://HOST:PORT" backup "$s" "$tmp/r"
done
bad "--tls-user goes with --tls-psk alone" backup --tls-user x $sock "$tmp/r"
bad "TLS: $tmp/none" backup --tls-psk "$tmp/none" $sock "$tmp/r"
bad "needs TLS" backup tidemark://host "$tmp/r"
bad "absolute path" backup tidemark+unix://x "$tmp/r"
bad "--format vmdk: allowed are raw and qcow2" \
    restore --format vmdk "$tmp/r" "$tmp/x"
bad "--threads 0: allowed" verify --threads 0 "$tmp/r"
bad "unknown action 'frob'; allowed are add, remove, clear, list" \
    bitmap frob $sock
bad "add takes SOURCE and the NAME" bitmap add $sock
bad "list takes SOURCE and nothing else" bitmap list $sock x
bad "--granularity does not go with list" bitmap list $sock -g 64k
bad "over NBD bitmaps can only be listed" bitmap add nbd://localhost b
bad "--bitmap NAME is missing" map $sock
bad "--disk NAME is missing" map $sock --bitmap b
# Nothing was made on the way.
[ ! -e "$tmp/r" ] || fail "a repository was made"

expect_status 1 "/nonexistent" "$tidemark" bitmap list $sock
expect_status 1 "/nonexistent" "$tidemark" map $sock -d vda -b b
expect_status 1 "nothing.sock" \
    "$tidemark" bitmap list "nbd+unix:///?socket=$tmp/nothing.sock"
long=$(printf '%0200d' 0)
bad "can have 107 characters at most" bitmap list "unix:/$long"
# An output that cannot be written.
expect_status 1 "cannot write to stdout" \
    bash -c "\"$tidemark\" --long-options >/dev/full; \"$tidemark\" map --help >/dev/full"
