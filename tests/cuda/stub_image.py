#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Images without code, for the driver of tests/cuda: stub_image.py SOURCE.cu OUT.sm80.lzma OUT.sm90.lzma OUT.ptx.lzma COMPILER [ARGUMENT...]

In the form that tools/compile_cuda.py makes, with the names of the kernels that SOURCE.cu has.
"""
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools"))
from pack import CODE, TEXT, write_packed


def main():
    source, *codes, out_ptx = sys.argv[1:5]
    compiler = sys.argv[5:]
    text = subprocess.run([*compiler, "-E", "-P", "-x", "c++", "-std=c++17", source], check=True, text=True, capture_output=True).stdout
    names = re.findall(r"\bemu_kernel emu_entry_(\w+) =", text)
    if not names:
        sys.exit(f"stub_image.py: {source} has no kernel")
    ptx = "no PTX\n" + "".join(f"//:{name}\n.entry {name}\n//.\n" for name in names)
    for sm, out in zip((80, 90), codes):
        write_packed(out, b"no code for %d" % sm, CODE)
    write_packed(out_ptx, ptx.encode(), TEXT)


main()
