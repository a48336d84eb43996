# SPDX-License-Identifier: BSD-3-Clause
"""The servers that the benchmarks measure, ours and the peers, each started
for one measurement and ended after it."""
import os
import signal
import socket
import subprocess
import sys
import time

HERE = os.path.dirname (os.path.abspath (__file__))
sys.path.insert (0, os.path.join (HERE, "..", "tests"))
from qmp_client import Qmp      # noqa: E402
from tls_util import listening_ports    # noqa: E402

START_LIMIT = 20                # seconds
TICKS = os.sysconf ("SC_CLK_TCK")


def show (argv):
    return " ".join (a if a and not set (a) & set (" $&;*?\"'") else "'%s'" % a
                     for a in argv)


def answers (path):
    with socket.socket (socket.AF_UNIX, socket.SOCK_STREAM) as s:
        try:
            s.connect (path)
            return True
        except OSError:
            return False


class Server:
    """A process, its NBD socket, and what it costs."""

    def __init__ (self, log, argv, sockets, **kwargs):
        self.command = show (argv)
        for s in sockets:       # nbdkit leaves its own
            if os.path.exists (s):
                os.unlink (s)
        self.log = open (log, "w")
        self.process = subprocess.Popen (argv, stdout=self.log,
                                         stderr=subprocess.STDOUT, **kwargs)
        deadline = time.monotonic () + START_LIMIT
        while not all (answers (s) for s in sockets):
            if self.process.poll () is not None or \
               time.monotonic () > deadline:
                self.stop ()
                raise RuntimeError ("did not start: %s\n%s" % (
                    self.command, open (log).read ()))
            time.sleep (0.01)

    def __enter__ (self):
        return self

    def __exit__ (self, *exc):
        self.stop ()

    def stop (self):
        self.process.send_signal (signal.SIGTERM)
        try:
            self.process.wait (30)
        except subprocess.TimeoutExpired:
            self.process.kill ()
            self.process.wait ()
        self.log.close ()

    def cpu (self):
        """Seconds of processor time used so far."""
        with open ("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read ().rsplit (")", 1)[1].split ()
        return (int (fields[11]) + int (fields[12])) / TICKS

    def memory (self):
        """Bytes resident at most."""
        return self.status ("VmHWM")

    def resident (self):
        """Bytes resident now."""
        return self.status ("VmRSS")

    def status (self, name):
        value = {}
        with open ("/proc/%d/status" % self.process.pid) as f:
            for line in f:
                key, _, rest = line.partition (":")
                value[key] = rest.split ()
        return int (value[name][0]) * 1024


class NoServer:
    """Of what is measured in one program."""
    command = "(no server)"

    def cpu (self):
        return 0


class Plugin (Server):
    """nbdkit with our plugin, one disk "vda", a bitmap if one is named (with
    its options, if any)."""
    label = "tidemark plugin"

    def __init__ (self, tools, work, disk, bitmap=None):
        self.socket = os.path.join (work, "plugin.nbd")
        self.control = os.path.join (work, "plugin.ctl")
        self.backup = os.path.join (work, "plugin.backup")
        argv = ["nbdkit", "-f", "-U", self.socket, tools.plugin,
                "disk=vda,file=" + disk, "control=unix:" + self.control,
                "backup=unix:" + self.backup, "scratch-dir=" + work]
        if bitmap:
            argv.append ("bitmap=vda/" + bitmap)
        self.uri = "nbd+unix:///vda?socket=" + self.socket
        super ().__init__ (os.path.join (work, "plugin.log"), argv,
                           [self.socket, self.control])

    def begin (self, bitmap, mode, view="dirty"):
        """A session: its id and the URI of its view."""
        with Qmp (self.control) as qmp:
            r = qmp.execute ("backup-begin", {
                "bitmap": bitmap, "mode": mode, "view": view})
        return r["id"], r["disks"][0]["uri"]

    def end (self, session, success=True):
        with Qmp (self.control) as qmp:
            qmp.execute ("backup-end", {"id": session, "success": success})


class Tidemarkd (Server):
    """Disks DISK in files of that name; with is_tcp the live and the backup
    listener on TCP, and, with TLS, one more for control."""

    def __init__ (self, tools, work, disks, *options, is_tcp=False):
        self.control = os.path.join (work, "tidemarkd.ctl")
        self.backup = os.path.join (work, "tidemarkd.backup")
        self.socket = os.path.join (work, "tidemarkd.nbd")
        has_tls = any (o.startswith ("--tls") for o in options)
        argv = [tools.tidemarkd, "--control", "unix:" + self.control,
                "--scratch-dir", work, *options]
        for d in disks:
            argv += ["--disk", "%s,file=%s" % (d, os.path.join (work, d))]
        if is_tcp:
            argv += ["--listen", "127.0.0.1:0", "--backup-listen",
                     "127.0.0.1:0"]
            argv += ["--control", "127.0.0.1:0"] if has_tls else []
        else:
            argv += ["--listen", "unix:" + self.socket, "--backup-listen",
                     "unix:" + self.backup]
        super ().__init__ (os.path.join (work, "tidemarkd.log"), argv,
                           [self.control])
        # It greets when it listens on all.
        with Qmp (self.control):
            pass
        if is_tcp:
            ports = listening_ports (self.process.pid)
            self.live_port = ports[0]
            self.control_port = ports[-1]

    def live (self, disk):
        return "nbd+unix:///%s?socket=%s" % (disk, self.socket)


class NbdkitTcp (Server):
    """nbdkit's file plugin on a port of TCP, which it is given open."""

    def __init__ (self, work, disk, *options):
        with socket.create_server (("127.0.0.1", 0)) as s:
            self.port = s.getsockname ()[1]
            super ().__init__ (
                os.path.join (work, "nbdkit.log"),
                ["bash", "-c", 'exec 3<&%d; LISTEN_PID=$$ LISTEN_FDS=1 '
                 'exec "$@"' % s.fileno (), "bash", "nbdkit", "-f", *options,
                 "file", disk], [], pass_fds=[s.fileno ()])


class NbdkitFile (Server):
    """nbdkit's own file plugin."""
    label = "nbdkit file"

    def __init__ (self, work, disk):
        self.socket = os.path.join (work, "file.nbd")
        self.uri = "nbd+unix:///?socket=" + self.socket
        super ().__init__ (os.path.join (work, "file.log"),
                           ["nbdkit", "-f", "-U", self.socket, "file", disk],
                           [self.socket])


class QemuNbd (Server):
    """qemu-nbd, read-only, for many clients."""
    label = "qemu-nbd"

    def __init__ (self, work, disk):
        self.socket = os.path.join (work, "qemu.nbd")
        self.uri = "nbd+unix:///?socket=" + self.socket
        super ().__init__ (os.path.join (work, "qemu.log"),
                           ["qemu-nbd", "-t", "-r", "-e", "16", "-f", "raw",
                            "-k", self.socket, disk], [self.socket])


class StorageDaemon (Server):
    """qemu-storage-daemon, one writable export, a bitmap that records."""
    label = "qemu-storage-daemon"

    def __init__ (self, work, disk, bitmap=None):
        self.socket = os.path.join (work, "qsd.nbd")
        self.control = os.path.join (work, "qsd.qmp")
        self.uri = "nbd+unix:///vda?socket=" + self.socket
        super ().__init__ (
            os.path.join (work, "qsd.log"),
            ["qemu-storage-daemon",
             "--blockdev", "driver=file,node-name=file,filename=" + disk,
             "--blockdev", "driver=raw,node-name=vda,file=file",
             "--chardev", "socket,id=c,server=on,wait=off,path=" +
             self.control, "--monitor", "chardev=c",
             "--nbd-server", "addr.type=unix,addr.path=" + self.socket,
             "--export", "type=nbd,id=e,node-name=vda,writable=on,name=vda"],
            [self.socket, self.control])
        if bitmap:
            self.execute ("block-dirty-bitmap-add",
                          node="vda", name=bitmap, granularity=65536)

    def execute (self, command, **arguments):
        with Qmp (self.control) as qmp:
            return qmp.execute (command, arguments)

    def freeze_and_export (self, bitmap):
        """The bitmap in a read-only export of its own, as the tools do that
        loop over it.  Returns its URI."""
        self.execute ("block-dirty-bitmap-disable", node="vda", name=bitmap)
        self.execute ("block-export-add", type="nbd", id="inc", name="inc",
                      **{"node-name": "vda", "writable": False,
                         "bitmaps": [bitmap]})
        return "nbd+unix:///inc?socket=" + self.socket

    def fleece_by_job (self, scratch):
        """A view of the disk as it is now, by a job that copies to the qcow2
        file SCRATCH what the guest overwrites.  Returns the URIs of the view
        and of the guest's export."""
        self.execute ("blockdev-add", driver="qcow2", backing="vda", file={
            "driver": "file", "filename": scratch}, **{"node-name": "view"})
        self.execute ("blockdev-backup", device="vda", target="view",
                      sync="none", **{"job-id": "fleece"})
        return self.export ("view", False), self.uri

    def fleece_by_filter (self, scratch):
        """The same with the filter and the view that newer versions have."""
        self.execute ("blockdev-add", driver="qcow2", file={
            "driver": "file", "filename": scratch}, **{"node-name": "scratch"})
        self.execute ("block-export-del", id="e")
        self.execute ("blockdev-add", driver="copy-before-write", file="vda",
                      target="scratch", **{"node-name": "cbw"})
        self.execute ("blockdev-add", driver="snapshot-access", file="cbw",
                      **{"node-name": "view"})
        return self.export ("view", False), self.export ("cbw", True)

    def export (self, node, writable):
        self.execute ("block-export-add", type="nbd", id="of-" + node,
                      name=node, writable=writable, **{"node-name": node})
        return "nbd+unix:///%s?socket=%s" % (node, self.socket)

    def push (self, bitmap, target):
        """blockdev-backup of the dirty blocks to the qcow2 file TARGET, until
        the target is closed."""
        with Qmp (self.control) as qmp:
            qmp.execute ("blockdev-add", {
                "driver": "qcow2", "node-name": "target", "file": {
                    "driver": "file", "filename": target}})
            qmp.execute ("blockdev-backup", {
                "job-id": "push", "device": "vda", "target": "target",
                "sync": "incremental", "bitmap": bitmap})
            event = qmp.wait_event ("BLOCK_JOB_COMPLETED", device="push")
            if "error" in event["data"]:
                raise RuntimeError (event["data"]["error"])
            qmp.execute ("blockdev-del", {"node-name": "target"})
