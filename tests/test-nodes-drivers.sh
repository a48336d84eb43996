#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blockdev-add of drivers nbd (from qemu-nbd, from a tidemarkd, and as the file
# below qcow2) and host_device (a loop device): written by a guest, backed up
# as a job's source and target, and right in what is behind them.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-nbd losetup
truncate -s 4M "$tmp/device"
device=$(losetup --find --show "$tmp/device" 2> "$tmp/err") ||
    fail "no loop device: $(cat "$tmp/err")"
test_cleanup+=("losetup --detach $device")
timeout 120 python3 - "$tmp" "$device" <<'END'
import sys
from job_util import (Disks, K, M, check, check_equal, check_image, compare,
                      create, refused, run)
from tidemarkd_util import Tidemarkd

tmp, device = sys.argv[1:]
SIZE = 4 * M


class QemuNbd:
    """Serves an image; ready when the command returns."""

    def __init__(self, name, size):
        self.socket = "%s/%s.nbd" % (tmp, name)
        self.path = create("%s/%s" % (tmp, name), size, fmt="raw")
        run("qemu-nbd", "--fork", "--pid-file", self.socket + ".pid",
            "-k", self.socket, "-x", "ex port", "-t", "-f", "raw", self.path)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        with open(self.socket + ".pid") as f:
            pid = f.read().strip()
        run("kill", pid)
        run("tail", "--pid=" + pid, "-f", "/dev/null")


def nbd(path, export):
    return {"driver": "nbd", "export": export,
            "server": {"type": "unix", "path": path}}


def use(d, node):
    """A guest writes; full and incremental from it; then a backup to it."""
    name = node["node-name"]
    d.qmp.execute("blockdev-add", node)
    (info,) = [n for n in d.qmp.execute("query-block")
               if n["device"] == name]
    check_equal(info["inserted"]["image"]["virtual-size"], SIZE, "size")
    d.qmp.execute("block-export-add", {"type": "nbd", "id": name,
                                       "node-name": name, "writable": True})
    d.write(name, (1, 0, M), (2, 3 * M + 512, 1000 * K))
    d.add_bitmap(name)
    full, inc = "%s/%s.full" % (tmp, name), "%s/%s.inc" % (tmp, name)
    d.backup(name, full, bitmap="b0", bitmap_mode="on-success")
    compare(full, d.reference(name, "ref"))
    d.write(name, (3, M, 5 * K), (None, 0, 64 * K))
    create(inc, backing=full)
    d.backup(name, inc, "incremental", bitmap="b0", mode="existing")
    compare(inc, d.reference(name, "ref"))
    d.qmp.execute("block-dirty-bitmap-remove", {"node": name, "name": "b0"})
    d.start("vda", name, command="blockdev-backup", job_id="j")
    d.wait("j")
    compare(d.reference(name, "now"), d.reference("vda", "ref"))
    d.qmp.execute("block-export-del", {"id": name, "mode": "hard"})
    d.qmp.execute("blockdev-del", {"node-name": name})


with Disks(tmp, "vda", size=SIZE) as d:
    d.write("vda", (9, 100 * K, 2 * M), (8, 4 * M - 512, 512))
    ref = d.reference("vda", "vda.ref")

    with QemuNbd("a.raw", SIZE) as server:
        use(d, dict(nbd(server.socket, "ex port"), **{"node-name": "n0"}))
        reply = d.qmp.command("blockdev-add", dict(
            nbd(server.socket, "none"), **{"node-name": "n1"}))
        check("none" in reply["error"]["desc"], "unknown export: %s" % reply)
    compare(server.path, ref, format_a="raw")

    # What is there cannot grow, so there has to be place in it.
    with QemuNbd("b.qcow2", 2 * SIZE) as server:
        create("nbd+unix:///ex%%20port?socket=%s" % server.socket, SIZE)
        use(d, {"driver": "qcow2", "node-name": "q0", "cache-size": 1 << 20,
                "refcount-cache-size": 0, "l2-cache-entry-size": 1024,
                "file": nbd(server.socket, "ex port")})
    check_image(server.path)
    compare(server.path, ref)

    with Tidemarkd(tmp, "--disk", "far,file=%s" % create(
            tmp + "/far.raw", SIZE, fmt="raw")) as other:
        use(d, dict(nbd(other.live, "far"), **{"node-name": "n2"}))
        check_equal(other.stop(), 0, "exit status")
    compare(tmp + "/far.raw", ref, format_a="raw")

    use(d, {"driver": "host_device", "node-name": "h0", "filename": device})
    compare(device, ref, format_a="raw")
    use(d, {"driver": "raw", "node-name": "h1", "offset": 0, "size": SIZE,
            "file": {"driver": "host_device", "filename": device}})
    compare(device, ref, format_a="raw")
    # As it is without a name of its own.
    d.qmp.execute("blockdev-add", {"driver": "host_device", "node-name": "h2",
                                   "filename": device, "read-only": True})
    refused(d.qmp, "blockdev-backup", {
        "device": "vda", "target": "h2", "sync": "full", "job-id": "j"},
        "Block node is read-only")
    refused(d.qmp, "blockdev-add", {
        "driver": "host_device", "node-name": "h3",
        "filename": tmp + "/far.raw"},
        "'host_device' driver requires '%s/far.raw' to be either a character "
        "or block device" % tmp)
    check_equal(d.daemon.stop(), 0, "exit status")
END
