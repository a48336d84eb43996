#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Random changes of one image by our driver and by qemu-io in turn.

usage: qcow2-random.py QCOW2-IO DIRECTORY SEED SHARE [NUMBER...]

Every SHAREth of the images, or those of the numbers.

After each turn "qemu-img check" must find neither errors nor leaks, and both
programs must read what a model holds.  Over versions, cluster sizes, refcount
widths, compression, snapshots and backing chains.
"""

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
    def __init__(self, name, size, cluster, options, base=None):
        self.name, self.size, self.cluster = name, size, cluster
        self.options = options
        self.data = None
        if "data_file" in options:
            self.data = name + ".data"
            options += f",data_file={self.data}"
        self.is_v2 = "compat=0.10" in options
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
        if rng.randrange(2):
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, name,
                str(size))
        else:
            run(tool, stdin=f"new {name} {size} {options.replace(',', ' ')}\n"
                "close\n")

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

    def ours(self, nr=OPS):
        lines = ["open " + self.name]
        for _ in range(nr):
            op = rng.choice(["write", "write", "write", "zero", "unmap",
                             "trim", "flush"])
            off, length = self.range()
            byte = rng.randrange(1, 256)
            if op == "flush":
                lines.append(op)
                continue
            lines.append(f"{op} {off} {length} {byte}")
            if op == "trim":
                self.trim(off, length)
            else:
                self.fill(off, length, byte if op == "write" else 0)
        lines += ["flush", "close"]
        run(tool, stdin="\n".join(lines) + "\n")

    def qemu(self):
        args = ["qemu-io", "-f", "qcow2"]
        ops = rng.choices(["write -P", "write -P", "write -z",
                           "write -z -u", "write -c -P"], k=OPS)
        # Last, as QEMU (7.2) itself overwrites other data if a cluster that
        # it has compressed is freed and another is compressed afterwards.
        for op in sorted(ops, key=lambda op: "-c" in op):
            off, length = self.range()
            byte = rng.randrange(1, 256)
            if "-c" in op:
                # Each compressed cluster in a host cluster counts: with
                # narrow refcounts no snapshot could count once more.
                if self.data or self.options.endswith(
                        ("refcount_bits=2", "refcount_bits=4")):
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
        for _ in range(4):
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
                run(tool, stdin=f"open {self.name}\nresize {size}\nclose\n")
            else:
                run("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink",
                    self.name, str(size))
            self.ours(4)
            self.check()

    def check(self):
        run("qemu-img", "check", "-q", "-f", "qcow2", self.name)
        with open("model", "wb") as f:
            f.write(self.model)
        run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", "model",
            self.name)
        run(tool, stdin=f"open {self.name} ro\ndump dump\nclose\n")
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
    turns = 1 if depth > 8 else TURNS
    for layer in range(depth):
        disk = Disk(f"{number}-{layer}.qcow2", size + rng.randrange(-9, 9)
                    * 512, cluster, options, disk)
        if depth <= 8 or rng.randrange(2):
            rng.choice([disk.ours, disk.qemu])()
    saved = None
    for turn in range(turns):
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
    if turns > 1:
        disk.resize(has_snapshot)
    if has_snapshot:
        disk.ours()
        disk.check()
        run("qemu-img", "snapshot", "-a", "s", disk.name)
        disk.model = bytearray(saved)
        disk.size = len(saved)
        disk.check()
        run("qemu-img", "snapshot", "-d", "s", disk.name)
        disk.ours()
        disk.check()


def main():
    cases = [
        # options, cluster, layers, with a snapshot
        ("compat=0.10", 64 * KIB, 1, False),
        ("compat=0.10", 4 * KIB, 2, True),
        ("compat=0.10,preallocation=falloc", 8 * KIB, 1, True),
        ("compat=1.1", 64 * KIB, 1, True),
        ("compat=1.1", 512, 3, True),
        ("compat=1.1", 4 * KIB, 32, False),
        ("compat=1.1,refcount_bits=64", 4 * KIB, 2, True),
        ("compat=1.1,refcount_bits=32", 2 * KIB, 1, True),
        ("compat=1.1,refcount_bits=8", 4 * KIB, 2, True),
        ("compat=1.1,refcount_bits=4", 64 * KIB, 2, True),
        ("compat=1.1,refcount_bits=2", 1 * KIB, 1, True),
        ("compat=1.1,refcount_bits=1", 4 * KIB, 1, False),
        ("compat=1.1,compression_type=zstd", 64 * KIB, 2, False),
        ("compat=1.1,lazy_refcounts=on", 16 * KIB, 1, False),
        ("compat=1.1", 2048 * KIB, 2, False),
        ("compat=1.1,preallocation=metadata", 64 * KIB, 1, False),
        ("compat=1.1,preallocation=full", 4 * KIB, 1, True),
        ("compat=1.1,extended_l2=on", 16 * KIB, 1, True),
        ("compat=1.1,extended_l2=on,compression_type=zstd", 64 * KIB, 3, True),
        ("compat=1.1,extended_l2=on,preallocation=metadata", 32 * KIB, 2,
         False),
        ("compat=1.1,extended_l2=on,refcount_bits=8", 1024 * KIB, 2, True),
        ("compat=1.1,extended_l2=on", 16 * KIB, 16, False),
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
