#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Every control command with right, missing, wrong and unknown arguments: error
# classes and messages as docs/control.md and QEMU have them.
. "${srcdir:-.}/control-test.sh"
truncate -s 1M "$tmp/vda.raw"
timeout 60 python3 - "$tmp" <<'END'
import sys
from qmp_client import Qmp
from tidemarkd_util import Tidemarkd, check, check_equal

tmp = sys.argv[1]
ADD = "block-dirty-bitmap-add"
MERGE = "block-dirty-bitmap-merge"
ID = "0" * 32
N = {"node": "vda"}


def b(**more):
    return dict({"node": "vda", "name": "b"}, **more)


def node_name_commands():
    for what in "remove", "clear", "enable", "disable":
        name = "block-dirty-bitmap-" + what
        yield name, None, "Parameter 'node' is missing"
        yield name, N, "Parameter 'name' is missing"
        yield (name, {"node": 1, "name": "b"},
               "Invalid parameter type for 'node', expected: string")
        yield (name, {"node": "vda", "name": []},
               "Invalid parameter type for 'name', expected: string")
        yield name, b(x=1), "Parameter 'x' is unexpected"
        yield name, {"node": "no", "name": "b"}, "Node 'no' not found"
        yield (name, {"node": "vda", "name": "no"},
               "Dirty bitmap 'no' not found")


def no_argument_commands():
    for name in ("query-block", "query-version", "query-commands",
                 "query-backups", "quit"):
        yield name, {"x": 1}, "Parameter 'x' is unexpected"


POWER = "Granularity must be power of 2 and at least 512"
CLUSTER = ("must be 0 or a power of 2 from 512 to 67108864")
table = [
    (ADD, None, "Parameter 'node' is missing"),
    (ADD, N, "Parameter 'name' is missing"),
    (ADD, b(node=None), "Invalid parameter type for 'node', expected: string"),
    (ADD, b(granularity="64k"), "Parameter 'granularity' expects uint64"),
    (ADD, b(granularity=1.5), "Parameter 'granularity' expects uint64"),
    (ADD, b(granularity=-1), "Parameter 'granularity' expects uint32_t"),
    (ADD, b(granularity=1 << 32), "Parameter 'granularity' expects uint32_t"),
    (ADD, b(granularity=0), POWER),
    (ADD, b(granularity=256), POWER),
    (ADD, b(granularity=64000), POWER),
    (ADD, b(disabled="on"),
     "Invalid parameter type for 'disabled', expected: boolean"),
    (ADD, b(persistent=1),
     "Invalid parameter type for 'persistent', expected: boolean"),
    (ADD, b(x=1), "Parameter 'x' is unexpected"),
    (ADD, b(node="no"), "Cannot find device='no' nor node-name='no'"),
    (ADD, b(name=""), "Bitmap name cannot be empty"),
    (ADD, b(name="a"), "Bitmap already exists: a"),
    (MERGE, None, "Parameter 'node' is missing"),
    (MERGE, N, "Parameter 'target' is missing"),
    (MERGE, {"node": "vda", "target": "a"}, "Parameter 'bitmaps' is missing"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": "a"},
     "Invalid parameter type for 'bitmaps', expected: array"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": ["a", 5]},
     "Invalid parameter type for 'bitmaps[1]', expected: "
     "BlockDirtyBitmapOrStr"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": [{"node": "vda"}]},
     "Parameter 'bitmaps[0].name' is missing"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": [b(x=0)]},
     "Parameter 'bitmaps[0].x' is unexpected"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": [b(node=0)]},
     "Invalid parameter type for 'bitmaps[0].node', expected: string"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": [b(node="no")]},
     "Node 'no' not found"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": ["no"]},
     "Dirty bitmap 'no' not found"),
    (MERGE, {"node": "vda", "target": "no", "bitmaps": ["a"]},
     "Dirty bitmap 'no' not found"),
    (MERGE, {"node": "vda", "target": "a", "bitmaps": ["a"], "x": 1},
     "Parameter 'x' is unexpected"),
    ("query-named-block-nodes", {"flat": 1},
     "Invalid parameter type for 'flat', expected: boolean"),
    ("query-named-block-nodes", {"x": 1}, "Parameter 'x' is unexpected"),
    ("backup-begin", {"x": 1}, "Parameter 'x' is unexpected"),
    ("backup-begin", None, "Parameter 'bitmap' is missing for disk 'vda' "
     "(only mode 'copy' needs none)"),
    ("backup-begin", {"bitmap": 1},
     "Invalid parameter type for 'bitmap', expected: string"),
    ("backup-begin", {"bitmap": ""}, "Bitmap name cannot be empty"),
    ("backup-begin", {"bitmap": "a", "mode": "top"},
     "Parameter 'mode' does not accept value 'top' "
     "(allowed: auto, incremental, full, copy)"),
    ("backup-begin", {"bitmap": "a", "view": "half"},
     "Parameter 'view' does not accept value 'half' (allowed: full, dirty)"),
    ("backup-begin", {"bitmap": "a", "cluster-size": 1000},
     "Parameter 'cluster-size' " + CLUSTER),
    ("backup-begin", {"bitmap": "a", "cluster-size": 1 << 27},
     "Parameter 'cluster-size' " + CLUSTER),
    ("backup-begin", {"bitmap": "a", "cluster-size": "64k"},
     "Parameter 'cluster-size' expects uint64"),
    ("backup-begin", {"bitmap": "a", "lease": 0},
     "Parameter 'lease' must be from 1 to 86400 seconds"),
    ("backup-begin", {"bitmap": "a", "lease": 86401},
     "Parameter 'lease' must be from 1 to 86400 seconds"),
    ("backup-begin", {"bitmap": "a", "lease": -1},
     "Parameter 'lease' expects uint64"),
    ("backup-begin", {"bitmap": "a", "scratch-dir": "here"},
     "Parameter 'scratch-dir' must be an absolute path"),
    ("backup-begin", {"bitmap": "a", "scratch-limit": True},
     "Parameter 'scratch-limit' expects uint64"),
    ("backup-begin", {"bitmap": "a", "disks": []},
     "Parameter 'disks' must not be empty"),
    ("backup-begin", {"bitmap": "a", "disks": "vda"},
     "Invalid parameter type for 'disks', expected: array"),
    ("backup-begin", {"bitmap": "a", "disks": ["vda"]},
     "Invalid parameter type for 'disks[0]', expected: object"),
    ("backup-begin", {"bitmap": "a", "disks": [{}]},
     "Parameter 'disks[0].disk' is missing"),
    ("backup-begin", {"bitmap": "a", "disks": [{"disk": "vda", "x": 1}]},
     "Parameter 'disks[0].x' is unexpected"),
    ("backup-begin", {"bitmap": "a", "disks": [{"disk": "no"}]},
     "Node 'no' not found"),
    ("backup-begin", {"bitmap": "a", "disks": [{"disk": "vda"}] * 2},
     "Disk 'vda' is named twice"),
    ("backup-begin", {"bitmap": "a", "disks": [
        {"disk": "vda", "mode": "x"}]},
     "Parameter 'disks[0].mode' does not accept value 'x' "
     "(allowed: auto, incremental, full, copy)"),
    ("backup-begin", {"bitmap": "a", "disks": [
        {"disk": "vda", "cluster-size": 1}]},
     "Parameter 'disks[0].cluster-size' " + CLUSTER),
    ("backup-attach", None, "Parameter 'id' is missing"),
    ("backup-attach", {"id": 1},
     "Invalid parameter type for 'id', expected: string"),
    ("backup-attach", {"id": "abc"},
     "Parameter 'id' must be 32 hexadecimal digits"),
    ("backup-attach", {"id": ID, "x": 1}, "Parameter 'x' is unexpected"),
    ("backup-end", {"success": True}, "Parameter 'id' is missing"),
    ("backup-end", {"id": ID}, "Parameter 'success' is missing"),
    ("backup-end", {"id": ID, "success": "yes"},
     "Invalid parameter type for 'success', expected: boolean"),
    ("backup-end", {"id": ID, "success": True, "x": 1},
     "Parameter 'x' is unexpected"),
    ("block_resize", {"device": "vda"}, "Parameter 'size' is missing"),
    ("block_resize", {"size": 512},
     "Cannot find device='' nor node-name=''"),
    ("block_resize", {"device": "vda", "node-name": "no", "size": 512},
     "Cannot find device='vda' nor node-name='no'"),
    ("block_resize", {"device": "vda", "size": 512, "x": 1},
     "Parameter 'x' is unexpected"),
]
table += node_name_commands()
table += no_argument_commands()

envelopes = [
    (5, "QMP input must be a JSON object"),
    ("query-block", "QMP input must be a JSON object"),
    ([], "QMP input must be a JSON object"),
    ({}, "QMP input lacks member 'execute'"),
    ({"execute": 5}, "QMP input member 'execute' must be a string"),
    ({"execute": "query-version", "arguments": []},
     "QMP input member 'arguments' must be an object"),
    ({"execute": "query-version", "control": 1},
     "QMP input member 'control' is unexpected"),
]


def check_error(reply, error_class, desc, what):
    check_equal(reply.get("error"), {"class": error_class, "desc": desc}, what)


def negotiation(d):
    q = Qmp(d.control, negotiate=False)
    greeting = q.receive()
    version = greeting["QMP"]["version"]
    check_equal(greeting["QMP"]["capabilities"], [], "capabilities")
    check_equal(sorted(version["qemu"]), ["major", "micro", "minor"], "version")
    for name in "query-version", "no-such-command":
        check_error(q.command(name), "CommandNotFound", "Expecting "
                    "capabilities negotiation with 'qmp_capabilities'", name)
    check_error(q.command("qmp_capabilities", {"enable": ["oob"]}),
                "GenericError", "Capability 'oob' is not available", "oob")
    check_error(q.command("qmp_capabilities", {"x": 1}), "GenericError",
                "Parameter 'x' is unexpected", "x")
    check_error(q.command("query-version"), "CommandNotFound", "Expecting "
                "capabilities negotiation with 'qmp_capabilities'", "still")
    check_equal(q.command("qmp_capabilities", {"enable": []}),
                {"return": {}}, "qmp_capabilities")
    check_error(q.command("qmp_capabilities"), "CommandNotFound",
                "Capabilities negotiation is already complete, "
                "command ignored", "second qmp_capabilities")
    check_equal(q.execute("query-version"), version, "query-version")
    q.close()


with Tidemarkd(tmp, "--disk", "vda,file=%s/vda.raw" % tmp,
               "--bitmap", "vda/a") as d:
    negotiation(d)
    q = d.qmp()
    for i, value in enumerate((0, "x", None, [1, {"a": True}], 1.5)):
        reply = q.command("query-version", id=value)
        check_equal(reply.get("id"), value, "id")
        check("id" in reply, "no id")
        reply = q.command("no-such-command", id=value)
        check_equal(reply.get("id"), value, "id of an error")
    check("id" not in q.command("query-version"), "an id of its own")
    check_error(q.command("no-such-command"), "CommandNotFound",
                "The command no-such-command has not been found", "unknown")
    for value, desc in envelopes:
        q.send(value)
        # A number ends where something else begins.
        q.send_bytes(b" ")
        check_error(q.reply(), "GenericError", desc, repr(value))
    before = q.execute("query-block")
    for name, arguments, desc in table:
        check_error(q.command(name, arguments), "GenericError", desc,
                    "%s %r" % (name, arguments))
    for name in "backup-attach", "backup-end":
        arguments = {"id": ID}
        if name == "backup-end":
            arguments["success"] = True
        check_error(q.command(name, arguments), "BackupNotFound",
                    "Backup '%s' not found" % ID, name)
    check_equal(q.execute("query-block"), before, "query-block afterwards")
    check_equal(q.execute("query-backups"), [], "query-backups")

    # Two requests at once, without a separator, and one in pieces.
    q.send_bytes(b'{"execute":"query-version","id":1}'
                 b'{"execute":"query-version","id":2}')
    check_equal([q.reply()["id"], q.reply()["id"]], [1, 2], "two requests")
    for c in b'{"execute": "query-version", "id": "slow"}':
        q.send_bytes(bytes([c]))
    check_equal(q.reply()["id"], "slow", "in pieces")

    names = {c["name"] for c in q.execute("query-commands")}
    tried = {name for name, _, _ in table} | {"qmp_capabilities"}
    # These have a table of their own: interop-qemu-qmp-errors.sh.
    tried |= {"blockdev-add", "blockdev-del", "block-export-add",
              "block-export-del", "query-block-exports", "nbd-server-start",
              "nbd-server-stop", "nbd-server-add", "nbd-server-remove",
              "object-add", "object-del",
              "x-debug-block-dirty-bitmap-sha256"}
    # And these: interop-qemu-jobs.sh.
    tried |= {"drive-backup", "blockdev-backup", "transaction",
              "query-jobs", "query-block-jobs", "block-job-set-speed"}
    tried |= {prefix + verb for prefix in ("job-", "block-job-")
              for verb in ("cancel", "complete", "dismiss", "finalize",
                           "pause", "resume")}
    check_equal(names, tried, "commands that this test covers")
    check_equal(d.stop(), 0, "exit status")
END
