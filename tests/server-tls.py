#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""TLS in the servers: NBD_OPT_STARTTLS, the control socket over TCP, who is
refused and with what message, and what a client without TLS can do."""

import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TIDEMARKD", os.path.join(
    os.environ.get("top_builddir", ".."), "server", "tidemarkd"))
sys.path.insert(0, os.path.join(os.environ.get("top_srcdir", ".."), "tests"))

import raw_nbd
from qmp_client import QmpError
from raw_nbd import *
from tls_util import (FUTURE, PAST, Pki, TlsQmp, TlsTidemarkd,
                      listening_ports)

ERR_TLS_REQD = 2**31 + 5

for tool in ("certtool", "nbdinfo", "qemu-io"):
    if shutil.which(tool) is None:
        sys.exit(f"{tool} is not installed")

TMP = tempfile.mkdtemp(prefix="tidemark-test.")
PKI = Pki(TMP)
PKI.trust("nobody")
ALICE = PKI.client("alice")
BOB = PKI.client("bob", lines="dns_name=bob.example\n")
for _name in ("a.raw", "b.raw"):
    with open(os.path.join(TMP, _name), "wb") as _f:
        _f.truncate(1 << 20)
DISKS = ["--disk", f"a,file={TMP}/a.raw", "--disk", f"b,file={TMP}/b.raw"]
X509 = ["--tls-certificates", PKI.path("server"), "--tls-verify-peer"]
RULES = ["--tls-allow", "admin:alice", "--tls-allow", "backup/b:bob.example"]


def serve(*args, **kwargs):
    return TlsTidemarkd(TMP, *DISKS, *args, **kwargs)


def plain(port):
    return Client(("127.0.0.1", port))


HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


class Scan:
    """Clients of all listeners of a server that go on with nothing: they
    connect, or begin a handshake.  It takes the time limit until they are
    cut off, which the other tests use."""

    def __init__(self):
        # Disks of its own: those of the others are locked.
        disks = []
        for name in "c", "d":
            path = os.path.join(TMP, name + ".raw")
            with open(path, "wb") as f:
                f.truncate(1 << 20)
            disks += ["--disk", f"{name},file={path}"]
        self.server = TlsTidemarkd(TMP, *disks, *X509)
        self.before = self.held()
        with self.server.qmp() as q:
            q.execute("query-version")
        self.clients = []
        for i in range(18):
            c = plain(self.server.ports[i % 2])
            if i % 3 > 0:
                assert c.option(OPT_STARTTLS)[0] == REP_ACK
            if i % 3 > 1:
                c.send(HELLO)
            self.clients.append(c.sock)
        for i in range(12):
            s = socket.create_connection(("127.0.0.1", self.server.ports[2]))
            if i % 2:
                s.sendall(HELLO)
            self.clients.append(s)

    def held(self):
        """What the server's process holds: descriptors and threads."""
        proc = "/proc/%d/" % self.server.process.pid
        return (len(os.listdir(proc + "fd")), len(os.listdir(proc + "task")))


    def holds_more(self):
        return any(a > b for a, b in zip(self.held(), self.before))


SCAN = None


def start_tls(client, name="alice", context=None):
    assert client.option(OPT_STARTTLS)[0] == REP_ACK
    context = context or PKI.context(name)
    client.sock = context.wrap_socket(client.sock,
                                      server_hostname="localhost")
    return client


def listed(client):
    kind, _, replies = client.option(OPT_LIST)
    assert kind == REP_ACK, hex(kind)
    return [data[4:] for _, data in replies]


def nbdinfo(uri):
    """(status, its message)"""
    p = subprocess.run(["nbdinfo", "--size", uri], stderr=subprocess.PIPE,
                       stdout=subprocess.PIPE, text=True)
    return p.returncode, p.stderr + p.stdout


def test_starttls():
    """Options without TLS are refused; with it all work."""
    with serve(*X509) as s:
        with plain(s.ports[0]) as c:
            for option, data in ((OPT_LIST, b""), (OPT_GO, info_data("a")),
                                 (OPT_INFO, info_data("a")),
                                 (OPT_STRUCTURED, b""), (OPT_EXTENDED, b""),
                                 (OPT_SET_META, meta_data("a", ["x:"])),
                                 (77, b"")):
                kind, text, _ = c.option(option, data)
                assert kind == ERR_TLS_REQD and b"TLS" in text, hex(kind)
            assert c.option(OPT_STARTTLS, b"x")[0] == ERR_INVALID
            start_tls(c)
            assert c.sock.version() == "TLSv1.3"
            assert listed(c) == [b"a", b"b"]
            c.structured_replies()
            c.go("a")
            c.write(4096, b"tls" * 1000)
            assert c.read(4096, 3000) == b"tls" * 1000
            data = os.urandom(700000)
            c.write(0, data)
            assert c.read(0, 700000) == data
        with plain(s.ports[0]) as c:
            c.send_option(OPT_EXPORT_NAME, b"a")
            assert c.is_closed()
        with plain(s.ports[0]) as c:
            assert c.option(OPT_ABORT)[0] == REP_ACK
        s.wait_message("refused: no TLS")
        assert s.stop() == 0


def test_starttls_twice():
    with serve(*X509) as s:
        with plain(s.ports[0]) as c:
            start_tls(c)
            assert c.option(OPT_STARTTLS)[0] == ERR_INVALID
            assert c.option(OPT_STARTTLS, b"x")[0] == ERR_INVALID
            c.go("a")
            assert c.read(0, 512) is not None


def test_starttls_forgets():
    """What was negotiated in clear counts no more."""
    with serve("--tls", "on", *X509) as s:
        with plain(s.ports[0]) as c:
            c.extended_headers()
            assert c.set_meta("a", ["base:allocation"])
            start_tls(c)
            c.structured = c.extended = False
            kind, text, _ = c.option(OPT_SET_META,
                                     meta_data("a", ["base:allocation"]))
            assert kind == ERR_INVALID, hex(kind)
            c.go("a")
            assert c.read(0, 512) is not None
        # It is not required: the same without.
        with plain(s.ports[0]) as c:
            c.go("a")


def test_starttls_injection():
    """What comes in clear behind the option is never taken for an option."""
    with serve(*X509) as s:
        with plain(s.ports[0]) as c:
            option = struct.pack(">QII", OPTION_MAGIC, OPT_STARTTLS, 0)
            c.send(option + struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0))
            assert c.option_reply(OPT_STARTTLS)[0] == REP_ACK
            rest = b""
            try:
                while True:
                    rest += c.recv(1)
            except Closed:
                pass
            assert struct.pack(">Q", OPTION_REPLY_MAGIC) not in rest, rest
        s.wait_message("what came is no TLS handshake")
        # And nothing of it reaches the encrypted part.
        with plain(s.ports[0]) as c:
            assert listed(start_tls(c)) == [b"a", b"b"]


def refused(port, name, context=None):
    """The client is told so, at the latest when it says something."""
    with plain(port) as c:
        try:
            listed(start_tls(c, name, context))
        except (ssl.SSLError, Closed, ConnectionError):
            return
    raise AssertionError(f"{name} was served")


def test_refused():
    """Each with a message that says why, in the server's log."""
    PKI.ca("ca2")
    PKI.client("expired", dates=PAST)
    PKI.client("early", dates=FUTURE)
    PKI.client("foreign", ca="ca2")
    PKI.client("revoked")
    PKI.revoke("revoked")
    PKI.issue("purpose", "server", "cn=purpose\n", "ca", "ca")
    for part in "key", "cert":
        os.rename(PKI.path("purpose", f"server-{part}.pem"),
                  PKI.path("purpose", f"client-{part}.pem"))
    why = {
        "nobody": "the client has no certificate, which is needed",
        "expired": "the certificate of the client has expired",
        "early": "the certificate of the client is not valid yet",
        "foreign": "does not come from an authority that is trusted",
        "revoked": "the certificate of the client has been revoked",
        "purpose": "the certificate of the client is for another purpose",
    }
    try:
        with serve(*X509) as s:
            for name, text in why.items():
                refused(s.ports[0], name)
                assert "nbd: 127.0.0.1:" in s.wait_message(text)
                raises((ssl.SSLError, EOFError, OSError), TlsQmp, s.ports[2],
                       PKI.context(name))
                s.wait_message("control: 127.0.0.1:")
                s.wait_message(text)
            old = PKI.context("alice")
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
            refused(s.ports[0], "old", old)
            s.wait_message("the client does not speak TLS 1.2 or later")
            old.maximum_version = old.minimum_version = ssl.TLSVersion.TLSv1_2
            with plain(s.ports[0]) as c:
                assert start_tls(c, context=old).sock.version() == "TLSv1.2"
                assert listed(c) == [b"a", b"b"]
            with plain(s.ports[0]) as c:
                assert c.option(OPT_STARTTLS)[0] == REP_ACK
                c.send(b"GET / HTTP/1.0\r\n\r\n")
                while not c.is_closed():
                    pass
            s.wait_message("what came is no TLS handshake")
            # It has lost nothing by all this.
            with plain(s.ports[0]) as c:
                assert listed(start_tls(c)) == [b"a", b"b"]
    finally:
        os.unlink(PKI.path("server", "ca-crl.pem"))


def test_psk():
    keys = PKI.psk("keys.psk", "carol", "dave")
    with open(keys) as f:
        carol = f.readline().strip()
    own = PKI.psk("carol.psk", carol)
    wrong = PKI.psk("wrong.psk", "carol")
    unknown = PKI.psk("unknown.psk", "mallory")
    with serve("--tls-psk", keys, "--tls-allow", "backup:carol",
               "--tls-allow", "guest:carol") as s:
        uri = f"nbds://%s@localhost:{s.ports[0]}/a?tls-psk-file=%s"
        status, text = nbdinfo(uri % ("carol", own))
        assert (status, text) == (0, "1048576\n"), text
        assert nbdinfo(uri % ("carol", wrong))[0] != 0
        s.wait_message("the key of user 'carol' is wrong")
        assert nbdinfo(uri % ("mallory", unknown))[0] != 0
        s.wait_message("unknown user 'mallory'")
        assert nbdinfo(uri % ("dave", keys))[0] != 0
        s.wait_message("'dave' is not on the list")
        # A client with certificates has no key.
        refused(s.ports[0], "alice")
        s.wait_message("the client has no pre-shared key")
        assert nbdinfo(f"nbd://localhost:{s.ports[0]}/a")[0] != 0


def qemu_io(port, *creds):
    """(status, its message) of a client of QEMU's that writes and reads."""
    tls = ["--object", "tls-creds-%s,id=t,endpoint=client,dir=%s" % creds] \
        if creds else []
    p = subprocess.run(
        ["qemu-io", *tls, "--image-opts", "driver=nbd,export=a,server.type="
         "inet,server.host=localhost,server.port=%d%s"
         % (port, ",tls-creds=t" if creds else ""),
         "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return p.returncode, p.stdout


def test_qemu():
    """QEMU's client, with its files where it looks for them."""
    with serve(*X509) as s:
        status, text = qemu_io(s.ports[0], "x509", ALICE)
        assert status == 0 and text.count("65536/65536") == 2, text
        assert qemu_io(s.ports[0], "x509", PKI.path("nobody"))[0] != 0
        s.wait_message("the client has no certificate")
        assert qemu_io(s.ports[0])[0] != 0
        s.wait_message("refused: no TLS")
        assert s.stop() == 0
    keys = PKI.psk("server.psk", "erin")
    os.mkdir(PKI.path("erin"))
    with open(keys) as f, open(PKI.path("erin", "keys.psk"), "w") as own:
        own.write(f.read())
    with serve("--tls-psk", keys) as s:
        status, text = qemu_io(s.ports[0], "psk",
                               PKI.path("erin") + ",username=erin")
        assert status == 0 and text.count("65536/65536") == 2, text
        assert s.stop() == 0


def test_control():
    """An admin by name; without a list nobody is one over TCP."""
    with serve(*X509, *RULES) as s:
        with TlsQmp(s.ports[2], PKI.context("alice")) as q:
            q.execute("block-dirty-bitmap-add", {"node": "a", "name": "x"})
            q.execute("query-jobs")
            text = "x" * 100000
            raises(QmpError, q.execute, text)
        with TlsQmp(s.ports[2], PKI.context("bob")) as q:
            assert [d["device"] for d in q.execute("query-block")] == ["b"]
            assert [d["node-name"] for d in
                    q.execute("query-named-block-nodes")] == ["b"]
            for name in ("query-jobs", "quit", "block-dirty-bitmap-add",
                         "transaction", "drive-backup", "nbd-server-start"):
                reply = q.command(name)
                assert "'CN=bob' is none" in reply["error"]["desc"], reply
            begin = {"bitmap": "bm", "disks": [{"disk": "a"}]}
            reply = q.command("backup-begin", begin)
            assert reply["error"]["desc"] == "Node 'a' not found", reply
            session = q.execute("backup-begin", {"bitmap": "bm"})
            assert [d["disk"] for d in session["disks"]] == ["b"]
            assert session["disks"][0]["uri"].startswith(
                f"nbds://127.0.0.1:{s.ports[1]}/")
            assert len(q.execute("query-backups")) == 1
            with s.qmp() as local:
                other = local.execute("backup-begin", {
                    "bitmap": "bm2", "disks": [{"disk": "a"}]})
                assert other["disks"][0]["uri"].startswith("nbds://")
            assert len(q.execute("query-backups")) == 1
            for name, more in (("backup-attach", {}),
                               ("backup-end", {"success": True})):
                reply = q.command(name, {"id": other["id"], **more})
                assert reply["error"]["class"] == "BackupNotFound", reply
            # The exports of the two sessions, over TLS.
            with plain(s.ports[1]) as c:
                start_tls(c, "bob")
                assert listed(c) == [session["disks"][0]["export"].encode()]
                kind, _ = c.info(other["disks"][0]["export"])
                assert kind == ERR_UNKNOWN, hex(kind)
                c.go(session["disks"][0]["export"])
            with plain(s.ports[1]) as c:
                assert len(listed(start_tls(c, "alice"))) == 2
            # A backup's client never reaches the live disks.
            refused(s.ports[0], "bob")
            s.wait_message("nbd: 127.0.0.1")
            s.wait_message("'CN=bob' is not on the list")
            q.execute("backup-end", {"id": session["id"], "success": True})
            event = q.wait_event("BACKUP_ENDED")
            assert event["data"]["reason"] == "success"
        assert s.stop() == 0
    with serve(*X509) as s:
        with TlsQmp(s.ports[2], PKI.context("alice")) as q:
            assert "error" in q.command("quit")
            assert len(q.execute("query-block")) == 2


def test_control_plain():
    """Plain text never gets an answer from the control socket over TCP."""
    with serve(*X509) as s:
        with socket.create_connection(("127.0.0.1", s.ports[2])) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(b'{"execute": "qmp_capabilities"}\n')
            data = b""
            try:
                while part := sock.recv(1000):
                    data += part
            except ConnectionResetError:
                pass
            assert b"QMP" not in data and b"return" not in data, data
        s.wait_message("control: 127.0.0.1:")
        s.wait_message("what came is no TLS handshake")


def test_slow_handshake():
    """The time limit is that of the whole handshake; a scan leaves nothing."""
    with raw_nbd.Server("--disk", "a,size=1M", "--handshake-timeout", "1",
                        "--tls", "tls-certificates=" + PKI.path("server")
                        ) as server:
        clients = [server.client() for _ in range(3)]
        for c in clients[:2]:
            assert c.option(OPT_STARTTLS)[0] == REP_ACK
        clients[0].send(HELLO)
        for c in clients:
            assert c.is_closed()
        server.wait_connections(0)
        for data in b"", HELLO, HELLO[:1]:
            with server.client() as c:
                assert c.option(OPT_STARTTLS)[0] == REP_ACK
                c.send(data)
        server.wait_connections(0)
        with server.client() as c:
            assert listed(start_tls(c)) == [b"a"]


def test_truncation():
    """A connection that ends without close_notify, or with rubbish."""
    with serve(*X509) as s:
        with plain(s.ports[0]) as c:
            start_tls(c)
            c.go("a")
            raw = socket.socket(fileno=os.dup(c.sock.fileno()))
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            while not c_is_over(c):
                pass
            raw.close()
        s.wait_message("TLS: ")
        with plain(s.ports[0]) as c:
            start_tls(c)
            c.go("a")
        s.wait_message("TLS: the connection was cut off")
        # A proper end is none, and it is answered with one.
        with plain(s.ports[0]) as c:
            start_tls(c)
            c.go("a")
            c.submit(DISC)
            assert c.sock.recv(1) == b""
        assert s.stop() == 0


def c_is_over(c):
    try:
        return not c.sock.recv(1)
    except (ssl.SSLError, OSError):
        return True


def test_options():
    """Wrong options and files are named before anything is served."""
    server = PKI.path("server")
    keys = PKI.psk("k.psk", "u")
    with open(PKI.path("bad.psk"), "w") as f:
        f.write("u:12xy\n")
    with open(PKI.path("empty.psk"), "w") as f:
        f.write("# nothing\n")
    empty = PKI.trust("empty")
    address = "127.0.0.1:0"
    for args, text in (
            (["--tls", "maybe"], "must be 'off', 'on' or 'require'"),
            (["--tls", "on"], "give tls-certificates or tls-psk"),
            (["--tls-certificates", TMP + "/none"],
             "server-cert.pem: No such file"),
            (["--tls-certificates", empty], "server-cert.pem"),
            (["--tls-psk", TMP + "/none"], "none: No such file"),
            (["--tls-psk", PKI.path("bad.psk")], "bad.psk, line 1"),
            (["--tls-psk", PKI.path("empty.psk")], "there is no key in it"),
            (["--tls-psk", keys, "--tls-certificates", server],
             "exclude each other"),
            (["--tls-certificates", server, "--tls-allow", "backup:x"],
             "without tls-verify-peer"),
            (["--tls-psk", keys, "--tls", "on", "--tls-allow", "backup:x"],
             "needs tls=require"),
            (["--tls-psk", keys, "--tls", "off", "--tls-allow", "backup:x"],
             "which is off"),
            (["--tls-psk", keys, "--tls-allow", "root:x"],
             "must be ROLE:NAME"),
            (["--tls-psk", keys, "--tls-allow", "backup"],
             "must be ROLE:NAME"),
            (["--tls-psk", keys, "--tls-allow", "backup/:x"],
             "must be ROLE:NAME"),
            (["--tls-psk", keys, "--tls-allow", "admin/a:x"],
             "one of all disks"),
            (["--control", address], "TCP needs TLS"),
            (["--control", address, "--tls", "off", "--tls-psk", keys],
             "TCP needs TLS"),
            (["--control", address, "--tls-certificates", server],
             "tls-verify-peer, too")):
        p = subprocess.run([os.environ["TIDEMARKD"], *DISKS, "--listen",
                            address, *args], stderr=subprocess.PIPE,
                           text=True)
        assert p.returncode == 2 and text in p.stderr, (args, p)


def creds(dir, id="t", type="x509", **more):
    return {"qom-type": "tls-creds-" + type, "id": id, "dir": PKI.path(dir),
            "endpoint": "server", **more}


def test_nbd_server_start():
    """Credentials that are added over the control socket."""
    os.makedirs(PKI.path("keys"), exist_ok=True)
    key = "u:" + "ab" * 16
    PKI.psk("keys/keys.psk", key)
    own = PKI.psk("own.psk", key)
    inet = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    path = PKI.path("nbd.sock")
    with TlsTidemarkd(TMP, *DISKS, control=False) as s, s.qmp() as q:
        start = lambda addr, **a: q.command("nbd-server-start",
                                            {"addr": addr, **a})
        assert "return" in q.command("object-add", creds("server"))
        reply = start(inet, **{"tls-creds": "no"})
        assert "No TLS credentials with id 'no'" in reply["error"]["desc"]
        start(inet, **{"tls-creds": "t"})
        port = listening_ports(s.process.pid)[-1]
        with plain(port) as c:
            kind, text, _ = c.option(OPT_GO, info_data("a"))
            assert kind == ERR_TLS_REQD, hex(kind)
        refused(port, "nobody")
        s.wait_message("the client has no certificate")
        # The other listeners have no TLS at all.
        with plain(s.ports[0]) as c:
            assert c.option(OPT_STARTTLS)[0] == ERR_UNSUP
            c.go("a")
        # Who uses them keeps them.
        assert "return" in q.command("object-del", {"id": "t"})
        reply = q.command("object-del", {"id": "t"})
        assert reply["error"]["desc"] == "object 't' not found", reply
        with plain(port) as c:
            start_tls(c)
            c.go("a")
            c.write(0, b"tls" * 100)
            assert c.read(0, 300) == b"tls" * 100
        q.execute("nbd-server-stop")
        # Unix sockets, too; keys; no certificate is asked for.
        q.execute("object-add", creds("keys", type="psk"))
        q.execute("nbd-server-start", {"addr": {
            "type": "unix", "data": {"path": path}}, "tls-creds": "t"})
        with Client(path) as c:
            assert c.option(OPT_LIST)[0] == ERR_TLS_REQD
        # The name of the export goes with the server, so add it again.
        q.execute("nbd-server-add", {"device": "a", "name": "x"})
        uri = f"nbds+unix://u@/x?socket={path}&tls-psk-file={own}"
        status, text = nbdinfo(uri)
        assert (status, text) == (0, "1048576\n"), text
        q.execute("nbd-server-stop")
        q.execute("object-del", {"id": "t"})
        q.execute("object-add", creds("server", **{"verify-peer": False}))
        q.execute("nbd-server-start", {"addr": inet, "tls-creds": "t"})
        with plain(listening_ports(s.process.pid)[-1]) as c:
            assert b"a" in listed(start_tls(c, "nobody"))
        assert s.stop() == 0


def test_objects():
    """What object-add refuses, in QEMU's words where it has some."""
    with TlsTidemarkd(TMP, *DISKS, control=False) as s, s.qmp() as q:
        for args, text in (
                ({}, "Parameter 'qom-type' is missing"),
                (creds("server", type="no"), "does not accept value"),
                (creds("server", id="9"), "expects an identifier"),
                (creds("server", id=""), "expects an identifier"),
                (creds("server", no=1), "Parameter 'no' is unexpected"),
                (creds("server", endpoint="x"), "does not accept value 'x'"),
                (creds("server", endpoint="client"), "must be 'server'"),
                (creds("nothing"), "nothing/ca-cert.pem: No such file"),
                (creds("nothing", type="psk"), "keys.psk: No such file"),
                ({k: v for k, v in creds("server").items() if k != "dir"},
                 "Missing 'dir' property value")):
            reply = q.command("object-add", args)
            assert text in reply["error"]["desc"], (args, reply)
        for i in range(64):
            q.execute("object-add", creds("server", id="o%d" % i))
        for i, text in ((0, "attempt to add duplicate property 'o0' to object "
                         "(type 'container')"), (64, "There are 64 objects")):
            reply = q.command("object-add", creds("server", id="o%d" % i))
            assert text in reply["error"]["desc"], reply
        assert s.stop() == 0


def test_many_refusals():
    """The log has some of them, and the number of all."""
    nr = 70
    with serve(*X509, verbose=False) as s:
        begun = time.monotonic()
        for i in range(nr // 2):
            with plain(s.ports[i % 2]) as c:
                # Twice on one connection is one line.
                for _ in range(2):
                    assert c.option(OPT_LIST)[0] == ERR_TLS_REQD
            with socket.create_connection(("127.0.0.1", s.ports[2])) as c:
                c.settimeout(TIMEOUT)
                c.sendall(b"GET / HTTP/1.0\r\n\r\n")
                try:
                    while c.recv(100):
                        pass
                except ConnectionResetError:
                    pass
        assert s.stop() == 0
        took = time.monotonic() - begun
        lines = [l for l in s.messages().splitlines() if "127.0.0.1:" in l]
        assert 20 <= len(lines) <= 20 + took / 10 + 1, s.messages()
        hidden = sum(int(n) for n in re.findall(
            r"(\d+) (?:refusals before|more refusals)", s.messages()))
        assert len(lines) + hidden == nr, s.messages()


def test_scan():
    """After the time limit nothing of it is there."""
    for sock in SCAN.clients:
        sock.settimeout(TIMEOUT)
        try:
            while sock.recv(1000):
                pass
        except ConnectionResetError:
            pass
    end = time.monotonic() + TIMEOUT
    while SCAN.holds_more() and time.monotonic() < end:
        time.sleep(0.01)
    assert not SCAN.holds_more(), (SCAN.held(), SCAN.before)
    # The clients' own sockets are open still: it was the server who went.
    for sock in SCAN.clients:
        sock.close()
    SCAN.server.wait_message("TLS: the handshake was not finished in time")
    with plain(SCAN.server.ports[0]) as c:
        assert listed(start_tls(c)) == [b"c", b"d"]
    assert SCAN.server.stop() == 0


try:
    SCAN = Scan()
    main()
finally:
    if SCAN:
        SCAN.server.__exit__()
    shutil.rmtree(TMP)
