#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What HACKING asks of every file: a licence line at its top; of C code: no tabs,
# 80 columns, functions of 100 lines and files of 1000 at most.
. ./functions.sh

cd "$top_srcdir"
# The sources, without what is built in the same folders.
find . \( -name .git -o -path ./build -o -name '.deps' \
          -o -name autom4te.cache -o -name __pycache__ \
          -o -path './tidemark-[0-9]*' -o -path './files.*' \) -prune -o \
    -type f \( -name '*.[ch]' -o -name '*.sh' -o -name '*.py' -o -name '*.mk' \
        -o -name '*.am' -o -name '*.ac' -o -name '*.in' -o -name '*.md' \
        -o -name '*.pod' -o -name quickstart -o -path ./bench/bench \
        -o -path ./.ci/run \) -print |
    grep -v -e '/Makefile\.in$' -e '^\./config\.h\(\.in\)\?' \
        -e '^\./tests/functions\.sh$' -e '^\./autogen\.sh' |
    sort >"$tmp/files"
echo ./autogen.sh >>"$tmp/files"
test "$(wc -l <"$tmp/files")" -gt 250 || fail "too few files"

# check FILES: what is wrong, one line each, on standard output.
check ()
{
    while read -r f; do
        head -n 4 "$f" | grep -q 'SPDX-License-Identifier: BSD-3-Clause' ||
            echo "$f: no SPDX line at its top"
    done <"$1"
    grep '\.[ch]$' "$1" | xargs awk '
        function end () { if (lines > 1000) print file ": " lines " lines" }
        FNR == 1 { end (); file = FILENAME; start = 0 }
        { lines = FNR }
        /^{/ { start = FNR }
        /^}/ && start {
            if (FNR - start - 1 > 100)
                print FILENAME ":" start ": a function of " \
                      FNR - start - 1 " lines"
            start = 0
        }
        /\t/ { print FILENAME ":" FNR ": a tab" }
        length > 80 { print FILENAME ":" FNR ": longer than 80 columns" }
        / +$/ { print FILENAME ":" FNR ": space at the end" }
        END { end () }'
}

check "$tmp/files" >"$tmp/wrong"
if [ -s "$tmp/wrong" ]; then
    cat "$tmp/wrong" >&2
    fail "see above"
fi

# It finds each of these.
{
    printf 'int f (void)\n{\n'
    for i in {1..101}; do echo '  g ();'; done
    printf '}\n\tx\ny \n%081d\n' 0
    for i in {1..1000}; do echo; done
} >"$tmp/bad.c"
echo "$tmp/bad.c" >"$tmp/files"
check "$tmp/files" >"$tmp/wrong"
test "$(wc -l <"$tmp/wrong")" = 6 || fail "found only: $(cat "$tmp/wrong")"
