# SPDX-License-Identifier: BSD-3-Clause
"""Pulls over a link with a delay and a rate, as bench/relay makes it."""
import os
import subprocess

from cases import (GRANULE, MIB, Case, Full, Incremental, random_file, run,
                   sparse, sync_file)
from servers import NbdkitFile, Plugin, StorageDaemon, Tidemarkd, show

GIGABIT = 125000000             # bytes per second


class Link:
    """The relay between sockets: those in PATHS are moved aside and it takes
    their names."""

    def __init__ (self, tools, case, paths):
        argv = [tools.relay, "--delay=%d" % (case.round_trip * 1e6 / 2),
                "--rate=%d" % case.rate]
        for path in paths:
            os.rename (path, path + ".real")
            argv += [path, path + ".real"]
        self.command = show (argv)
        self.process = subprocess.Popen (argv, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)
        self.tell ("count")

    def tell (self, command):
        """Bytes up and down until now."""
        self.process.stdin.write (command.encode () + b"\n")
        self.process.stdin.flush ()
        return [int (n) for n in self.process.stdout.readline ().split ()]

    def __enter__ (self):
        return self

    def __exit__ (self, *exc):
        self.process.stdin.close ()
        self.process.wait ()
        self.process.stdout.close ()


class Far:
    """Of a case whose client is far from its server."""
    unit = "% of link"
    round_trip, rate, size = 0.02, GIGABIT, 1024 * MIB

    def moved (self):
        return self.args.size or self.size

    def peer (self, server, argv, out):
        with Link (self.tools, self, [server.socket]):
            def work ():
                run (argv)
                sync_file (out)
            yield server, argv, work
        os.unlink (out)

    def backup (self, server):
        """The tool's command; the control socket is as far away."""
        return [self.tools.tidemark, "backup", "-q", "-b", "b0",
                "unix:" + server.control, self.path ("repo")]

    def link (self, server):
        return Link (self.tools, self, [server.control, server.backup])


class FarFull (Far, Full):
    """A full backup of random data over a link of 1 Gbit/s and 20 ms round
    trip; bytes of the disk as a fraction of what the link can carry."""
    least = 90

    def ours (self):
        with Plugin (self.tools, self.work, self.path ("disk")) as s, \
             self.link (s):
            argv = self.backup (s)
            yield s, argv, lambda: run (argv)
        run (["rm", "-rf", self.path ("repo")])

    contestants = {"tidemark": ours, "nbdcopy to raw, nbdkit file":
                   Full.nbdcopy}


class FarIncremental (Far, Incremental):
    """An incremental backup of random 64 KiB granules of a sparse disk over a
    link of 1 Gbit/s and 20 ms round trip; the synchronous loop moves a 64th of
    it."""
    target = None
    least = 90

    def ours (self):
        disk = self.new_disk ()
        with Plugin (self.tools, self.work, disk) as s:
            argv = self.backup (s)
            run (argv)
            self.dirty (s.uri, 1)
            with self.link (s):
                yield s, argv, lambda: run (argv)
        run (["rm", "-rf", self.path ("repo")])
        os.unlink (disk)

    def nbdcopy (self):
        disk, out = self.new_disk (), self.path ("out.raw")
        with NbdkitFile (self.work, disk) as s:
            self.dirty (s.uri, 1)
            yield from self.peer (s, ["nbdcopy", s.uri, out], out)
        os.unlink (disk)

    def loop (self):
        disk, out = self.new_disk (), self.path ("out.raw")
        count = max (self.moved () // GRANULE // 64, 1)
        with StorageDaemon (self.work, disk, "b0") as s:
            run ([self.tools.nbd_load, "--op=write", "--size=%d" % GRANULE,
                  "--count=%d" % count, "--distinct", s.uri])
            argv = [self.tools.nbd_sync, "qemu:dirty-bitmap:b0",
                    s.freeze_and_export ("b0"), out]
            with Link (self.tools, self, [s.socket]):
                def work ():
                    run (argv)
                    sync_file (out)
                    return {"bytes": count * GRANULE}
                yield s, argv, work
        os.unlink (out)
        os.unlink (disk)

    contestants = {"tidemark": ours, "nbdcopy, nbdkit file": nbdcopy,
                   "synchronous loop": loop}


class FarClean (FarIncremental):
    """An incremental backup of 16 random granules of a sparse 16 TiB disk over
    a link of 1 Gbit/s and 20 ms round trip: its map, asked for 4 GiB at a
    time, would take 82 s with one request after the other."""
    unit = "s"
    least, limit = None, 3
    granules, size = 16, (16 << 40) - MIB       # what ext4 has room for

    def moved (self):
        return self.granules * GRANULE

    def new_disk (self):
        disk = self.path ("disk")
        sparse (disk, 1024 * self.args.size if self.args.size else self.size)
        return disk

    contestants = {"tidemark": FarIncremental.ours}


class FarDisks (Far, Case):
    """Full backups of 8 disks of random data over a link of 1 Gbit/s and 20 ms
    round trip; bytes of the disks as a fraction of what the link can carry."""
    size = 512 * MIB
    disks = ["d%d" % i for i in range (8)]

    def prepare (self):
        for disk in self.disks:
            random_file (self.path (disk), self.moved () // len (self.disks))

    def side_by_side (self, nr):
        with Tidemarkd (self.tools, self.work, self.disks) as s, self.link (s):
            argv = self.backup (s) + ["--parallel", str (nr)]
            yield s, argv, lambda: run (argv)
        run (["rm", "-rf", self.path ("repo")])

    def ours (self):
        yield from self.side_by_side (4)

    def in_turn (self):
        yield from self.side_by_side (1)

    contestants = {"tidemark": ours, "one disk after the other": in_turn}


class VeryFarFull (FarFull):
    """As far-full, at 100 ms."""
    round_trip, least = 0.1, 75


class VeryFarIncremental (FarIncremental):
    """As far-incremental, at 100 ms."""
    round_trip, least = 0.1, 75


CASES = {"far-full": FarFull, "far-incremental": FarIncremental,
         "far-clean": FarClean, "far-disks": FarDisks,
         "very-far-full": VeryFarFull,
         "very-far-incremental": VeryFarIncremental}
