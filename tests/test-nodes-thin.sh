#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# tidemarkd starts without a disk and is given all over QMP: an image, a bitmap,
# an export; a guest writes, and everything is taken away again.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
qemu-img create -q -f qcow2 "$tmp/q.qcow2" 4M
truncate -s 1M "$tmp/a.raw"
timeout 60 python3 - "$tmp" <<'END'
import sys
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, nbd_map

tmp = sys.argv[1]
K = 1024


def refused(q, desc, command, **arguments):
    arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
    try:
        q.execute(command, arguments)
    except QmpError as e:
        check_equal(str(e), "GenericError: " + desc, command)
    else:
        check(False, "%s %r should have failed" % (command, arguments))


def run(q, command, **arguments):
    q.execute(command, {k.replace("_", "-"): v for k, v in arguments.items()})


with Tidemarkd(tmp) as d, d.qmp() as q:
    check_equal(q.execute("query-block"), [], "query-block at first")
    run(q, "blockdev-add", driver="qcow2", node_name="q0",
        file={"driver": "file", "filename": tmp + "/q.qcow2"})
    run(q, "block-dirty-bitmap-add", node="q0", name="b0")
    refused(q, "Enabled bitmap 'b0' incompatible with readonly export",
            "block-export-add", type="nbd", id="e0", node_name="q0",
            bitmaps=["b0"])
    run(q, "block-export-add", type="nbd", id="e0", node_name="q0",
        name="disk", writable=True, bitmaps=["b0"])
    check_equal(q.execute("query-block-exports"),
                [{"id": "e0", "type": "nbd", "node-name": "q0",
                  "shutting-down": False}], "exports")
    d.write("disk", 128 * K, 4 * K)
    check_equal(nbd_map(d.uri("disk"), "qemu:dirty-bitmap:b0"),
                [(0, 128 * K, 0), (128 * K, 64 * K, 1),
                 (192 * K, 4096 * K - 192 * K, 0)], "map")
    bitmap = d.bitmaps(q, "q0")["b0"]
    check_equal(bitmap["count"], 64 * K, "count")
    check_equal(bitmap["busy"], True, "busy")
    busy = "Bitmap 'b0' is currently in use by another operation and " \
        "cannot be used"
    for command in ("clear", "remove", "disable", "enable"):
        refused(q, busy, "block-dirty-bitmap-" + command, node="q0",
                name="b0")
    refused(q, busy, "block-export-add", type="nbd", id="e1", node_name="q0",
            name="other", writable=True, bitmaps=["b0"])
    refused(q, "Node q0 is in use", "blockdev-del", node_name="q0")
    run(q, "block-export-del", id="e0", mode="hard")
    q.wait_event("BLOCK_EXPORT_DELETED", id="e0")
    run(q, "block-dirty-bitmap-clear", node="q0", name="b0")
    check_equal(d.bitmaps(q, "q0")["b0"]["count"], 0, "count after clear")
    run(q, "block-dirty-bitmap-add", node="q0", name="kept", persistent=True)
    run(q, "blockdev-del", node_name="q0")
    # What the image stores comes back with it.
    run(q, "blockdev-add", driver="qcow2", node_name="q0",
        file={"driver": "file", "filename": tmp + "/q.qcow2"})
    check_equal(list(d.bitmaps(q, "q0")), ["kept"], "stored bitmaps")
    run(q, "blockdev-del", node_name="q0")
    check_equal(q.execute("query-named-block-nodes"), [], "nodes at the end")

    # By reference: the parent has its child for as long as it lives.
    run(q, "blockdev-add", driver="file", node_name="f0",
        filename=tmp + "/a.raw")
    run(q, "blockdev-add", driver="raw", node_name="r0", file="f0",
        offset=64 * K, size=64 * K)
    refused(q, "Block device f0 is in use", "blockdev-del", node_name="f0")
    refused(q, "Node 'f0' is in use as 'file' of node 'r0'", "blockdev-add",
            driver="raw", node_name="r1", file="f0")
    run(q, "block-export-add", type="nbd", id="r", node_name="r0",
        writable=True)
    d.write("r0", 0, 4 * K, pattern=7)
    run(q, "block-export-del", id="r", mode="hard")
    run(q, "blockdev-del", node_name="r0")
    run(q, "blockdev-del", node_name="f0")
with open(tmp + "/a.raw", "rb") as f:
    data = f.read()
check_equal(data[64 * K:68 * K], b"\7" * 4096, "written through the window")
check_equal(data.count(7), 4096, "bytes written")
END
qemu-img check -q "$tmp/q.qcow2"
qemu-img info "$tmp/q.qcow2" | grep -q "name: kept" || fail "bitmap in image"
