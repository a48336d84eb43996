#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# quickstart installs every tool that a test or the main job asks for with
# "requires", so that a fresh Debian has them all.
. ./functions.sh
requires dpkg-query python3

python3 - "$top_srcdir" <<'END'
import glob
import os
import re
import shutil
import subprocess
import sys

top = sys.argv[1]


def packages_of(path):
    """Of a file; packages may name it without the /usr of merged systems."""
    real = os.path.realpath(path)
    for name in path, real, real.replace("/usr/", "/", 1):
        found = subprocess.run(["dpkg-query", "-S", name], text=True,
                               stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL).stdout
        if found:
            return re.split(r"(?::\w+)?(?:, |: )", found.splitlines()[0])[:-1]
    return []


installed = {}
for line in subprocess.run(
        ["dpkg-query", "-W", "-f",
         "${Package}|${Essential}|${Priority}|${Pre-Depends}, ${Depends}\n"],
        text=True, check=True, stdout=subprocess.PIPE).stdout.splitlines():
    name, essential, priority, depends = line.split("|", 3)
    installed[name] = (essential == "yes" or priority == "required",
                       re.findall(r"[a-z0-9][a-z0-9+.-]+(?=[ ,:(]|$)",
                                  re.sub(r"\([^)]*\)", "", depends)))

with open(top + "/quickstart") as f:
    text = re.search(r"^packages=\((.*?)^\)", f.read(), re.M | re.S).group(1)
listed = re.sub("#.*", "", text).split()

there = set()
todo = listed + [p for p, (base, _) in installed.items() if base]
while todo:
    p = todo.pop()
    if p in installed and p not in there:
        there.add(p)
        todo += installed[p][1]

tools = {}
for name in glob.glob(top + "/tests/*.sh") + glob.glob(top + "/tests/*/*.sh"):
    with open(name) as f:
        for words in re.findall(r"^\s*requires ([a-z][^\n|;#&]*)", f.read(),
                                re.M):
            for word in words.split():
                tools.setdefault(word, os.path.relpath(name, top))
wrong = len(tools) < 12
for tool, name in sorted(tools.items()):
    # Not what a user has put in front of the system's own.
    path = shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin")
    owners = packages_of(path) if path else []
    if not any(p in there for p in owners):
        print("%s needs %s: its package %s is not among those that quickstart "
              "installs" % (name, tool, owners))
        wrong = True
print("%d tools, %d packages listed" % (len(tools), len(listed)))
sys.exit(wrong)
END
