#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Embeds a text in a C file: embed_text.py OUT.c NAME FILE. The result defines NAME[], terminated."""
import sys


def main():
    out, name, source = sys.argv[1:]
    with open(source, "rb") as f:
        data = f.read() + b"\0"
    rows = "\n".join("    " + "".join(f"{b}," for b in data[i : i + 24]) for i in range(0, len(data), 24))
    with open(out, "w", encoding="utf-8") as f:
        f.write(f"/* Made by tools/embed_text.py. */\nextern const unsigned char {name}[];\nconst unsigned char {name}[] = {{\n{rows}\n}};\n")


main()
