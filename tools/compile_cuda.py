#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles one CUDA file for every device: compile_cuda.py NVCC SOURCE.cu OUT.sm80.lzma OUT.sm90.lzma OUT.ptx.lzma DEPFILE [NVCC-ARGUMENT...]
Or for a driver that compiles it itself: compile_cuda.py --ptx NVCC SOURCE.cu OUT.ptx DEPFILE [NVCC-ARGUMENT...]

OUT.sm80.lzma, OUT.sm90.lzma: machine code for compute capability 8.0 (which 8.6 and 8.9 run too) and 9.0. OUT.ptx.lzma: the PTX for 8.0, for
newer devices and for drivers that do not take this toolkit's machine code. Its version is lowered to PTX_VERSION, because a driver refuses
PTX that is newer than itself; the code for 8.0 is assembled from just this text, so that the build fails where it needs more than that
version. It is marked, and its numbers are distances, as ptx.py says; the library takes out the kernel that it needs.
"""
import os
import re
import subprocess
import sys
import tempfile

from pack import CODE, TEXT, write_packed
from ptx import distances, mark, number, numbers

PTX_VERSION = "7.7"  # CUDA 11.7: kernels take addresses of their parameters


def run(*command):
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"compile_cuda.py: {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stdout or done.stderr:
        print(done.stdout + done.stderr)


def lower(text):
    text, n = re.subn(r"^\.version\s+\S+$", ".version " + PTX_VERSION, text, flags=re.M)
    if n != 1:
        sys.exit(f"compile_cuda.py: {n} lines with a version")
    # Comments, and hints that came with later versions.
    return "".join(line for line in text.splitlines(True) if not re.match(r"\s*(//|\.pragma\s+\"used_bytes_mask)", line))


def make_ptx(base, folder, source, depfile, target, ptx, sm80):
    """The text at `ptx`, and its machine code for 8.0."""
    run(*base, "-ptx", "-arch=compute_80", "-MD", "-MF", depfile, "-MT", target, "-o", ptx, source)
    with open(ptx, encoding="utf-8") as f:
        text = number(mark(lower(f.read())))
    with open(ptx, "w", encoding="utf-8") as f:
        f.write(text)
    run(os.path.join(folder, "ptxas"), "-O3", "-arch=sm_80", ptx, "-o", sm80)
    return text


def main():
    only_ptx = sys.argv[1] == "--ptx"
    nvcc, source, out, *more = sys.argv[2 if only_ptx else 1:]
    out_sm90, out_ptx = [None, None] if only_ptx else [more.pop(0), more.pop(0)]
    depfile, *more = more
    folder = os.path.dirname(os.path.realpath(nvcc))
    base = [nvcc, "-std=c++17", "-O3", *more]
    with tempfile.TemporaryDirectory() as work:
        sm80, sm90 = work + "/80.cubin", work + "/90.cubin"
        text = make_ptx(base, folder, source, depfile, out, out if only_ptx else work + "/80.ptx", sm80)
        if only_ptx:
            return
        run(*base, "-cubin", "-arch=sm_90", "-o", sm90, source)
        for cubin, packed in [(sm80, out), (sm90, out_sm90)]:
            with open(cubin, "rb") as f:
                write_packed(packed, f.read(), CODE)
        if numbers(distances(text)) != text:
            sys.exit(f"compile_cuda.py: {source}: the PTX does not come out as it went in")
        write_packed(out_ptx, distances(text).encode(), TEXT)


main()
