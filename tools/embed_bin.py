#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Embeds compiled CUDA kernels in a C file: embed_bin.py OUT.c NAME.sm80.lzma NAME.sm90.lzma NAME.ptx.lzma ...

The result defines prhs_nv_images[]; the last entry has name NULL. The bytes come in through the assembler's .incbin; the digest beside it
changes with them, so that no build tool takes an old object for the new one.
"""
import hashlib
import os
import sys

BLOCK = """__asm__(".pushsection .rodata,\\"a\\",%progbits\\n.balign 16\\n.globl {symbol}\\n.hidden {symbol}\\n{symbol}:\\n"
        ".incbin \\"{path}\\"\\n.byte 0\\n.popsection\\n/* {digest} */\\n");
extern const unsigned char {symbol}[];
"""


def embed(data, path, symbol):
    return BLOCK.format(symbol=symbol, path=os.path.abspath(path), digest=hashlib.sha256(data).hexdigest())


def read(path):
    with open(path, "rb") as f:
        return f.read()


def main():
    out, files = sys.argv[1], sys.argv[2:]
    parts, table = ["/* Made by tools/embed_bin.py. */", '#include "cuda/host.h"', ""], []
    for forms in zip(*[iter(files)] * 3):
        packed = []
        for path in forms:
            name, form, _ = os.path.basename(path).split(".")
            symbol, data = f"prhs_nv_{form}_{name}", read(path)
            parts.append(embed(data, path, symbol))
            packed.append(f"{{ {symbol}, {len(data)} }}")
        table.append(f'    {{ "{name}", {{ {", ".join(packed)} }} }},')
    parts += ["const struct prhs_nv_image prhs_nv_images[] = {", *table, "    { 0, { { 0, 0 } } },", "};", ""]
    with open(out, "w", encoding="utf-8") as f:
        f.write("\n".join(parts))


main()
