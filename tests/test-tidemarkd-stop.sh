#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Starting and stopping: readiness, signals, quit, --daemon, --pid-file; and
# that nothing is left behind.
. "${srcdir:-.}/control-test.sh"
mkdir "$tmp/scratch"
truncate -s 4M "$tmp/vda.raw"
timeout 90 python3 - "$tmp" <<'END'
import os
import select
import signal
import subprocess
import sys
from qmp_client import Qmp
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal

tmp = sys.argv[1]
DISK = ["--disk", "vda,file=%s/vda.raw" % tmp, "--bitmap", "vda/b",
        "--scratch-dir", tmp + "/scratch"]


def left(d):
    return sorted(set(os.listdir(d.dir)) - {"notify", "stderr"})


def stopped_by(stop):
    """With a session, clients and old data in scratch."""
    with Tidemarkd(tmp, *DISK, "--pid-file", tmp + "/pid") as d:
        check_equal(left(d), ["backup.sock", "control.sock", "live.sock"],
                    "sockets")
        with open(tmp + "/pid") as f:
            check_equal(f.read(), "%d\n" % d.process.pid, "pid file")
        with d.qmp() as q, d.qmp() as other:
            q.execute("backup-begin", {"bitmap": "b"})
            d.write("vda", 0, 65536)
            stop(d, q)
            check_equal(d.wait(), 0, "exit status")
            check_equal(d.notify.recv(100), b"STOPPING=1", "notification")
            other.wait_event("BACKUP_ENDED", reason="shutdown")
            check_equal(other.receive(), None, "end")
        check_equal(left(d), [], "left behind")
        check_equal(os.listdir(tmp + "/scratch"), [], "scratch")
        check(not os.path.exists(tmp + "/pid"), "pid file is left")
        check_equal(d.messages(), "", "messages")


stopped_by(lambda d, q: d.process.send_signal(signal.SIGTERM))
stopped_by(lambda d, q: d.process.send_signal(signal.SIGINT))
stopped_by(lambda d, q: d.process.send_signal(signal.SIGHUP))
stopped_by(lambda d, q: check_equal(q.execute("quit"), {}, "quit"))

# kill -9 leaves socket files; the next start replaces them.
with Tidemarkd(tmp, *DISK, "--control", "unix:%s/same" % tmp,
               bare=True) as d:
    d.stop(signal.SIGKILL)
    check(os.path.exists(tmp + "/same"), "the socket file is gone")
with Tidemarkd(tmp, *DISK, "--control", "unix:%s/same" % tmp,
               bare=True) as d:
    # Someone else's file in its place is not ours to remove.
    os.rename(tmp + "/same", tmp + "/moved")
    with open(tmp + "/same", "w") as f:
        f.write("other")
    check_equal(d.stop(), 0, "exit status")
    check(os.path.exists(tmp + "/same"), "another's file was removed")
    os.unlink(tmp + "/same")
    os.unlink(tmp + "/moved")

# One that cannot start leaves the pid file of the one that runs; so does one
# that ends when it is another's.
PID = ["--pid-file", tmp + "/pid"]
with Tidemarkd(tmp, *DISK, *PID) as d:
    done = subprocess.run(
        [os.environ["TIDEMARKD"], *DISK, *PID, "--control", "unix:" + tmp +
         "/c"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=TIMEOUT)
    check_equal(done.returncode, 1, "exit status")
    check(b"in use" in done.stdout, done.stdout)
    with open(tmp + "/pid") as f:
        check_equal(f.read(), "%d\n" % d.process.pid, "pid file")
    with open(tmp + "/pid", "w") as f:
        f.write("1\n")
    check_equal(d.stop(), 0, "exit status")
with open(tmp + "/pid") as f:
    check_equal(f.read(), "1\n", "another's pid file")
os.unlink(tmp + "/pid")

# --daemon returns when it can be connected to; relative names mean the
# directory that it was started in; stderr is let go.
done = subprocess.run(
    [os.environ["TIDEMARKD"], "--disk", "vda,file=vda.raw", "--control",
     "unix:daemon.sock", "--listen", "unix:daemon-live.sock", "--pid-file",
     "daemon.pid", "--daemon"], cwd=tmp, stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
check_equal((done.returncode, done.stdout), (0, b""), "--daemon")
with open(tmp + "/daemon.pid") as f:
    pid = int(f.read())
pidfd = os.pidfd_open(pid)
try:
    with Qmp(tmp + "/daemon.sock") as q:
        check_equal(os.readlink("/proc/%d/cwd" % pid), "/", "directory")
        check_equal(os.getsid(pid), pid, "session leader")
        for fd in 0, 1, 2:
            check_equal(os.readlink("/proc/%d/fd/%d" % (pid, fd)),
                        "/dev/null", "descriptor %d" % fd)
        q.execute("quit")
    check(select.select([pidfd], [], [], TIMEOUT)[0], "it does not end")
except BaseException:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    raise
for name in "daemon.pid", "daemon.sock", "daemon-live.sock":
    check(not os.path.exists(tmp + "/" + name), name + " is left")
END
