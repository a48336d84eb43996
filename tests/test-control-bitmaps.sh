#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The life of bitmaps over the control socket, with a guest that writes.
. "${srcdir:-.}/control-test.sh"
truncate -s 16M "$tmp/vda.raw"
truncate -s 16M "$tmp/vdb.raw"
timeout 60 python3 - "$tmp" <<'END'
import os
import sys
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, nbd_map

tmp = sys.argv[1]
K = 1024
M = K * K


def command(q, what, **arguments):
    q.execute("block-dirty-bitmap-" + what, arguments)


def refused(q, desc, what, **arguments):
    try:
        command(q, what, **arguments)
    except QmpError as e:
        check_equal(e.desc, desc, what)
    else:
        check(False, "%s %r should have failed" % (what, arguments))


with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp,
               "--disk", "vdb,file=%s/vdb.raw,readonly=on" % tmp,
               "--bitmap", "vda/first,granularity=32k",
               "--bitmap", "vda/off,disabled=on") as d, d.qmp() as q:
    nodes = {n["node-name"]: n for n in
             q.execute("query-named-block-nodes", {"flat": True})}
    check_equal(sorted(nodes), ["vda", "vdb"], "nodes")
    check_equal(nodes["vda"]["ro"], False, "ro of vda")
    check_equal(nodes["vdb"]["ro"], True, "ro of vdb")
    check_equal(nodes["vda"]["drv"], "raw", "drv")
    check_equal(nodes["vda"]["file"], tmp + "/vda.raw", "file")
    check_equal(nodes["vda"]["image"]["virtual-size"], 16 * M, "size")
    devices = q.execute("query-block")
    check_equal([x["device"] for x in devices], ["vda", "vdb"], "devices")
    check_equal([x["inserted"] for x in devices],
                [nodes["vda"], nodes["vdb"]], "inserted")
    check("dirty-bitmaps" not in devices[1]["inserted"], "bitmaps of vdb")

    check_equal(d.bitmaps(q)["first"], {
        "name": "first", "count": 0, "granularity": 32 * K,
        "recording": True, "busy": False, "persistent": True,
        "status": "active"}, "a new bitmap")
    check_equal(d.bitmaps(q)["off"]["recording"], False, "recording")
    check_equal(d.bitmaps(q)["off"]["status"], "disabled", "status")
    check_equal(d.bitmaps(q)["off"]["granularity"], 64 * K, "granularity")

    command(q, "add", node="vda", name="b", granularity=4 * K)
    d.write("vda", 1 * M, 4 * K)
    check_equal({n: b["count"] for n, b in d.bitmaps(q).items()},
                {"first": 32 * K, "off": 0, "b": 4 * K}, "one write")
    check_equal(nbd_map(d.uri("vda"), "qemu:dirty-bitmap:b"),
                [(0, M, 0), (M, 4 * K, 1), (M + 4 * K, 15 * M - 4 * K, 0)],
                "map")

    # Enabled and disabled.
    command(q, "enable", node="vda", name="off")
    command(q, "disable", node="vda", name="b")
    d.write("vda", 2 * M, 4 * K)
    check_equal({n: b["count"] for n, b in d.bitmaps(q).items()},
                {"first": 64 * K, "off": 64 * K, "b": 4 * K}, "two writes")

    # Merged: other granularities, by name and by node.
    command(q, "add", node="vda", name="sum", granularity=512, disabled=True)
    command(q, "merge", node="vda", target="sum",
            bitmaps=["off", {"node": "vda", "name": "b"}])
    check_equal(nbd_map(d.uri("vda"), "qemu:dirty-bitmap:sum"),
                [(0, M, 0), (M, 4 * K, 1), (M + 4 * K, M - 4 * K, 0),
                 (2 * M, 64 * K, 1),
                 (2 * M + 64 * K, 14 * M - 64 * K, 0)], "merged")
    command(q, "merge", node="vda", target="sum", bitmaps=[])
    command(q, "merge", node="vda", target="sum", bitmaps=["sum"])
    check_equal(d.bitmaps(q)["sum"]["count"], 68 * K, "merged with itself")
    refused(q, "Dirty bitmap 'no' not found", "merge", node="vda",
            target="sum", bitmaps=["first", "no"])
    check_equal(d.bitmaps(q)["sum"]["count"], 68 * K, "a merge that failed")
    # Equal sizes on two disks.
    command(q, "add", node="vdb", name="copy")
    command(q, "merge", node="vdb", target="copy",
            bitmaps=[{"node": "vda", "name": "sum"}])
    check_equal(d.bitmaps(q, "vdb")["copy"]["count"], 128 * K, "other disk")

    command(q, "clear", node="vda", name="sum")
    check_equal(d.bitmaps(q)["sum"]["count"], 0, "cleared")
    command(q, "remove", node="vda", name="sum")
    check_equal(sorted(d.bitmaps(q)), ["b", "first", "off"], "removed")
    refused(q, "Dirty bitmap 'sum' not found", "clear", node="vda",
            name="sum")

    # Busy while a backup holds it.
    s = q.execute("backup-begin", {"disks": [{"disk": "vda",
                                              "bitmap": "first"}]})
    check_equal(d.bitmaps(q)["first"]["busy"], True, "busy")
    check_equal(d.bitmaps(q)["first"]["status"], "frozen", "status")
    busy = ("Bitmap 'first' is currently in use by another operation and "
            "cannot be used")
    for what in "remove", "clear", "enable", "disable":
        refused(q, busy, what, node="vda", name="first")
    refused(q, busy, "merge", node="vda", target="first", bitmaps=["b"])
    q.execute("backup-end", {"id": s["id"], "success": True})
    first = d.bitmaps(q)["first"]
    check_equal((first["busy"], first["base"], first["count"]),
                (False, s["id"], 0), "after the backup")
    check_equal(d.stop(), 0, "exit status")

# A file name that is not UTF-8.
name = os.fsencode(tmp) + b"/\xff.raw"
os.rename(tmp + "/vda.raw", name)
with Tidemarkd(tmp, "--disk", b"vda,file=" + name) as d, d.qmp() as q:
    check_equal(q.execute("query-block")[0]["inserted"]["file"],
                tmp + "/?.raw", "file")
END
