#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The bitmaps of a live qcow2 disk and QEMU's tools: what they store we serve,
# record in, and hand back.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-io qemu-nbd qemu-storage-daemon nbdinfo
timeout 200 python3 - "$tmp" <<'END'
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from qmp_client import Qmp, QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, nbd_map

tmp = sys.argv[1]
M = 1 << 20
SIZE = 64 * M
image = tmp + "/a.qcow2"


def run(*command):
    return subprocess.run(command, check=True,
                          stdout=subprocess.PIPE).stdout.decode()


def qemu_write(path, off, length):
    run("qemu-io", "-f", "qcow2", "-c",
        "write -P 7 %d %d" % (off, length), path)


def info(path):
    """Bitmaps as qemu-img info has them: name -> (granularity, flags)."""
    j = json.loads(run("qemu-img", "info", "-U", "--output=json", path))
    return {b["name"]: (b["granularity"], sorted(b["flags"])) for b in
            j["format-specific"]["data"].get("bitmaps", [])}


def clean(path):
    run("qemu-img", "check", "-q", path)


def granules(extents, granularity):
    return {g for off, length, kind in extents if kind & 1
            for g in range(off // granularity,
                           -(-(off + length) // granularity))}


def served(d, name, disk="vda"):
    return nbd_map(d.uri(disk), "qemu:dirty-bitmap:" + name)


def in_qemu(path, name):
    """What qemu-nbd says of a bitmap of the image."""
    sock = tmp + "/qemu-nbd.sock"
    command = ["qemu-nbd", "-r", "-t", "-k", sock, "-f", "qcow2", "-B", name,
               "--pid-file", tmp + "/qemu-nbd.pid", "--fork", path]
    subprocess.run(command, check=True)
    try:
        return nbd_map("nbd+unix:///?socket=" + sock,
                       "qemu:dirty-bitmap:" + name)
    finally:
        with open(tmp + "/qemu-nbd.pid") as f:
            pid = int(f.read())
        fd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        check(select.select([fd], [], [], 30)[0], "qemu-nbd goes on")
        os.close(fd)
        os.unlink(tmp + "/qemu-nbd.pid")


class Shadow(dict):
    """What each bitmap must be: name -> (granularity, dirty granules)."""

    def mark(self, off, length, names):
        for n in names:
            g, bits = self[n]
            bits |= set(range(off // g, -(-(off + length) // g)))

    def check(self, get, what):
        for n, (g, bits) in self.items():
            check_equal(granules(get(n), g), bits, "%s: %s" % (what, n))


def serve(*more):
    return Tidemarkd(tmp, "--disk", "vda,file=%s,format=qcow2" % image, *more)


def stop(d):
    check_equal(d.stop(), 0, d.messages())


# QEMU makes and fills bitmaps of several kinds.
run("qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE))
shadow = Shadow()
for name, granularity in (("small", 4096), ("b", 65536), ("big", 2 * M),
                          ("off", 65536)):
    run("qemu-img", "bitmap", "--add", "-g", str(granularity), image, name)
    shadow[name] = (granularity, set())
qemu_write(image, 5 * M, 100000)
shadow.mark(5 * M, 100000, shadow)
run("qemu-img", "bitmap", "--disable", image, "off")
qemu_write(image, 40 * M, 3 * M)
shadow.mark(40 * M, 3 * M, ("small", "b", "big"))
clean(image)
shadow.check(lambda n: in_qemu(image, n), "QEMU's own")

# We serve them; while we do, the image says that it does not know.
with serve() as d, d.qmp() as q:
    bitmaps = d.bitmaps(q)
    check_equal(sorted(bitmaps), sorted(shadow), "names")
    for name, b in bitmaps.items():
        check_equal(b["granularity"], shadow[name][0], "granularity")
        check_equal(b["persistent"], True, "persistent")
        check_equal(b["recording"], name != "off", "recording " + name)
    shadow.check(lambda n: served(d, n), "loaded")
    for name, (granularity, flags) in info(image).items():
        check_equal(flags, ["in-use"] if name == "off" else
                    ["auto", "in-use"], "flags")
    d.write("vda", 1 * M, 4096)
    d.write("vda", 63 * M + 512, 512)
    for off, length in ((1 * M, 4096), (63 * M + 512, 512)):
        shadow.mark(off, length, ("small", "b", "big"))
    shadow.check(lambda n: served(d, n), "recorded")
    stop(d)

# QEMU goes on with them.
clean(image)
check_equal(info(image), {"small": (4096, ["auto"]), "b": (65536, ["auto"]),
                          "big": (2 * M, ["auto"]), "off": (65536, [])},
            "info after us")
shadow.check(lambda n: in_qemu(image, n), "stored")
qemu_write(image, 20 * M, 65536)
shadow.mark(20 * M, 65536, ("small", "b", "big"))
run("qemu-img", "bitmap", "--merge", "small", image, "off")
shadow["off"][1].update({g // 16 for g in shadow["small"][1]})
run("qemu-img", "bitmap", "--clear", image, "b")
shadow["b"][1].clear()
clean(image)
with serve() as d, d.qmp() as q:
    shadow.check(lambda n: served(d, n), "after QEMU")
    q.execute("block-dirty-bitmap-remove", {"node": "vda", "name": "big"})
    q.execute("block-dirty-bitmap-disable", {"node": "vda", "name": "small"})
    q.execute("block-dirty-bitmap-enable", {"node": "vda", "name": "off"})
    del shadow["big"]
    d.write("vda", 33 * M, 4096)
    shadow.mark(33 * M, 4096, ("b", "off"))
    shadow.check(lambda n: served(d, n), "changed")
    stop(d)
check_equal(info(image), {"small": (4096, []), "b": (65536, ["auto"]),
                          "off": (65536, ["auto"])}, "info after changes")
clean(image)
shadow.check(lambda n: in_qemu(image, n), "stored again")

# More than a disk can have: the rest stays in the image, and what is valid of
# it stays so; a name that is no text stays as it is too.
many = tmp + "/many.qcow2"
shutil.copy(image, many)
names = ["n%02d" % i for i in range(70)]
for name in names:
    run("qemu-img", "bitmap", "--add", many, name)
for name in ("small", "b", "off", "n68"):
    run("qemu-img", "bitmap", *(["--disable"] if name == "n68" else
                                ["--remove"]), many, name)
qemu_write(many, 7 * M, 65536)
with open(many, "rb") as f:
    data = f.read()
with open(many, "wb") as f:
    f.write(data.replace(b"n07", b"n\xff7"))
names.remove("n07")
with Tidemarkd(tmp, "--disk", "vda,file=%s,format=qcow2" % many) as d:
    check("6 of the 70 bitmaps of the image, the first is 'n?7', stay in the "
          "image alone, and those of them that record are no longer valid: "
          "Bitmap name is not UTF-8" in d.messages(), d.messages())
    with d.qmp() as q:
        check_equal(sorted(d.bitmaps(q)), names[:64], "taken over")
        q.execute("block-dirty-bitmap-remove", {"node": "vda", "name": "n05"})
    names.remove("n05")
    d.write("vda", 2 * M, 4096)
    stop(d)
clean(many)
with open(many, "rb") as f:
    check(b"n\xff7" in f.read(), "the name that is no text is lost")
for name, (granularity, flags) in info(many).items():
    if name in names:
        check_equal(flags, [] if name == "n68" else ["auto", "in-use"]
                    if name > "n64" else ["auto"], "flags of " + name)
        names.remove(name)
check_equal(names, [], "lost")

# Read-only: shown, and the image is not touched.
with open(image, "rb") as f:
    before = f.read()
with Tidemarkd(tmp, "--disk",
               "vda,file=%s,format=qcow2,readonly=on" % image) as d:
    shadow.check(lambda n: served(d, n), "read-only")
    stop(d)
with open(image, "rb") as f:
    check(f.read() == before, "a read-only disk was written")

def start_qsd():
    """A pidfd of a qemu-storage-daemon that serves the image."""
    qsd = subprocess.Popen(
        ["qemu-storage-daemon", "--chardev",
         "socket,id=c,path=%s/qsd.sock,server=on,wait=off" % tmp,
         "--monitor", "chardev=c", "--blockdev",
         "qcow2,node-name=n,file.driver=file,file.filename=" + image,
         "--nbd-server", "addr.type=unix,addr.path=%s/qsd-nbd.sock" % tmp,
         "--export", "nbd,id=e,node-name=n,name=n,writable=on",
         "--pidfile", tmp + "/qsd.pid", "--daemonize"])
    check_equal(qsd.wait(30), 0, "qemu-storage-daemon")
    with open(tmp + "/qsd.pid") as f:
        return os.pidfd_open(int(f.read()))


# qemu-storage-daemon makes one, records in it and quits.
fd = start_qsd()
with Qmp(tmp + "/qsd.sock") as q:
    q.execute("block-dirty-bitmap-add",
              {"node": "n", "name": "qsd", "persistent": True,
               "granularity": 32768})
    run("qemu-io", "-f", "raw", "-c", "write 10M 1M",
        "nbd+unix:///n?socket=%s/qsd-nbd.sock" % tmp)
    shadow["qsd"] = (32768, set())
    shadow.mark(10 * M, M, ("qsd", "b", "off"))
    q.execute("quit")
check(select.select([fd], [], [], 30)[0], "qemu-storage-daemon goes on")
with serve() as d:
    shadow.check(lambda n: served(d, n), "of qemu-storage-daemon")
    stop(d)
shadow.check(lambda n: in_qemu(image, n), "back")
clean(image)

# Killed: QEMU and, for a copy that has nothing beside it, we see that the
# bitmaps cannot be trusted; they can be removed, and others live on.
with serve() as d:
    d.write("vda", 0, 4096)
    shutil.copy(image, tmp + "/killed.qcow2")
    d.process.kill()
    d.wait()
image = tmp + "/killed.qcow2"
check(all("in-use" in flags for _, flags in info(image).values()),
      "flags after a crash")
with serve() as d, d.qmp() as q:
    for name, b in d.bitmaps(q).items():
        check_equal(b["inconsistent"], True, name)
        check_equal(b["recording"], False, name)
    try:
        q.execute("block-dirty-bitmap-clear", {"node": "vda", "name": "b"})
        check(False, "cleared")
    except QmpError as e:
        check_equal(e.desc, "Bitmap 'b' is inconsistent and cannot be used",
                    "clear")
    q.execute("block-dirty-bitmap-remove", {"node": "vda", "name": "b"})
    stop(d)
check_equal(sorted(info(image)), ["off", "qsd", "small"], "after removal")
check(all("in-use" in flags for _, flags in info(image).values()),
      "still in use")
clean(image)
for name in ("off", "qsd", "small"):
    run("qemu-img", "bitmap", "--remove", image, name)
clean(image)
check_equal(info(image), {}, "none left")

# QEMU was killed: what it had is known to be inconsistent; a full backup makes
# it anew, and QEMU goes on with that.
image = tmp + "/theirs.qcow2"
run("qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE))
for name in "b", "off":
    run("qemu-img", "bitmap", "--add", image, name)
run("qemu-img", "bitmap", "--disable", image, "off")
fd = start_qsd()
run("qemu-io", "-f", "raw", "-c", "write 10M 1M", "-c", "flush",
    "nbd+unix:///n?socket=%s/qsd-nbd.sock" % tmp)
signal.pidfd_send_signal(fd, signal.SIGKILL)
check(select.select([fd], [], [], 30)[0], "qemu-storage-daemon lives")
check_equal(info(image), {"b": (65536, ["auto", "in-use"]),
                          "off": (65536, ["in-use"])}, "QEMU was killed")
with serve() as d, d.qmp() as q:
    for name, b in d.bitmaps(q).items():
        check_equal((b["inconsistent"], b["recording"]), (True, False), name)
        check("not saved to the image" in b["reason"], b["reason"])
    s = q.execute("backup-begin", {"bitmap": "b"})
    check_equal(s["disks"][0]["mode"], "full", "mode")
    check("is inconsistent" in s["disks"][0]["why"], s["disks"][0]["why"])
    q.execute("backup-end", {"id": s["id"], "success": True})
    d.write("vda", 30 * M, 65536)
    stop(d)
check_equal(info(image), {"b": (65536, ["auto"]), "off": (65536, ["in-use"])},
            "made anew")
shadow = Shadow(b=(65536, set()))
shadow.mark(30 * M, 65536, shadow)
qemu_write(image, 5 * M, 65536)
shadow.mark(5 * M, 65536, shadow)
shadow.check(lambda n: in_qemu(image, n), "QEMU goes on")
clean(image)

# The disk grows, its new part dirty, and shrinks; so do the bitmaps that are
# stored, and what cannot be trusted is no hindrance.
for size in 96 * M, 24 * M + 512:
    with serve() as d, d.qmp() as q:
        q.execute("block_resize", {"device": "vda", "size": size})
        d.write("vda", size - 512, 512)
        if size > SIZE:
            shadow.mark(SIZE, size - SIZE, shadow)
        else:
            shadow.mark(size - 512, 512, shadow)
            shadow["b"][1].intersection_update(range(-(-size // 65536)))
        shadow.check(lambda n: served(d, n), "resized")
        stop(d)
    check_equal(info(image), {"b": (65536, ["auto"]),
                              "off": (65536, ["in-use"])}, "resized")
    shadow.check(lambda n: in_qemu(image, n), "resized, stored")
    clean(image)
END
