#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles one CUDA file for every device: compile_cuda.py NVCC SOURCE.cu OUT.fatbin OUT.ptx.fatbin DEPFILE [NVCC-ARGUMENT...]

OUT.fatbin: machine code for compute capability 8.0 (which 8.6 and 8.9 run too) and 9.0. OUT.ptx.fatbin: the PTX for 8.0, for newer devices, and
for drivers that do not take this toolkit's machine code. Its version is lowered to PTX_VERSION, because a driver refuses PTX that is newer
than itself; the code for 8.0 is assembled from just this text, so that the build fails where it needs more than that version.
"""
import os
import re
import subprocess
import sys
import tempfile

PTX_VERSION = "7.0"  # CUDA 11.0: every driver that knows compute capability 8.0


def run(*command):
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"compile_cuda.py: {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stdout or done.stderr:
        print(done.stdout + done.stderr)


def lower(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    text, n = re.subn(r"^\.version\s+\S+$", ".version " + PTX_VERSION, text, flags=re.M)
    if n != 1:
        sys.exit(f"compile_cuda.py: {path} has {n} lines with a version")
    # Comments and leading blanks are most of what is not code.
    text = "\n".join(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("//")) + "\n"
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def main():
    nvcc, source, out, out_ptx, depfile, *more = sys.argv[1:]
    folder = os.path.dirname(os.path.realpath(nvcc))
    ptxas, fatbinary = os.path.join(folder, "ptxas"), os.path.join(folder, "fatbinary")
    base = [nvcc, "-std=c++17", "-O3", *more]
    with tempfile.TemporaryDirectory() as work:
        ptx, sm80, sm90 = work + "/80.ptx", work + "/80.cubin", work + "/90.cubin"
        run(*base, "-ptx", "-arch=compute_80", "-MD", "-MF", depfile, "-MT", out, "-o", ptx, source)
        lower(ptx)
        run(ptxas, "-O3", "-arch=sm_80", ptx, "-o", sm80)
        run(*base, "-cubin", "-arch=sm_90", "-o", sm90, source)
        run(fatbinary, "-64", "--create=" + out, "--compress-all", f"--image3=kind=elf,sm=80,file={sm80}", f"--image3=kind=elf,sm=90,file={sm90}")
        # The one way of compressing that old drivers know.
        run(fatbinary, "-64", "--create=" + out_ptx, "--compress-all", "--compress-mode=speed", f"--image3=kind=ptx,sm=80,file={ptx}")


main()
