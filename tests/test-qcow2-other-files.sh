#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A live disk's image makes no server open another file: what its header names as
# backing or data file is refused unless backing=allow is given, and names of
# protocols and json: are refused then, too.  The same of blockdev-add, where it
# is "allow-backing".
. "${srcdir:-.}/control-test.sh"
requires nbdkit qemu-img qemu-io nbdsh
cd "$tmp"
truncate -s 1M secret.raw
qemu-io -f raw -c 'write -P 115 0 1M' secret.raw >io.out
qemu-img create -q -f qcow2 -b secret.raw -F raw backed.qcow2
qemu-img create -q -f qcow2 -o data_file=secret.data data.qcow2 1M
qemu-io -f qcow2 -c 'write -P 115 0 1M' data.qcow2 >io.out
i=0
for name in 'json:{"driver":"file","filename":"secret.raw"}' \
        nbd://localhost:1/x file:secret.raw; do
    i=$((i + 1))
    qemu-img create -q -f qcow2 -u -b "$name" -F raw named$i.qcow2 1M
done

# refused TEXT IMAGE [OPTION]: by both servers.
refused ()
{
    expect_error "$1" timeout 20 "$tidemarkd" \
        --disk "d,format=qcow2,file=$2${3:-}" --listen unix:sock
    expect_error "$1" timeout 20 "${nbdkit[@]}" -U - "$plugin" \
        "disk=d,format=qcow2,file=$2${3:-}" --run 'echo served >&2'
    grep -q served expect.err && fail "$2${3:-} is served"
    return 0
}

refused "(\"secret.raw\") and following it was not allowed" backed.qcow2
refused "(\"secret.data\") and following it was not allowed" data.qcow2
refused "was not allowed" backed.qcow2 ,backing=deny
for image in backed data; do
    timeout 20 "${nbdkit[@]}" -U - "$plugin" \
        "disk=d,format=qcow2,file=$image.qcow2,backing=allow" \
        --run 'qemu-io -r -f raw -c "read -P 115 0 1M" "$uri"' >io.out ||
        fail "$image: $(cat io.out)"
done
# A client may ask for it in advance, and reads what it is.
for image in backed data; do
    timeout 20 "${nbdkit[@]}" -U - "$plugin" \
        "disk=d,format=qcow2,file=$image.qcow2,backing=allow" --run '
            nbdsh -u "$uri" -c "
assert h.can_cache()
h.cache(h.get_size(), 0)
h.cache(1, h.get_size() - 1)
assert h.pread(h.get_size(), 0) == b\"s\" * h.get_size()"' 2>io.out ||
        fail "$image: $(cat io.out)"
done
for i in 1 2 3; do
    refused "was not allowed" named$i.qcow2
    refused "is not a plain file name" named$i.qcow2 ,backing=allow
done

# At run time.
timeout 60 python3 - "$tmp" <<'END'
import subprocess
import sys
from qmp_client import QmpError
from tidemarkd_util import Tidemarkd, check, fail

tmp = sys.argv[1]


def add(q, image, **more):
    q.execute("blockdev-add", {"driver": "qcow2", "node-name": image, **more,
                               "file": {"driver": "file", "filename":
                                        "%s/%s.qcow2" % (tmp, image)}})


def refused(q, text, image, **more):
    try:
        add(q, image, **more)
        fail("%s %r is added" % (image, more))
    except QmpError as e:
        check(text in e.desc, "%s: %s" % (image, e.desc))


with Tidemarkd(tmp) as d, d.qmp() as q:
    allow = {"allow-backing": True}
    for n in 1, 2, 3:
        refused(q, "is not a plain file name", "named%d" % n, **allow)
    for image in "backed", "data", "named1":
        refused(q, "following it was not allowed", image)
        refused(q, "following it was not allowed", image,
                **{"allow-backing": False})
    refused(q, "following it was not allowed", "data", backing=None)
    refused(q, "boolean", "backed", **{"allow-backing": "on"})
    for options, byte in ({"backing": None}, 0), (allow, 115), (
            {"backing": None, **allow}, 0):
        add(q, "backed", **options)
        q.execute("block-export-add", {"type": "nbd", "id": "e",
                                       "node-name": "backed"})
        subprocess.run(["qemu-io", "-r", "-f", "raw", "-c",
                        "read -P %d 0 1M" % byte, d.uri("backed")], check=True)
        q.execute("block-export-del", {"id": "e", "mode": "hard"})
        q.execute("blockdev-del", {"node-name": "backed"})
    add(q, "data", **allow)
    q.execute("blockdev-del", {"node-name": "data"})
END
