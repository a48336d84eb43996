#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# make install puts the three programs and their manual pages in place and
# nothing else; they run from there; make uninstall takes all of it away.
. ./functions.sh
requires pkg-config nbdkit

root=$tmp/root
make=("${MAKE:-make}" -s -C "$top_builddir" "DESTDIR=$root")
"${make[@]}" install >"$tmp/log" 2>&1 || fail "$(tail -n 20 "$tmp/log")"
plugindir=$(pkg-config --variable=plugindir nbdkit)
prefix=$(sed -n 's/^prefix = //p' "$top_builddir/Makefile")
(cd "$root" && find . ! -type d | sed 's/^\.//' | sort) \
    >"$tmp/files"
sort >"$tmp/expected" <<END
$plugindir/nbdkit-tidemark-plugin.so
$prefix/bin/tidemark
$prefix/sbin/tidemarkd
$prefix/share/man/man1/nbdkit-tidemark-plugin.1
$prefix/share/man/man1/tidemark.1
$prefix/share/man/man8/tidemarkd.8
END
diff "$tmp/expected" "$tmp/files" || fail "installed files"

"$root$prefix/bin/tidemark" --version | grep -q '^tidemark [0-9]' ||
    fail "tidemark does not run"
"$root$prefix/sbin/tidemarkd" --version | grep -q '^tidemarkd [0-9]' ||
    fail "tidemarkd does not run"
"${nbdkit[@]}" --dump-plugin "$root$plugindir/nbdkit-tidemark-plugin.so" |
    grep -q '^name=tidemark$' || fail "nbdkit does not load the plugin"
for page in "$root$prefix"/share/man/man*/*; do
    name=$(basename "$page")
    grep -q "^\.TH ${name%.*} ${name##*.} " "$page" || fail "$page is no manual page"
done

"${make[@]}" uninstall >"$tmp/log" 2>&1 || fail "$(tail -n 20 "$tmp/log")"
test -z "$(find "$root" ! -type d)" || fail "left: $(find "$root" ! -type d)"
