#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# tidemark over TCP with TLS: certificates and keys, backups that are right,
# whom either side refuses and what the client says then; no data without TLS.
. "${srcdir:-.}/control-test.sh"
requires certtool qemu-img
export TIDEMARK=$tidemark
timeout 200 python3 - "$tmp" <<'END'
import importlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from tidemarkd_util import check, check_equal
from tls_util import PAST, Pki, TlsTidemarkd

fake = importlib.import_module("fake-control")
GREETING, honest = fake.GREETING, fake.honest
tmp = sys.argv[1]
MIB = 1 << 20
DISK = tmp + "/vda.raw"
os.mkdir(tmp + "/pki")
pki = Pki(tmp + "/pki")
NOBODY = pki.trust("nobody")
ALICE = pki.client("alice")
BOB = pki.client("bob")
EXPIRED = pki.client("expired", dates=PAST)
DISKS = ["--disk", "vda,file=%s" % DISK]
X509 = ["--tls-certificates", pki.path("server"), "--tls-verify-peer"]


def tidemark(*args):
    return subprocess.run([os.environ["TIDEMARK"]] + list(args),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)


def right(*args):
    p = tidemark(*args)
    check(p.returncode == 0, "%s: %s" % (args, p.stderr))
    return p.stdout


def wrong(text, *args):
    p = tidemark(*args)
    check(p.returncode in (1, 2), "%s: status %d" % (args, p.returncode))
    check(text in p.stderr, "no %r in: %s" % (text, p.stderr))


def nbds(d):
    return "nbds://localhost:%d/vda" % d.ports[0]


def source(d, host="localhost"):
    return "tidemarks://%s:%d" % (host, d.ports[2])


def guest(d, off):
    """A write over the live listener, as a guest does it."""
    subprocess.run(["nbdsh", "-c", "h.set_tls (nbd.TLS_REQUIRE)", *d.guest_tls,
                    "-c", "h.set_export_name ('vda')",
                    "-c", "h.connect_tcp ('localhost', '%d')" % d.ports[0],
                    "-c", "h.pwrite (b'x' * 65536, %d); h.flush ()" % off],
                   check=True)


def check_backup(repo, number):
    right("restore", "--quiet", repo, "--at", str(number), tmp + "/out.raw")
    with open(DISK, "rb") as a, open(tmp + "/out.raw", "rb") as b:
        check(a.read() == b.read(), "backup %d of %s" % (number, repo))
    os.unlink(tmp + "/out.raw")


def check_chain(d, repo, *tls):
    right("backup", "--quiet", *tls, source(d), repo)
    check_backup(repo, 1)
    guest(d, 5 * MIB)
    out = right("backup", "--json", *tls, source(d), repo)
    events = [json.loads(line) for line in out.splitlines()]
    check(any(e["event"] == "disk-begin" and e["mode"] == "incremental"
              for e in events), "incremental: " + out)
    check_backup(repo, 2)
    name = "tidemark-" + json.load(open(repo + "/tidemark.json"))["id"]
    check(name in right("bitmap", "list", *tls, source(d)), "bitmap list")
    guest(d, 7 * MIB)
    check("64 KiB dirty" in right("map", "--totals", "--bitmap", name,
                                  "--disk", "vda", *tls, source(d)), "map")


with open(DISK, "wb") as f:
    f.write(os.urandom(16 * MIB))

# Certificates.  The certificate is for a name, the address is in it, too.
with TlsTidemarkd(tmp, *DISKS, *X509, "--tls-allow", "backup:alice",
                  "--tls-allow", "guest:alice") as d:
    d.guest_tls = ["-c", "h.set_tls_certificates ('%s')" % ALICE]
    check_chain(d, tmp + "/r1", "--tls-certificates", ALICE)
    right("bitmap", "list", "--tls-certificates", ALICE,
          source(d, "127.0.0.1"))
    wrong("is for admins", "bitmap", "add", "--tls-certificates", ALICE,
          source(d), "b")
    wrong("the server refused: Access was denied",
          "bitmap", "list", "--tls-certificates", BOB, source(d))
    d.wait_message("'CN=bob' is not on the list")
    wrong("the server refused: Certificate is required",
          "bitmap", "list", "--tls-certificates", NOBODY, source(d))
    d.wait_message("the client has no certificate")
    pki.ca("other")
    STRANGER = pki.client("stranger", ca="other")
    wrong("the server refused: CA is unknown",
          "bitmap", "list", "--tls-certificates", STRANGER, source(d))
    TRUSTS_OTHER = pki.trust("trusts-other", "other")
    wrong("does not come from an authority that is trusted",
          "bitmap", "list", "--tls-certificates", TRUSTS_OTHER, source(d))
    # Without files it is the system's authorities that count.
    wrong("does not come from an authority that is trusted",
          "bitmap", "list", source(d))
    wrong("needs TLS: write tidemarks://HOST:PORT",
          "bitmap", "list", "tidemark://localhost:%d" % d.ports[2])
    # A listener without TLS is no control server, and the other way round.
    wrong("TLS", "bitmap", "list", "--tls-certificates", ALICE,
          "tidemarks://localhost:%d" % d.ports[0])
    # NBD without the server's control: the same options, and reasons.
    for who, text, theirs in (
            (NOBODY, "Certificate is required", "the client has no cert"),
            (EXPIRED, "Certificate is expired", "the client has expired"),
            (STRANGER, "CA is unknown", "an authority that is trusted"),
            (BOB, "Access was denied", "'CN=bob' is not on the list")):
        wrong("the server refused: " + text, "bitmap", "list",
              "--tls-certificates", who, nbds(d))
        d.wait_line("nbd: 127.0.0.1:", theirs)
    wrong("does not come from an authority that is trusted",
          "bitmap", "list", "--tls-certificates", TRUSTS_OTHER, nbds(d))
    for command in (["bitmap", "list"], ["map", "--bitmap", "x"]):
        wrong("the server needs TLS: write nbds://", *command,
              "nbd://localhost:%d/vda" % d.ports[0])
    d.wait_line("nbd: 127.0.0.1:", "refused: no TLS")
    # It is TLS's part alone that is explained so.
    wrong("nosuch", "map", "--tls-certificates", ALICE, "--bitmap", "x",
          "nbds://localhost:%d/nosuch" % d.ports[0])
    out = right("bitmap", "list", "--tls-certificates", ALICE,
                "nbds://localhost:%d/vda" % d.ports[0])
    check("tidemark-" in out, "bitmaps over NBD: " + out)
    wrong("vda", "bitmap", "list", "--tls-certificates", ALICE,
          "nbd://localhost:%d/vda" % d.ports[0])
    check_equal(d.stop(), 0, "status")

for name, host, dates, text in (
        ("elsewhere", "elsewhere.example", None, "is for another name"),
        ("outdated", "localhost", PAST, "has expired")):
    path = pki.server(name, host, **({"dates": dates} if dates else {}))
    with TlsTidemarkd(tmp, *DISKS, "--tls-certificates", path,
                      "--tls-verify-peer") as d:
        for uri in source(d), nbds(d):
            wrong(text, "bitmap", "list", "--tls-certificates", ALICE, uri)
        check_equal(d.stop(), 0, "status")

# Keys.
keys = pki.psk("keys", "carol", "dave")
mine = pki.psk("mine", open(keys).readline().strip())
with TlsTidemarkd(tmp, *DISKS, "--tls-psk", keys) as d:
    d.guest_tls = ["-c", "h.set_tls_psk_file ('%s')" % mine,
                   "-c", "h.set_tls_username ('carol')"]
    wrong("there is no key of user 'eve'", "bitmap", "list", "--tls-psk",
          keys, "--tls-user", "eve", source(d))
    wrong("say which one you are", "bitmap", "list", "--tls-psk", keys,
          source(d))
    wrong("--tls-user goes with --tls-psk alone", "bitmap", "list",
          "--tls-user", "carol", source(d))
    wrong("exclude each other", "bitmap", "list", "--tls-psk", keys,
          "--tls-certificates", ALICE, source(d))
    check_chain(d, tmp + "/r2", "--tls-psk", mine)
    right("backup", "--quiet", "--tls-psk", keys, "--tls-user", "carol",
          source(d), tmp + "/r2")
    bad = pki.psk("bad", "carol")
    unknown = pki.psk("unknown", "mallory")
    for uri in source(d), nbds(d):
        wrong("no user 'carol', or another key", "bitmap", "list",
              "--tls-psk", bad, uri)
        wrong("no user 'mallory', or another key", "bitmap", "list",
              "--tls-psk", unknown, uri)
    for server in "control", "nbd":
        for text in "the key of user 'carol' is wrong", "unknown user 'mallory'":
            d.wait_line(server + ": 127.0.0.1:", text)
    wrong("the server refused: Handshake failed", "bitmap", "list",
          "--tls-certificates", ALICE, nbds(d))
    d.wait_message("the client has no pre-shared key")
    check_equal(d.stop(), 0, "status")


# A server that would have the data go without TLS, or where it cannot go.
def lying_server(listener, uri):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.path("server", "server-cert.pem"),
                            pki.path("server", "server-key.pem"))
    sock = context.wrap_socket(listener.accept()[0], server_side=True)
    sock.sendall(json.dumps(GREETING).encode() + b"\r\n")
    answers = honest(uri)
    for line in sock.makefile():
        request = json.loads(line)
        sock.sendall(json.dumps({"return": answers[request["execute"]],
                                 "id": request["id"]}).encode() + b"\r\n")
    sock.close()


for uri, text in (("nbd://localhost:1/x", "without TLS"),
                  ("nbd+unix:///x?socket=/x", "no backup address over TCP")):
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lying_server, args=(listener, uri),
                              daemon=True)
    thread.start()
    wrong(text, "backup", "--tls-certificates", ALICE, "tidemarks://localhost:"
          "%d" % listener.getsockname()[1], tmp + "/r3")
    thread.join(20)
    check(not thread.is_alive(), "the client stays connected")


# A man in the middle who says that the server has no TLS, and would go on
# without: he learns that there is a client, not even what it wants.
def man_in_the_middle(listener, heard):
    for _ in range(2):                  # the attempt, and that to learn why
        sock = listener.accept()[0]
        sock.settimeout(20)
        sock.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        stream = sock.makefile("rb")
        stream.read(4)
        while head := stream.read(16):
            magic, option, length = struct.unpack(">8sII", head)
            heard.append((option, stream.read(length)))
            sock.sendall(struct.pack(">QIII", 0x3e889045565a9, option,
                                     (1 << 31) + 1, 0))
        sock.close()


def check_no_downgrade(text, make_command):
    listener = socket.create_server(("127.0.0.1", 0))
    heard = []
    thread = threading.Thread(target=man_in_the_middle, daemon=True,
                              args=(listener, heard))
    thread.start()
    wrong(text, *make_command(listener.getsockname()[1]))
    # STARTTLS, and perhaps a proper end.
    check({o for o, _ in heard} <= {2, 5} and (5, b"") in heard and
          not any(data for _, data in heard), "he heard %s" % heard)
    listener.close()


check_no_downgrade("refuses to use TLS", lambda port: (
    "bitmap", "list", "--tls-certificates", ALICE,
    "nbds://localhost:%d/vda" % port))


def through_control(port):
    """The control connection is what it should be; the data's is not."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lying_server, daemon=True, args=(
        listener, "nbds://localhost:%d/x" % port)).start()
    return ("backup", "--tls-certificates", ALICE, "--retry", "0",
            "tidemarks://localhost:%d" % listener.getsockname()[1],
            tmp + "/r4")


check_no_downgrade("TLS", through_control)
END
