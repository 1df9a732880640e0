#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints unicode_table.h: ranges of code points that are letters (L), numbers (N) or white space, from Python's unicodedata."""
import unicodedata


def ranges(test):
    out, start = [], None
    for c in range(0x80, 0x110001):
        yes = c < 0x110000 and test(chr(c))
        if yes and start is None:
            start = c
        if not yes and start is not None:
            out.append((start, c - 1))
            start = None
    return out


print("/* SPDX-License-Identifier: Apache-2.0 */\n/* Made by gen_unicode.py from Unicode %s: inclusive ranges above ASCII. */" % unicodedata.unidata_version)
for name, test in (
    ("letters", lambda c: unicodedata.category(c)[0] == "L"),
    ("numbers", lambda c: unicodedata.category(c)[0] == "N"),
    ("spaces", lambda c: c.isspace() and ord(c) not in range(0x1C, 0x20)),
):
    cells = ["{ 0x%x, 0x%x }," % r for r in ranges(test)]
    rows = ["    " + " ".join(cells[i : i + 6]) for i in range(0, len(cells), 6)]
    print("static const unicode_range %s[] = {\n%s\n};" % (name, "\n".join(rows)))
