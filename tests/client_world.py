# SPDX-License-Identifier: BSD-3-Clause
"""A tidemarkd whose sockets are behind relays, and clients of it, for tests of
what becomes of a backup that is disturbed.  The client is $TIDEMARK.
"""
import atexit
import json
import os
import subprocess
import time

from qmp_client import QmpError
from relay import Relay
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal, fail


def messages(tmp):
    """What the last client has said so far."""
    with open(tmp + "/err") as f:
        return f.read()


def wait_message(tmp, p, text):
    end = time.monotonic() + TIMEOUT
    while text not in messages(tmp):
        check(p.poll() is None and time.monotonic() < end,
              "no %r in: %s" % (text, messages(tmp)))
        time.sleep(0.01)


class World:
    """The server, the network to it, a repository.  disks: name to what
    --disk has besides name and file, which is TMP/NAME.raw."""

    def __init__(self, tmp, disks, *args, rate=0):
        self.tmp, self.disks, self.args, self.rate = tmp, disks, args, rate
        self.repo = tmp + "/repo"
        self.source = tmp + "/ctl"
        self.start()

    def start(self):
        args = list(self.args)
        for disk, more in self.disks.items():
            args += ["--disk", "%s,file=%s/%s.raw%s" % (disk, self.tmp, disk,
                                                        more)]
        self.d = Tidemarkd(self.tmp, *args)
        os.rename(self.d.control, self.d.control + ".real")
        os.rename(self.d.backup, self.d.backup + ".real")
        self.ctl = Relay(self.d.control, self.d.control + ".real")
        self.data = Relay(self.d.backup, self.d.backup + ".real", self.rate)
        if os.path.lexists(self.source):
            os.unlink(self.source)
        os.symlink(self.d.control, self.source)
        self.d.control += ".real"
        self.d.backup += ".real"
        self.q = self.d.qmp()

    def restart(self, sig, meanwhile=lambda: None):
        self.d.stop(sig)
        self.ctl.close()
        self.data.close()
        meanwhile()
        self.start()

    def cut(self):
        for r in self.ctl, self.data:
            r.refuse()
            r.cut()
        self.go_data()

    def go(self):
        self.ctl.go()
        self.data.go()

    def go_data(self):
        self.data.flowing.set()

    def write(self, disk, off, length, pattern=7):
        return subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write -P %d %d %d"
             % (pattern, off, length), self.d.uri(disk)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode

    def copy_in(self, disk, path):
        """The guest writes all of its disk."""
        return subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O",
                               "raw", path, self.d.uri(disk)]).returncode

    def refused(self, text, name, arguments):
        try:
            self.q.execute(name, arguments)
        except QmpError as e:
            check(text in e.desc, "%s: %s" % (name, e.desc))
        else:
            fail("%s is not refused" % name)

    def ended(self, reason):
        self.q.wait_event("BACKUP_ENDED", reason=reason)

    def client(self, *options, env=None):
        """One that runs; its standard error goes to TMP/err."""
        with open(self.tmp + "/err", "w") as err:
            p = subprocess.Popen(
                [os.environ["TIDEMARK"], "backup", "--json", "--connections",
                 "1", *options, self.source, self.repo],
                stdout=subprocess.PIPE, stderr=err, text=True,
                env=dict(os.environ, **(env or {})))
        # Of a test that fails none is left; one that has ended is no more.
        atexit.register(p.kill)
        return p

    def run(self, *options):
        """The events of one that succeeds."""
        p = self.client(*options)
        out = p.communicate(timeout=TIMEOUT)[0]
        check_equal(p.returncode, 0, "status, and " + messages(self.tmp))
        return [json.loads(line) for line in out.splitlines()]

    def leftovers(self):
        return [n for _, _, names in os.walk(self.repo) for n in names
                if "partial" in n or "pending" in n]

    def restored(self, disk, *options):
        subprocess.run([os.environ["TIDEMARK"], "restore", "--quiet",
                        "--force", self.repo, "--disk", disk, *options,
                        self.tmp + "/out.raw"], check=True)
        with open(self.tmp + "/out.raw", "rb") as f:
            return f.read()

    def content(self, disk):
        with open("%s/%s.raw" % (self.tmp, disk), "rb") as f:
            return f.read()
