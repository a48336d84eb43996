#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# QEMU's own Python QMP client (both of its interfaces) and its qmp-shell talk
# to tidemarkd.  No package has them: they come from QEMU's source package,
# which ./quickstart check fetches; $QEMU_PYTHON is the folder that has "qemu".
. "${srcdir:-.}/control-test.sh"
requires qemu-img
# Of a build in a clone, and of one that quickstart has made.
for dir in "${QEMU_PYTHON-}" "$top_srcdir/build/qemu-python" \
    "$top_builddir/../qemu-python"; do
    if [ -e "$dir/qemu/qmp/qmp_client.py" ]; then break; fi
done
[ -e "$dir/qemu/qmp/qmp_client.py" ] ||
    fail "QEMU's Python modules are missing: run ./quickstart check, or set" \
        "QEMU_PYTHON to the folder python/ of QEMU's source"
PYTHONPATH=$PYTHONPATH:$dir
# Messages of another program's own deprecations are not ours.
timeout 100 python3 -W ignore - "$tmp" <<'END'
import asyncio
import json
import os
import subprocess
import sys
from qemu.qmp import ExecuteError, QMPClient, Runstate
from qemu.qmp.legacy import QEMUMonitorProtocol
from tidemarkd_util import Tidemarkd, check, check_equal

tmp = sys.argv[1]
NODE = {"driver": "null-co", "node-name": "n0", "size": 1 << 20,
        "read-zeroes": True}


async def expect_error(request, error_class, desc):
    try:
        await request
    except ExecuteError as e:
        check_equal((e.error_class, str(e)), (error_class, desc), "error")
    else:
        check(False, "no error")


async def backup(client, target):
    """A job's events as its listener gets them."""
    states = []
    with client.listener(("JOB_STATUS_CHANGE",
                          "BLOCK_JOB_COMPLETED")) as listener:
        await client.execute("drive-backup", {
            "device": "n0", "target": target, "sync": "full",
            "format": "qcow2", "job-id": "j"})
        async for event in listener:
            states.append(event["data"].get("status", event["event"]))
            if states[-1] == "null":
                return states


async def asynchronous(d):
    client = QMPClient("test")
    await client.connect(d.control)
    check_equal(client.runstate, Runstate.RUNNING, "state")
    replies = await asyncio.gather(
        *[client.execute("query-block") for _ in range(50)])
    check(all(r == replies[0] for r in replies), "replies at the same time")
    await expect_error(client.execute("nope"), "CommandNotFound",
                       "The command nope has not been found")
    await expect_error(
        client.execute("block-dirty-bitmap-add", {"node": "x", "name": "b"}),
        "GenericError", "Cannot find device='x' nor node-name='x'")
    await client.execute("blockdev-add", NODE)
    check_equal(await backup(client, tmp + "/t.qcow2"),
                ["created", "running", "waiting", "pending",
                 "BLOCK_JOB_COMPLETED", "concluded", "null"], "events")
    await client.execute("blockdev-del", {"node-name": "n0"})
    await client.disconnect()
    check_equal(client.runstate, Runstate.IDLE, "state at the end")


def synchronous(d):
    q = QEMUMonitorProtocol(d.control)
    check("version" in q.connect()["QMP"], "greeting")
    check_equal(q.cmd_obj({"execute": "zz", "id": "x"})["error"]["class"],
                "CommandNotFound", "cmd_obj")
    q.cmd("blockdev-add", NODE)
    q.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n0"})
    q.cmd("block-export-del", {"id": "e"})
    event = q.pull_event(wait=10.0)
    check_equal((event["event"], event["data"]),
                ("BLOCK_EXPORT_DELETED", {"id": "e"}), "pull_event")
    q.cmd("blockdev-del", {"node-name": "n0"})
    q.close()


SHELL = [
    ("blockdev-add driver=raw node-name=r0 "
     'file={"driver":"null-co","size":1048576}', {"return": {}}),
    ("block-dirty-bitmap-add node=r0 name=b0 granularity=4096",
     {"return": {}}),
    ("block-dirty-bitmap-add node=r0 name=b1", {"return": {}}),
    ("transaction(", None),
    ("block-dirty-bitmap-clear node=r0 name=b0", None),
    ("block-dirty-bitmap-disable node=r0 name=b1", None),
    (")", {"return": {}}),
    ("block-dirty-bitmap-merge node=r0 target=b0 bitmaps=['b1']",
     {"return": {}}),
    ("block-dirty-bitmap-add node=r0 name=b0",
     {"error": {"class": "GenericError",
                "desc": "Bitmap already exists: b0"}}),
    ("blockdev-del node-name=r0", {"return": {}}),
]


def shell(d):
    env = dict(os.environ, HOME=tmp)
    p = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "qemu.qmp.qmp_shell",
         d.control], input="\n".join(line for line, _ in SHELL) + "\n",
        env=env, stdout=subprocess.PIPE, text=True)
    check_equal(p.returncode, 0, "status of qmp-shell: " + p.stdout)
    replies = [json.loads(line[line.index("{"):])
               for line in p.stdout.splitlines()
               if '{"return"' in line or '{"error"' in line]
    check_equal(replies, [r for _, r in SHELL if r is not None],
                "replies to the shell")


with Tidemarkd(tmp) as d:
    asyncio.run(asynchronous(d))
    asyncio.set_event_loop(asyncio.new_event_loop())
    synchronous(d)
    shell(d)
    check_equal(d.stop(), 0, "status")
END
