#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Many control clients at once, with bitmaps and backups coming and going while
# a guest writes: each gets its own replies, and all that is left is right.
. "${srcdir:-.}/control-test.sh"
truncate -s 16M "$tmp/vda.raw"
truncate -s 16M "$tmp/vdb.raw"
timeout 60 python3 - "$tmp" <<'END'
import random
import sys
import threading
import traceback
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, check_equal, nbd_map

tmp = sys.argv[1]
ROUNDS = 30
failures = []


def thread_main(function, d, n):
    try:
        with d.qmp() as q:
            function(d, q, n, random.Random(n))
    except BaseException:
        failures.append(traceback.format_exc())


def bitmaps(d, q, n, rng):
    """A bitmap of its own, and one that all fight for."""
    mine = "own%d" % n
    for i in range(ROUNDS):
        node = rng.choice(["vda", "vdb"])
        q.execute("block-dirty-bitmap-add", {"node": node, "name": mine})
        check(mine in d.bitmaps(q, node), "own bitmap")
        for what in rng.sample(["add", "clear", "disable", "enable",
                                "remove"], 3):
            try:
                q.execute("block-dirty-bitmap-" + what,
                          {"node": node, "name": "all"})
            except QmpError as e:
                check("'all'" in e.desc or e.desc.endswith(": all"), e.desc)
        q.execute("block-dirty-bitmap-merge", {
            "node": "vda" if node == "vdb" else "vdb", "target": "kept",
            "bitmaps": [{"node": node, "name": mine}]})
        reply = q.command("block-dirty-bitmap-remove",
                          {"node": node, "name": mine}, id=[n, i])
        check_equal(reply, {"return": {}, "id": [n, i]}, "reply")


def backups(d, q, n, rng):
    for i in range(ROUNDS):
        s = q.execute("backup-begin", {"bitmap": "backup%d" % n,
                                       "view": rng.choice(["full", "dirty"])})
        check(any(s["id"] == x["id"] for x in q.execute("query-backups")),
              "own backup")
        if i % 10 == 0:
            nbd_map(s["disks"][0]["uri"])
        success = rng.random() < 0.5
        q.execute("backup-end", {"id": s["id"], "success": success})
        reason = "success" if success else "abort"
        q.wait_event("BACKUP_ENDED", id=s["id"], reason=reason)


def guest(d, q, n, rng):
    for _ in range(10):
        d.write(rng.choice(["vda", "vdb"]), 65536 * rng.randrange(256), 4096)


with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp,
               "--disk", "vdb,file=%s/vdb.raw" % tmp,
               "--bitmap", "vda/kept", "--bitmap", "vdb/kept",
               "--scratch-dir", tmp) as d:
    threads = [threading.Thread(target=thread_main, args=(f, d, n))
               for n, f in enumerate([bitmaps, bitmaps, bitmaps, backups,
                                      backups, backups, guest, guest])]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    check(not failures, "\n".join(failures))
    with d.qmp() as q:
        check_equal(q.execute("query-backups"), [], "query-backups")
        for disk in "vda", "vdb":
            names = set(d.bitmaps(q, disk))
            check(names <= {"kept", "all", "backup3", "backup4", "backup5"},
                  "bitmaps %s" % names)
            check(not any(b["busy"] for b in d.bitmaps(q, disk).values()),
                  "a busy bitmap is left")
    status = d.stop()
    check_equal(d.messages(), "", "messages")
    check_equal(status, 0, "exit status")
END
