#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# run-fuzzers.sh ENGINE BUILD-DIR OUT-DIR [SECONDS]
#
# Run every fuzz target of a tree that was configured with --enable-fuzzing for
# SECONDS (60, or $FUZZ_SECONDS).  ENGINE is libfuzzer (CC=clang) or afl
# (CC=afl-clang-fast).  Corpora and crashes are kept in OUT-DIR/TARGET; what is
# already there is gone on with.  A crash is a failure, and its file is named.

set -e -u -o pipefail
export LC_ALL=C
top=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 3 ] || { sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 2; }
engine=$1
build=$(cd "$2" && pwd)
mkdir -p "$3"
out=$(cd "$3" && pwd)
seconds=${4:-${FUZZ_SECONDS:-60}}
export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1:halt_on_error=1
export ASAN_OPTIONS=abort_on_error=1:symbolize=0:detect_leaks=0

# An input may take this long, in ms and in MB.
time_limit=10000
memory_limit=2048

# The seeds and the inputs that once crashed.
seeds ()
{
    rm -rf "$out/$1/seeds"
    mkdir -p "$out/$1/seeds"
    "$top/seeds-$1.py" "$out/$1/seeds"
    if [ -d "$top/crashes/$1" ]; then
        cp "$top/crashes/$1"/* "$out/$1/seeds/"
    fi
}

run_libfuzzer ()
{
    mkdir -p "$out/$1/corpus" "$out/$1/crashes"
    ASAN_OPTIONS=abort_on_error=1:detect_leaks=1 \
    "$build/fuzzing/fuzz-$1" -max_total_time="$seconds" -max_len=200000 \
        -timeout=$((time_limit / 1000)) -rss_limit_mb=$memory_limit \
        -artifact_prefix="$out/$1/crashes/" -print_final_stats=1 \
        "$out/$1/corpus" "$out/$1/seeds" >"$out/$1/log" 2>&1
}

run_afl ()
{
    local start=("-i" "$out/$1/seeds")
    if [ -d "$out/$1/default/queue" ]; then start=("-i" "-"); fi
    AFL_NO_UI=1 AFL_SKIP_CPUFREQ=1 AFL_NO_AFFINITY=1 \
    AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 \
    AFL_MAP_SIZE=262144 \
        afl-fuzz "${start[@]}" -o "$out/$1" -m none -t "$time_limit" \
        -V "$seconds" "$build/fuzzing/fuzz-$1" >"$out/$1/log" 2>&1
}

# What was found, one path a line.
findings ()
{
    find "$out/$1/crashes" "$out/$1/default/crashes" \
        "$out/$1/default/hangs" -type f ! -name README.txt 2>/dev/null || :
}

# What the log says but for its progress, and the inputs themselves: where only
# what is printed is kept, a finding is not lost.
show ()
{
    local f packed nr=0
    grep -v -E '^#[0-9]+[[:space:]]' "$out/$1/log" | tail -n 60 || :
    while read -r f; do
        nr=$((nr + 1))
        if [ -z "$f" ] || [ $nr -gt 3 ]; then break; fi
        packed=$(xz -9 -c "$f" | base64)
        if [ ${#packed} -gt 20000 ]; then
            printf '%s: too long to be printed\n' "$f"
            continue
        fi
        printf '%s; to have it again: base64 -d | xz -d >FILE\n%s\n' "$f" \
            "$packed"
    done <<<"$2"
}

bad=0
for source in "$top"/fuzz-*.c; do
    target=$(basename "$source" .c)
    target=${target#fuzz-}
    seeds "$target"
    status=0
    "run_$engine" "$target" || status=$?
    found=$(findings "$target")
    if [ $status -ne 0 ] || [ -n "$found" ]; then
        show "$target" "$found"
        printf 'fuzz-%s (%s): FAILED; %s\n' "$target" "$engine" \
            "${found:-see $out/$target/log}"
        bad=1
    else
        printf 'fuzz-%s (%s): nothing found in %s s\n' "$target" "$engine" \
            "$seconds"
    fi
done
exit $bad
