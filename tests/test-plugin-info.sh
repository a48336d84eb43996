#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit --dump-plugin and --help; the plugin exports one symbol; its manual
# page knows every parameter.
. ./functions.sh
requires nbdkit nm

"${nbdkit[@]}" --dump-plugin "$plugin" > "$tmp/dump"
for line in name=tidemark thread_model=parallel magic_config_key=file \
            has_extents=1 has_cache=1 has_list_exports=1 has_block_size=1 \
            tidemark_version= tidemark_formats= tidemark_contexts= \
            tidemark_features=; do
    grep -q "^$line" "$tmp/dump" || fail "no $line in $(cat "$tmp/dump")"
done

"${nbdkit[@]}" --help "$plugin" > "$tmp/help"
pod=$top_srcdir/docs/nbdkit-tidemark-plugin.pod
for key in file disk bitmap control backup scratch-dir scratch-limit; do
    grep -q "$key=" "$tmp/help" || fail "--help does not know $key"
    grep -q "^=item .*B<$key=[>u]" "$pod" || fail "the manual does not know $key"
    # Known to the code: a complaint about the value, not about the key.
    "${nbdkit[@]}" -U - "$plugin" "$key=" --run : 2> "$tmp/err" &&
        fail "an empty $key was accepted"
    grep -q "unknown parameter" "$tmp/err" && fail "$key is not a parameter"
done

# A sanitizer's build has more.
if [ "$sanitizers" = no ]; then
    nm -D --defined-only "$plugin" | awk '{ print $3 }' > "$tmp/symbols"
    test "$(cat "$tmp/symbols")" = plugin_init ||
        fail "exported: $(cat "$tmp/symbols")"
fi
