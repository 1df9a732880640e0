#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the library exports is what the headers declare, and that is the checked-in list.

symbols.py LIST NM SHARED-LIB STATIC-LIB HEADER...   checks
symbols.py LIST --update HEADER...                   writes the list anew from the headers' PRHS_API declarations
A line of the list: symbol, header. A symbol that leaves it, or changes its meaning, needs a new soname.
"""
import os
import re
import subprocess
import sys

DECLARATION = re.compile(r"^PRHS_API\b[^;]*?\b(\w+)\s*\(", re.M)


def declared(headers):
    found = {}
    for path in headers:
        with open(path, encoding="utf-8") as f:
            for name in DECLARATION.findall(re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)):
                found[name] = os.path.basename(path)
    return found


def symbols(nm, *args):
    """Names of the global symbols that are defined, without their version; the version's own (absolute) symbol left out."""
    names = set()
    for line in subprocess.run([nm, "-g", "--defined-only", *args], text=True, capture_output=True, check=True).stdout.splitlines():
        part = line.split()
        if len(part) == 3 and part[1] != "A":
            names.add(part[2].split("@")[0])
    return names


def differ(what, have, want):
    for name in sorted(have - want):
        print(f"FAIL {what}: {name} is too much")
    for name in sorted(want - have):
        print(f"FAIL {what}: {name} is missing")
    return have != want


def main():
    path = sys.argv[1]
    if sys.argv[2] == "--update":
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(f"{name} {header}\n" for name, header in sorted(declared(sys.argv[3:]).items()))
        return 0
    nm, shared, static, headers = sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]
    here = {os.path.basename(h) for h in headers}
    with open(path, encoding="utf-8") as f:
        rows = [line.split() for line in f]
    listed = {name for name, header in rows if header in here}
    bad = differ("headers against " + os.path.basename(path), set(declared(headers)), listed)
    bad |= differ("exported against " + os.path.basename(path), symbols(nm, "-D", shared), listed)
    alien = {name for name in symbols(nm, static) if not name.startswith("prhs_")}
    bad |= differ("names in the static library", alien, set())
    print(f"{len(listed)} symbols")
    return 1 if bad or not listed else 0


sys.exit(main())
