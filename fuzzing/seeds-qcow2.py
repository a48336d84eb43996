#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Small qcow2 images, each with another part of the format in it.

usage: seeds-qcow2.py DIRECTORY

Made by qemu-img and qemu-io; the files that some name as backing or data file
are not kept, for the fuzz target brings its own.
"""

import os
import subprocess
import sys

WRITE = "write -P 17 0 3k"
LATER = "write -P 34 70k 1k"
ZERO = "write -z 8k 4k"
UNMAP = "write -zu 70k 512"
PACK = "write -c -P 51 16k 4k"
HALF_PACK = "write -c -P 68 20k 4k"
TRIM = "discard 0 2k"

SMALL = "cluster_size=512"
PAGE = "cluster_size=4k"
EXTENDED = "cluster_size=16k,extended_l2=on"

# Name, size, options of qemu-img create, commands of qemu-io.
IMAGES = [
    ("empty", "0", PAGE, []),
    ("plain", "128k", PAGE, [WRITE, LATER, ZERO]),
    ("version2", "128k", PAGE + ",compat=0.10", [WRITE, LATER, TRIM]),
    ("small", "128k", SMALL, [WRITE, LATER, ZERO, UNMAP, TRIM]),
    ("large", "256k", "cluster_size=64k", [WRITE, LATER, ZERO]),
    ("zlib", "128k", PAGE, [PACK, HALF_PACK, WRITE]),
    ("zstd", "128k", PAGE + ",compression_type=zstd",
     [PACK, HALF_PACK, WRITE]),
    ("refcount1", "128k", SMALL + ",refcount_bits=1", [WRITE, LATER]),
    ("refcount4", "128k", SMALL + ",refcount_bits=4", [WRITE, LATER, TRIM]),
    ("refcount64", "128k", SMALL + ",refcount_bits=64", [WRITE, LATER]),
    ("lazy", "128k", PAGE + ",lazy_refcounts=on", [WRITE, LATER]),
    ("extended", "256k", EXTENDED, [WRITE, LATER, ZERO, TRIM]),
    ("extended-packed", "256k", EXTENDED,
     [WRITE, "write -c -P 51 16k 16k", "write -z 64k 1k"]),
    ("backing", "2M", PAGE + ",backing_file=base,backing_fmt=raw",
     [WRITE, ZERO, UNMAP, "write -P 85 1M 512"]),
    ("extended-backing", "2M",
     EXTENDED + ",backing_file=base,backing_fmt=raw",
     [WRITE, ZERO, "write -P 85 1M 512"]),
    ("data-file", "128k", PAGE + ",data_file=data", [WRITE, LATER, ZERO]),
    ("data-file-raw", "128k", PAGE + ",data_file=data,data_file_raw=on",
     [WRITE, LATER, ZERO]),
    ("allocated", "64k", SMALL + ",preallocation=metadata", [WRITE, ZERO]),
    ("huge", "16T", "cluster_size=64k", []),
    ("snapshot", "128k", SMALL, [WRITE, LATER]),
    ("bitmaps", "128k", SMALL, [WRITE]),
]


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def make(name, size, options, commands):
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, name, size)
    if name == "bitmaps":
        run("qemu-img", "bitmap", "--add", "-g", "4k", name, "b0")
        run("qemu-img", "bitmap", "--add", "-g", "512", "--disable", name,
            "another")
    if commands:
        words = [w for c in commands for w in ("-c", c)]
        run("qemu-io", "-f", "qcow2", "-d", "unmap", *words, name)
    if name == "snapshot":
        run("qemu-img", "snapshot", "-c", "first", name)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 99 1k 1k", name)


def main():
    os.makedirs(sys.argv[1], exist_ok=True)
    os.chdir(sys.argv[1])
    run("qemu-img", "create", "-q", "-f", "raw", "base", "1M")
    for image in IMAGES:
        make(*image)
        if os.path.getsize(image[0]) > 1 << 20:
            sys.exit("%s: too large for the fuzz target" % image[0])
    for other in "base", "data":
        os.unlink(other)


main()
