# SPDX-License-Identifier: BSD-3-Clause
"""Backups between hosts with addresses of their own: client-hosts.py TMP RELAY.

It runs in a network namespace of its own, which is the server's host.  Two
more are the client's host and, between them, one with the relay, which delays
and limits.  Cables are veth pairs.  A namespace lasts as long as its processes,
which end with this one: nothing has to be removed.
"""
import atexit
import json
import os
import signal
import subprocess
import sys
import time

from client_world import messages, wait_message
from relay import Program
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal, fail
from tls_util import NOW, Pki

K = 1 << 10
M = 1 << 20
# What clients are told is the address that they reach, though the relay has it.
ADDRESS = "10.83.0.1"
CONTROL, DATA = ADDRESS + ":7001", ADDRESS + ":7002"
BEHIND = "10.83.1.1"
SIZES = {"vda": 6 * M, "vdb": 3 * M}

tmp, relay_program = sys.argv[1:]
repo = tmp + "/repo"
tidemark = os.environ["TIDEMARK"]


def ip(*args, host=()):
    subprocess.run([*host, "ip", *args], check=True)


class Host:
    """A namespace with a process that ends when this one does."""

    def __init__(self):
        self.holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        check_equal(self.holder.stdout.readline(), b"\n", "a namespace")
        self.pid = str(self.holder.pid)
        self.prefix = ["nsenter", "--net=/proc/%s/ns/net" % self.pid]

    def ip(self, *args):
        ip(*args, host=self.prefix)

    def start(self, argv, **kwargs):
        p = subprocess.Popen([*self.prefix, *argv], text=True, **kwargs)
        atexit.register(p.kill)
        return p


def cable(name, host, address, other, other_address):
    """Between a host and another, or this one if it is None."""
    where = ["netns", other.pid] if other else []
    host.ip("link", "add", "name", name, "type", "veth", "peer", "name", name,
            *(where or ["netns", str(os.getpid())]))
    for h, a in (host, address), (other, other_address):
        run = h.ip if h else ip
        run("address", "add", a + "/24", "dev", name)
        run("link", "set", name, "up")


class Relay(Program):
    """On a host: 10 ms there and back, 48 MB/s."""

    def __init__(self, host, *addresses):
        super().__init__(host.start(
            [relay_program, "--delay=5000", "--rate=%d" % (48 * M), *addresses],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def stall_after(self, n):
        self.tell("at %d stall" % (self.tell("count")[1] + n))

    def wait_stalled(self):
        check_equal(self.line()[0], "at", "the relay")


def client(*options, who="alice"):
    """One that runs; its standard error is in TMP/err."""
    with open(tmp + "/err", "w") as err:
        return far.start(
            [tidemark, "backup", "--json", "--tls-certificates", pki.path(who),
             *options, "tidemarks://" + CONTROL, repo],
            stdout=subprocess.PIPE, stderr=err)


def finish(p, status=0):
    """Its events."""
    out = p.communicate(timeout=TIMEOUT * 2)[0]
    check_equal(p.returncode, status, "status, and " + messages(tmp))
    return [json.loads(line) for line in out.splitlines()]


def contents():
    content = {}
    for disk in SIZES:
        with open("%s/%s.raw" % (tmp, disk), "rb") as f:
            content[disk] = f.read()
    return content


def guest_writes(seed):
    for i, (disk, size) in enumerate(SIZES.items()):
        d.write(disk, size // 4 + seed * 64 * K, size // 2, 1 + i + 2 * seed)


def check_stored(point, what):
    for disk in SIZES:
        subprocess.run([tidemark, "restore", "--quiet", "--force", repo,
                        "--disk", disk, tmp + "/out.raw"], check=True)
        with open(tmp + "/out.raw", "rb") as f:
            check(f.read() == point[disk], "%s: %s" % (what, disk))
    check_equal(q.execute("query-backups"), [], "sessions")


def modes(events):
    return [e["mode"] for e in events if e["event"] == "disk-begin"]


def names(events):
    return {e["event"] for e in events}


def begin_and_cut(how, *options):
    """A backup whose cable has been pulled out in the middle."""
    relay.stall_after(M)
    p = client(*options)
    relay.wait_stalled()
    how.ip("link", "set", "far", "down")
    relay.tell("go")
    return p


def plain_backups():
    check_equal(modes(finish(client())), ["full"] * 2, "modes")
    check_stored(contents(), "full")
    guest_writes(1)
    check_equal(modes(finish(client())), ["incremental"] * 2, "modes")
    check_stored(contents(), "incremental")


def mended_under_one_run():
    guest_writes(2)
    point = contents()
    p = begin_and_cut(far, "--timeout", "1")
    wait_message(tmp, p, "the connection is lost")
    check("nbds://" + DATA in messages(tmp), "which: " + messages(tmp))
    guest_writes(3)
    far.ip("link", "set", "far", "up")
    events = finish(p)
    check("connected-again" in names(events), "events: %s" % events)
    check_equal(modes(events), ["incremental"] * 2, "modes")
    check_stored(point, "mended under one run")


def mended_for_a_new_run():
    point = contents()
    p = begin_and_cut(middle)
    p.kill()
    p.wait()
    guest_writes(4)
    middle.ip("link", "set", "far", "up")
    events = finish(client())
    check_equal(events[0]["event"], "resumed", "the first event")
    check_stored(point, "mended for a new run")


def never_mended():
    """The lease ends what the client cannot."""
    p = begin_and_cut(far, "--timeout", "1", "--lease", "2", "--retry", "0")
    finish(p, 1)
    check(DATA in messages(tmp) or CONTROL in messages(tmp),
          "no address: " + messages(tmp))
    finish(client("--retry", "0"), 1)
    check("%s: cannot connect" % CONTROL in messages(tmp),
          "no address: " + messages(tmp))
    q.wait_event("BACKUP_ENDED", reason="lease")
    check_equal(q.execute("query-backups"), [], "sessions")
    check_equal(os.listdir(tmp + "/scratch"), [], "scratch")
    far.ip("link", "set", "far", "up")
    events = finish(client())
    check_equal(events[0]["event"], "not-resumed", "the first event")
    check_equal(modes(events), ["incremental"] * 2, "modes")
    check_stored(contents(), "after a lease")


def refused():
    """The server names whom it refuses: its peer, which is the relay."""
    finish(client("--retry", "0", who="nobody"), 1)
    check("Certificate is required" in messages(tmp), messages(tmp))
    check("control: 10.83.1.2:" in d.messages(), d.messages())


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
os.mkdir(tmp + "/scratch")
os.mkdir(tmp + "/pki")
pki = Pki(tmp + "/pki")
pki.issue("vmhost", "server", "cn=vmhost\nip_address=%s\n%s" % (ADDRESS, NOW),
          "ca", "ca")
pki.client("alice")
pki.trust("nobody")
for disk, size in SIZES.items():
    with open("%s/%s.raw" % (tmp, disk), "wb") as f:
        f.write(os.urandom(size))
far, middle = Host(), Host()
cable("far", far, "10.83.0.2", middle, ADDRESS)
cable("near", middle, "10.83.1.2", None, BEHIND)
ip("address", "add", ADDRESS + "/32", "dev", "lo")
ip("link", "set", "lo", "up")
addresses = []
for port in "7001", "7002":
    addresses += ["%s:%s" % (ADDRESS, port), "%s:%s" % (BEHIND, port)]
d = Tidemarkd(tmp, *[word for disk in SIZES for word in (
    "--disk", "%s,file=%s/%s.raw" % (disk, tmp, disk))],
    "--scratch-dir", tmp + "/scratch", "--control", addresses[1],
    "--backup-listen", addresses[2], "--backup-listen", addresses[3],
    "--tls-certificates", pki.path("vmhost"), "--tls-verify-peer", "-v")
relay = Relay(middle, *addresses)
with d, d.qmp() as q:
    for step in (plain_backups, mended_under_one_run, mended_for_a_new_run,
                 never_mended, refused):
        start = time.monotonic()
        step()
        print("%s: %.1f s" % (step.__name__, time.monotonic() - start),
              flush=True)
    check_equal(d.stop(), 0, "status of the server")
