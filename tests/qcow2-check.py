#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Images damaged in a named way each: what tidemark check says of them and
what qemu-img check says; then mended by us, and held against qemu-img again.

usage: qcow2-check.py TIDEMARK DIRECTORY [NAME...]
"""
import json
import os
import shutil
import struct
import subprocess
import sys

tidemark, tmp = sys.argv[1:3]
CLUSTER = 4096
COPIED = 1 << 63
OFFSET = 0x00fffffffffffe00


class Image:
    """A file as bytes, written back at the end of the "with"."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        with open(self.path, "rb") as f:
            self.d = bytearray(f.read())
        return self

    def __exit__(self, *exc):
        with open(self.path, "wb") as f:
            f.write(self.d)

    def u16(self, off):
        return struct.unpack_from(">H", self.d, off)[0]

    def u32(self, off):
        return struct.unpack_from(">I", self.d, off)[0]

    def u64(self, off):
        return struct.unpack_from(">Q", self.d, off)[0]

    def put16(self, off, value):
        struct.pack_into(">H", self.d, off, value)

    def put32(self, off, value):
        struct.pack_into(">I", self.d, off, value)

    def put64(self, off, value):
        struct.pack_into(">Q", self.d, off, value)

    @property
    def l1(self):
        return self.u64(40)

    @property
    def reftable(self):
        return self.u64(48)

    def l2(self, i=0):
        return self.u64(self.l1 + i * 8) & OFFSET

    def entry(self, guest):
        """Where the L2 entry of a guest cluster is."""
        per = CLUSTER // 8
        return self.l2(guest // per) + guest % per * 8

    def refcount(self, host):
        """Where the refcount of the host cluster at an offset is."""
        n = host // CLUSTER
        per = CLUSTER // 2
        return self.u64(self.reftable + n // per * 8) + n % per * 2

    def set_refcount(self, host, value):
        at = self.refcount(host)
        assert self.u16(at) != value, "there already"
        self.put16(at, value)

    def host(self, guest):
        return self.u64(self.entry(guest)) & OFFSET

    def flip(self, at, bits):
        self.put64(at, self.u64(at) ^ bits)

    def end(self):
        """A new cluster behind the end, of which nobody knows."""
        self.d += bytes(-len(self.d) % CLUSTER)
        at = len(self.d)
        self.d += bytes(CLUSTER)
        return at

    def extension(self):
        at = self.u32(100)
        while self.u32(at) != 0x23852875:
            at += 8 + (self.u32(at + 4) + 7) // 8 * 8
        return at + 8

    def bitmap_table(self):
        return self.u64(self.u64(self.extension() + 16))


# Guest clusters of the base image: 0 to 99 data of its own, 100 to 199 shared
# with the snapshot, 300 to 309 compressed.
OWN, SHARED, PACKED = 5, 150, 300


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_base(path):
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
        "cluster_size=%d" % CLUSTER, path, "4M")
    run("qemu-io", "-c", "write -P 1 %d %d" % (100 * CLUSTER, 100 * CLUSTER),
        path)
    run("qemu-img", "snapshot", "-c", "s", path)
    run("qemu-io", "-c", "write -P 2 0 %d" % (100 * CLUSTER),
        "-c", "write -P 3 3M 64k",
        *[x for i in range(10) for x in
          ("-c", "write -c -P %d %d %d" % (i + 4, (PACKED + i) * CLUSTER,
                                           CLUSTER))], path)
    run("qemu-img", "bitmap", "--add", "-g", "512", path, "b")
    run("qemu-io", "-c", "write -P 5 3584k 64k", path)


damages = {}


def damage(f):
    damages[f.__name__] = f
    return f


@damage
def nothing(i): pass
@damage
def refcount_data_0(i): i.set_refcount(i.host(OWN), 0)
@damage
def refcount_data_2(i): i.set_refcount(i.host(OWN), 2)
@damage
def refcount_data_65535(i): i.set_refcount(i.host(OWN), 65535)
@damage
def refcount_shared_1(i): i.set_refcount(i.host(SHARED), 1)
@damage
def refcount_shared_3(i): i.set_refcount(i.host(SHARED), 3)
@damage
def refcount_header_0(i): i.set_refcount(0, 0)
@damage
def refcount_l1_0(i): i.set_refcount(i.l1, 0)
@damage
def refcount_l2_0(i): i.set_refcount(i.l2(), 0)
@damage
def refcount_l2_7(i): i.set_refcount(i.l2(), 7)
@damage
def refcount_reftable_0(i): i.set_refcount(i.reftable, 0)
@damage
def refcount_refblock_0(i): i.set_refcount(i.u64(i.reftable), 0)
@damage
def refcount_snapshots_0(i): i.set_refcount(i.u64(64), 0)
@damage
def refcount_packed_low(i):
    i.set_refcount(i.u64(i.entry(PACKED)) & 0x3fffffffffff000 & ((1 << 58) - 1)
                   & ~0xfff, 1)
@damage
def refcount_bitmap_table_0(i): i.set_refcount(i.bitmap_table(), 0)
@damage
def refcount_bitmap_bits_0(i):
    i.set_refcount(i.u64(i.bitmap_table()) & OFFSET, 0)
@damage
def leak_at_end(i): i.set_refcount(i.end(), 1)
@damage
def leak_several(i):
    for n in range(20):
        i.set_refcount(i.end(), 1 + n % 3)
@damage
def leak_and_low(i):
    i.set_refcount(i.end(), 1)
    i.set_refcount(i.host(OWN), 0)
@damage
def bitmaps_dropped(i): i.d[95] &= 0xfe
@damage
def copied_missing(i): i.flip(i.entry(OWN), COPIED)
@damage
def copied_on_shared(i): i.flip(i.entry(SHARED), COPIED)
@damage
def copied_l1_missing(i): i.flip(i.l1, COPIED)
@damage
def copied_packed(i): i.flip(i.entry(PACKED), COPIED)
@damage
def twice(i): i.put64(i.entry(OWN), i.u64(i.entry(OWN + 1)))
@damage
def twice_without_flag(i):
    i.put64(i.entry(OWN), i.u64(i.entry(OWN + 1)) & ~COPIED)
@damage
def data_over_l2(i): i.put64(i.entry(OWN), i.l2() | COPIED)
@damage
def data_unaligned(i): i.flip(i.entry(OWN), 0x200)
@damage
def data_beyond(i): i.put64(i.entry(OWN), (1 << 40) | COPIED)
@damage
def data_in_hole(i): i.put64(i.entry(OWN), i.end() | COPIED)
@damage
def packed_beyond(i): i.flip(i.entry(PACKED), 1 << 40)
@damage
def entry_gone(i): i.put64(i.entry(OWN), 0)
@damage
def entry_reserved(i): i.flip(i.entry(OWN), 1 << 57)
@damage
def l1_reserved(i): i.flip(i.l1, 1 << 57)
@damage
def l1_unaligned(i): i.flip(i.l1, 0x200)
@damage
def l1_beyond(i): i.put64(i.l1, (1 << 40) | COPIED)
@damage
def l1_entry_gone(i): i.put64(i.l1, 0)
@damage
def l1_same_table(i): i.put64(i.l1 + 8, i.u64(i.l1))
@damage
def reftable_entry_0(i): i.put64(i.reftable, 0)
@damage
def reftable_unaligned(i): i.flip(i.reftable, 0x200)
@damage
def reftable_reserved(i): i.flip(i.reftable, 1)
@damage
def reftable_beyond(i): i.put64(i.reftable, 1 << 40)
@damage
def reftable_same_block(i): i.put64(i.reftable + 8, i.u64(i.reftable))
@damage
def refblock_over_data(i): i.put64(i.reftable, i.host(OWN))
@damage
def refblock_zeroes(i):
    at = i.u64(i.reftable)
    i.d[at:at + CLUSTER] = bytes(CLUSTER)
@damage
def refblock_ones(i):
    at = i.u64(i.reftable)
    i.d[at:at + CLUSTER] = b"\xff" * CLUSTER
@damage
def snapshot_l1_beyond(i): i.put64(i.u64(64), 1 << 40)
@damage
def snapshot_l1_unaligned(i): i.flip(i.u64(64), 0x200)
@damage
def dirty_bit(i): i.d[79] |= 1
@damage
def dirty_and_low(i):
    i.d[79] |= 1
    i.set_refcount(i.host(OWN), 0)
    i.set_refcount(i.host(OWN + 3), 0)
@damage
def corrupt_bit(i): i.d[79] |= 2


# Where the verdict is meant to differ from that of QEMU 7.2, which gives up
# with an I/O error of its own making: name -> (ours, QEMU's).
DIFFERENT = {"reftable_unaligned": (2, 1)}
# QEMU throws the snapshot away.  We leave it, and all that it may refer to.
NOT_MENDED = {"snapshot_l1_beyond", "snapshot_l1_unaligned"}
# QEMU itself does not keep the flags right where data that is referred to
# twice, without a snapshot, loses one of them.
NOT_WRITTEN = {"l1_same_table"}
# What ours says, besides what it ends with.
SAYS = {
    "copied_missing": "guest cluster %d lacks the copied flag, but its cluster"
                      " has refcount 1" % OWN,
    "copied_on_shared": "guest cluster %d has the copied flag, but its cluster"
                        " has refcount 2" % SHARED,
    "copied_l1_missing": "L1 entry 0 lacks the copied flag, but its cluster"
                         " has refcount 1",
}


def status(*command):
    r = subprocess.run(command, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)
    assert 0 <= r.returncode < 100, (command, r.returncode, r.stdout)
    return r.returncode, r.stdout.decode(errors="replace")


def content(path):
    """The guest's data, or None if it cannot be read."""
    r = subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw",
                        path, path + ".raw"], stderr=subprocess.DEVNULL)
    if r.returncode:
        return None
    with open(path + ".raw", "rb") as f:
        data = f.read()
    os.unlink(path + ".raw")
    return data


def figures(path):
    r = subprocess.run([tidemark, "check", "-q", "--json", path],
                       stdout=subprocess.PIPE)
    return json.loads(r.stdout) if r.returncode != 1 else None


def check(name, base):
    wrong = []
    path = "%s/%s" % (tmp, name)
    shutil.copy(base, path)
    with Image(path) as i:
        damages[name](i)
    before = content(path)
    ours, text = status(tidemark, "check", path)
    theirs, their_text = status("qemu-img", "check", "-f", "qcow2", path)
    if (ours, theirs) != DIFFERENT.get(name, (theirs, theirs)):
        wrong.append("we say %d, QEMU %d\n%s%s" % (ours, theirs, text,
                                                   their_text))
    if SAYS.get(name, "") not in text:
        wrong.append("not said: " + text)
    shutil.copy(path, path + ".copy")
    if ours == 3:
        status(tidemark, "check", "--repair", "leaks", path + ".copy")
        if status("qemu-img", "check", path + ".copy")[0]:
            wrong.append("leaks are left")
        shutil.copy(path, path + ".copy")
    end, text = status(tidemark, "check", "--repair=all", path)
    verdict, their_text = status("qemu-img", "check", path)
    if end != verdict:
        wrong.append("mended, we say %d, QEMU %d\n%s%s" %
                     (end, verdict, text, their_text))
    if end and name not in NOT_MENDED:
        status("qemu-img", "check", "-q", "-r", "all", path + ".copy")
        if not status("qemu-img", "check", path + ".copy")[0]:
            wrong.append("QEMU can mend it, we cannot: %d\n%s" % (end, text))
    # Data that is a table too changes when flags in the table do.
    if not end and before is not None and name != "data_over_l2" \
            and content(path) != before:
        wrong.append("mending has changed the data")
    if not end and name not in NOT_WRITTEN:
        f = figures(path)
        if f["corruptions"] or f["leaks"]:
            wrong.append("figures: %r" % f)
        # It can be written to again.
        run("qemu-io", "-c", "write -P 9 0 1M", path)
        if status("qemu-img", "check", path)[0]:
            wrong.append("not sound after a write")
    for suffix in ("", ".copy"):
        os.unlink(path + suffix)
    return wrong


base = tmp + "/base"
make_base(base)
bad = 0
if sys.argv[3:4] == ["--keep"]:
    for name in sys.argv[4:]:
        shutil.copy(base, tmp + "/" + name)
        with Image(tmp + "/" + name) as i:
            damages[name](i)
    sys.exit(0)
for name in sys.argv[3:] or damages:
    for text in check(name, base):
        bad += 1
        print("%s: %s" % (name, text))
sys.exit(1 if bad else 0)
