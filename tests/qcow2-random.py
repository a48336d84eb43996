#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Random changes of one image by our driver and by qemu-io in turn.

usage: qcow2-random.py QCOW2-IO DIRECTORY SEED SHARE [matrix | NUMBER...]

Every SHAREth of the images, or those of the numbers.

After each turn "qemu-img check" must find neither errors nor leaks, and both
programs must read what a model holds.

Without "matrix": some kinds of images, with internal snapshots, preallocation
and changes of their size.

"matrix": of the product of version, cluster size, refcount width, extended L2
entries, compression, data file and depth (1, 2 to 8, 9 to 32 layers), which has
some 2,000 members that are allowed, there are so many that each pair of values
of two of them occurs that is allowed at all, and others at random; the seed
decides which.  They are the layers of chains, so that each depth from 1 to 32
occurs, and layers of all kinds lie on each other.
"""

import itertools
import os
import random
import subprocess
import sys

KIB = 1024
TURNS = 2
OPS = 12

tool, directory, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
os.chdir(directory)


def run(*args, stdin=""):
    r = subprocess.run(args, input=stdin, capture_output=True, text=True)
    if r.returncode != 0:
        sys.exit(f"{' '.join(args)}\n{stdin}\n{r.stdout}{r.stderr}"
                 f"failed with status {r.returncode} (seed {seed})")
    return r.stdout


class Disk:
    def __init__(self, name, size, cluster, options, base=None, packs=None):
        self.name, self.size, self.cluster = name, size, cluster
        self.options = options
        self.data = None
        if "data_file" in options:
            self.data = name + ".data"
            options += f",data_file={self.data}"
        self.is_v2 = "compat=0.10" in options
        self.packs = packs
        if packs is None:
            # Each compressed cluster in a host cluster counts: with narrow
            # refcounts no snapshot could count once more.
            self.packs = not self.data and not options.endswith(
                ("refcount_bits=2", "refcount_bits=4"))
        # Our driver compresses nothing with extended entries.
        self.we_pack = self.packs and "extended_l2=on" not in options
        self.base = base
        self.model = bytearray(size)
        self.touched = set()    # clusters: qemu-io compresses only new ones
        if "preallocation" in options:
            self.touched.update(range(size // cluster + 1))
        options = f"cluster_size={cluster}," + options
        if base:
            options += f",backing_file={base.name},backing_fmt=qcow2"
            n = min(size, base.size)
            self.model[:n] = base.model[:n]
        # Commands that our next process begins with, and whether it has also
        # read what there is now: a process costs more than what it does.
        self.pending, self.is_dumped = [], False
        if base:
            base.run_pending()
        if rng.randrange(2):
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, name,
                str(size))
        else:
            self.pending = [f"new {name} {size} {options.replace(',', ' ')}",
                            "close"]

    def range(self):
        unit = rng.choice([512, 512, self.cluster])
        off = rng.randrange(self.size) // unit * unit
        length = rng.randrange(1, 5 * self.cluster)
        length = (length + unit - 1) // unit * unit
        return off, min(length, self.size - off)

    def fill(self, off, length, byte):
        self.model[off:off + length] = bytes([byte]) * length
        self.touched.update(range(off // self.cluster,
                                  (off + length - 1) // self.cluster + 1))

    def trim(self, off, length):
        end = off + length
        if self.is_v2 and self.base and off < self.base.size:
            # Nothing can say zero: whole clusters under the base stay.
            off = min(self.base.size, end)
        off = (off + self.cluster - 1) // self.cluster * self.cluster
        if end < self.size:
            end = end // self.cluster * self.cluster
        if off < end:
            self.fill(off, end - off, 0)

    def run_pending(self, lines=()):
        lines = self.pending + list(lines)
        self.pending = []
        if lines:
            run(tool, stdin="\n".join(lines) + "\n")

    def dump(self):
        return [f"open {self.name} ro", "dump dump", "close"]

    def ours(self, nr=OPS):
        lines = ["open " + self.name]
        for _ in range(nr):
            op = rng.choice(["write", "write", "write", "zero", "unmap",
                             "trim", "flush"] + ["pack"] * self.we_pack)
            off, length = self.range()
            byte = rng.randrange(1, 256)
            if op == "flush":
                lines.append(op)
                continue
            lines.append(f"{op} {off} {length} {byte}")
            if op == "trim":
                self.trim(off, length)
            else:
                self.fill(off, length, byte if op in ("write", "pack") else 0)
        self.run_pending(lines + ["flush", "close"] + self.dump())
        self.is_dumped = True

    def qemu(self, nr=OPS):
        self.run_pending()
        self.is_dumped = False
        args = ["qemu-io", "-f", "qcow2"]
        ops = rng.choices(["write -P", "write -P", "write -z",
                           "write -z -u", "write -c -P"], k=nr)
        # Last, as QEMU (7.2) itself overwrites other data if a cluster that
        # it has compressed is freed and another is compressed afterwards.
        for op in sorted(ops, key=lambda op: "-c" in op):
            off, length = self.range()
            byte = rng.randrange(1, 256)
            if "-c" in op:
                if not self.packs:
                    continue
                off = off // self.cluster * self.cluster
                length = min(self.cluster, self.size - off)
                if off // self.cluster in self.touched:
                    continue
            if "-P" in op:
                args += ["-c", f"{op} {byte} {off} {length}"]
                self.fill(off, length, byte)
            else:
                args += ["-c", f"{op} {off} {length}"]
                self.fill(off, length, 0)
        run(*args, self.name)

    def resize(self, has_snapshot):
        """Grow and shrink, by both programs, with writes in between."""
        if self.is_v2 and has_snapshot:
            return
        for _ in range(3):
            size = max(self.size * rng.randrange(30, 170) // 100 // 512, 1)
            size *= 512
            # QEMU (7.2) shows what an earlier shrink has left behind the end
            # of the last cluster.
            is_ours = size > self.size and self.size % self.cluster
            self.model = self.model[:size].ljust(size, b"\0")
            self.size = size
            if "metadata" in self.options or "full" in self.options:
                self.touched.update(range(10000))
            if rng.randrange(3) or is_ours:
                self.pending += [f"open {self.name}", f"resize {size}", "close"]
            else:
                self.run_pending()
                run("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink",
                    self.name, str(size))
            self.ours(4)
            self.check()

    def check(self, is_compared=True):
        if not self.is_dumped:
            self.run_pending(self.dump())
        # Without what lies below, which takes longer to open.
        run("qemu-img", "check", "-q", f'json:{{"driver": "qcow2", "file": '
            f'{{"driver": "file", "filename": "{self.name}"}}, '
            '"backing": null}')
        with open("model", "wb") as f:
            f.write(self.model)
        if is_compared:
            run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2",
                "model", self.name)
        if "data_file_raw=on" in self.options:
            # qemu-img create makes it end with a whole cluster.
            run("cmp", "-n", str(self.size), "model", self.data)
        with open("dump", "rb") as f:
            got = f.read()
        if got != self.model:
            at = next(i for i in range(self.size) if got[i] != self.model[i])
            sys.exit(f"{self.name}: byte {at} is {got[at]}, not "
                     f"{self.model[at]} (seed {seed})")


def one(number, options, cluster, depth, has_snapshot):
    # More than the 64 entries that fit into one sector of a table.
    nr = rng.randrange(120, 160) if cluster < 16 * KIB else 50
    if cluster >= 1024 * KIB:
        nr = 9
    size = nr * cluster + rng.choice([0, 512])
    disk = None
    for layer in range(depth):
        disk = Disk(f"{number}-{layer}.qcow2", size + rng.randrange(-9, 9)
                    * 512, cluster, options, disk)
        rng.choice([disk.ours, disk.qemu])()
    saved = None
    for turn in range(TURNS):
        disk.ours()
        disk.check()
        if has_snapshot and turn == 0:
            run("qemu-img", "snapshot", "-c", "s", disk.name)
            saved = bytes(disk.model)
            # All tables are shared now: we are the first to change them, and
            # what we do not touch in them has to stay.
            disk.ours(1)
            disk.check()
        disk.qemu()
        disk.check()
    disk.resize(has_snapshot)
    if has_snapshot:
        disk.ours()
        disk.check()
        run("qemu-img", "snapshot", "-a", "s", disk.name)
        disk.model = bytearray(saved)
        disk.size = len(saved)
        disk.is_dumped = False
        disk.check()
        run("qemu-img", "snapshot", "-d", "s", disk.name)
        disk.ours()
        disk.check()


# --- the matrix

FACTORS = {
    "version": (2, 3),
    "cluster": tuple(512 << n for n in range(13)),
    "width": (1, 2, 4, 8, 16, 32, 64),
    "extended": (False, True),
    "packed": (None, "zlib", "zstd"),
    "data": (None, "off", "on"),                # data_file_raw
    "depth": (1, 8, 32),                        # at most; more than the former
}
CHAIN_SIZE = 3 * KIB * KIB


def is_allowed(row):
    if row["version"] == 2 and (row["width"] != 16 or row["extended"]
                                or row["packed"] == "zstd" or row["data"]):
        return False
    if row["extended"] and row["cluster"] < 16 * KIB:
        return False
    if row["data"] and row["packed"]:
        return False
    return row["data"] != "on" or row["depth"] == 1


def pairs(row):
    return itertools.combinations(row.items(), 2)


def all_pairs():
    """Rows that hold all pairs, and all that are allowed."""
    rows = [dict(zip(FACTORS, values))
            for values in itertools.product(*FACTORS.values())]
    rows = [r for r in rows if is_allowed(r)]
    having = {}
    for row in rows:
        for pair in pairs(row):
            having.setdefault(pair, []).append(row)
    left, chosen = dict.fromkeys(having), []
    while left:
        candidates = having[next(iter(left))]
        candidates = rng.sample(candidates, min(25, len(candidates)))
        # Those without a backing file cost least.
        best = max(candidates, key=lambda r: (sum(p in left for p in pairs(r)),
                                              -r["depth"]))
        chosen.append(best)
        for pair in pairs(best):
            left.pop(pair, None)
    return chosen, rows


def chains():
    """Lists of rows, from the base upwards; the first has 32 layers."""
    chosen, allowed = all_pairs()
    rng.shuffle(chosen)
    wait = {d: [r for r in chosen if r["depth"] == d]
            for d in FACTORS["depth"]}
    any_of = {d: [r for r in allowed if r["depth"] == d]
              for d in FACTORS["depth"]}

    def take(depth, nr, is_filled):
        rows = [wait[depth].pop() for _ in range(min(nr, len(wait[depth])))]
        if is_filled:
            rows += rng.choices(any_of[depth], k=nr - len(rows))
        return rows

    ret = []
    while any(wait.values()):
        is_long = not ret or bool(wait[32])
        ret.append(take(1, 1, True) + take(8, 7, is_long)
                   + take(32, 24 if is_long else 0, not ret))
    return ret


def options_of(row):
    options = "compat=0.10" if row["version"] == 2 else \
        f"compat=1.1,refcount_bits={row['width']}"
    if row["extended"]:
        options += ",extended_l2=on"
    if row["packed"] == "zstd":
        options += ",compression_type=zstd"
    if row["data"]:
        options += f",data_file_raw={row['data']}"
    return options


def one_chain(number, rows):
    disk = None
    for layer, row in enumerate(rows):
        disk = Disk(f"m{number}-{layer}.qcow2",
                    CHAIN_SIZE + rng.randrange(-9, 9) * 512, row["cluster"],
                    options_of(row), disk, bool(row["packed"]))
        # Who has not made it changes it, and sometimes the other one does, too.
        turns = [disk.qemu if disk.pending else disk.ours]
        if rng.randrange(5) == 0:
            turns.append(disk.ours if disk.pending else disk.qemu)
        for turn in turns:
            turn(8)
            # QEMU takes long to open many layers; we read all each time.
            disk.check(layer < 8 or layer % 4 == 3 or layer == len(rows) - 1)


def matrix(share):
    all_chains = chains()
    rows = [(depth, row) for c in all_chains
            for depth, row in enumerate(c, 1)]
    print(f"{len(rows)} images of the matrix in {len(all_chains)} chains")
    # What is promised above.
    assert {depth for depth, _ in rows} == set(range(1, 33))
    for depth, row in rows:
        assert row["depth"] == min(d for d in FACTORS["depth"] if d >= depth)
    for name, values in FACTORS.items():
        assert {row[name] for _, row in rows} == set(values)
    for number, rows in enumerate(all_chains):
        if number % share == seed % share:
            one_chain(number, rows)


def main():
    if sys.argv[5:] == ["matrix"]:
        matrix(int(sys.argv[4]))
        return
    cases = [
        # options, cluster, layers, with a snapshot
        ("compat=0.10", 4 * KIB, 2, True),
        ("compat=0.10,preallocation=falloc", 8 * KIB, 1, True),
        ("compat=1.1", 64 * KIB, 1, True),
        ("compat=1.1", 512, 3, True),
        ("compat=1.1,refcount_bits=64", 4 * KIB, 2, True),
        ("compat=1.1,refcount_bits=32", 2 * KIB, 1, True),
        ("compat=1.1,refcount_bits=8", 4 * KIB, 2, True),
        ("compat=1.1,refcount_bits=4", 64 * KIB, 2, True),
        ("compat=1.1,refcount_bits=2", 1 * KIB, 1, True),
        ("compat=1.1,refcount_bits=1", 4 * KIB, 1, False),
        ("compat=1.1,compression_type=zstd", 64 * KIB, 1, False),
        ("compat=1.1,lazy_refcounts=on", 16 * KIB, 1, False),
        ("compat=1.1", 2048 * KIB, 1, False),
        ("compat=1.1,preallocation=metadata", 64 * KIB, 1, False),
        ("compat=1.1,preallocation=full", 4 * KIB, 1, True),
        ("compat=1.1,extended_l2=on", 16 * KIB, 1, True),
        ("compat=1.1,extended_l2=on,compression_type=zstd", 64 * KIB, 3, True),
        ("compat=1.1,extended_l2=on,preallocation=metadata", 32 * KIB, 2,
         False),
        ("compat=1.1,extended_l2=on,refcount_bits=8", 1024 * KIB, 2, True),
        ("compat=1.1,data_file_raw=off", 64 * KIB, 1, False),
        ("compat=1.1,data_file_raw=off", 4 * KIB, 3, False),
        ("compat=1.1,data_file_raw=on", 4 * KIB, 1, False),
        ("compat=1.1,data_file_raw=on,extended_l2=on", 16 * KIB, 1, False),
        ("compat=1.1,data_file_raw=off,extended_l2=on", 64 * KIB, 2, False),
        ("compat=1.1,data_file_raw=off,preallocation=full", 64 * KIB, 1,
         False),
    ]
    share = int(sys.argv[4])
    only = sys.argv[5:]
    for number, case in enumerate(cases):
        if str(number) in only or (not only and (number + seed) % share == 0):
            one(number, *case)


main()
