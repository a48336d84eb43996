# SPDX-License-Identifier: BSD-3-Clause
"""Many disks, many clients, and what TLS costs."""
import os
import sys
import time

from cases import MIB, Case, Full, run, sparse
from guest import Guest
from servers import HERE, NbdkitTcp, Qmp, Tidemarkd

sys.path.insert (0, os.path.join (HERE, "..", "tests"))
from tls_util import Pki                                # noqa: E402


class Point200 (Case):
    """One point over 200 sparse disks of 64 GiB, each with a bitmap of 64 KiB
    granularity in which 16 writes were recorded: the command backup-begin as
    its client sees it, while a guest writes to one of them."""
    unit, limit = "ms", 100
    nr_disks, size, depth = 200, 64 << 30, 1

    def prepare (self):
        if self.args.size:
            self.nr_disks, self.size = 8, self.args.size
        for i in range (self.nr_disks):
            sparse (self.path ("d%d" % i), self.size)

    def moved (self):
        return 0

    def begin (self, qmp, mode):
        start = time.monotonic ()
        r = qmp.execute ("backup-begin", {"bitmap": "b0", "mode": mode,
                                          "view": "dirty"})
        took = time.monotonic () - start
        assert len (r["disks"]) == self.nr_disks
        return took, r["id"]

    def ours (self):
        disks = ["d%d" % i for i in range (self.nr_disks)]
        with Tidemarkd (self.tools, self.work, disks) as s, \
             Qmp (s.control) as qmp:
            def end (session):
                qmp.execute ("backup-end", {"id": session, "success": True})

            def work ():
                guest = Guest (self, s.live (disks[-1]))
                took, session = self.begin (qmp, "incremental")
                during = guest.end ()
                end (session)
                print ("  the guest's longest write: %.1f ms"
                       % (during["max_us"] / 1e3), file=sys.stderr)
                return {"value": 1e3 * took, "guest": during}
            end (self.begin (qmp, "full")[1])
            for disk in disks:
                run ([self.tools.nbd_load, "--count=16", s.live (disk)])
            yield s, ["backup-begin"], work

    contestants = {"tidemark": ours}


class Idle (Case):
    """What a client costs the server that has read 1 MiB and says nothing any
    more: resident memory."""
    unit = "KiB"
    nr_clients = 500

    def prepare (self):
        if self.args.size:
            self.nr_clients = 10
        sparse (self.path ("d0"), 64 * MIB)
        self.pki = make_pki (self.path ("pki"))

    def finish (self):
        run (["rm", "-rf", self.path ("pki")])
        super ().finish ()

    def moved (self):
        return 0

    def nbd_client (self, where, export, context, is_tls):
        os.environ["top_builddir"] = self.args.build    # which it looks at
        import raw_nbd
        c = raw_nbd.Client (where)
        if is_tls:
            assert c.option (raw_nbd.OPT_STARTTLS)[0] == raw_nbd.REP_ACK
            c.sock = self.pki.context ("client").wrap_socket (
                c.sock, server_hostname="localhost")
        c.structured_replies ()
        c.set_meta (export, [context])
        c.go (export)
        c.status (0, 64 * MIB)
        c.read (0, MIB)
        return c

    def settled (self, server):
        """Resident bytes, when those kept for a while have been freed."""
        time.sleep (0.1 if self.args.size else 2)
        return server.resident ()

    def measure (self, server, connect):
        """connect () makes a client."""
        # The first ones pay for what all share.
        clients = [connect () for _ in range (20)]
        before = self.settled (server)
        clients += [connect () for _ in range (self.nr_clients)]
        after = self.settled (server)
        for c in clients:
            for part in c:
                part.close ()
        return {"value": max ((after - before) / 1024 / self.nr_clients, 0.1)}


def make_pki (path):
    os.mkdir (path)
    pki = Pki (path)
    pki.client ("client")
    return pki


class IdleClients (Idle):
    """A client that has a control connection and one to a view, on Unix
    sockets, has read 1 MiB and says nothing any more: the server's resident
    memory for it."""
    limit = 64

    def ours (self):
        with Tidemarkd (self.tools, self.work, ["d0"],
                        "--max-connections=1000") as s, \
             Qmp (s.control) as qmp:
            r = qmp.execute ("backup-begin", {"disks": [
                {"disk": "d0", "mode": "copy"}]})
            export = r["disks"][0]["export"]

            def connect ():
                q = Qmp (s.control)
                q.execute ("backup-attach", {"id": r["id"]})
                return q, self.nbd_client (s.backup, export, "base:allocation",
                                           False)
            yield s, ["connect"], lambda: self.measure (s, connect)

    contestants = {"tidemark": ours}


class TlsIdle (Idle):
    """A connection over TCP with TLS over which 1 MiB was read and then nothing
    any more: the server's resident memory for it."""
    nr_clients = 100

    def serve (self, is_tls):
        tls = ["--tls-certificates=" + self.pki.path ("server"),
               "--tls-verify-peer"] if is_tls else []
        with Tidemarkd (self.tools, self.work, ["d0"], *tls,
                        "--max-connections=1000", is_tcp=True) as s:
            yield s, ["connect"], lambda: self.measure (s, lambda: [
                self.nbd_client (("127.0.0.1", s.live_port), "d0",
                                 "base:allocation", is_tls)])

    def ours (self):
        yield from self.serve (True)

    def plain (self):
        yield from self.serve (False)

    def nbdkit (self):
        with NbdkitTcp (self.work, self.path ("d0"),
                        "--tls=require", "--tls-verify-peer",
                        "--tls-certificates=" + self.pki.path ("server")) as s:
            yield s, ["connect"], lambda: self.measure (s, lambda: [
                self.nbd_client (("127.0.0.1", s.port), "",
                                 "base:allocation", True)])

    contestants = {"tidemarkd, TLS": ours, "tidemarkd, no TLS": plain,
                   "nbdkit --tls": nbdkit}


class TlsFull (Full):
    """A full backup of random data over TCP on one machine with TLS, which both
    sides' processors encrypt: ours stores a qcow2 file with a checksum of every
    cluster, the peer a raw file."""

    def prepare (self):
        super ().prepare ()
        self.pki = make_pki (self.path ("pki"))

    def finish (self):
        run (["rm", "-rf", self.path ("pki")])
        super ().finish ()

    def back_up (self, server, source, *options):
        repo = self.path ("repo")
        argv = [self.tools.tidemark, "backup", "-q", "-b", "b0", *options,
                source, repo]
        yield server, argv, lambda: run (argv)
        run (["rm", "-rf", repo])

    def ours (self):
        with Tidemarkd (self.tools, self.work, ["disk"],
                        "--tls-certificates=" + self.pki.path ("server"),
                        "--tls-verify-peer", is_tcp=True) as s:
            yield from self.back_up (
                s, "tidemarks://localhost:%d" % s.control_port,
                "--tls-certificates=" + self.pki.path ("client"))

    def plain (self):
        with Tidemarkd (self.tools, self.work, ["disk"], is_tcp=True) as s:
            yield from self.back_up (s, "unix:" + s.control)

    def nbdcopy (self, scheme, *options, query=""):
        out = self.path ("out.raw")
        with NbdkitTcp (self.work, self.path ("disk"), *options) as s:
            uri = "%s://localhost:%d/%s" % (scheme, s.port, query)
            yield from self.peer (s, ["nbdcopy", uri, out], out)

    def nbdcopy_tls (self):
        yield from self.nbdcopy (
            "nbds", "--tls=require", "--tls-verify-peer",
            "--tls-certificates=" + self.pki.path ("server"),
            query="?tls-certificates=" + self.pki.path ("client"))

    def nbdcopy_plain (self):
        yield from self.nbdcopy ("nbd")

    contestants = {"tidemark, TLS": ours, "tidemark, no TLS": plain,
                   "nbdcopy, nbdkit --tls": nbdcopy_tls,
                   "nbdcopy, nbdkit": nbdcopy_plain}


CASES = {"point-200": Point200, "idle-clients": IdleClients,
         "tls-idle": TlsIdle, "tls-full": TlsFull}
