#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# backup-begin, -attach, -end, query-backups over two disks: answers, exports,
# modes, and what they do to the bitmaps.
. "${srcdir:-.}/control-test.sh"
requires qemu-img
truncate -s 16M "$tmp/vda.raw"
truncate -s 8M "$tmp/vdb.raw"
timeout 90 python3 - "$tmp" <<'END'
import shutil
import subprocess
import sys
import time
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, fail, nbd_map

tmp = sys.argv[1]
K = 1024
M = K * K


def refused(q, error_class, desc, name, arguments):
    try:
        q.execute(name, arguments)
    except QmpError as e:
        check_equal((e.error_class, e.desc), (error_class, desc), name)
    else:
        fail("%s %r should have failed" % (name, arguments))


def is_read(uri, off, length, pattern):
    return subprocess.run(
        ["qemu-io", "-r", "-f", "raw", "-c",
         "read -P %d %d %d" % (pattern, off, length), uri],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def has_context(uri, context):
    return subprocess.run(["nbdinfo", "--map=" + context, uri],
                          stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode == 0


def exports(uri):
    out = subprocess.run(["nbdinfo", "--list", uri], check=True,
                         stdout=subprocess.PIPE).stdout.decode()
    return sorted(line.split('"')[1] for line in out.splitlines()
                  if line.startswith("export="))


def full(d, q):
    begun = int(time.time())
    s = q.execute("backup-begin", {"bitmap": "new", "lease": 77})
    check(begun <= s["time"] <= time.time(), "time")
    check_equal(len(s["id"]), 32, "length of the id")
    check_equal(s["lease"], 77, "lease")
    check_equal([x["disk"] for x in s["disks"]], ["vda", "vdb"], "disks")
    vda = s["disks"][0]
    uri = vda.pop("uri")
    check_equal(vda, {
        "disk": "vda", "export": s["id"] + "/vda",
        "contexts": ["base:allocation"], "bitmap": "new",
        "granularity": 64 * K, "dirty-bytes": 16 * M, "size": 16 * M,
        "mode": "full", "why": "no bitmap 'new'", "point": s["id"],
        "view": "full"}, "a full backup")
    check_equal(uri, "nbd+unix:///%s/vda?socket=%s" % (s["id"], d.backup),
                "URI")
    check_equal(exports(d.uri("")), ["vda", "vdb"], "live exports")
    check_equal(exports("nbd+unix:///?socket=" + d.backup),
                [s["id"] + "/vda", s["id"] + "/vdb"], "exports")
    # Only an incremental's bitmap says what to pull.
    check(not has_context(uri, "qemu:dirty-bitmap:new"), "a full's context")
    # The view stays as it was, the disk goes on.
    d.write("vda", M, 64 * K, 2)
    check(is_read(uri, M, 64 * K, 1), "the view has changed")
    check(is_read(d.uri("vda"), M, 64 * K, 2), "the disk has not changed")

    more = q.execute("query-backups")
    check_equal(len(more), 1, "query-backups")
    check(70 <= more[0].pop("lease-left") <= 77, "lease-left")
    check_equal([x.pop("copied-bytes") for x in more[0]["disks"]],
                [64 * K, 0], "copied-bytes")
    check(more[0]["disks"][0].pop("scratch-bytes") >= 64 * K, "scratch-bytes")
    check_equal(more[0]["disks"][1].pop("scratch-bytes"), 0, "scratch-bytes")
    vda["uri"] = uri
    check_equal(more[0], s, "query-backups")
    check_equal(q.execute("backup-attach", {"id": s["id"]}), s, "attach")
    with d.qmp() as other:
        check_equal(other.execute("backup-attach", {"id": s["id"]}), s,
                    "attach from another connection")

    check_equal(q.execute("backup-end", {"id": s["id"], "success": True}), {},
                "backup-end")
    event = q.wait_event("BACKUP_ENDED")
    check_equal(event["data"], {"id": s["id"], "reason": "success"}, "event")
    check(abs(event["timestamp"]["seconds"] - time.time()) < 60, "timestamp")
    check(0 <= event["timestamp"]["microseconds"] < 1000000, "microseconds")
    check_equal(exports("nbd+unix:///?socket=" + d.backup), [],
                "exports afterwards")
    check_equal(d.bitmaps(q)["new"]["base"], s["id"], "base")
    # Whoever has not had the answer may ask again.
    check_equal(q.execute("backup-end", {"id": s["id"], "success": True}), {},
                "backup-end again")
    for name, more in ("backup-attach", {}), ("backup-end", {"success": False}):
        refused(q, "BackupNotFound", "Backup '%s' not found: it has ended "
                "(success)" % s["id"], name, dict(id=s["id"], **more))
    return s["id"]


def incremental(d, q, base):
    """Both views; what fails changes nothing; success moves the base."""
    for view in "dirty", "full":
        s = q.execute("backup-begin", {
            "disks": [{"disk": "vda", "bitmap": "new", "view": view}],
            "mode": "incremental"})
        disk = s["disks"][0]
        check_equal((disk["mode"], disk["base"], disk["dirty-bytes"],
                     disk["view"]),
                    ("incremental", base, 64 * K, view), "incremental")
        context = "qemu:dirty-bitmap:new"
        check_equal(disk["contexts"], ["base:allocation", context], "contexts")
        expected = [(0, M, 0), (M, 64 * K, 1),
                    (M + 64 * K, 15 * M - 64 * K, 0)]
        check_equal(nbd_map(disk["uri"], context), expected, "map")
        check(has_context(disk["uri"], context), "context")
        # New writes do not show, neither as data nor as dirty.
        d.write("vda", 4 * M, 64 * K, 3)
        check_equal(nbd_map(disk["uri"], context), expected, "map, later")
        check(is_read(disk["uri"], M, 64 * K, 2), "view")
        check_equal(is_read(disk["uri"], 4 * M, 64 * K, 0), view == "full",
                    "outside the dirty extents")
        q.execute("backup-end", {"id": s["id"], "success": False})
        event = q.wait_event("BACKUP_ENDED", id=s["id"])
        check_equal(event["data"]["reason"], "abort", "reason")
        bitmap = d.bitmaps(q)["new"]
        check_equal((bitmap["base"], bitmap["count"]), (base, 128 * K),
                    "merged back")
        # For the next round.
        d.write("vda", 4 * M, 64 * K, 0)
        base = q.execute("backup-begin", {"disks": [
            {"disk": "vda", "bitmap": "new"}]})["id"]
        q.execute("backup-end", {"id": base, "success": True})
        d.write("vda", M, 64 * K, 2)
    # What has been cleared counts from no point.
    q.execute("block-dirty-bitmap-clear", {"node": "vda", "name": "new"})
    refused(q, "GenericError", "no incremental backup of disk 'vda' is "
            "possible: bitmap 'new' has no base point yet", "backup-begin",
            {"bitmap": "new", "mode": "incremental"})
    s = q.execute("backup-begin", {"disks": [{"disk": "vda",
                                              "bitmap": "new"}]})
    check_equal(s["disks"][0]["mode"], "full", "mode after clear")
    q.execute("backup-end", {"id": s["id"], "success": True})
    d.write("vda", M, 64 * K, 2)


def cluster_size(d, q):
    s = q.execute("backup-begin", {
        "disks": [{"disk": "vda", "bitmap": "new", "view": "dirty",
                   "cluster-size": M}]})
    disk = s["disks"][0]
    check_equal(disk["dirty-bytes"], 64 * K, "dirty-bytes")
    check(is_read(disk["uri"], M + 512 * K, 512 * K, 1), "rounded out")
    check(not is_read(disk["uri"], 2 * M, 4 * K, 1), "beyond the cluster")
    q.execute("backup-end", {"id": s["id"], "success": False})


def several(d, q):
    """Different bitmaps at once; the same one is busy; copy needs none."""
    a = q.execute("backup-begin", {"disks": [{"disk": "vda",
                                              "bitmap": "new"}]})
    refused(q, "GenericError", "Bitmap 'new' is currently in use by another "
            "operation and cannot be used", "backup-begin", {"bitmap": "new"})
    b = q.execute("backup-begin", {"mode": "copy"})
    check_equal([x["mode"] for x in b["disks"]], ["copy", "copy"], "copy")
    check("bitmap" not in b["disks"][0], "bitmap of a copy")
    check("granularity" not in b["disks"][0], "granularity of a copy")
    c = q.execute("backup-begin", {"bitmap": "other", "disks": [
        {"disk": "vdb"}, {"disk": "vda", "mode": "copy"}]})
    check_equal([(x["disk"], x["mode"]) for x in c["disks"]],
                [("vdb", "full"), ("vda", "copy")], "modes")
    check_equal([x["id"] for x in q.execute("query-backups")],
                [a["id"], b["id"], c["id"]], "query-backups")
    for s in b, a, c:
        q.execute("backup-end", {"id": s["id"], "success": False})
    check_equal(q.execute("query-backups"), [], "query-backups")
    check_equal(sorted(d.bitmaps(q, "vdb")), ["new"],
                "a bitmap made for a backup that failed")


def no_incremental(d, q):
    for bitmap, why in (("none", "Dirty bitmap 'none' not found"),
                        ("off", "bitmap 'off' is disabled")):
        try:
            q.execute("backup-begin", {"bitmap": bitmap,
                                       "mode": "incremental"})
        except QmpError as e:
            check(why in e.desc, "%r not in %r" % (why, e.desc))
        else:
            fail("incremental from bitmap %s" % bitmap)
    check_equal(q.execute("query-backups"), [], "query-backups")


with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp,
               "--disk", "vdb,file=%s/vdb.raw" % tmp,
               "--bitmap", "vda/off,disabled=on", "--scratch-dir", tmp) as d, \
        d.qmp() as q:
    d.write("vda", M, M, 1)
    base = full(d, q)
    incremental(d, q, base)
    cluster_size(d, q)
    several(d, q)
    no_incremental(d, q)
    check_equal(d.stop(), 0, "exit status")

# Without a backup listener nobody could read the views.
with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp, "--control",
               "unix:%s/bare.sock" % tmp, bare=True) as d:
    d.control = tmp + "/bare.sock"
    with d.qmp() as q:
        refused(q, "GenericError", "there is no backup listener: a backup "
                "address must be given when the server is started",
                "backup-begin", {"mode": "copy"})
        check_equal(q.execute("query-backups"), [], "query-backups")
END
