#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# 200 disks in one server and one point over all of them: a write that followed
# another, on whichever disks, is not in the point without it.  Clients that
# have read and are idle: what each costs; --max-connections is obeyed.
. "${srcdir:-.}/control-test.sh"
nr_disks=200 nr_clients=100
# The thread sanitizer takes memory for each thread, and time.
if [ "$sanitizers" != no ]; then nr_disks=40 nr_clients=20; fi
SANITIZERS=$sanitizers timeout 240 python3 - "$tmp" $nr_disks $nr_clients <<'END'
import os
import sys
import threading
import time
from raw_nbd import WRITE, Client
from tidemarkd_util import TIMEOUT, Tidemarkd, check, check_equal

tmp, nr_disks, nr_clients = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
M = 1 << 20
LIMIT = 64                      # KiB of the server's for each client
disks = ["d%d" % i for i in range(nr_disks)]
options = []
for name in disks:
    with open("%s/%s.raw" % (tmp, name), "wb") as f:
        f.truncate(M)
    # Stores take time to make.
    options += ["--disk", "%s,file=%s/%s.raw" % (name, tmp, name), "--bitmap",
                name + ("/b" if len(options) < 80 else "/b,persistent=off")]


class Guest(threading.Thread):
    """Writes 1, 2, 3, ... to one disk after the other, waiting for each."""

    def __init__(self, d):
        super().__init__(daemon=True)
        # Some from all over, so that the point often falls between them.
        self.names = disks[::nr_disks // 20]
        self.clients = [Client(d.live) for _ in self.names]
        for c, name in zip(self.clients, self.names):
            c.go(name)
        self.round_done = threading.Event()
        self.is_over = False

    def run(self):
        number = 0
        while not self.is_over:
            for c in self.clients:
                number += 1
                c.write(0, number.to_bytes(8, "big"))
            self.round_done.set()


def number_of(d, export):
    with Client(d.backup) as c:
        c.go(export)
        return int.from_bytes(c.read(0, 8), "big")


def one_point(d, q, guest, mode):
    guest.round_done.clear()
    check(guest.round_done.wait(TIMEOUT), "the guest does not get on")
    start = time.monotonic()
    s = q.execute("backup-begin", {"bitmap": "b", "mode": mode})
    print("a point of %d disks, %s: %.1f ms" % (
        nr_disks, mode, 1e3 * (time.monotonic() - start)), flush=True)
    check_equal([x["disk"] for x in s["disks"]], disks, "disks")
    check_equal({x["mode"] for x in s["disks"]}, {mode}, "modes")
    exports = {x["disk"]: x["export"] for x in s["disks"]}
    # Written one after the other, so that they are in a row of the numbers.
    seen = [number_of(d, exports[n]) for n in guest.names]
    last = max(seen)
    check_equal(sorted(seen), list(range(last - len(seen) + 1, last + 1)),
                "the point")
    q.execute("backup-end", {"id": s["id"], "success": True})


def idle_client(d, session):
    export = session["disks"][0]["export"]
    q = d.qmp()
    q.execute("backup-attach", {"id": session["id"]})
    c = Client(d.backup)
    c.structured_replies()
    c.set_meta(export, ["base:allocation"])
    c.go(export)
    c.status(0, M)
    c.read(0, M)
    return q, c


def idle_clients(d):
    with d.qmp() as q:
        session = q.execute("backup-begin", {"disks": [
            {"disk": "d0", "mode": "copy"}]})
    before = d.status("VmRSS")
    clients = [idle_client(d, session) for _ in range(nr_clients)]
    # What each keeps for its next request is given back after a while.
    end = time.monotonic() + TIMEOUT
    while True:
        each = (d.status("VmRSS") - before) / nr_clients
        if os.environ["SANITIZERS"] != "no" or each < LIMIT:
            break
        check(time.monotonic() < end, "%.1f KiB for each client" % each)
        time.sleep(0.1)
    print("%.1f KiB for each of %d clients" % (each, nr_clients), flush=True)
    for q, c in clients:
        c.close()
        q.close()


def is_closed(d):
    try:
        with Client(d.backup) as c:
            return c.is_closed()
    except Exception as e:
        return type(e).__name__ == "Closed"


with Tidemarkd(tmp, *options, "--max-connections",
               str(max(nr_clients, nr_disks) + 30)) as d:
    guest = Guest(d)
    guest.start()
    with d.qmp() as q:
        for mode in "full", "incremental", "incremental":
            one_point(d, q, guest, mode)
    guest.is_over = True
    guest.join(TIMEOUT)
    for c in guest.clients:
        c.close()
    idle_clients(d)
    check_equal(d.stop(), 0, "exit status")

# The number is the limit of each kind of address by itself.
with Tidemarkd(tmp, *options[:4], "--max-connections", "3") as d:
    held = [Client(d.backup) for _ in range(3)]
    controls = [d.qmp() for _ in range(3)]
    check(is_closed(d), "a fourth backup client is served")
    with Client(d.live) as c:
        c.go("d0")
    greeting = d.qmp(negotiate=False).receive()
    check_equal(greeting["error"]["desc"], "Too many control connections",
                "a fourth control client")
    check_equal(d.stop(), 0, "exit status")
END
for n in 0 10001 x -1; do
    expect_error "--max-connections" "$tidemarkd" --disk "v,file=$tmp/d0.raw" \
        --control "unix:$tmp/c" --max-connections "$n"
done
