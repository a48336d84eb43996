#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Cuts at random moments of a backup, full and incremental, with a guest that
goes on writing: client-resume.py TMP KIND CUTS SEED.

KIND "drop": the network fails under one run of the client.  KIND "kill": the
client is killed, and run again.  In the end every backup equals the disk at its
point, and what a cut made move twice is under 2 % of the backup, on average.
"""
import json
import os
import random
import subprocess
import sys
import threading

from relay import Relay
from tidemarkd_util import Tidemarkd, check, check_equal, fail

M = 1 << 20
SIZE = int(os.environ.get("RESUME_SIZE", 128)) * M
RATE = int(os.environ.get("RESUME_RATE", 24)) * M
LIMIT = 0.02

tmp, kind, nr_cuts, seed = (sys.argv[1], sys.argv[2], int(sys.argv[3]),
                            int(sys.argv[4]))
rng = random.Random(seed)
repo = tmp + "/repo"
tidemark = os.environ["TIDEMARK"]
disk = tmp + "/vda.raw"


def start_server():
    """tidemarkd, its sockets behind relays that have their names."""
    d = Tidemarkd(tmp, "--disk", "vda,file=%s" % disk)
    relays = []
    for path, rate in (d.control, 0), (d.backup, RATE):
        os.rename(path, path + ".real")
        relays.append(Relay(path, path + ".real", rate))
    return d, relays[0], relays[1]


def client():
    return subprocess.Popen(
        [tidemark, "backup", "--json", "--connections", "1", "--timeout", "1",
         d.control, repo], stdout=subprocess.PIPE, text=True)


def guest_writes():
    """While the backup runs: what is behind its point must not show."""
    off = rng.randrange(0, SIZE - M) & ~4095
    d.write("vda", off, 64 * 1024, rng.randrange(1, 256))


def write_granules(granules):
    args = []
    for g in granules:
        args += ["-c", "write -q -P %d %d 64k" % (rng.randrange(1, 256),
                                                  g << 16)]
    subprocess.run(["qemu-io", "-f", "raw"] + args + [d.uri("vda")],
                   check=True)


def events_of(p):
    return [json.loads(line) for line in p.stdout]


def drop_under_one_run(size):
    """Cut the run's network nr_cuts times."""
    cuts = sorted(rng.randrange(size // 50, size) for _ in range(nr_cuts))
    state = {"n": 0}

    def cut():
        n = state["n"]
        how = rng.choice(("cut", "cut", "reset", "stall"))
        print("drop: cut %d at %d: %s" % (n, data.down - start, how))
        state["n"] += 1
        for relay in (ctl, data) if rng.random() < .5 else (data,):
            if how == "stall":
                # The connections stay, and are silent from here on.
                relay.stall()
                threading.Timer(1.6, lambda r=relay: (r.cut(), r.go())).start()
            else:
                relay.cut(how == "reset")
        guest_writes()
        arm()

    def arm():
        if state["n"] < nr_cuts:
            with data.lock:
                data.at = (max(start + cuts[state["n"]], data.down + 1), cut)

    start = data.down
    arm()
    p = client()
    events = events_of(p)
    check_equal(p.wait(), 0, "status")
    check(state["n"] == nr_cuts, "%d of %d cuts" % (state["n"], nr_cuts))
    check(any(e["event"] == "connected-again" for e in events), "no drop")
    return data.down - start - size


def kill_and_run_again(size):
    """Kill the client nr_cuts times; each goes on where the last one was."""
    cuts = sorted(rng.randrange(size // 50, size) for _ in range(nr_cuts))
    start = data.down
    last, twice, worst = start, 0, 0
    for n, at in enumerate(cuts + [None]):
        reached = threading.Event()
        with data.lock:
            data.at = None
            if at is not None and start + at > data.down:
                data.at = (start + at, reached.set)
            elif at is not None:
                continue
        p = client()
        if at is not None:
            while p.poll() is None and not reached.wait(0.02):
                pass
            p.kill()
        events = events_of(p)
        status = p.wait()
        if at is not None and status == 0:
            fail("the client was not killed")
        for e in events:
            if e["event"] == "not-resumed":
                fail("not resumed: " + e["reason"])
            if e["event"] == "disk-resumed":
                now_twice = last - start - e["stored-bytes"]
                worst = max(worst, now_twice - twice)
                twice = max(twice, now_twice)
        data.cut()
        ctl.cut()
        last = data.down
        if at is not None:
            print("kill: %d at %d" % (n, at))
            guest_writes()
    check_equal(status, 0, "status of the last run")
    # One that comes while a slow disk saves costs more; that it is not the rule
    # is what the mean says.
    check(worst < size // 4, "one kill cost %d of %d bytes" % (worst, size))
    print("kill: the worst cost %.2f %%" % (100 * worst / size))
    return data.down - start - size


def backup(number, size):
    with open(disk, "rb") as f:
        point = f.read()
    more = (drop_under_one_run if kind == "drop" else kill_and_run_again)(size)
    percent = 100 * more / size / nr_cuts
    print("%s: backup %d: %d cuts, %d bytes moved twice, %.2f %% each"
          % (kind, number, nr_cuts, more, percent))
    check(percent < 100 * LIMIT, "too much was moved twice")
    subprocess.run([tidemark, "restore", "--quiet", repo, "--disk", "vda",
                    "--at", str(number), tmp + "/out.raw"], check=True)
    with open(tmp + "/out.raw", "rb") as f:
        check(f.read() == point, "backup %d is not the disk at its point"
              % number)
    os.unlink(tmp + "/out.raw")
    image = [n for n in os.listdir(repo + "/vda") if n.endswith(".qcow2")
             and n.startswith("%06d" % number)][0]
    subprocess.run(["qemu-img", "check", "-q", repo + "/vda/" + image],
                   check=True)
    check_equal([n for n in os.listdir(repo + "/vda") + os.listdir(repo)
                 if "partial" in n or "pending" in n], [], "leftovers")


print("client-resume.py %s: seed %d" % (kind, seed))
with open(disk, "wb") as f:
    f.write(rng.randbytes(SIZE))
d, ctl, data = start_server()
with d:
    backup(1, SIZE)
    # The rest of what was written meanwhile, and more: random granules.
    write_granules(rng.sample(range(SIZE >> 16), (SIZE >> 16) * 3 // 4))
    with d.qmp() as q:
        dirty = sum(b["count"] for b in d.bitmaps(q).values())
    check(dirty > SIZE // 2, "dirty")
    backup(2, dirty)
    subprocess.run([tidemark, "verify", "--quiet", repo], check=True)
    check_equal(d.stop(), 0, "status of the server")
