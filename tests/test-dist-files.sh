#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The tarball has every file of the repository, so that what it holds can be
# built, tested and worked on.
. ./functions.sh
requires git

# There is nothing to compare with in an unpacked tarball.
if [ ! -e "$top_srcdir/.git" ]; then exit 77; fi
git -c safe.directory='*' -C "$top_srcdir" ls-files >"$tmp/files"
test "$(wc -l <"$tmp/files")" -gt 200 || fail "git lists too few files"

# It can only be made in the build tree: under a name of its own.
name=files.$$
version=$(sed -n 's/^#define PACKAGE_VERSION "\(.*\)"/\1/p' \
              "$top_builddir/config.h")
dist=$top_builddir/$name-$version
test_cleanup+=('chmod -R u+w "$dist"; rm -rf "$dist"')
${MAKE:-make} -s -C "$top_builddir" distdir "PACKAGE=$name" \
    >"$tmp/log" 2>&1 || fail "make distdir: $(tail "$tmp/log")"
while read -r file; do
    case $file in
        .gitignore) ;;
        *) test -e "$dist/$file" || echo "$file" ;;
    esac
done <"$tmp/files" >"$tmp/missing"
if [ -s "$tmp/missing" ]; then
    cat "$tmp/missing" >&2
    fail "not in the tarball; list them in EXTRA_DIST"
fi

# Nor has it anything that only this machine knows.
for file in config.status config.h functions.sh; do
    test -z "$(find "$dist" -name "$file")" || fail "$file is in it"
done
