# SPDX-License-Identifier: BSD-3-Clause
"""Start and stop tidemarkd in tests.  Readiness comes over NOTIFY_SOCKET, so
that nothing has to poll.  The program is $TIDEMARKD."""
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile

from qmp_client import Qmp

TIMEOUT = 30


def fail(text):
    sys.exit("FAIL: %s" % text)


def check(condition, text):
    if not condition:
        fail(text)


def check_equal(got, expected, what):
    if got != expected:
        fail("%s: got %r, expected %r" % (what, got, expected))


class Tidemarkd:
    """A captive tidemarkd in a directory of its own below tmp, with a control
    socket and a live and a backup listener on Unix sockets, unless bare."""

    def __init__(self, tmp, *args, bare=False, env=None, pass_fds=()):
        self.dir = tempfile.mkdtemp(dir=tmp)
        self.control = self.dir + "/control.sock"
        self.live = self.dir + "/live.sock"
        self.backup = self.dir + "/backup.sock"
        command = [os.environ["TIDEMARKD"]] + list(args)
        if not bare:
            command += ["--control", "unix:" + self.control,
                        "--listen", "unix:" + self.live,
                        "--backup-listen", "unix:" + self.backup]
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(self.dir + "/notify")
        environ = dict(os.environ, NOTIFY_SOCKET=self.dir + "/notify")
        environ.update(env or {})
        with open(self.dir + "/stderr", "wb") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr,
                                            env=environ, pass_fds=pass_fds)
        self.notify = notify
        self.wait_ready()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.notify.close()

    def wait_ready(self):
        pidfd = os.pidfd_open(self.process.pid)
        ready, _, _ = select.select([self.notify, pidfd], [], [], TIMEOUT)
        os.close(pidfd)
        if self.notify not in ready:
            self.process.kill()
            self.process.wait()
            fail("tidemarkd did not start: %s" % self.messages())
        state = self.notify.recv(1000)
        check(state.startswith(b"READY=1\n"), "notified %r" % state)

    def messages(self):
        with open(self.dir + "/stderr", "rb") as f:
            return f.read().decode()

    def qmp(self, **more):
        return Qmp(self.control, **more)

    def uri(self, disk):
        return "nbd+unix:///%s?socket=%s" % (disk, self.live)

    def write(self, disk, off, length, pattern=0x5a):
        """Through the live listener."""
        subprocess.run(["qemu-io", "-f", "raw", "-c",
                        "write -P %d %d %d" % (pattern, off, length),
                        self.uri(disk)], check=True,
                       stdout=subprocess.DEVNULL)

    def wait(self):
        """Its exit status."""
        return self.process.wait(TIMEOUT)

    def stop(self, sig=signal.SIGTERM):
        self.process.send_signal(sig)
        return self.wait()

    def status(self, key):
        """An entry of /proc/PID/status, in KiB."""
        with open("/proc/%d/status" % self.process.pid) as f:
            for line in f:
                if line.startswith(key + ":"):
                    return int(line.split()[1])
        raise KeyError(key)

    def bitmaps(self, qmp, disk="vda"):
        """The dirty-bitmaps of a disk in query-block, by name."""
        for device in qmp.execute("query-block"):
            if device["device"] == disk:
                return {b["name"]: b for b in
                        device["inserted"].get("dirty-bitmaps", [])}
        raise KeyError(disk)


def nbd_map(uri, context=None):
    """Lines of nbdinfo --map as (offset, length, type)."""
    option = "--map" if context is None else "--map=" + context
    out = subprocess.run(["nbdinfo", option, uri], check=True,
                         stdout=subprocess.PIPE).stdout.decode()
    return [tuple(int(x) for x in line.split()[:3])
            for line in out.splitlines()]
