#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The systemd units are generated and name our programs, which take the options
# that are in them; systemd finds no fault with them.
. ./functions.sh
requires systemd-analyze
units=$top_builddir/systemd
if grep -r '@[a-z]*dir@' "$units"/*.service; then fail "not substituted"; fi
grep -q '^ExecStart=/.*/sbin/tidemarkd \$OPTIONS$' "$units/tidemarkd.service" ||
    fail "tidemarkd.service"
grep -q '^ExecStart=/.*/bin/tidemark backup \$OPTIONS ' \
    "$units/tidemark-backup@.service" || fail "tidemark-backup@.service"
# The programs are where they are built, and instances have names.
for unit in tidemarkd.service tidemark-backup@.service; do
    sed "s|^ExecStart=[^ ]*/tidemarkd|ExecStart=$tidemarkd|
         s|^ExecStart=[^ ]*/tidemark |ExecStart=$tidemark |
         /^Documentation/d" "$units/$unit" >"$tmp/${unit/@/@x}"
done
sed /^Documentation/d "$top_srcdir/systemd/tidemark-backup@.timer" \
    >"$tmp/tidemark-backup@x.timer"
systemd-analyze verify "$tmp"/*.service "$tmp"/*.timer >"$tmp/log" 2>&1 ||
    { cat "$tmp/log"; fail "systemd-analyze verify"; }
if grep "$tmp\|tidemark" "$tmp/log"; then fail "the above"; fi
