#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What QEMU's Python QMP client and qmp-shell do: requests without a newline,
# several before the first reply, ids, events in between, lines of a shell.
. "${srcdir:-.}/control-test.sh"
timeout 60 python3 - "$tmp" <<'END'
import json
import subprocess
import sys
import qmp_client
from qmp_client import Qmp
from tidemarkd_util import Tidemarkd, check, check_equal

tmp = sys.argv[1]


def request(name, ident, **arguments):
    return {"execute": name, "id": ident,
            "arguments": {k.replace("_", "-"): v
                          for k, v in arguments.items()}}


with Tidemarkd(tmp) as d:
    with Qmp(d.control, negotiate=False) as q:
        greeting = q.receive()
        check_equal(sorted(greeting["QMP"]), ["capabilities", "version"],
                    "greeting")
        version = greeting["QMP"]["version"]
        check_equal(sorted(version["qemu"]), ["major", "micro", "minor"],
                    "version")
        # All in one piece, the negotiation too, with no white space between.
        pipeline = [
            request("qmp_capabilities", "__qmp#00000"),
            request("blockdev-add", "__qmp#00001", driver="null-co",
                    node_name="n0", size=65536),
            request("block-export-add", "__qmp#00002", type="nbd", id="e",
                    node_name="n0"),
            request("block-export-del", "__qmp#00003", id="e"),
            request("no-such-command", "__qmp#00004"),
            request("blockdev-del", "__qmp#00005", node_name="n0"),
            request("query-named-block-nodes", "__qmp#00006")]
        q.send_bytes(b"".join(json.dumps(r).encode() for r in pipeline))
        messages = []
        while len(messages) < len(pipeline) + 1:
            messages.append(q.receive())
        check_equal([m.get("id", m.get("event")) for m in messages],
                    ["__qmp#0000%d" % i for i in range(3)] +
                    ["BLOCK_EXPORT_DELETED"] +
                    ["__qmp#0000%d" % i for i in range(3, 7)], "order")
        event = messages[3]
        check_equal(event["data"], {"id": "e"}, "event's data")
        check_equal(sorted(event["timestamp"]), ["microseconds", "seconds"],
                    "timestamp")
        check_equal(messages[5]["error"], {
            "class": "CommandNotFound",
            "desc": "The command no-such-command has not been found"},
            "unknown command")
        check_equal(messages[7]["return"], [], "nodes at the end")
        # And no disk.
        check_equal(q.command("backup-begin")["error"]["desc"],
                    "there is no disk", "backup-begin")

    # qmp-shell.
    lines = ["query-version",
             "blockdev-add driver=raw node-name=r0 file.driver=null-co "
             "file.size=1048576 size=65536",
             "block-dirty-bitmap-add node=r0 name=b0 granularity=4096",
             "block-export-add type=nbd id=e node-name=r0 writable=true "
             "bitmaps=[\"b0\"]",
             "query-block-exports",
             "block-export-del id=e mode=hard",
             "blockdev-del node-name=r0"]
    out = subprocess.run(
        [sys.executable, qmp_client.__file__, "--shell", d.control],
        input="\n".join(lines).encode(), stdout=subprocess.PIPE, check=True)
    replies = [json.loads(x) for x in out.stdout.decode().splitlines()]
    check_equal(len(replies), len(lines), "replies to the shell")
    for line, reply in zip(lines, replies):
        check("return" in reply, "%s: %s" % (line, reply))
    check_equal(replies[4]["return"][0]["node-name"], "r0", "export")
END
