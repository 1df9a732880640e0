#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Images without code, for the driver of tests/cuda: stub_image.py SOURCE.cu OUT.fatbin OUT.ptx.lzma COMPILER [ARGUMENT...]

In the form that tools/compile_cuda.py makes, with the names of the kernels that SOURCE.cu has.
"""
import lzma
import re
import subprocess
import sys


def main():
    source, out, out_ptx, *compiler = sys.argv[1:]
    text = subprocess.run([*compiler, "-E", "-P", "-x", "c++", "-std=c++17", source], check=True, text=True, capture_output=True).stdout
    names = re.findall(r"\bemu_kernel emu_entry_(\w+) =", text)
    if not names:
        sys.exit(f"stub_image.py: {source} has no kernel")
    ptx = "no PTX\n" + "".join(f"//:{name}\n.entry {name}\n//.\n" for name in names)
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 0}]
    data = lzma.compress(ptx.encode(), format=lzma.FORMAT_ALONE, filters=filters)
    with open(out, "wb") as f:
        f.write(b"no code")
    with open(out_ptx, "wb") as f:
        f.write(data[:5] + len(ptx.encode()).to_bytes(8, "little") + data[13:])


main()
