# SPDX-License-Identifier: BSD-3-Clause
"""What a guest that writes to its disk notices of a pull of this disk.

Whoever pulls is a process of the lowest priority: it would be on another host,
and must not take the processor from the guest here."""
import json
import os
import signal
import subprocess
import time

from cases import MIB, Case, random_file, run
from servers import Plugin, StorageDaemon, show

NICE = ("nice", "-n", "19")


class Guest:
    """Random writes of 4 KiB, until end ()."""

    def __init__ (self, case, uri, more=()):
        self.process = subprocess.Popen (
            [case.tools.nbd_load, "--op=write", "--size=4096",
             "--count=20000000", "--depth=%d" % case.depth, "--latency",
             "--no-flush", "--until-eof", *more, uri],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline ()         # it has started

    def end (self):
        """What it has seen."""
        out, _ = self.process.communicate ()
        if self.process.returncode != 0:
            raise RuntimeError ("the guest's writes failed")
        return json.loads (out)


class GuestRate (Case):
    """4 KiB random writes of a guest, as many as it can, while its disk is
    pulled: their rate, in percent of that without a backup.  The peers are
    pulled by nbdcopy to a raw file."""
    unit = "%"
    least = 50
    depth, paced = 32, ()
    quiet = 3                   # seconds without a backup

    def moved (self):
        return self.args.size or 2048 * MIB

    def prepare (self):
        random_file (self.path ("disk"), self.moved ())

    def choose (self, alone, during):
        return 100 * during["per_second"] / alone["per_second"]

    def pull (self, argv):
        run (argv)

    def alone (self, uri):
        guest = Guest (self, uri, self.paced)
        time.sleep (0.2 if self.args.size else self.quiet)
        return guest.end ()

    def both (self, server, argv, alone):
        def work ():
            guest = Guest (self, server.uri, self.paced)
            self.pull (argv)
            during = guest.end ()
            return {"value": self.choose (alone, during), "alone": alone,
                    "during": during}
        yield server, argv, work

    def ours (self):
        with Plugin (self.tools, self.work, self.path ("disk"), "b0") as s:
            yield from self.both (
                s, [*NICE, self.tools.tidemark, "backup", "-q", "-b", "b0",
                    "unix:" + s.control, self.path ("repo")],
                self.alone (s.uri))
        run (["rm", "-rf", self.path ("repo")])

    def peer (self, start):
        """START puts a view of the disk at this moment beside the guest's
        export, and returns both URIs."""
        scratch, out = self.path ("scratch.qcow2"), self.path ("out")
        with StorageDaemon (self.work, self.path ("disk")) as s:
            alone = self.alone (s.uri)
            run (["qemu-img", "create", "-q", "-f", "qcow2", scratch,
                  str (self.moved ())])
            view, s.uri = start (s, scratch)
            yield from self.both (s, [*NICE, "nbdcopy", view, out], alone)
        os.unlink (out)
        os.unlink (scratch)

    def job (self):
        yield from self.peer (StorageDaemon.fleece_by_job)

    def filter (self):
        yield from self.peer (StorageDaemon.fleece_by_filter)

    contestants = {"tidemark": ours, "blockdev-backup, sync=none": job,
                   "copy-before-write": filter}


class GuestLatency (GuestRate):
    """As guest-rate: the time within which 99 % of the guest's writes were
    done, in multiples of that without a backup."""
    unit = "times"
    least, limit = None, 3

    def choose (self, alone, during):
        return during["p99_us"] / alone["p99_us"]


class GuestPaced (GuestRate):
    """A guest with 4,000 random writes of 4 KiB a second while its disk is
    pulled: the time within which 99 % of them were done."""
    unit = "ms"
    least, limit = None, 5
    paced = ("--rate=4000",)

    def choose (self, alone, during):
        return during["p99_us"] / 1e3


class GuestStall (GuestPaced):
    """As guest-paced, with a client that stops for 10 s in the middle of its
    pull: the longest that a write took."""
    limit = 50
    stall = 10

    def choose (self, alone, during):
        return during["max_us"] / 1e3

    def pull (self, argv):
        p = subprocess.Popen (argv)
        time.sleep (0.01 if self.args.size else 0.5)
        p.send_signal (signal.SIGSTOP)
        time.sleep (0.2 if self.args.size else self.stall)
        p.send_signal (signal.SIGCONT)
        if p.wait () != 0:
            raise RuntimeError ("%s: status %d" % (show (argv), p.returncode))


CASES = {"guest-rate": GuestRate, "guest-latency": GuestLatency,
         "guest-paced": GuestPaced, "guest-stall": GuestStall}
