#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Embeds OpenCL C sources in a C file: embed.py OUT.c INCLUDE_DIR... -- SOURCE.cl...

Lines `#include "x"` are replaced by the file, once a program, so that each program is one self-contained text. It is kept in pieces that begin and
end where an included file does; programs that include the same share the pieces. The result defines prhs_cl_sources[]: name (without .cl),
pieces, their sizes, their number; the last entry has name NULL.
"""
import os
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')


def find(name, folders):
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    sys.exit(f"embed.py: {name} is in none of {', '.join(folders)}")


def pieces_of(path, folders, seen):
    """The pieces of a program's text, in order; `seen`: names of the files that are in it already."""
    out, piece = [], ""
    with open(path, encoding="utf-8") as f:
        for line in f:
            m = INCLUDE.match(line)
            if not m or m.group(1) == "stdint.h":
                piece += line
                continue
            out.append(piece)
            piece, name = "", os.path.basename(m.group(1))
            if name not in seen:
                seen.add(name)
                out += pieces_of(find(m.group(1), folders + [os.path.join(f, "prhs") for f in folders]), folders, seen)
    return [p for p in out + [piece] if p]


def literal(text):
    data = text.encode("utf-8")
    rows = []
    for i in range(0, len(data), 24):
        rows.append("    " + "".join(f"{b}," for b in data[i : i + 24]))
    return "\n".join(rows)


def main():
    out, rest = sys.argv[1], sys.argv[2:]
    cut = rest.index("--")
    folders, sources = rest[:cut], rest[cut + 1 :]
    parts = ["/* Made by tools/embed.py. */\n", '#include "opencl/host.h"\n']
    table, symbols = [], {}
    for path in sources:
        name = os.path.splitext(os.path.basename(path))[0]
        pieces = pieces_of(path, folders + [os.path.dirname(path)], set())
        for piece in pieces:
            if piece not in symbols:
                symbols[piece] = f"piece_{len(symbols)}"
                parts.append(f"static const unsigned char {symbols[piece]}[] = {{\n{literal(piece)}\n}};\n")
        names = [symbols[piece] for piece in pieces]
        parts.append(f"static const char *const text_{name}[] = {{ {', '.join('(const char *)' + n for n in names)} }};")
        parts.append(f"static const size_t size_{name}[] = {{ {', '.join('sizeof ' + n for n in names)} }};\n")
        table.append(f'    {{ "{name}", text_{name}, size_{name}, {len(names)} }},\n')
    parts.append("const struct prhs_cl_source prhs_cl_sources[] = {\n" + "".join(table) + "    { 0, 0, 0, 0 },\n};\n")
    with open(out, "w", encoding="utf-8") as f:
        f.write("\n".join(parts))


if __name__ == "__main__":
    main()
