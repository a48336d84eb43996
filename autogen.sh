#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Make configure from configure.ac.
set -e
cd "$(dirname "$0")"
for tool in autoreconf automake pkg-config; do
    if ! command -v $tool >/dev/null; then
        echo "autogen.sh: $tool not found; on Debian: apt-get install" \
             "autoconf automake pkg-config" >&2
        exit 1
    fi
done
exec autoreconf -fi
