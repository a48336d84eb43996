#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""tidemark backup needs no more memory than --memory allows, whatever it
pulls: client-memory.py TMP.
"""
import os
import subprocess
import sys

from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal

K = 1 << 10
M = 1 << 20
SIZE = 192 * M
NR_PIECES = 60000
tmp = sys.argv[1]


def backup(d, repo, *options):
    """Status, what it said, and the most memory that it had, in bytes."""
    with open(tmp + "/said", "w+") as said:
        p = subprocess.Popen(
            [os.environ["TIDEMARK"], "backup", "-q", *options,
             "unix:" + d.control, tmp + "/" + repo],
            stdin=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return p.returncode, said.read(), usage.ru_maxrss * K


def check_bounded(d, repo, limit, *options):
    status, said, used = backup(d, repo, "--memory", "%dM" % limit, *options)
    check_equal((status, said), (0, ""), "status of %s" % repo)
    print("%s: %.1f MiB of %d" % (repo, used / M, limit))
    check(used <= limit * M, "%s: %d bytes of %d MiB" % (repo, used, limit))


# Data and holes in turn; then all of it dirty in small pieces.
with open(tmp + "/vda.raw", "wb") as f:
    for off in range(0, SIZE, 128 * K):
        f.seek(off)
        f.write(os.urandom(64 * K))
    f.truncate(SIZE)
with open(tmp + "/vdb.raw", "wb") as f:
    f.truncate(8 << 40)
# As many extents as there can be in so much data: several times what is known
# of the map at any time.
with open(tmp + "/vdc.raw", "wb") as f:
    for off in range(0, NR_PIECES * 8 * K, 8 * K):
        f.seek(off)
        f.write(b"data" * K)
    f.truncate(NR_PIECES * 8 * K)
with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp,
               "--disk", "vdb,file=%s/vdb.raw" % tmp,
               "--disk", "vdc,file=%s/vdc.raw" % tmp) as d:
    check_bounded(d, "least", 32)
    check_bounded(d, "some", 64, "--connections", "8")
    check_bounded(d, "zstd", 64, "--compress", "zstd:3")
    check_bounded(d, "zlib", 32, "--compress", "zlib")
    check_bounded(d, "scattered", 32, "--disk", "vdc", "--cluster-size", "4k")
    check_bounded(d, "large-clusters", 64, "--cluster-size", "2M")
    much = ("--compress", "zstd:19", "--cluster-size", "2M")
    check_bounded(d, "much", 96, *much)
    status, said, _ = backup(d, "little", "--memory", "64M", *much)
    check_equal(status, 2, "status")
    check("--memory 64 MiB: " in said and " need " in said, said)
    subprocess.run(
        ["qemu-io", "-f", "raw", d.uri("vda")], check=True, timeout=TIMEOUT,
        stdout=subprocess.DEVNULL, text=True, input="\n".join(
            "write -q %d 512" % off for off in range(0, SIZE, 128 * K)))
    check_bounded(d, "least", 32)
    check_equal(d.stop(), 0, "status of the server")
