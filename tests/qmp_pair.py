# SPDX-License-Identifier: BSD-3-Clause
"""A qemu-storage-daemon and a tidemarkd side by side, driven over QMP."""
import json
import os
import subprocess
import sys

from qmp_client import Qmp
from tidemarkd_util import TIMEOUT, Tidemarkd


class Server:
    """One of the two: a QMP connection, and where it serves NBD."""

    def __init__(self, name, qmp, nbd):
        self.name = name
        self.qmp = qmp
        self.nbd = nbd

    def command(self, name, arguments=None):
        return self.qmp.command(name, arguments)

    def must(self, name, arguments=None):
        reply = self.command(name, arguments)
        if "return" not in reply:
            sys.exit("FAIL: %s: %s %r: %r" % (self.name, name, arguments,
                                              reply))
        return reply["return"]

    def wait_event(self, name):
        return self.qmp.wait_event(name)

    def uri(self, export):
        return "nbd+unix:///%s?socket=%s" % (export, self.nbd)


class Pair:
    """servers: ours and theirs, each with an NBD server that was started by
    nbd-server-start (unless start is False)."""

    def __init__(self, tmp, start=True):
        self.tidemarkd = Tidemarkd(tmp, "--control",
                                   "unix:%s/ours.ctl" % tmp, bare=True)
        self.qsd = subprocess.Popen(
            ["qemu-storage-daemon", "--chardev",
             "socket,path=%s/theirs.ctl,server=on,wait=off,id=c" % tmp,
             "--monitor", "chardev=c", "--pidfile", tmp + "/qsd.pid"],
            stdout=subprocess.PIPE)
        # The pid file is written when it is ready, so look until it is there;
        # connecting fails at once while the socket is not.
        self.connect(tmp)
        if start:
            for s in self.servers:
                s.must("nbd-server-start", {
                    "addr": {"type": "unix", "data": {"path": s.nbd}}})

    def connect(self, tmp):
        ours = Qmp(tmp + "/ours.ctl")
        deadline = TIMEOUT * 20
        while not os.path.exists(tmp + "/qsd.pid") and deadline > 0:
            deadline -= 1
            try:
                self.qsd.wait(0.05)
                sys.exit("FAIL: qemu-storage-daemon ended")
            except subprocess.TimeoutExpired:
                pass
        theirs = Qmp(tmp + "/theirs.ctl")
        self.servers = [Server("ours", ours, tmp + "/ours.nbd"),
                        Server("theirs", theirs, tmp + "/theirs.nbd")]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for p in self.tidemarkd.process, self.qsd:
            if p.poll() is None:
                p.kill()
                p.wait()
        self.tidemarkd.notify.close()


IO = """
import json, nbd, os
h = nbd.NBD()
# QEMU cuts a client off instead of sending a structured error.
h.set_request_structured_replies(False)
h.connect_uri(os.environ["IO_URI"])
results = []
for line in json.loads(os.environ["IO_COMMANDS"]):
    what, *numbers = line.split()
    a = [int(n[:-1]) * 1024 if n[-1] == "k" else int(n) for n in numbers]
    try:
        if what == "read":
            h.pread(a[1], a[0])
        elif what == "write":
            h.pwrite(b"x" * a[1], a[0])
        elif what == "zero":
            h.zero(a[1], a[0])
        elif what == "flush":
            h.flush()
        else:
            raise ValueError(what)
        results.append("ok")
    except nbd.Error as e:
        results.append(e.errno)
h.shutdown()
print(json.dumps(results))
"""


def run_io(uri, commands):
    """One connection, commands "read|write|zero OFF LEN" and "flush": "ok" or
    the name of the errno of each."""
    env = dict(os.environ, IO_URI=uri, IO_COMMANDS=json.dumps(commands))
    p = subprocess.run(["/usr/bin/python3", "-c", IO], env=env, check=True,
                       stdout=subprocess.PIPE)
    return json.loads(p.stdout)
