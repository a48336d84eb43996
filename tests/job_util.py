# SPDX-License-Identifier: BSD-3-Clause
"""For the tests of push jobs: a guest that writes over NBD, images that are
compared with qemu-img, and events as QEMU's clients see them."""
import json
import os
import subprocess

from tidemarkd_util import Tidemarkd, check, check_equal, fail

K = 1024
M = K * K


def run(*args):
    result = subprocess.run(args, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    if result.returncode != 0:
        fail("%s: %s" % (" ".join(args), result.stdout.decode()))
    return result.stdout.decode()


def create(path, size=None, cluster=None, backing=None, fmt="qcow2"):
    command = ["qemu-img", "create", "-q", "-f", fmt]
    if cluster:
        command += ["-o", "cluster_size=%d" % cluster]
    if backing:
        command += ["-b", backing, "-F", "qcow2"]
    run(*command, path, *([str(size)] if size else []))
    return path


def compare(a, b, format_a="qcow2", format_b="qcow2"):
    """Same content, and the sizes too."""
    run("qemu-img", "compare", "-U", "-f", format_a, "-F", format_b, a, b)
    check_equal(virtual_size(a), virtual_size(b), "size of " + a)


def virtual_size(path):
    return json.loads(run("qemu-img", "info", "-U", "--output=json", path))[
        "virtual-size"]


def check_image(path):
    run("qemu-img", "check", "-q", "-U", path)


def event_text(event):
    """An event in one line, to be compared."""
    data = dict(event["data"])
    if event["event"] == "JOB_STATUS_CHANGE":
        return "%s %s" % (data["id"], data["status"])
    name = data.pop("device", None) or data.pop("id")
    return "%s %s %s" % (name, event["event"], " ".join(
        "%s=%s" % (k, data[k]) for k in sorted(data)))


class Disks:
    """Disks of 16 MiB (or size) with a guest.  options: more for --disk."""

    def __init__(self, tmp, *names, size=16 * M, options="", fmt="raw"):
        self.tmp = tmp
        self.size = size
        self.fmt = fmt
        args = []
        for name in names:
            create(self.path(name), size, fmt=fmt)
            args += ["--disk", "%s,file=%s,format=%s%s"
                     % (name, self.path(name), fmt, options)]
        self.daemon = Tidemarkd(tmp, *args)
        self.qmp = self.daemon.qmp()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.qmp.close()
        self.daemon.__exit__(*exc)

    def path(self, name):
        return "%s/%s.%s" % (self.tmp, name, self.fmt)

    def write(self, disk, *writes):
        """Each is (pattern, offset, length); pattern None: zeroes.  One
        connection, flushed."""
        args = []
        for pattern, off, length in writes:
            args += ["-c", "write -z %d %d" % (off, length)
                     if pattern is None
                     else "write -P %d %d %d" % (pattern, off, length)]
        run("qemu-io", "-f", "raw", *args, "-c", "flush",
            self.daemon.uri(disk))

    def reference(self, disk, name):
        """A full copy of the disk as it is now, for comparing."""
        path = "%s/%s" % (self.tmp, name)
        if os.path.exists(path):
            os.unlink(path)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2",
            self.daemon.uri(disk), path)
        return path

    def start(self, disk, target, sync="full", command="drive-backup",
              **more):
        arguments = {"device": disk, "target": target, "sync": sync}
        if command == "drive-backup":
            arguments["format"] = "qcow2"
        arguments.update((k.replace("_", "-"), v) for k, v in more.items())
        self.qmp.execute(command, arguments)

    def wait(self, job, error=None):
        """Until the job is gone.  Returns BLOCK_JOB_COMPLETED's data."""
        self.qmp.wait_event("JOB_STATUS_CHANGE", id=job, status="null")
        data = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device=job)["data"]
        check_equal(data.get("error"), error, "error of " + job)
        return data

    def backup(self, disk, target, sync="full", error=None, **more):
        self.start(disk, target, sync, **more)
        return self.wait(more.get("job_id", disk), error)

    def wait_cancelled(self, job):
        self.qmp.wait_event("JOB_STATUS_CHANGE", id=job, status="null")
        self.qmp.wait_event("BLOCK_JOB_CANCELLED", device=job)

    def events(self):
        """Those that have come since the last time."""
        self.qmp.execute("query-jobs")
        events, self.qmp.events = self.qmp.events, []
        return [event_text(e) for e in events]

    def add_bitmap(self, disk, name="b0", **more):
        self.qmp.execute("block-dirty-bitmap-add",
                         dict({"node": disk, "name": name}, **more))

    def bitmap(self, disk, name="b0"):
        return self.daemon.bitmaps(self.qmp, disk)[name]


def refused(q, name, arguments, desc, error_class="GenericError"):
    reply = q.command(name, arguments)
    check("error" in reply, "%s %s should have failed" % (name, arguments))
    check_equal(reply["error"], {"class": error_class, "desc": desc},
                "%s %s" % (name, arguments))
