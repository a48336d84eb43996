#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A sparse disk of 16 TiB with a bitmap of 64 KiB granularity, written all over:
# the server's memory stays under 64 MiB.  A backup that is held while the disk
# is written all over once more has a second set of bits, and maps of what was
# copied: it costs less than three times that.
. "${srcdir:-.}/control-test.sh"
limit=65536
if [ "$sanitizers" != no ]; then limit=$((limit * 20)); fi
# A file system that cannot hold such a file uses a smaller one.
size=16T
truncate -s $size "$tmp/vda.raw" 2>/dev/null || {
    size=15T
    truncate -s $size "$tmp/vda.raw"
}
LIMIT=$limit timeout 90 python3 - "$tmp" <<'END'
import os
import random
import subprocess
import sys
from tidemarkd_util import Tidemarkd, check, check_equal, nbd_map

tmp = sys.argv[1]
limit = int(os.environ["LIMIT"])
size = os.path.getsize(tmp + "/vda.raw")
# One write in each: 4 KiB of bits, so that every page of them is in use.
REGION = 4096 * 8 * 65536
random.seed(1)


def write_all_over(d):
    blocks = [random.randrange(off, off + REGION) // 65536
              for off in range(0, size - REGION + 1, REGION)]
    random.shuffle(blocks)
    commands = "".join("aio_write %d 4k\n" % (b * 65536) for b in blocks)
    subprocess.run(["qemu-io", "-f", "raw", d.uri("vda")], check=True,
                   input=(commands + "aio_flush\n").encode(),
                   stdout=subprocess.DEVNULL)
    return set(blocks)


with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp, "--bitmap",
               "vda/b", "--scratch-dir", tmp) as d, d.qmp() as q:
    start = d.status("VmHWM")
    dirty = write_all_over(d)
    check_equal(d.bitmaps(q)["b"]["count"], len(dirty) * 65536, "count")
    bitmap = d.status("VmHWM")
    check(bitmap < limit, "%d KiB, the limit is %d" % (bitmap, limit))
    s = q.execute("backup-begin", {"bitmap": "b"})
    dirty |= write_all_over(d)
    extents = nbd_map(d.uri("vda"), "qemu:dirty-bitmap:b")
    found = {b for off, length, kind in extents if kind == 1
             for b in range(off // 65536, (off + length) // 65536)}
    check_equal(found == dirty, True, "map of the bitmap")
    q.execute("backup-end", {"id": s["id"], "success": False})
    peak = d.status("VmHWM")
    print("KiB: at start %d, bitmap written %d, with a backup %d" %
          (start, bitmap, peak))
    check(peak < 3 * limit, "%d KiB, the limit is %d" % (peak, 3 * limit))
    check_equal(d.stop(), 0, "exit status")
END
