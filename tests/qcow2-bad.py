#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Damaged qcow2 images, one kind per function, and what must come of each.

usage: qcow2-bad.py QCOW2-IO DIRECTORY

A generator changes a good image and returns the command that must fail and a
part of its message, which names what is wrong and what is allowed.  That the
damage is in the file is checked for each, and that the program ended by itself,
in little memory.
"""

import os
import resource
import struct
import subprocess
import sys

tool, directory = sys.argv[1], sys.argv[2]
os.chdir(directory)
CLUSTER = 65536
READ = "open bad.qcow2 ro"
WRITE = "open bad.qcow2"
# Of an open image: what fails is an I/O, and a line of the log says why.
DUMP = "dump dump"
CHANGE = "write 0 512 1"
BITMAPS = "bitmaps"
MIB = 1 << 20
# What the program may have in memory; with a sanitizer it takes more by itself.
LIMIT = 64 * MIB
SANITIZED_LIMIT = 256 * MIB


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


class Image:
    def __init__(self, name):
        with open(name, "rb") as f:
            self.data = bytearray(f.read())

    def u32(self, off):
        return struct.unpack_from(">I", self.data, off)[0]

    def u64(self, off):
        return struct.unpack_from(">Q", self.data, off)[0]

    def set32(self, off, value):
        struct.pack_into(">I", self.data, off, value)

    def set64(self, off, value):
        struct.pack_into(">Q", self.data, off, value)

    def l1(self):
        return self.u64(40)

    def l2(self):
        return self.u64(self.l1()) & 0x00fffffffffffe00

    def refblock(self):
        return self.u64(self.u64(48))


# --- the header

def bad_magic(i):
    i.data[0] = ord("X")
    return READ, "not a qcow2 image"


def bad_empty(i):
    del i.data[:]
    return READ, "not a qcow2 image"


def bad_short_v2(i):
    del i.data[71:]
    return READ, "not a qcow2 image"


def bad_short_v3(i):
    del i.data[100:]
    return READ, "too short"


def bad_version_1(i):
    i.set32(4, 1)
    return READ, "version 1 is not supported"


def bad_version_4(i):
    i.set32(4, 4)
    return READ, "version 4 is not supported"


def bad_cluster_bits_8(i):
    i.set32(20, 8)
    return READ, "cluster_bits is 8"


def bad_cluster_bits_22(i):
    i.set32(20, 22)
    return READ, "cluster_bits is 22"


def bad_cluster_bits_huge(i):
    i.set32(20, 0xffffffff)
    return READ, "cluster_bits is 4294967295"


def bad_size_huge(i):
    i.set64(24, 1 << 63)
    return READ, "virtual size"


def bad_size_unaligned(i):
    i.set64(24, 1000)
    return READ, "multiple of 512"


def bad_size_beyond_l1(i):
    i.set64(24, 1 << 50)
    return READ, "needs 2097152"


def bad_encryption(i):
    i.set32(32, 2)
    return READ, "encryption (crypt_method 2) is not supported"


def bad_l1_size_huge(i):
    i.set32(36, 0xffffffff)
    return READ, "the L1 table has 4294967295 entries"


def bad_l1_size_beyond_file(i):
    i.set32(36, 4 << 20)
    return READ, "the L1 table (33554432 bytes"


def bad_l1_unaligned(i):
    i.set64(40, i.l1() + 512)
    return READ, "L1 table at 197120 is not aligned"


def bad_l1_at_zero(i):
    i.set64(40, 0)
    return READ, "the L1 table is at offset 0"


def bad_l1_offset_overflow(i):
    i.set64(40, (1 << 64) - CLUSTER)
    return READ, "is beyond the end of the file"


def bad_reftable_unaligned(i):
    i.set64(48, 1)
    return READ, "refcount table at 1 is not aligned"


def bad_reftable_beyond_file(i):
    i.set64(48, 1 << 40)
    return READ, "the refcount table"


def bad_reftable_none(i):
    i.set32(56, 0)
    return READ, "0 clusters: none, or too many"


def bad_reftable_huge(i):
    i.set32(56, 0xffffffff)
    return READ, "4294967295 clusters: none, or too many"


def bad_snapshots_many(i):
    i.set32(60, 65537)
    return READ, "65537 snapshots"


def bad_snapshot_table(i):
    # The snapshot's L1 table would be at 0x5555555555555555.
    i.set32(60, 1)
    i.set64(64, i.u64(i.l2()) & 0x00fffffffffffe00)
    return WRITE, "entry 0 of the snapshot table is damaged"


def bad_snapshots_unaligned(i):
    i.set32(60, 1)
    i.set64(64, 8)
    return READ, "snapshot table at 8 is not aligned"


def bad_refcount_order(i):
    i.set32(96, 7)
    return READ, "refcount_order is 7"


def bad_header_length_short(i):
    i.set32(100, 96)
    return READ, "header_length is 96"


def bad_header_length_odd(i):
    i.set32(100, 105)
    return READ, "header_length is 105"


def bad_header_length_huge(i):
    i.set32(100, 0xfffffff8)
    return READ, "header_length is 4294967288"


# --- features

def set_data_file(i, name):
    at = i.u32(100)
    pad = b"\0" * (-len(name) % 8)
    ext = struct.pack(">II", 0x44415441, len(name)) + name + pad
    i.data[at:at + 1024] = ext.ljust(1024, b"\0")
    i.set64(72, 1 << 2)


def bad_data_file_unnamed(i):
    i.set64(72, 1 << 2)
    return READ, "does not say which data file"


def bad_data_file_missing(i):
    set_data_file(i, b"no-such-file")
    return READ, "no-such-file"


def bad_data_file_protocol(i):
    set_data_file(i, b"nbd://localhost/secret")
    return READ, "is not a plain file name"


def bad_data_file_json(i):
    set_data_file(i, b'json:{"driver":"null-co"}')
    return READ, "is not a plain file name"


def bad_data_file_directory(i):
    set_data_file(i, b"/etc")
    return READ, "/etc"


def bad_data_file_self(i):
    set_data_file(i, b"./bad.qcow2")
    return READ, "is an image of the chain itself"


def bad_data_file_not_allowed(i):
    set_data_file(i, b"good.qcow2")
    return "open bad.qcow2 deny", "following it was not allowed"


def bad_data_file_elsewhere(i):
    set_data_file(i, b"/etc/passwd")
    return ("open bad.qcow2 neighbours",
            '"/etc/passwd" is not in the image\'s own directory')


def bad_data_file_name_long(i):
    set_data_file(i, b"x" * 1016)
    i.set32(i.u32(100) + 4, 1024)
    return READ, "data file's name in the header is damaged"


def bad_data_file_name_zero_byte(i):
    set_data_file(i, b"good\0.qcow2")
    return READ, "data file's name in the header is damaged"


def bad_data_file_snapshots(i):
    set_data_file(i, b"good.qcow2")
    i.set32(60, 1)
    i.set64(64, i.l1())
    return READ, "snapshots in an image with an external data file"


def bad_data_file_offset(i):
    # Every cluster of a data file is at its guest offset.
    set_data_file(i, b"good.qcow2")
    return DUMP, "in a data file a cluster is at its guest offset"


def bad_extended_l2_small_clusters(i):
    i.set64(72, 1 << 4)
    i.set32(20, 12)
    return READ, "extended L2 entries need clusters of at least 16384"


def extend_l2(i, bitmap):
    i.set64(72, 1 << 4)
    i.set64(24, 1 << 28)
    i.set64(i.l2() + 8, bitmap)


def bad_extended_l2_size(i):
    extend_l2(i, 0)
    i.set64(24, 1 << 29)
    i.set32(36, 1)
    return READ, "needs 2"


def bad_extended_l2_data_and_zero(i):
    extend_l2(i, 1 << 32 | 1)
    return DUMP, "a subcluster is both data and zeroes"


def bad_extended_l2_data_nowhere(i):
    extend_l2(i, 1)
    i.set64(i.l2(), 0)
    return DUMP, "a subcluster has data, but the cluster has no offset"


def bad_extended_l2_zero_flag(i):
    extend_l2(i, 0xffffffff)
    i.set64(i.l2(), i.u64(i.l2()) | 1)
    return DUMP, "only a standard entry of version 3 has a zero flag"


def bad_unknown_feature(i):
    i.set64(72, 1 << 40)
    return READ, 'incompatible feature "unknown" (bit 40) is not supported'


def bad_named_feature(i):
    # Rename an entry of the feature name table that QEMU has written.
    at = bytes(i.data[:4096]).index(b"\x00\x04extended L2")
    i.data[at + 1] = 41
    i.data[at + 2:at + 10] = b"quantum\n"
    i.set64(72, 1 << 41)
    return READ, '"quantum? L2 entries" (bit 41)'


def bad_compression_type(i):
    i.set64(72, 1 << 3)
    i.data[104] = 9
    return READ, "compression type 9 is not supported"


def bad_compression_bit(i):
    i.set64(72, 1 << 3)
    return READ, "contradict each other"


def bad_extension_too_long(i):
    i.set32(i.u32(100) + 4, 0x7fffffff)
    return READ, "does not fit"


def bad_dirty_beyond_repair(i):
    i.set64(72, 1)
    i.set64(i.l2(), i.u64(i.l2()) + 512)
    return WRITE, "marked dirty, can not be mended"


def bad_corrupt_written(i):
    i.set64(72, 2)
    return WRITE, "marked corrupt and can only be read"


def bad_compression_length(i):
    # An additional field that is not zero means something to nobody here.
    i.set64(72, 1 << 3 | 1 << 5)
    return READ, '(bit 5) is not supported'


def bad_extension_over_backing_name(i):
    set_backing(i, b"good.qcow2", b"qcow2")
    i.set32(i.u32(100) + 4, 64)
    return READ, "header extension 0xe2792aca of 64 bytes does not fit"


def bad_corrupt_and_dirty(i):
    i.set64(72, 3)
    return WRITE, "marked corrupt and can only be read"


# --- the backing file

def set_backing(i, name, fmt=b"raw"):
    at = i.u32(100)
    ext = b""
    if fmt is not None:
        pad = b"\0" * (-len(fmt) % 8)
        ext = struct.pack(">II", 0xe2792aca, len(fmt)) + fmt + pad
    ext += b"\0" * 8
    i.data[at:at + 1024] = (ext + name).ljust(1024, b"\0")
    i.set64(8, at + len(ext))
    i.set32(16, len(name))


def bad_backing_json(i):
    set_backing(i, b'json:{"driver":"null-co"}')
    return READ, "is not a plain file name"


def bad_backing_protocol(i):
    set_backing(i, b"nbd://localhost/secret")
    return READ, "is not a plain file name"


def bad_backing_not_allowed(i):
    set_backing(i, b"good.qcow2", b"qcow2")
    return "open bad.qcow2 deny", "following it was not allowed"


def bad_backing_elsewhere(i):
    set_backing(i, b"../good.qcow2", b"qcow2")
    return ("open bad.qcow2 neighbours",
            '"../good.qcow2" is not in the image\'s own directory')


def bad_backing_missing(i):
    set_backing(i, b"no-such-file")
    return READ, "no-such-file"


def bad_backing_directory(i):
    set_backing(i, b"/etc")
    return READ, "/etc"


def bad_backing_self(i):
    set_backing(i, b"bad.qcow2", b"qcow2")
    return READ, "already in the chain"


def bad_backing_no_format(i):
    set_backing(i, b"good.qcow2", None)
    return READ, "does not say the format"


def bad_backing_format(i):
    set_backing(i, b"good.qcow2", b"vmdk")
    return READ, 'backing format "vmdk" is not supported'


def bad_backing_format_long(i):
    set_backing(i, b"good.qcow2", b"x" * 40)
    return READ, "backing format in the header is damaged"


def bad_backing_name_long(i):
    set_backing(i, b"x")
    i.set32(16, 1024)
    return READ, "name is 1024 bytes long"


def bad_backing_name_empty(i):
    set_backing(i, b"x")
    i.set32(16, 0)
    return READ, "name is 0 bytes long"


def bad_backing_name_outside(i):
    set_backing(i, b"x")
    i.set64(8, CLUSTER - 10)
    i.set32(16, 11)
    return READ, "outside of the header's cluster"


def bad_backing_name_overflow(i):
    set_backing(i, b"x")
    i.set64(8, (1 << 64) - 1)
    return READ, "outside of the header's cluster"


def bad_backing_name_over_header(i):
    set_backing(i, b"x")
    i.set64(8, 8)
    return READ, "outside of the header's cluster"


def bad_backing_name_zero_byte(i):
    set_backing(i, b"good\0.qcow2")
    return READ, "holds a zero byte"


# --- tables

def bad_l1_entry_unaligned(i):
    i.set64(i.l1(), i.u64(i.l1()) + 512)
    return DUMP, "entry 0 of the L1 table: its offset is not aligned"


def bad_l1_entry_reserved(i):
    i.set64(i.l1(), i.u64(i.l1()) | 1 << 60)
    return DUMP, "entry 0 of the L1 table: reserved bits are set"


def bad_l1_entry_beyond_file(i):
    i.set64(i.l1(), 1 << 63 | 1 << 50)
    return DUMP, "L1 table: it points beyond the end of the file"


def bad_l1_entry_is_header(i):
    i.set64(i.l1(), 1 << 63)
    return DUMP, "L1 table: it points to the header"


def bad_l1_entry_is_l1(i):
    i.set64(i.l1(), 1 << 63 | i.l1())
    return DUMP, "it points to the L1 or the refcount table"


def bad_l2_entry_unaligned(i):
    i.set64(i.l2(), i.u64(i.l2()) + 512)
    return DUMP, "the L2 entry of guest offset 0: its offset is not aligned"


def bad_l2_entry_reserved(i):
    i.set64(i.l2(), i.u64(i.l2()) | 2)
    return DUMP, "the L2 entry of guest offset 0: reserved bits are set"


def bad_l2_entry_beyond_file(i):
    i.set64(i.l2(), 1 << 63 | 1 << 40)
    return DUMP, "it points beyond the end of the file"


def bad_l2_entry_is_header(i):
    i.set64(i.l2(), 1 << 63)
    return DUMP, "guest offset 0: the copied flag needs"


def bad_l2_entry_is_reftable(i):
    i.set64(i.l2(), 1 << 63 | i.u64(48))
    return DUMP, "it points to the header, the L1 or the refcount table"


def bad_v2_zero_flag(i):
    i.set32(4, 2)
    i.set64(i.l2(), 1)
    return DUMP, "only a standard entry of version 3 has a zero flag"


def bad_compressed_beyond_file(i):
    i.set64(i.l2(), 1 << 62 | 1 << 40)
    return DUMP, "its compressed data would be beyond the end of the file"


def bad_compressed_copied(i):
    i.set64(i.l2(), 3 << 62 | i.u64(i.l2()) & 0x00ffffffffffffff)
    return DUMP, "a compressed cluster has no copied flag"


def bad_compressed_garbage(i):
    # The data of the first cluster is 0x55: no deflate stream of a cluster.
    i.set64(i.l2(), 1 << 62 | i.u64(i.l2()) & 0x00fffffffffffe00)
    return DUMP, "is not a compressed cluster"


def bad_refcount_of_header(i):
    struct.pack_into(">H", i.data, i.refblock(), 0)
    return WRITE, "refcounts of the header are wrong"


def bad_refcount_of_l1(i):
    struct.pack_into(">H", i.data, i.refblock() + i.l1() // CLUSTER * 2, 0)
    return WRITE, "refcounts of the L1 table are wrong"


def bad_refblock_unaligned(i):
    i.set64(i.u64(48), i.refblock() + 8)
    return WRITE, "refcounts of the header are wrong"


def bad_refblock_none(i):
    i.set64(i.u64(48), 0)
    return WRITE, "refcounts of the header are wrong"


def bad_refblock_reserved(i):
    i.set64(i.u64(48), i.refblock() | 1)
    return WRITE, "refcounts of the header are wrong"


def bad_refblock_beyond_file(i):
    i.set64(i.u64(48), 1 << 40)
    return WRITE, "refcounts of the header are wrong"


def bad_refblock_is_reftable(i):
    i.set64(i.u64(48), i.u64(48))
    return WRITE, "refcounts of the header are wrong"


def bad_refcount_of_reftable(i):
    struct.pack_into(">H", i.data, i.refblock() + i.u64(48) // CLUSTER * 2, 0)
    return WRITE, "refcounts of the refcount table are wrong"


def bad_file_cut_in_l1(i):
    del i.data[i.l1() + 8:]
    return READ, "the L1 table (16 bytes at"


def bad_file_cut_before_reftable(i):
    del i.data[CLUSTER:]
    return READ, "is beyond the end of the file (65536)"


def bad_file_cut_before_l2(i):
    del i.data[i.l2():]
    return DUMP, "entry 0 of the L1 table: it points beyond the end of the file"


def bad_l1_too_short(i):
    i.set32(36, 1)
    return READ, "has 1 entries, a disk of 1073741824 bytes needs 2"


def bad_l1_none(i):
    i.set32(36, 0)
    return READ, "has 0 entries, a disk of 1073741824 bytes needs 2"


def bad_l2_entry_zero_with_flag(i):
    i.set64(i.l2(), 1 << 63 | 1)
    return DUMP, "guest offset 0: the copied flag needs an offset"


def bad_l2_entry_far(i):
    # All bits that an offset can have.
    i.set64(i.l2() + 8, 0x00ffffffffff0000)
    return DUMP, "the L2 entry of guest offset 65536: it points beyond the end"


def bad_compressed_in_header(i):
    i.set64(i.l2(), 1 << 62 | 512)
    return DUMP, "its compressed data would be in the header"


def bad_compressed_zstd_garbage(i):
    i.set64(72, 1 << 3)
    i.data[104] = 1
    i.set64(i.l2(), 1 << 62 | i.u64(i.l2()) & 0x00fffffffffffe00)
    return DUMP, "is not a compressed cluster"


def bad_compressed_cut(i):
    # A deflate stream that goes on behind the end of the file.
    at = i.u64(i.l2()) & 0x00fffffffffffe00
    i.data[at:at + 512] = b"\xed" * 512
    del i.data[at + 512:]
    i.set64(i.l2(), 1 << 62 | 127 << 54 | at)
    return DUMP, "(512 bytes) is not a compressed cluster"


def bad_data_file_compressed(i):
    set_data_file(i, b"good.qcow2")
    i.set64(i.l2(), 1 << 62 | CLUSTER)
    return DUMP, "a data file has no compressed clusters"


# --- two claims to one cluster: nothing is written there

OVERLAP = "of new data would go to"


def bad_data_is_l2(i):
    i.set64(i.l2(), 1 << 63 | i.l2())
    return CHANGE, OVERLAP


def bad_data_is_refblock(i):
    i.set64(i.l2(), 1 << 63 | i.refblock())
    return CHANGE, OVERLAP


def bad_free_is_l2(i):
    # The first cluster that is free by the refcounts is an L2 table.
    i.set64(i.l2(), 0)
    struct.pack_into(">H", i.data, i.refblock() + i.l2() // CLUSTER * 2, 0)
    return CHANGE, OVERLAP


def bad_free_is_refblock(i):
    i.set64(i.l2(), 0)
    struct.pack_into(">H", i.data,
                     i.refblock() + i.refblock() // CLUSTER * 2, 0)
    return CHANGE, OVERLAP


# --- bitmaps: the image has two

def extension(i):
    at = i.u32(100)
    while i.u32(at) != 0x23852875:
        at += 8 + (i.u32(at + 4) + 7) // 8 * 8
    return at + 8


def directory_of(i):
    return i.u64(extension(i) + 16)


def bad_bitmaps_none(i):
    i.set32(extension(i), 0)
    return BITMAPS, "0 bitmaps, allowed are 1 to 65535"


def bad_bitmaps_many(i):
    i.set32(extension(i), 0xffffffff)
    return BITMAPS, "4294967295 bitmaps, allowed are 1 to 65535"


def bad_bitmaps_reserved(i):
    i.set32(extension(i) + 4, 1)
    return BITMAPS, "a reserved field is not zero"


def bad_bitmaps_extension_length(i):
    i.set32(extension(i) - 4, 16)
    return BITMAPS, "it is not 24 bytes long"


def bad_bitmaps_directory_huge(i):
    i.set64(extension(i) + 8, 1 << 40)
    return BITMAPS, "a directory of 1099511627776 bytes for 2 bitmaps"


def bad_bitmaps_directory_short(i):
    i.set64(extension(i) + 8, 32)
    return BITMAPS, "a directory of 32 bytes for 2 bitmaps is too small"


def bad_bitmaps_directory_unaligned(i):
    i.set64(extension(i) + 16, directory_of(i) + 8)
    return BITMAPS, "is not aligned, over other metadata or beyond the end"


def bad_bitmaps_directory_is_l1(i):
    i.set64(extension(i) + 16, i.l1())
    return BITMAPS, "is not aligned, over other metadata or beyond the end"


def bad_bitmaps_directory_beyond_file(i):
    i.set64(extension(i) + 16, 1 << 50)
    return BITMAPS, "is not aligned, over other metadata or beyond the end"


def bad_bitmap_extra_data(i):
    i.set32(directory_of(i) + 20, 0xfffffff0)
    return BITMAPS, "the directory ends within an entry"


def bad_bitmap_no_name(i):
    struct.pack_into(">H", i.data, directory_of(i) + 18, 0)
    return BITMAPS, "a name of 0 bytes, allowed are 1 to 1023"


def bad_bitmap_name_zero_byte(i):
    i.data[directory_of(i) + 24] = 0
    return BITMAPS, "a name holds a zero byte"


def bad_bitmap_names_equal(i):
    at = directory_of(i) + 24
    assert i.data[at:at + 2] == b"b0" and i.data[at + 32:at + 34] == b"b1"
    i.data[at + 33] = ord("0")
    return BITMAPS, 'two bitmaps have the name "b0"'


def bad_bitmap_type(i):
    i.data[directory_of(i) + 16] = 2
    return BITMAPS, "bitmap 'b0': it is of the unknown type 2"


def bad_bitmap_granularity(i):
    i.data[directory_of(i) + 17] = 32
    return BITMAPS, "bitmap 'b0': its granularity of 2^32 bytes is not allowed"


def bad_bitmap_flags(i):
    i.set32(directory_of(i) + 12, 1 << 3)
    return BITMAPS, "bitmap 'b0': it has unknown flags (0x8)"


def bad_bitmap_table_length(i):
    i.set32(directory_of(i) + 8, 0xffffffff)
    return BITMAPS, "bitmap 'b0': its table has 4294967295 entries, not the 1"


def bad_bitmap_table_unaligned(i):
    i.set64(directory_of(i), 8)
    return BITMAPS, "bitmap 'b0': its table at 8 is not where a table can be"


def bad_bitmap_table_is_l1(i):
    i.set64(directory_of(i), i.l1())
    return BITMAPS, "is not where a table can be"


def bad_bitmap_entry_reserved(i):
    i.set64(i.u64(directory_of(i)), 1 << 60)
    return BITMAPS, "bitmap 'b0': its table has a damaged entry"


def bad_bitmap_entry_beyond_file(i):
    i.set64(i.u64(directory_of(i)), 1 << 40)
    return BITMAPS, "bitmap 'b0': its table has a damaged entry"


def bad_bitmap_entry_unaligned(i):
    i.set64(i.u64(directory_of(i)), CLUSTER + 512)
    return BITMAPS, "bitmap 'b0': its table has a damaged entry"


# --- snapshots

def add_snapshot(i, l1_offset, l1_size, id_len=1):
    """A snapshot table of one entry, at the end of the file."""
    i.data += b"\0" * (-len(i.data) % CLUSTER)
    i.set32(60, 1)
    i.set64(64, len(i.data))
    i.data += struct.pack(">QIHHIIQQI", l1_offset, l1_size, id_len, 1, 0, 0, 0,
                          0, 0).ljust(CLUSTER, b"\0")


def bad_snapshot_l1_unaligned(i):
    add_snapshot(i, i.l1() + 8, 1)
    return WRITE, "entry 0 of the snapshot table is damaged"


def bad_snapshot_l1_huge(i):
    add_snapshot(i, i.l1(), 0xffffffff)
    return WRITE, "entry 0 of the snapshot table is damaged"


def bad_snapshot_l1_beyond_file(i):
    add_snapshot(i, 1 << 50, 1)
    return WRITE, "entry 0 of the snapshot table is damaged"


def bad_snapshot_too_long(i):
    add_snapshot(i, i.l1(), 1, 0xffff)
    return WRITE, "entry 0 of the snapshot table is damaged"


def bad_snapshots_fewer(i):
    add_snapshot(i, i.l1(), 1)
    i.set32(60, 2)
    i.set64(i.u64(64) + 48, 8)          # where the second entry is
    return WRITE, "entry 1 of the snapshot table is damaged"


def limits():
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
    if "ASAN" not in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (256 * MIB, 256 * MIB))


def run_tool(script):
    """Status, what it has printed, and the most memory that it has had."""
    with open("script", "w") as f:
        f.write(script)
    with open("script") as f, open("out", "w+") as out:
        p = subprocess.Popen([tool], stdin=f, stdout=out, stderr=out,
                             preexec_fn=limits)
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        return p.returncode, out.read(), usage.ru_maxrss * 1024


def check(generator):
    image = Image("good.qcow2")
    before = bytes(image.data)
    command, text = generator(image)
    if bytes(image.data) == before:
        return "the image is not damaged"
    with open("bad.qcow2", "wb") as f:
        f.write(image.data)
    # What is said at once, or in the log line before the failure.
    if command in (DUMP, CHANGE):
        script = (READ if command == DUMP else WRITE) + "\n"
        script += f"expect Input/output error\n{command}\n"
        if command == CHANGE:
            script += "expect Input/output error\nclose\n"
    elif command == BITMAPS:
        script = f"{READ}\nexpect {text}\n{command}\n"
    else:
        script = f"expect {text}\n{command}\n"
    status, out, memory = run_tool(script)
    if status != 0:
        return f"status {status}: {out}"
    if command in (DUMP, CHANGE) and text not in out:
        return f"not said: {out}"
    most = SANITIZED_LIMIT if "ASAN" in os.environ else LIMIT
    return f"{memory} bytes of memory" if memory > most else None


def main():
    run("qemu-img", "create", "-q", "-f", "qcow2", "good.qcow2", "1G")
    run("qemu-io", "-c", "write -P 0x55 0 128k", "good.qcow2")
    for name in ("b0", "b1"):
        run("qemu-img", "bitmap", "--add", "good.qcow2", name)
    run("qemu-io", "-c", "write -P 0x55 0 64k", "good.qcow2")
    # The image as it is can be read and written.
    subprocess.run([tool], check=True, text=True,
                   input="open good.qcow2 ro\nbitmaps\nclose\n"
                   "open good.qcow2\n")
    generators = [f for n, f in globals().items() if n.startswith("bad_")]
    failed = 0
    for g in generators:
        message = check(g)
        if message:
            failed += 1
            print(f"{g.__name__}: {message}", file=sys.stderr)
    print(f"{len(generators)} kinds of damage, {failed} failed")
    sys.exit(failed > 0 or len(generators) < 100)


main()


