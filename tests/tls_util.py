# SPDX-License-Identifier: BSD-3-Clause
"""Certificates and keys for the tests of TLS, and a tidemarkd over TCP."""
import os
import socket
import ssl
import subprocess
import time

from qmp_client import Qmp
from tidemarkd_util import TIMEOUT, Tidemarkd

DAYS = "activation_date=\"%s\"\nexpiration_date=\"%s\"\n"
NOW = DAYS % ("2020-01-01 00:00:00", "2060-01-01 00:00:00")
PAST = DAYS % ("2020-01-01 00:00:00", "2021-01-01 00:00:00")
FUTURE = DAYS % ("2055-01-01 00:00:00", "2060-01-01 00:00:00")


def certtool(*args):
    subprocess.run(["certtool", *args], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


class Pki:
    """Directories below top, one for each peer, in nbdkit's layout."""

    def __init__(self, top):
        self.top = top
        self.serial = 0
        self.ca("ca")
        self.server("server", "localhost")

    def path(self, *names):
        return os.path.join(self.top, *names)

    def key(self, path):
        certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", path)

    def template(self, name, lines):
        self.serial += 1
        path = self.path(name + ".template")
        with open(path, "w") as f:
            f.write(lines + "serial=%d\n" % self.serial)
        return path

    def ca(self, name):
        os.mkdir(self.path(name))
        self.key(self.path(name, "key.pem"))
        certtool("--generate-self-signed",
                 "--load-privkey", self.path(name, "key.pem"),
                 "--template", self.template(
                     name, "cn=%s\nca\ncert_signing_key\ncrl_signing_key\n"
                     % name + NOW),
                 "--outfile", self.path(name, "cert.pem"))

    def issue(self, name, kind, lines, ca, trusted):
        """A directory with the certificate of a "server" or a "client"."""
        os.mkdir(self.path(name))
        key = self.path(name, kind + "-key.pem")
        self.key(key)
        certtool("--generate-certificate", "--load-privkey", key,
                 "--load-ca-certificate", self.path(ca, "cert.pem"),
                 "--load-ca-privkey", self.path(ca, "key.pem"),
                 "--template", self.template(
                     name, "tls_www_%s\nsigning_key\n%s" % (kind, lines)),
                 "--outfile", self.path(name, kind + "-cert.pem"))
        self.trust(name, trusted)
        return self.path(name)

    def trust(self, name, ca="ca"):
        """A directory that trusts a CA."""
        os.makedirs(self.path(name), exist_ok=True)
        os.link(self.path(ca, "cert.pem"), self.path(name, "ca-cert.pem"))
        return self.path(name)

    def server(self, name, host, ca="ca", dates=NOW):
        return self.issue(name, "server", "cn=%s\ndns_name=%s\n%s%s" % (
            host, host, "ip_address=127.0.0.1\n" if host == "localhost"
            else "", dates), ca, "ca")

    def client(self, name, ca="ca", dates=NOW, lines=""):
        return self.issue(name, "client", "cn=%s\n%s%s" % (name, lines, dates),
                          ca, "ca")

    def revoke(self, name):
        """The server gets a list that has this client."""
        certtool("--generate-crl",
                 "--load-ca-certificate", self.path("ca", "cert.pem"),
                 "--load-ca-privkey", self.path("ca", "key.pem"),
                 "--load-certificate", self.path(name, "client-cert.pem"),
                 "--template", self.template(
                     "crl", "crl_next_update=7300\ncrl_number=1\n"),
                 "--outfile", self.path("server", "ca-crl.pem"))

    def psk(self, name, *users):
        """A file with keys: "USER" gets a new one, "USER:KEY" that one."""
        with open(self.path(name), "w") as f:
            for user in users:
                f.write("%s\n" % (user if ":" in user else user + ":"
                                  + os.urandom(32).hex()))
        return self.path(name)

    def context(self, name="nobody"):
        """Of python's TLS, for a client with the files of a directory."""
        c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        c.load_verify_locations(self.path("ca", "cert.pem"))
        cert = self.path(name, "client-cert.pem")
        if os.path.exists(cert):
            c.load_cert_chain(cert, self.path(name, "client-key.pem"))
        return c


def listening_ports(pid):
    """In the order in which they were opened."""
    with open("/proc/%d/net/tcp" % pid) as f:
        rows = [line.split() for line in f][1:]
    ports = {row[9]: int(row[1].split(":")[1], 16) for row in rows
             if row[3] == "0A"}
    fds = sorted(int(n) for n in os.listdir("/proc/%d/fd" % pid))
    found = []
    for fd in fds:
        try:
            link = os.readlink("/proc/%d/fd/%d" % (pid, fd))
        except OSError:
            continue
        port = ports.get(link[len("socket:["):-1])
        if link.startswith("socket:[") and port and port not in found:
            found.append(port)
    return found


class TlsQmp(Qmp):
    """The control protocol over TLS over TCP."""

    def __init__(self, port, context, negotiate=True):
        raw = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.sock = context.wrap_socket(raw, server_hostname="localhost")
        self.buffer = b""
        self.events = []
        if negotiate:
            self.greeting = self.receive()
            self.execute("qmp_capabilities")


class TlsTidemarkd(Tidemarkd):
    """With live, backup and control listeners on TCP, besides a local control
    socket: .ports and .control."""

    def __init__(self, tmp, *args, control=True, verbose=True):
        more = ["--listen", "127.0.0.1:0", "--backup-listen", "127.0.0.1:0"]
        if control:
            more += ["--control", "127.0.0.1:0"]
        self.local = os.path.join(tmp, "local.%d" % time.monotonic_ns())
        if verbose:
            more.append("-v")
        super().__init__(tmp, *args, *more, "--control",
                         "unix:" + self.local, bare=True)
        self.control = self.local
        self.ports = listening_ports(self.process.pid)

    def wait_message(self, text):
        """Until the log has it; the log."""
        return self.wait_line(text)

    def wait_line(self, *texts):
        """Until a line of the log has all these; the log."""
        end = time.monotonic() + TIMEOUT
        while not any(all(t in line for t in texts)
                      for line in self.messages().splitlines()):
            if time.monotonic() > end:
                raise AssertionError("no %r in: %s" % (texts, self.messages()))
            time.sleep(0.01)
        return self.messages()
