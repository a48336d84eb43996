#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The plugin's own listeners over TCP: with TLS a backup works, and who is
# refused is told why, as is nbdkit's log; nbdkit's own socket is not concerned.
. "${srcdir:-.}/control-test.sh"
requires nbdkit certtool nbdinfo qemu-io qemu-img
cd "$tmp"
mkdir pki
python3 - <<'END'
from tls_util import PAST, Pki
pki = Pki("pki")
pki.client("alice")
pki.client("bob")
pki.client("expired", dates=PAST)
pki.trust("nobody")
pki.ca("other")
pki.client("stranger", ca="other")
pki.trust("trusts-other", "other")
pki.psk("keys", "carol")
pki.psk("wrong", "carol")
END
head -c 4M /dev/urandom >d.raw

# serve NAME PARAMETER...: the ports are $control and $backup.
serve ()
{
    local name=$1
    shift
    start_plugin "$name" disk=vda,file=d.raw control=127.0.0.1:0 \
        control="unix:$name.ctl" backup=127.0.0.1:0 "$@" 2>"$name.log"
    # As the plugin opens them.
    read -r control backup < <(python3 -c "
from tls_util import listening_ports
print (*listening_ports ($(cat "$name.pid")))")
    live="nbd+unix:///vda?socket=$tmp/$name"
}

# refused TEXT LOG-TEXT URI OPTION...: by the client, and in nbdkit's log.
refused ()
{
    local text=$1 log=$2 uri=$3
    shift 3
    expect_error "$text" "$tidemark" bitmap list "$@" "$uri"
    if [ -n "$log" ]; then wait_for 20 grep -qF -- "$log" x509.log; fi
}

serve x509 tls-certificates=pki/server tls-verify-peer=on \
    tls-allow=backup:alice
source=tidemarks://localhost:$control
nbds=nbds://localhost:$backup/vda
alice=(--tls-certificates pki/alice)
"$tidemark" backup --quiet "${alice[@]}" "$source" repo
qemu-io -f raw "$live" -c "write -P 7 1M 64k" >io
"$tidemark" backup --json "${alice[@]}" "$source" repo >events
grep -q '"mode":"incremental"' events || fail "$(cat events)"
"$tidemark" restore --quiet repo out.raw
cmp out.raw d.raw
# What a session is read from is TLS, too.
qmp x509.ctl backup-begin '{"bitmap": "b", "mode": "full"}' >begin
uri=$(json 'j["disks"][0]["uri"]' <begin)
case $uri in
    nbds://127.0.0.1:$backup/*) ;;
    *) fail "$uri" ;;
esac
test "$(nbdinfo --size "$uri?tls-certificates=$tmp/pki/alice")" = 4194304 ||
    fail "size"
expect_error "" nbdinfo --size "nbd${uri#nbds}"
qmp x509.ctl backup-end "{\"id\": \"$(json 'j["id"]' <begin)\",
    \"success\": false}" >end

for to in "control $source" "nbd $nbds"; do
    who="${to% *}: 127.0.0.1:"
    uri=${to#* }
    refused "the server refused: Certificate is required" "$who" "$uri" \
        --tls-certificates pki/nobody
    refused "the server refused: CA is unknown" "$who" "$uri" \
        --tls-certificates pki/stranger
    refused "does not come from an authority that is trusted" "" "$uri" \
        --tls-certificates pki/trusts-other
    refused "Certificate is expired" "$who" "$uri" \
        --tls-certificates pki/expired
    refused "the server refused: Access was denied" "$who" "$uri" \
        --tls-certificates pki/bob
    for text in "has no certificate" "an authority that is trusted" \
        "has expired" "'CN=bob' is not on the list"; do
        wait_for 20 grep -q "$who.*$text" x509.log
    done
done
refused "the server needs TLS: write nbds://" "refused: no TLS" \
    "nbd${nbds#nbds}"
refused "needs TLS: write tidemarks://HOST:PORT" "" \
    "tidemark${source#tidemarks}"
python3 - "$control" <<'END'
import socket
import sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    s.settimeout(60)
    s.sendall(b'{"execute": "qmp_capabilities"}\n')
    data = b""
    try:
        while part := s.recv(1000):
            data += part
    except ConnectionResetError:
        pass
    assert b"QMP" not in data and b"return" not in data, data
END
wait_for 20 grep -qF "what came is no TLS handshake" x509.log
# Neither the guest nor local clients need it.
test "$(nbdinfo --size "$live")" = 4194304 || fail "live"
qmp x509.ctl query-version >version
pid=$(cat x509.pid)
kill "$pid"
timeout 30 tail --pid="$pid" -f /dev/null || fail "it lives on"

serve psk tls-psk=pki/keys
source=tidemarks://localhost:$control
"$tidemark" backup --quiet --tls-psk pki/keys "$source" repo2
"$tidemark" restore --quiet repo2 out2.raw
cmp out2.raw d.raw
for to in "control $source" "nbd nbds://localhost:$backup/vda"; do
    expect_error "no user 'carol', or another key" "$tidemark" bitmap list \
        --tls-psk pki/wrong "${to#* }"
    wait_for 20 grep -q "${to% *}: 127.*the key of user 'carol' is wrong" \
        psk.log
done

# What is wrong is said before anything is served.
bad ()
{
    local text=$1
    shift
    expect_error "$text" "${nbdkit[@]}" -U - "$plugin" x.raw "$@" \
        --run 'echo served >&2'
    if grep -q served expect.err; then fail "it went on with: $*"; fi
}
truncate -s 1M x.raw
bad "server-cert.pem: No such file" tls-certificates=none
bad "exclude each other" tls-psk=pki/keys tls-certificates=pki/server
bad "must be 'off', 'on' or 'require'" tls=maybe
bad "tls-verify-peer, too" control=127.0.0.1:0 tls-certificates=pki/server
bad "TCP needs TLS" control=127.0.0.1:0 tls=off tls-psk=pki/keys
