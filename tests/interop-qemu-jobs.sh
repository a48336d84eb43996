#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The same commands for push jobs go to QEMU and to tidemarkd, over two empty
# disks: replies, events and their order have to be the same.  Left out of the
# comparison: JOB_STATUS_CHANGE to paused and back when QEMU drains its nodes,
# and whether a reply comes before or after events.
. "${srcdir:-.}/control-test.sh"
requires qemu-img qemu-system-x86_64
timeout 120 python3 - "$tmp" <<'END'
import json
import os
import socket
import subprocess
import sys
import time
from job_util import check_equal, compare, create, event_text, run
from qmp_client import Qmp
from tidemarkd_util import TIMEOUT, Tidemarkd, fail

tmp = sys.argv[1]
SIZE = 1 << 20


def action(kind, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v
                                   for k, v in data.items()}}


def drive(device, target, sync="full", **more):
    return action("drive-backup", device=device, target="DIR/" + target,
                  sync=sync, format="qcow2", mode="existing", **more)


def steps():
    """(what, job to wait for or None, command, arguments)."""
    def s(command, wait=None, **arguments):
        return (wait, command, {k.replace("_", "-"): v
                                for k, v in arguments.items()})

    def db(wait=None, **more):
        arguments = {"device": "drive0", "target": "DIR/ta", "sync": "full",
                     "format": "qcow2", "mode": "existing"}
        arguments.update(more)
        return s("drive-backup", wait, **arguments)

    def t(actions, wait=None, mode=None):
        more = {"properties": {"completion-mode": mode}} if mode else {}
        return s("transaction", wait, actions=actions, **more)

    def verbs(name, key):
        return [s(name + verb, **{key(verb): job}) for verb in
                ("cancel", "pause", "resume", "finalize", "dismiss",
                 "complete") for job in ("zz",)]

    bitmap = "block-dirty-bitmap-"
    yield s(bitmap + "add", node="drive0", name="b0")
    yield s(bitmap + "add", node="drive1", name="b1")
    yield s(bitmap + "add", node="drive0", name="b5", granularity=64000)
    # Jobs that do what they should.
    yield db("drive0")
    yield db("drive0", sync="incremental", bitmap="b0")
    yield db("j0", sync="bitmap", bitmap="b0", bitmap_mode="never",
             job_id="j0")
    yield db("drive0", sync="bitmap", bitmap="b0", bitmap_mode="always",
             speed=1 << 30)
    yield db("drive0", bitmap="b0", bitmap_mode="on-success")
    yield db("drive0", sync="top")
    # Arguments.
    yield db(sync="incremental")
    yield db(sync="bitmap")
    yield db(sync="incremental", bitmap="zz")
    yield db(sync="incremental", bitmap="b0", bitmap_mode="never")
    yield db(sync="bitmap", bitmap="b0")
    yield db(bitmap="b0")
    yield db(bitmap="b0", bitmap_mode="never")
    yield db(bitmap_mode="never")
    yield db(sync="none", bitmap="b0", bitmap_mode="always")
    yield db(sync="zz")
    yield db(mode="zz")
    yield db(bitmap_mode="zz", bitmap="b0")
    yield db(on_source_error="zz")
    yield db(on_target_error="zz")
    yield db(compress=1)
    yield db(speed="1")
    yield db(zz=1)
    yield db(job_id="0 a")
    yield db(device="zz")
    yield db(device=1)
    yield db(target="DIR/nope")
    yield db(target="DIR/small")
    yield db(target="DIR/nope/x", mode="absolute-paths")
    yield db(target="DIR/y", mode="absolute-paths", format="zz")
    yield s("drive-backup", device="drive0", sync="full")
    yield s("drive-backup", target="DIR/ta", sync="full")
    yield s("drive-backup", target="DIR/ta", device="drive0")
    for arguments in ({"target": "zz"}, {"device": "zz"}, {"target": "drive0"},
                      {"sync": "zz"}, {"mode": "existing"}):
        yield s("blockdev-backup", **dict(
            {"device": "drive0", "target": "drive1", "sync": "full",
             "job-id": "j"}, **arguments))
    # A job that lasts, and what can be said to it.
    yield db(sync="none")
    yield s("query-jobs")
    yield s("query-block-jobs")
    yield db(job_id="j1")
    yield s("job-finalize", id="drive0")
    yield s("job-dismiss", id="drive0")
    yield s("job-complete", id="drive0")
    yield s("block-job-complete", device="drive0")
    yield s("block-job-resume", device="drive0")
    yield s("block-job-set-speed", device="drive0", speed=-1)
    yield s("block-job-set-speed", device="drive0", speed=77)
    yield s("block-job-set-speed", device="drive0")
    yield s("query-block-jobs")
    yield s("block-job-cancel", "drive0", device="drive0")
    yield s("job-cancel", id="drive0")
    yield from verbs("job-", lambda verb: "id")
    yield from verbs("block-job-", lambda verb: "id" if verb in
                     ("finalize", "dismiss") else "device")
    yield s("block-job-set-speed", device="zz", speed=1)
    yield s("query-jobs", zz=1)
    # By hand.
    yield db("drive0/pending", auto_finalize=False, auto_dismiss=False)
    for command in "query-jobs", "query-block-jobs":
        yield s(command)
    for verb in "pause", "resume", "dismiss":
        yield s("job-" + verb, id="drive0")
    yield s("block-job-finalize", "drive0/concluded", id="drive0")
    for command in "query-jobs", "query-block-jobs":
        yield s(command)
    yield s("job-cancel", id="drive0")
    yield s("job-finalize", id="drive0")
    yield s("block-job-dismiss", "drive0", id="drive0")
    yield db("drive0/pending", auto_finalize=False, auto_dismiss=False)
    yield s("block-job-cancel", "drive0/concluded", device="drive0")
    for command in "query-jobs", "query-block-jobs":
        yield s(command)
    yield s("job-dismiss", "drive0", id="drive0")
    # Pauses.
    yield db(sync="none")
    yield s("block_resize", device="drive0", size=2 * SIZE)
    yield s("block_resize", device="drive0", size=1000)
    yield s("job-pause", "drive0/=paused", id="drive0")
    yield s("job-pause", id="drive0")
    yield s("block-job-pause", device="drive0")
    for command in "query-jobs", "query-block-jobs":
        yield s(command)
    yield s("block-job-cancel", device="drive0")
    yield s("block-job-set-speed", device="drive0", speed=1)
    yield s("block-job-resume", "drive0/=running", device="drive0")
    yield s("block-job-resume", device="drive0")
    yield s("block-job-pause", "drive0/=paused", device="drive0")
    yield s("block-job-cancel", "drive0", device="drive0", force=True)
    yield db(sync="none")
    yield s("job-pause", "drive0/=paused", id="drive0")
    yield s("job-cancel", "drive0", id="drive0")
    yield s("block_resize", device="drive0", size=-1)
    # Nodes as sources and targets.
    yield s("blockdev-backup", "j", device="drive0", target="drive1",
            sync="full", job_id="j")
    yield s("blockdev-backup", "j", device="drive0", target="drive1",
            sync="bitmap", bitmap="b0", bitmap_mode="on-success", job_id="j")
    yield s("blockdev-backup", device="drive0", target="drive1", sync="none",
            job_id="j")
    yield s("blockdev-backup", device="drive0", target="drive1", sync="none",
            job_id="k")
    yield s("block_resize", device="drive1", size=2 * SIZE)
    yield s("job-cancel", "j", id="j")
    yield db(compress=True, target="DIR/raw", format="raw",
             mode="absolute-paths")
    yield from errors(s)
    # Transactions.
    yield t([])
    yield t([action("abort")])
    yield t(3)
    yield s("transaction")
    yield t([3])
    yield t([{"type": "abort"}])
    yield t([{"data": {}}])
    yield t([action("zz")])
    yield t([action(bitmap + "clear", node="drive0")])
    yield t([action(bitmap + "clear", node="drive0", name="b0", zz=1)])
    yield t([action(bitmap + "clear", node="zz", name="b0")])
    yield t([action(bitmap + "clear", node="drive0", name="b0"),
             action(bitmap + "clear", node="drive1", name="zz")])
    yield t([action(bitmap + "clear", node="drive0", name="b0")],
            mode="grouped")
    yield t([action("abort")], mode="zz")
    yield s("transaction", actions=[], properties=3)
    yield t([action(bitmap + "add", node="drive0", name="n"),
             action(bitmap + "disable", node="drive0", name="n"),
             action(bitmap + "merge", node="drive0", target="n",
                    bitmaps=["b0"]), action("abort")])
    yield s(bitmap + "clear", node="drive0", name="n")
    yield t([action(bitmap + "remove", node="drive0", name="b0"),
             action(bitmap + "add", node="drive0", name="b0")])
    yield t([drive("drive0", "ta"), action("abort")])
    yield t([drive("drive0", "ta"), drive("drive1", "tb", sync="incremental")])
    yield s("query-jobs")
    yield t([drive("drive0", "ta", sync="none"),
             drive("drive1", "tb", sync="incremental", bitmap="b1")],
            "drive1/waiting", "grouped")
    yield s("query-block-jobs")
    yield s("block-job-cancel", "drive0", device="drive0")
    yield t([drive("drive0", "ta", sync="none"),
             drive("drive1", "tb", sync="incremental", bitmap="b1")],
            "drive1/waiting", "grouped")
    yield s("job-cancel", "drive0", id="drive1")
    yield t([drive("drive0", "ta", sync="incremental", bitmap="b0"),
             drive("drive1", "tb", sync="none")], "drive0", "individual")
    yield s("job-cancel", "drive1", id="drive1")


def add_node(s, name, event=None, errno=5):
    file = {"driver": "file", "filename": "DIR/" + name}
    if event:
        file = {"driver": "blkdebug", "image": file, "inject-error": [
            {"event": event, "errno": errno, "once": True}]}
    return s("blockdev-add", node_name=name, driver="qcow2", file=file)


def errors(s):
    """The first read or write of a job fails."""
    for option, event in (("on_source_error", "read_aio"),
                          ("on_target_error", "write_aio")):
        source, target = (event, None) if "source" in option else (None, event)
        for policy in "report", "ignore", "stop", "enospc", "auto":
            for errno in (5, 28) if policy in ("enospc", "auto") else (5,):
                stops = policy == "stop" or errno == 28
                yield add_node(s, "source", source, errno)
                yield add_node(s, "copy", target, errno)
                yield s("blockdev-backup", "j/=paused" if stops else "j",
                        device="source", target="copy", sync="full",
                        job_id="j", **{option: policy})
                if stops:
                    yield s("query-block-jobs")
                    yield s("block-job-cancel", device="j")
                    yield s("job-resume", "j", id="j")
                for name in "copy", "source":
                    yield s("blockdev-del", node_name=name)
    yield add_node(s, "source")
    yield add_node(s, "compressed")
    yield s("blockdev-backup", "j", device="source", target="compressed",
            sync="full", job_id="j", compress=True)
    yield s("blockdev-del", node_name="compressed")
    yield s("blockdev-del", node_name="source")


class Side:
    """One of the two.  job: its status in the events so far."""

    def __init__(self, directory, control):
        self.dir = directory
        self.qmp = Qmp(control)
        self.status = {}

    def put_dir(self, value):
        if isinstance(value, dict):
            return {k: self.put_dir(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.put_dir(v) for v in value]
        if isinstance(value, str):
            return value.replace("DIR/", self.dir + "/")
        return value

    def take_events(self):
        """In one line each, without the pauses."""
        lines = []
        for event in self.qmp.events:
            data = event["data"]
            if event["event"] == "JOB_STATUS_CHANGE":
                before = self.status.get(data["id"])
                if data["status"] != "paused":
                    self.status[data["id"]] = data["status"]
                if data["status"] in ("paused", before):
                    continue
                if data["status"] == "null":
                    del self.status[data["id"]]
            lines.append(event_text(event))
        self.qmp.events = []
        return lines

    def poll(self, job, status):
        """There is no event that tells a pause from a drain of QEMU's."""
        deadline = time.monotonic() + TIMEOUT
        while not any(j["id"] == job and j["status"] == status
                      for j in self.qmp.execute("query-jobs")):
            if time.monotonic() > deadline:
                fail("%s is not %s" % (job, status))

    def step(self, wait, command, arguments):
        reply = self.qmp.command(command, self.put_dir(arguments))
        lines = self.take_events()
        job, _, status = (wait or "").partition("/")
        if status.startswith("=") and "return" in reply:
            self.poll(job, status[1:])
            lines += self.take_events()
        elif wait and "return" in reply:
            end = "%s %s" % (job, status or "null")
            if status == "pending":
                end = job + " BLOCK_JOB_PENDING type=backup"
            while end not in lines:
                message = self.qmp.receive()
                if message is None:
                    fail("the connection has ended")
                self.qmp.events.append(message)
                lines += self.take_events()
            # What comes with it.
            self.qmp.command("query-version")
            lines += self.take_events()
        text = str(reply.get("error", reply.get("return")))
        if isinstance(reply.get("return"), list):
            text = str([sorted(o.items()) for o in reply["return"]])
        return [text.replace(self.dir + "/", "DIR/")] + lines


def images(directory):
    os.mkdir(directory)
    for name in "drive0", "drive1", "ta", "tb", "source", "copy", "compressed":
        create(directory + "/" + name, SIZE)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 %d" % SIZE,
        directory + "/source")
    create(directory + "/small", SIZE // 2)


def packed(directory):
    info = json.loads(run("qemu-img", "check", "--output=json",
                          directory + "/compressed"))
    return info["compressed-clusters"]


def start_qemu(directory):
    control = directory + "/control"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(control)
    listener.listen()
    os.set_inheritable(listener.fileno(), True)
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults",
               "-display", "none", "-chardev",
               "socket,id=c,server=on,wait=off,fd=%d" % listener.fileno(),
               "-mon", "chardev=c,mode=control"]
    for name in "drive0", "drive1":
        command += ["-drive", "if=none,id=%s,format=qcow2,file=%s/%s"
                    % (name, directory, name)]
    return subprocess.Popen(command, pass_fds=[listener.fileno()],
                            stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL), control


a, b = tmp + "/qemu", tmp + "/tidemark"
images(a)
images(b)
qemu, control = start_qemu(a)
try:
    args = []
    for name in "drive0", "drive1":
        args += ["--disk", "%s,format=qcow2,file=%s/%s" % (name, b, name)]
    with Tidemarkd(tmp, *args) as d:
        theirs, ours = Side(a, control), Side(b, d.control)
        different = []
        for step in steps():
            x, y = theirs.step(*step), ours.step(*step)
            if x != y:
                different.append("%s\n  QEMU:     %s\n  Tidemark: %s" % (
                    step, "\n            ".join(x),
                    "\n            ".join(y)))
        if different:
            fail("\n".join(different))
        for directory in a, b:
            for name in "copy", "compressed":
                compare(directory + "/" + name, directory + "/source")
        check_equal(packed(b), packed(a), "compressed clusters")
finally:
    qemu.kill()
    qemu.wait()
END
