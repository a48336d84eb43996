#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every option of the handshake, from a client that keeps to the protocol."""

import struct

from raw_nbd import *
import raw_nbd

DISKS = ("--disk", "a,size=1M,description=disk a", "--disk", "b,size=3M",
         "--disk", "ro,size=1M,readonly=on", "--bitmap", "a/b0",
         "--bitmap", "a/b1,granularity=4096")
A_CONTEXTS = ["base:allocation", "qemu:allocation-depth",
              "qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"]


def test_export_name():
    with Server(*DISKS) as server:
        with server.client(flags=3) as c:
            c.export_name("b")
            assert c.size == 3 << 20
            assert c.flags & FLAG_HAS_FLAGS and not c.flags & FLAG_DF
            assert c.read(0, 512) == bytes(512)
        with server.client(flags=1) as c:
            c.export_name("a", zeroes=True)
            assert c.read(0, 512) == bytes(512)


def test_export_name_of_old_client():
    with Server(*DISKS) as server:
        for flags, zeroes in ((0, True), (2, False)):
            with server.client(flags=flags) as c:
                c.export_name("a", zeroes=zeroes)
                c.write(0, b"x" * 512)
                assert c.read(0, 512) == b"x" * 512
        # It could not understand a reply to anything else.
        with server.client(flags=0) as c:
            c.send_option(OPT_LIST)
            assert c.is_closed()


def test_export_name_unknown():
    with Server(*DISKS) as server:
        for name in (b"x", b"", b"a\0", b"a" * 4097):
            with server.client() as c:
                c.send_option(OPT_EXPORT_NAME, name)
                assert c.is_closed(), name


def test_export_name_after_structured_replies():
    with Server(*DISKS) as server:
        with server.client() as c:
            c.structured_replies()
            c.export_name("a")
            assert c.flags & FLAG_DF
            assert c.read(0, 512) == bytes(512)


def test_export_name_after_extended_headers():
    with Server(*DISKS) as server:
        with server.client() as c:
            c.extended_headers()
            c.send_option(OPT_EXPORT_NAME, b"a")
            assert c.is_closed()


def test_default_export():
    with Server("--disk", "only,size=1M") as server:
        with server.client() as c:
            assert c.go("", [INFO_NAME])[INFO_NAME] == b"only"
        with server.client() as c:
            c.export_name("")
            assert c.size == 1 << 20
    with Server(*DISKS) as server:
        with server.client() as c:
            assert c.info("")[0] == ERR_UNKNOWN
    with Server(*DISKS, "--disk", "name=,size=2M") as server:
        with server.client() as c:
            c.go("")
            assert c.size == 2 << 20


def test_list():
    with Server(*DISKS) as server:
        with server.client() as c:
            kind, _, replies = c.option(OPT_LIST)
            assert kind == REP_ACK
            listed = []
            for reply, data in replies:
                n, = struct.unpack(">I", data[:4])
                assert reply == REP_SERVER
                listed.append((data[4:4 + n], data[4 + n:]))
            assert listed == [(b"a", b"disk a"), (b"b", b""), (b"ro", b"")]
            assert c.option(OPT_LIST, b"x")[0] == ERR_INVALID
            assert c.option(OPT_LIST)[0] == REP_ACK


def test_abort():
    with Server(*DISKS) as server:
        for data in (b"", b"ignored"):
            with server.client() as c:
                assert c.option(OPT_ABORT, data)[0] == REP_ACK
                assert c.is_closed()


def test_unknown_options():
    with Server(*DISKS) as server:
        with server.client() as c:
            for option in (0, OPT_PEEK, 12, 1000, 2**32 - 1):
                assert c.option(option, b"data")[0] == ERR_UNSUP
            c.go("a")


def test_starttls():
    with Server(*DISKS) as server:
        with server.client() as c:
            assert c.option(OPT_STARTTLS)[0] in (ERR_UNSUP, ERR_POLICY)
            c.go("a")
            assert c.read(0, 512) == bytes(512)


def test_info():
    with Server(*DISKS) as server:
        with server.client() as c:
            kind, infos = c.info("a")
            assert kind == REP_ACK and list(infos) == [INFO_EXPORT]
            assert c.size == 1 << 20
            kind, infos = c.info("a", [INFO_NAME, INFO_DESCRIPTION,
                                       INFO_BLOCK_SIZE, INFO_EXPORT, 77])
            assert infos[INFO_NAME] == b"a"
            assert infos[INFO_DESCRIPTION] == b"disk a"
            small, preferred, large = struct.unpack(
                ">III", infos[INFO_BLOCK_SIZE])
            assert (small, preferred, large) == (1, 4096, 32 << 20)
            kind, infos = c.info("b", [INFO_DESCRIPTION])
            assert kind == REP_ACK and INFO_DESCRIPTION not in infos
            assert c.info("x", [INFO_NAME]) == (ERR_UNKNOWN, {})
            assert c.info("x", option=OPT_GO) == (ERR_UNKNOWN, {})
            c.go("b")
            assert c.size == 3 << 20


def test_info_malformed():
    good = info_data("a", [INFO_NAME])
    bad = [good[:n] for n in range(len(good))] + [
        good + b"x", good + b"xx", b"\xff" * 12,
        struct.pack(">I", 2**32 - 1) + b"a\0\0",
        info_data(b"a\0b"), info_data("a" * 4097),
        name_data("a") + struct.pack(">H", 65535) + bytes(10)]
    with Server(*DISKS) as server:
        with server.client() as c:
            for data in bad:
                for option in (OPT_INFO, OPT_GO):
                    assert c.option(option, data)[0] == ERR_INVALID, data
            assert c.info("a" * 4096)[0] == ERR_UNKNOWN
            c.go("a")


def test_flags():
    writable = (FLAG_HAS_FLAGS | FLAG_FLUSH | FLAG_FUA | FLAG_TRIM
                | FLAG_ZEROES | FLAG_FAST_ZERO | FLAG_MULTI_CONN | FLAG_CACHE)
    with Server(*DISKS) as server:
        with server.client() as c:
            c.info("a")
            assert c.flags == writable, hex(c.flags)
            c.info("ro")
            assert c.flags == (FLAG_HAS_FLAGS | FLAG_FLUSH | FLAG_FUA
                               | FLAG_READ_ONLY | FLAG_MULTI_CONN
                               | FLAG_CACHE), hex(c.flags)
            c.structured_replies()
            c.info("a")
            assert c.flags == writable | FLAG_DF
            c.extended_headers()
            c.info("a")
            assert c.flags == writable | FLAG_DF
            c.set_meta("a", ["base:allocation"])
            c.info("a")
            assert c.flags == writable | FLAG_DF | FLAG_STATUS_PAYLOAD
            c.info("b")
            assert not c.flags & FLAG_STATUS_PAYLOAD


def test_structured_reply():
    with Server(*DISKS) as server:
        with server.client() as c:
            assert c.option(OPT_STRUCTURED, b"x")[0] == ERR_INVALID
            c.structured_replies()
            c.structured_replies()
            c.go("a")
            assert c.request(READ, 0, 4096).chunks[0][0] == HOLE


def test_extended_headers():
    with Server(*DISKS) as server:
        with server.client() as c:
            assert c.option(OPT_EXTENDED, b"x")[0] == ERR_INVALID
            c.extended_headers()
            assert c.option(OPT_STRUCTURED)[0] == ERR_EXT
            c.go("a")
            assert c.read(0, 512) == bytes(512)


def test_list_meta():
    with Server(*DISKS) as server:
        with server.client() as c:
            c.structured_replies()
            cases = [([], A_CONTEXTS),
                     (["base:"], A_CONTEXTS[:1]),
                     (["qemu:"], A_CONTEXTS[1:]),
                     (["qemu:dirty-bitmap:"], A_CONTEXTS[2:]),
                     (["qemu:dirty-bitmap:b1"], A_CONTEXTS[3:]),
                     (["qemu:allocation-depth"], A_CONTEXTS[1:2]),
                     (["qemu:dirty-bitmap:b"], []),
                     (["qemu:dirty-bitmap:b11"], []),
                     (["qemu:dirty-bitmap:" + "b" * 1024], []),
                     (["base:allocatio", "base:allocation2", "other:", "",
                       "base", "x-y:z", ":"], []),
                     (["other:x", "base:allocation", "base:"],
                      A_CONTEXTS[:1])]
            for queries, expected in cases:
                assert c.list_meta("a", queries) == expected, queries
            assert c.list_meta("b") == A_CONTEXTS[:2]
            assert c.option(OPT_LIST_META, meta_data("x", []))[0] \
                == ERR_UNKNOWN


def test_set_meta():
    with Server(*DISKS) as server:
        with server.client() as c:
            data = meta_data("a", ["base:allocation"])
            assert c.option(OPT_SET_META, data)[0] == ERR_INVALID
            c.structured_replies()
            for queries in ([], ["base:"], ["qemu:"], ["qemu:dirty-bitmap:"],
                            ["unknown:thing", "base:other"]):
                assert c.set_meta("a", queries) == {}, queries
            got = c.set_meta("a", list(reversed(A_CONTEXTS)))
            assert sorted(got) == A_CONTEXTS
            assert len(set(got.values())) == 4
            # Asked for twice, selected once.
            assert len(c.set_meta("a", A_CONTEXTS[:1] * 3)) == 1
            c.go("a")
            assert list(c.status(0, 4096)) == [c.contexts["base:allocation"]]


def test_set_meta_replaces():
    with Server(*DISKS) as server:
        cases = [meta_data("a", []), meta_data("x", ["base:allocation"]),
                 b"\0", meta_data("a", ["base:allocation"]) + b"x",
                 meta_data("b", ["base:allocation"])]
        for data in cases:
            with server.client() as c:
                c.structured_replies()
                c.set_meta("a", ["base:allocation"])
                c.option(OPT_SET_META, data)
                c.go("a")
                assert c.error(STATUS, 0, 4096) == EINVAL, data


def test_meta_malformed():
    good = meta_data("a", ["base:allocation", "qemu:dirty-bitmap:b0"])
    bad = [good[:n] for n in range(len(good))] + [
        good + b"x", name_data("a") + b"\xff\xff\xff\xff" + bytes(64),
        meta_data("a", ["q" * 4097]), meta_data("a", [b"base:\0"]),
        meta_data("a" * 4097, []), meta_data(b"\0", [])]
    with Server(*DISKS) as server:
        with server.client() as c:
            c.structured_replies()
            for data in bad:
                for option in (OPT_LIST_META, OPT_SET_META):
                    assert c.option(option, data)[0] == ERR_INVALID, data
            c.go("a")


def test_too_many_bitmaps_named():
    many = [f"qemu:dirty-bitmap:m{i}" for i in range(64)]
    args = [x for i in range(64) for x in ("--bitmap", f"d/m{i}")]
    with Server("--disk", "d,size=1M", *args) as server:
        with server.client() as c:
            c.structured_replies()
            assert len(c.set_meta("d", A_CONTEXTS[:2] + many)) == 66
            c.go("d")
            assert len(c.status(0, 1 << 20)) == 66


def test_long_option():
    with Server(*DISKS) as server:
        with server.client() as c:
            c.structured_replies()
            data = meta_data("a", ["x" * 4096] * 100)
            assert c.option(OPT_LIST_META, data)[0] == ERR_TOO_BIG
            assert c.option(99, bytes(1 << 20))[0] == ERR_TOO_BIG
            c.go("a")


raw_nbd.main()
