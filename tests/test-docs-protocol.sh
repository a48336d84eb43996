#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# docs/protocol.md: every number of the protocol has its row, and every test
# that is named there exists.
. ./functions.sh
doc=$top_srcdir/docs/protocol.md

# Magic numbers, sizes and reply types have no rows of their own.
names=$(grep -o 'NBD_\(OPT\|INFO\|CMD\|FLAG\|REP\|E\)[A-Z_]*' \
            "$top_srcdir/common/nbd-protocol.h" | sort -u |
        grep -v '^NBD_\(OPTION.*\|REPLY.*\|REP_ERROR\|EXTENDED_.*\|CMD_FLAG\)$')
test "$(echo "$names" | wc -l)" -gt 40 || fail "no numbers found"
for name in $names; do
    grep -q "\`$name\`" "$doc" || fail "$name is not in protocol.md"
done

# "FILE: FUNCTION, FUNCTION; FILE: ..." in the last column, or in the text.
python3 - "$doc" "$top_srcdir/tests" <<'PY' || fail "protocol.md names what is not there"
import os, re, sys

doc = open(sys.argv[1]).read()
bad = nr = 0
for name, functions in re.findall(
        r"([a-z-]+(?:\.py|\.sh)?): ((?:test_\w+,?\s*)+)", doc):
    path = os.path.join(sys.argv[2], name)
    if "." not in name:
        path = os.path.join(sys.argv[2], "unit", name + ".c")
    source = open(path).read()
    for function in re.findall(r"test_\w+", functions):
        nr += 1
        if not re.search(rf"^(def )?{function} \(void|^def {function}\(",
                         source, re.M):
            print(f"{name} has no {function}")
            bad += 1
for name in re.findall(r"[a-z-]+\.sh", doc):
    if not os.path.exists(os.path.join(sys.argv[2], name)):
        print(f"no {name}")
        bad += 1
# And the other way round: no test of the server is missing.
for name in ("server-handshake.py", "server-commands.py", "server-status.py",
             "server-hostile.py", "server-tls.py"):
    for function in re.findall(r"^def (test_\w+)", open(
            os.path.join(sys.argv[2], name)).read(), re.M):
        if not re.search(rf"\b{function}\b", doc):
            print(f"{function} of {name} is not in the table")
            bad += 1
print(nr, "tests named")
sys.exit(1 if bad or nr < 60 else 0)
PY
