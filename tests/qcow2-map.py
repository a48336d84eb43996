#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Compare our map of an image ("qcow2-io map" on stdin) with qemu-img's.

usage: qcow2-map.py MAP.json <OUR-MAP

The same depth everywhere, and zero exactly where qemu-img says so.
"""

import json
import sys

UNIT = 512


def expand(ranges):
    """(start, length, value)... as one value for each unit."""
    out = []
    for start, length, value in ranges:
        if start != len(out) * UNIT or length <= 0 or length % UNIT:
            sys.exit(f"range {start}+{length} does not follow")
        out += [value] * (length // UNIT)
    return out


ours = {"alloc": [], "depth": []}
for line in sys.stdin:
    what, off, length, value = line.split()
    ours[what].append((int(off), int(length), int(value)))
for what, ranges in ours.items():
    values = [r[2] for r in ranges]
    if what == "depth" and any(a == b for a, b in zip(values, values[1:])):
        sys.exit("equal neighbours are not merged")

with open(sys.argv[1]) as f:
    theirs = json.load(f)
depth = expand([(r["start"], r["length"],
                 r["depth"] + 1 if r["present"] else 0) for r in theirs])
zero = expand([(r["start"], r["length"], r["zero"]) for r in theirs])
got_depth = expand(ours["depth"])
got_zero = expand([(o, n, bool(v & 2)) for o, n, v in ours["alloc"]])
for name, got, want in (("depth", got_depth, depth),
                        ("zero", got_zero, zero)):
    if len(got) != len(want):
        sys.exit(f"{name}: {len(got)} units, not {len(want)}")
    for i, (a, b) in enumerate(zip(got, want)):
        if a != b:
            sys.exit(f"{name} at {i * UNIT} is {a}, qemu-img says {b}")
