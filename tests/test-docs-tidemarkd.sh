#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The manual page has every option, no other, and is valid POD; control.md has
# every command.
. "${srcdir:-.}/control-test.sh"
requires podchecker
docs=$top_srcdir/docs
podchecker "$docs/tidemarkd.pod" 2>"$tmp/err" || {
    cat "$tmp/err" >&2
    fail "tidemarkd.pod"
}
if grep -q WARNING "$tmp/err"; then
    cat "$tmp/err" >&2
    fail "tidemarkd.pod"
fi
sed -n 's/^=item B<\(--[a-z-]*\)>.*/\1/p' "$docs/tidemarkd.pod" |
    sort >"$tmp/pod"
"$tidemarkd" --long-options | sort >"$tmp/program"
diff "$tmp/program" "$tmp/pod" || fail "options differ (program, manual)"
for o in $("$tidemarkd" --short-options); do
    grep -q "^=item B<$o>" "$docs/tidemarkd.pod" || fail "$o is not in the manual"
done

truncate -s 1M "$tmp/vda.raw"
background "$tidemarkd" --disk vda,file="$tmp/vda.raw" --control "unix:$tmp/ctl"
wait_for 20 python3 "$PYTHONPATH/qmp_client.py" "$tmp/ctl" query-version
python3 "$PYTHONPATH/qmp_client.py" "$tmp/ctl" query-commands |
    tr ',' '\n' | sed 's/.*"name": "\(.*\)".*/\1/' >"$tmp/commands"
[ "$(wc -l <"$tmp/commands")" -ge 16 ] || fail "query-commands"
while read -r c; do
    grep -qF "\`$c\`" "$docs/control.md" ||
        grep -q "^### $c\$" "$docs/control.md" ||
        fail "command $c is not in control.md"
done <"$tmp/commands"
