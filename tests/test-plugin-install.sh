#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# make install puts the plugin where pkg-config says that nbdkit looks, and
# nothing but what it runs from there.
. ./functions.sh
requires nbdkit pkg-config

dir=$(pkg-config --variable=plugindir nbdkit)
for d in common block server plugin docs; do
    ${MAKE:-make} -s -C "$top_builddir/$d" install DESTDIR="$tmp/root" \
        > "$tmp/log" 2>&1 || fail "$(cat "$tmp/log")"
done
installed=$tmp/root$dir/nbdkit-tidemark-plugin.so
test -e "$installed" || fail "not in $dir: $(find "$tmp/root")"
find "$tmp/root" -name '*.so*' | grep -v nbdkit-tidemark-plugin.so &&
    fail "more than one library"
find "$tmp/root" -name 'nbdkit-tidemark-plugin.1*' | grep -q . ||
    fail "no manual page"
"${nbdkit[@]}" --dump-plugin "$installed" | grep -q '^name=tidemark$' ||
    fail "it does not load"
