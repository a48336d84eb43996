# SPDX-License-Identifier: BSD-3-Clause
"""What is measured.  A case has contestants, ours first; each of them is a
generator function: it prepares, yields (label, command, work) and cleans up.
Calling WORK does what is timed and may return more values to report."""
import json
import os
import subprocess

from servers import (NbdkitFile, NoServer, Plugin, QemuNbd, StorageDaemon,
                     show)

GRANULE = 65536
MIB = 1 << 20


def run (argv, **kwargs):
    """Run a command; its output."""
    r = subprocess.run (argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        **kwargs)
    if r.returncode != 0:
        raise RuntimeError ("%s: status %d\n%s" % (
            show (argv), r.returncode, r.stderr.decode ()))
    return r.stdout.decode ()


def sync_file (path):
    """What makes a peer's result as durable as ours is by itself."""
    fd = os.open (path, os.O_RDONLY)
    os.fsync (fd)
    os.close (fd)


def sparse (path, size):
    with open (path, "wb") as f:
        f.truncate (size)


def random_file (path, size):
    """Data that no layer can make smaller."""
    with open ("/dev/urandom", "rb") as src, open (path, "wb") as dst:
        left = size
        while left:
            left -= dst.write (src.read (min (left, 8 * MIB)))


class Case:
    """Settings common to all contestants."""
    unit = "MB/s"
    target = None               # {peer: least ratio ours / peer}
    limit = None                # what ours must stay under, in its unit
    least = None                # or reach

    def __init__ (self, tools, work, args):
        self.tools, self.work, self.args = tools, work, args

    def path (self, name):
        return os.path.join (self.work, name)

    def prepare (self):
        """Once per case."""

    def finish (self):
        for name in os.listdir (self.work):
            path = self.path (name)
            if os.path.isfile (path):
                os.unlink (path)

    def dirty (self, uri, seed):
        """Write the case's granules to the disk."""
        run ([self.tools.nbd_load, "--op=write", "--size=%d" % GRANULE,
              "--count=%d" % (self.moved () // GRANULE), "--distinct",
              "--seed=%d" % seed, "--depth=16", "--connections=2", uri])


class Full (Case):
    """A full backup of a disk of random data to a file: ours is a qcow2 file
    with a checksum of every cluster, fsynced."""
    target = None

    def moved (self):
        return self.args.size or 2048 * MIB

    def prepare (self):
        random_file (self.path ("disk"), self.moved ())

    def ours (self):
        repo = self.path ("repo")
        with Plugin (self.tools, self.work, self.path ("disk")) as s:
            argv = [self.tools.tidemark, "backup", "-q", "-b", "b0",
                    "unix:" + s.control, repo]
            yield s, argv, lambda: run (argv)
            run (["rm", "-rf", repo])

    def peer (self, server, argv, out):
        def work ():
            run (argv)
            sync_file (out)
        yield server, argv, work
        os.unlink (out)

    def qemu_img (self):
        out = self.path ("out.qcow2")
        with QemuNbd (self.work, self.path ("disk")) as s:
            yield from self.peer (s, ["qemu-img", "convert", "-f", "raw", "-O",
                                      "qcow2", s.uri, out], out)

    def nbdcopy (self):
        out = self.path ("out.raw")
        with NbdkitFile (self.work, self.path ("disk")) as s:
            yield from self.peer (s, ["nbdcopy", s.uri, out], out)

    contestants = {"tidemark": ours, "qemu-img convert, qemu-nbd": qemu_img,
                   "nbdcopy to raw, nbdkit file": nbdcopy}


class Incremental (Case):
    """An incremental backup of random 64 KiB granules of a sparse 8 GiB disk:
    ours is a qcow2 overlay with checksums, fsynced."""
    target = {"synchronous loop": 3, "qemu-storage-daemon push": 1}

    def moved (self):
        return self.args.size or 1024 * MIB

    def new_disk (self):
        disk = self.path ("disk")
        sparse (disk, 8 * self.moved ())
        return disk

    def ours (self):
        disk, repo = self.new_disk (), self.path ("repo")
        with Plugin (self.tools, self.work, disk) as s:
            argv = [self.tools.tidemark, "backup", "-q", "-b", "b0",
                    "unix:" + s.control, repo]
            run (argv)
            self.dirty (s.uri, 1)
            yield s, argv, lambda: run (argv)
        run (["rm", "-rf", repo])
        os.unlink (disk)

    def loop (self):
        disk, out = self.new_disk (), self.path ("out.raw")
        with StorageDaemon (self.work, disk, "b0") as s:
            self.dirty (s.uri, 1)
            argv = [self.tools.nbd_sync, "qemu:dirty-bitmap:b0",
                    s.freeze_and_export ("b0"), out]
            yield s, argv, lambda: run (argv)
        os.unlink (out)
        os.unlink (disk)

    def push (self):
        disk, out = self.new_disk (), self.path ("out.qcow2")
        with StorageDaemon (self.work, disk, "b0") as s:
            self.dirty (s.uri, 1)
            run (["qemu-img", "create", "-q", "-f", "qcow2", out,
                  str (8 * self.moved ())])

            def work ():
                s.push ("b0", out)
                sync_file (out)
            yield s, ["blockdev-backup", "sync=incremental"], work
        os.unlink (out)
        os.unlink (disk)

    contestants = {"tidemark": ours, "synchronous loop": loop,
                   "qemu-storage-daemon push": push}


class Write (Case):
    """4 KiB writes at random places of a disk in the page cache, with a flush
    at the end; ours and qemu-storage-daemon record them in a bitmap."""
    unit = "writes/s"
    target = {"nbdkit file": 0.95}
    depth, count = 32, 300000

    def moved (self):
        return self.args.count or self.count

    def prepare (self):
        random_file (self.path ("disk"), self.args.size or 1024 * MIB)

    def load (self, server):
        argv = [self.tools.nbd_load, "--op=write", "--size=4096",
                "--count=%d" % self.moved (), "--depth=%d" % self.depth,
                "--connections=%d" % self.args.connections, server.uri]
        # The first writes pay for what all servers set up once.
        run ([self.tools.nbd_load, "--count=5000", server.uri])
        yield server, argv, lambda: json.loads (run (argv))

    def ours (self):
        with Plugin (self.tools, self.work, self.path ("disk"), "b0") as s:
            yield from self.load (s)

    def file (self):
        with NbdkitFile (self.work, self.path ("disk")) as s:
            yield from self.load (s)

    def qsd (self):
        with StorageDaemon (self.work, self.path ("disk"), "b0") as s:
            yield from self.load (s)

    contestants = {"tidemark plugin": ours, "nbdkit file": file,
                   "qemu-storage-daemon": qsd}


class WriteDepth1 (Write):
    """As write, one request at a time."""
    depth, count = 1, 100000
    target = {"nbdkit file": 0.95}


class Memory (Case):
    """Memory of the server of a sparse 16 TiB disk with one bitmap of 64 KiB
    granularity, after 20,000 writes all over it."""
    unit = "MiB"
    size = (16 << 40) - MIB     # what ext4 has room for
    limit = 64                  # MiB, of ours

    def moved (self):
        return self.args.count or 20000

    def prepare (self):
        sparse (self.path ("disk"), self.size)

    def load (self, server):
        argv = [self.tools.nbd_load, "--op=write", "--size=4096",
                "--count=%d" % self.moved (), server.uri]

        def work ():
            run (argv)
            return {"memory": server.memory () / MIB}
        yield server, argv, work

    ours, file, qsd = Write.ours, Write.file, Write.qsd
    contestants = {"tidemark plugin": ours, "nbdkit file": file,
                   "qemu-storage-daemon": qsd}


class Qcow2Write (Case):
    """Data that no layer can make smaller from a raw file into a new qcow2
    image, which is then on stable storage."""
    target = {"qemu-img convert": 1.3}

    def moved (self):
        return self.args.size or 4096 * MIB

    def prepare (self):
        random_file (self.path ("disk"), self.moved ())

    def convert (self, argv, out):
        def work ():
            run (argv)
            sync_file (out)
        yield NoServer (), argv, work
        os.unlink (out)

    def ours (self):
        out = self.path ("out.qcow2")
        yield from self.convert ([self.tools.qcow2_load, "write",
                                  self.path ("disk"), out], out)

    def qemu_img (self):
        out = self.path ("out.qcow2")
        yield from self.convert (["qemu-img", "convert", "-f", "raw", "-O",
                                  "qcow2", self.path ("disk"), out], out)

    contestants = {"tidemark's driver": ours, "qemu-img convert": qemu_img}


class Qcow2WriteRandom (Qcow2Write):
    """Writes of 4 KiB all over a new qcow2 image of 4 GiB, most of them into
    clusters that have to be allocated, which is then on stable storage."""
    unit = "writes/s"
    target = None
    size, step = 4096 * MIB, 37 * GRANULE + 4096

    def moved (self):
        return self.args.count or 100000

    def prepare (self):
        pass

    def ours (self):
        out = self.path ("out.qcow2")
        yield from self.convert ([self.tools.qcow2_load, "scatter",
                                  str (self.size), str (self.step),
                                  str (self.moved ()), out], out)

    def qemu_img (self):
        out = self.path ("out.qcow2")
        run (["qemu-img", "create", "-q", "-f", "qcow2", out, str (self.size)])
        yield from self.convert (["qemu-img", "bench", "-w", "-f", "qcow2",
                                  "-d", "32", "-s", "4k", "-S",
                                  str (self.step), "-c", str (self.moved ()),
                                  out], out)

    contestants = {"tidemark's driver": ours, "qemu-img bench": qemu_img}


class Qcow2Chain (Case):
    """All of a disk whose clusters are spread over 32 layers, and of one with
    a single layer, 1 MiB at a time."""
    target = {"one layer": 0.8}
    piece = MIB

    def moved (self):
        return self.args.size or 2048 * MIB

    def prepare (self):
        for nr, name in ((32, "chain-"), (1, "single-")):
            run ([self.tools.qcow2_load, "chain", "%d" % self.moved (),
                  "%d" % nr, self.path (name)])

    def read (self, argv):
        yield NoServer (), argv, lambda: run (argv)

    def ours (self):
        yield from self.read ([self.tools.qcow2_load, "read", str (self.piece),
                               self.path ("chain-31")])

    def single (self):
        yield from self.read ([self.tools.qcow2_load, "read", str (self.piece),
                               self.path ("single-0")])

    def qemu_img (self):
        yield from self.read (["qemu-img", "bench", "-f", "qcow2", "-d", "1",
                               "-s", str (self.piece), "-c",
                               str (self.moved () // self.piece),
                               self.path ("chain-31")])

    def bare (self):
        yield from self.read ([self.tools.qcow2_load, "bare",
                               str (self.moved ()), "32",
                               self.path ("chain-")])

    contestants = {"32 layers": ours, "one layer": single,
                   "plain reads of 32 files": bare,
                   "qemu-img bench, 32 layers": qemu_img}


class Qcow2ChainGranule (Qcow2Chain):
    """As qcow2-chain, 64 KiB at a time."""
    piece = GRANULE


class RestoreChain (Case):
    """Restoring a disk from a full backup and 31 incrementals, each of random
    granules, and from a single full backup, to stable storage."""
    target = {"one layer": 0.8}
    layers = 32

    def moved (self):
        return self.args.size or 1024 * MIB

    def prepare (self):
        granules = self.moved () // GRANULE // (self.layers - 1)

        random_file (self.path ("disk"), self.moved ())
        with Plugin (self.tools, self.work, self.path ("disk")) as s:
            source = "unix:" + s.control
            for i in range (self.layers):
                if i:
                    run ([self.tools.nbd_load, "--op=write", "--size=%d"
                          % GRANULE, "--count=%d" % granules, "--distinct",
                          "--seed=%d" % i, "--depth=16", s.uri])
                run ([self.tools.tidemark, "backup", "-q", "-b", "b0",
                      source, self.path ("chain")])
            run ([self.tools.tidemark, "backup", "-q", "-b", "b1", source,
                  self.path ("single")])

    def finish (self):
        run (["rm", "-rf", self.path ("chain"), self.path ("single")])
        super ().finish ()

    def restore (self, argv, out):
        def work ():
            run (argv)
            sync_file (out)
        yield NoServer (), argv, work
        os.unlink (out)

    def by_us (self, repo):
        out = self.path ("out")
        yield from self.restore ([self.tools.tidemark, "restore", "-q",
                                  self.path (repo), out], out)

    def ours (self):
        yield from self.by_us ("chain")

    def single (self):
        yield from self.by_us ("single")

    def qemu_img (self):
        out = self.path ("out")
        image = run (["sh", "-c", "ls %s/*/*.qcow2 | tail -n 1"
                      % self.path ("chain")]).strip ()
        yield from self.restore (["qemu-img", "convert", "-f", "qcow2", "-O",
                                  "raw", image, out], out)

    contestants = {"32 layers": ours, "one layer": single,
                   "qemu-img convert, 32 layers": qemu_img}


class WriteStore (Write):
    """As write: what a persistent bitmap costs, against no bitmap and against
    one in memory.  All regions of the disk have been written to before."""
    target = {"no bitmap": 0.97}

    def with_bitmap (self, bitmap):
        store = self.path ("disk.tidemark")
        if os.path.exists (store):
            os.unlink (store)
        with Plugin (self.tools, self.work, self.path ("disk"), bitmap) as s:
            yield from self.load (s)

    def persistent (self):
        yield from self.with_bitmap ("b0")

    def none (self):
        yield from self.with_bitmap (None)

    def memory (self):
        yield from self.with_bitmap ("b0,persistent=off")

    contestants = {"persistent bitmap": persistent, "no bitmap": none,
                   "bitmap in memory": memory}


class WriteStoreCold (WriteStore):
    """As write-store, over a sparse disk of 64 GiB and from a new store: every
    region's first write waits for its intent."""
    target = {"no bitmap": 0.9}
    size, count = 64 << 30, 200000

    def prepare (self):
        self.new_disk ()

    def new_disk (self):
        sparse (self.path ("disk"), self.args.size or self.size)

    def load (self, server):
        argv = [self.tools.nbd_load, "--op=write", "--size=4096",
                "--count=%d" % self.moved (), "--depth=%d" % self.depth,
                "--connections=%d" % self.args.connections, server.uri]
        yield server, argv, lambda: json.loads (run (argv))
        self.new_disk ()

    contestants = {"persistent bitmap": WriteStore.persistent,
                   "no bitmap": WriteStore.none,
                   "bitmap in memory": WriteStore.memory}


class StoreOpen (Case):
    """Opening the store of a 16 TiB disk with one bitmap of 64 KiB
    granularity, after a clean end."""
    unit = "ms"
    size, count, limit = 16 << 40, 1000, 50
    value = "open_ms"

    def moved (self):
        return self.args.count or self.count

    def ours (self):
        store = self.path ("store")
        argv = [self.tools.store_time, store, str (self.size),
                str (self.moved ())]

        def work ():
            values = json.loads (run (argv))
            values["value"] = self.choose (values)
            return values
        yield NoServer (), argv, work
        os.unlink (store)

    def choose (self, values):
        return values[self.value]

    contestants = {"tidemark": ours}


class StorePoint (StoreOpen):
    """Taking a point on the store of a 16 TiB disk."""
    limit = 5
    value = "point_ms"


class StoreBytes (StoreOpen):
    """What is written to the store of a 64 GiB disk, in percent of the data of
    random 4 KiB writes.  Needs a file system on a disk (--dir): what is
    written to memory counts as nothing."""
    unit = "%"
    size, count, limit = 64 << 30, 300000, 1.6

    def choose (self, values):
        return 100 * values["store_bytes"] / values["data_bytes"]


CASES = {"full": Full, "incremental": Incremental, "write": Write,
         "write-depth1": WriteDepth1, "memory": Memory,
         "qcow2-write": Qcow2Write, "qcow2-write-random": Qcow2WriteRandom,
         "qcow2-chain": Qcow2Chain, "qcow2-chain-64k": Qcow2ChainGranule,
         "restore-chain": RestoreChain,
         "write-store": WriteStore, "write-store-cold": WriteStoreCold,
         "store-open": StoreOpen, "store-point": StorePoint,
         "store-bytes": StoreBytes}
