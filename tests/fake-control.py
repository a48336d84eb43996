#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A control server that breaks the protocol, for tests of its client.

fake-control.py SOCKET URI OUT: reads a line of JSON from standard input,
answers one connection by it, appends the names of the commands that it was
sent to OUT as one line, prints "done", and goes on to the next line.

The JSON is an object: a command (or "greeting") to how it is answered, one of
  {"bytes": TEXT}     these, and then nothing more
  {"repeat": TEXT, "times": N}
  {"close": true}     the connection ends instead
  {"silent": true}    nothing; "silent" is printed
  {"error": {...}}    that
  {"set": {...}}      the honest answer, with members changed ("" = itself);
                      "disk" is the object of its first disk
What is not in it is answered honestly: one disk "vda" at URI, a full backup.
"""
import copy
import json
import socket
import sys

ID = "00112233445566778899aabbccddeeff"
GREETING = {"QMP": {"version": {"qemu": {"major": 0, "minor": 1, "micro": 0},
                                "package": ""}, "capabilities": []}}


class End(Exception):
    pass


def honest(uri):
    return {
        "qmp_capabilities": {},
        "backup-begin": {
            "id": ID, "time": 1700000000, "lease": 300,
            "disks": [{"disk": "vda", "export": "", "uri": uri,
                       "contexts": ["base:allocation"], "bitmap": "b",
                       "granularity": 65536, "dirty-bytes": 1 << 20,
                       "size": 1 << 20, "mode": "full", "why": "honest",
                       "point": ID, "view": "dirty"}]},
        "backup-attach": {}, "backup-end": {},
        "query-block": [{"device": "vda", "inserted": {
            "node-name": "vda", "dirty-bitmaps": [
                {"name": "b", "count": 0, "granularity": 65536}]}}],
        "block-dirty-bitmap-add": {},
    }


def changed(value, changes):
    value = copy.deepcopy(value)
    for key, new in changes.items():
        if key == "":
            value = new
        elif key.startswith("disk."):
            value["disks"][0][key[5:]] = new
        else:
            value[key] = new
    return value


def answer(sock, how, message):
    if "close" in how:
        raise End
    if "bytes" in how:
        sock.sendall(how["bytes"].encode("utf-8", "surrogateescape"))
        raise_at_end(sock)
    if "repeat" in how:
        text = how["repeat"].encode() * 1000
        for _ in range(how["times"] // 1000):
            sock.sendall(text)
    if "silent" in how:
        print("silent", flush=True)
    else:
        sock.sendall(json.dumps(message).encode() + b"\r\n")


def raise_at_end(sock):
    """The client goes by itself."""
    while sock.recv(65536):
        pass
    raise End


def talk(sock, plan, uri, seen):
    answer(sock, plan.get("greeting", {}),
           changed(GREETING, plan.get("greeting", {}).get("set", {})))
    buffer, decoder, answers = "", json.JSONDecoder(), honest(uri)
    while True:
        data = sock.recv(65536)
        if not data:
            return
        buffer += data.decode()
        while buffer.strip():
            try:
                request, end = decoder.raw_decode(buffer.lstrip())
            except ValueError:
                break
            buffer = buffer.lstrip()[end:]
            name = request["execute"]
            seen.append(name)
            how = plan.get(name, {})
            message = {"return": changed(answers.get(name, {}),
                                         how.get("set", {})),
                       "id": request["id"]}
            if "error" in how:
                message = {"error": how["error"], "id": request["id"]}
            answer(sock, how, message)


def main():
    path, uri, out = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    print("ready", flush=True)
    for line in sys.stdin:
        seen = []
        sock = listener.accept()[0]
        try:
            talk(sock, json.loads(line), uri, seen)
        except (End, ConnectionError):
            pass
        sock.close()
        with open(out, "a") as f:
            f.write(" ".join(seen) + "\n")
        print("done", flush=True)


if __name__ == "__main__":
    main()
