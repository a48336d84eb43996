# SPDX-License-Identifier: BSD-3-Clause
# Sourced by quickstart: every test in every build, and the sum.

passed=0
failed=0
failures=()

count ()                        # count NAME STATUS
{
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        printf 'PASS: %s\n' "$1"
    else
        failed=$((failed + 1))
        failures+=("$1")
        printf 'FAIL: %s\n' "$1"
    fi
}

# Add up the results that automake's test driver left in build/NAME.  A skip
# counts as a failure, for everything that is needed has been installed.
count_results ()
{
    local trs name result
    while read -r trs; do
        result=$(sed -n 's/^:global-test-result: //p' "$trs")
        name="$1: $(basename "$trs" .trs)"
        if [ "$result" = PASS ]; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            failures+=("$name ($result)")
            printf 'FAIL: %s\n' "$name"
            tail -n 40 "${trs%.trs}.log" | sed 's/^/    /'
        fi
    done < <(find "$out/$1/tests" -name '*.trs' | sort)
}

# check_tree NAME CONFIGURE-ARGUMENT...: build it and run its tests.
check_tree ()
{
    local name=$1 start=$SECONDS before
    before=$((passed + failed))
    say "build and tests: $*"
    if ! (build_tree "$@"); then
        count "$name: build" 1
        return
    fi
    find "$out/$name/tests" \( -name '*.trs' -o -name '*.log' \) -delete
    # One more than there are processors: tests wait for disks.
    make -C "$out/$name" -k check -j$((jobs + 1)) \
        >"$out/$name-check.log" 2>&1 || :
    count_results "$name"
    if [ $((passed + failed)) -eq "$before" ]; then
        tail -n 30 "$out/$name-check.log"
        count "$name: no test has run" 1
    fi
    printf '%s: %d tests, %d s\n' "$name" $((passed + failed - before)) \
        $((SECONDS - start))
}

# fuzz ENGINE CC CONFIGURE-ARGUMENT...: build the fuzz targets and run each for
# FUZZ_SECONDS.  What they find stays in build/fuzz-ENGINE/found.
fuzz ()
{
    local dir=$out/fuzz-$1 engine=$1 status=0
    shift
    mkdir -p "$dir"
    if ! (
        cd "$dir"
        export AFL_QUIET=1
        if [ ! -e config.status ] || [ "$top/configure" -nt config.status ]
        then
            "$top/configure" "$@" CFLAGS='-g -O1' --enable-fuzzing \
                --enable-sanitizers=address,undefined
        fi
        for part in common block fuzzing; do make -j"$jobs" -C $part; done
    ) >"$dir.log" 2>&1; then
        tail -n 30 "$dir.log"
        count "fuzzing with $engine: build" 1
        return
    fi
    "$top/fuzzing/run-fuzzers.sh" "$engine" "$dir" "$dir/found" || status=1
    count "fuzzing with $engine" $status
}

check_all ()
{
    local status f
    check_tree gcc --enable-gcc-warnings
    check_tree asan --enable-gcc-warnings \
        --enable-sanitizers=address,undefined
    check_tree tsan --enable-gcc-warnings --enable-sanitizers=thread

    say "clang"
    status=0
    (build_tree clang --enable-gcc-warnings CC=clang) || status=1
    count "builds with clang without warnings" $status

    say "fuzzing"
    fuzz libfuzzer CC=clang
    fuzz afl CC=afl-clang-fast

    say "distribution tarball"
    status=0
    # The tests have run above; here one shows that the tarball is whole.
    make -C "$out/gcc" distcheck TESTS=test-include-directions.sh \
        >"$out/distcheck.log" 2>&1 || status=1
    if [ $status -ne 0 ]; then tail -n 30 "$out/distcheck.log"; fi
    count "make distcheck" $status

    say "the main job"
    status=0
    "$top/quickstart" || status=1
    count "the main job on real data" $status

    for f in "${failures[@]:-}"; do
        if [ -n "$f" ]; then printf 'failed: %s\n' "$f"; fi
    done
    printf '%d passed, %d failed\n' "$passed" "$failed"
    [ "$failed" -eq 0 ]
}
