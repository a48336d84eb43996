#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Sockets passed by a service manager: by name, by place, and what is refused.
. "${srcdir:-.}/control-test.sh"
truncate -s 1M "$tmp/vda.raw"
timeout 60 python3 - "$tmp" <<'END'
import os
import socket
import subprocess
import sys
from qmp_client import Qmp
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal

tmp = sys.argv[1]
# The shell puts its own process id where the manager would.
LAUNCHER = tmp + "/launcher"
with open(LAUNCHER, "w") as f:
    f.write("#!/bin/sh\nLISTEN_PID=$$\nexport LISTEN_PID\n"
            "exec '%s' \"$@\"\n" % os.environ["TIDEMARKD"])
os.chmod(LAUNCHER, 0o755)
os.environ["TIDEMARKD"] = LAUNCHER
DISK = ["--disk", "vda,file=%s/vda.raw" % tmp]


def listening(name, kind=socket.SOCK_STREAM):
    path = tmp + "/" + name
    if os.path.exists(path):
        os.unlink(path)
    s = socket.socket(socket.AF_UNIX, kind)
    s.bind(path)
    if kind == socket.SOCK_STREAM:
        s.listen()
    return s


def tcp():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen()
    return s


def variables(sockets, names):
    """Descriptors 3 and up, as the manager passes them."""
    high = [os.dup(s.fileno()) for s in sockets]
    high = [os.dup2(fd, 100 + i) for i, fd in enumerate(high)]
    for i, fd in enumerate(high):
        os.dup2(fd, 3 + i)
    env = {"LISTEN_FDS": str(len(sockets))}
    if names is not None:
        env["LISTEN_FDNAMES"] = names
    return env, range(3, 3 + len(sockets))


def serves(names, order):
    sockets = {"live": listening("live.sock"), "backup": tcp(),
               "control": listening("control.sock")}
    env, fds = variables([sockets[k] for k in order], names)
    with Tidemarkd(tmp, *DISK, bare=True, env=env, pass_fds=fds) as d:
        with Qmp(tmp + "/control.sock") as q:
            s = q.execute("backup-begin", {"mode": "copy"})
            uri = s["disks"][0]["uri"]
            port = sockets["backup"].getsockname()[1]
            check_equal(uri, "nbd://127.0.0.1:%d/%s/vda" % (port, s["id"]), "URI")
            for u in uri, "nbd+unix:///vda?socket=%s/live.sock" % tmp:
                subprocess.run(["nbdinfo", u], check=True,
                               stdout=subprocess.DEVNULL)
        check_equal(d.stop(), 0, "exit status")
    # They belong to the manager.
    check(os.path.exists(tmp + "/live.sock"), "the socket was removed")
    for s in sockets.values():
        s.close()


def refused(sockets, names, text, args=(), env_more=None):
    env, fds = variables(sockets, names)
    env.update(env_more or {})
    done = subprocess.run([LAUNCHER] + DISK + list(args), pass_fds=fds,
                          env=dict(os.environ, **env), timeout=TIMEOUT,
                          stderr=subprocess.PIPE)
    message = done.stderr.decode()
    check_equal(done.returncode, 1, "status with %r: %s" % (names, message))
    check(text in message, "no %r in %r" % (text, message))


# Keep 3 to 9 free for what is passed.
reserve = [os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
           for fd in range(3, 10) if fd != 9]

serves("live:backup:control", ["live", "backup", "control"])
serves("control:live:backup", ["control", "live", "backup"])
serves(None, ["live", "backup", "control"])
serves("x.socket:x.socket:x.socket", ["live", "backup", "control"])

refused([listening("a"), listening("b")], "live:nonsense",
        "socket 2: the name must be 'live', 'backup' or 'control'")
refused([listening("a"), listening("b")], "control", "socket 2")
refused([listening(x) for x in "abcd"], None, "more than 3 sockets")
refused([tcp()], "control", "TCP needs TLS")
refused([listening("a", socket.SOCK_DGRAM)], "live", "socket")
refused([open(tmp + "/vda.raw")], "live", "socket")
refused([], None, "LISTEN_FDS", env_more={"LISTEN_FDS": "many"})
END
