#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The OpenCL kernels as strict compilers see them: kernels.py SOURCE-ROOT CLANG

Every kernel, in every flavour, with the constants of a few shapes and dtypes, is OpenCL C 1.2, 2.0 and 3.0 without a warning; no
extension and no optional feature of 3.0 is needed. No device is.
"""
import itertools
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

# Unused: parameters and locals that only some constants need.
FLAGS = ["-x", "cl", "-Xclang", "-finclude-default-header", "-target", "spir64-unknown-unknown", "-fsyntax-only", "-Wall", "-Wextra",
         "-Wpedantic", "-Werror", "-Wno-unused-variable", "-Wno-unused-parameter", "-Wno-unused-function"]
NAMES = ["WIDE", "D", "G", "UH", "KV", "Q", "OUT", "MOMENTS"]
# Wide and generic (those for GPUs are neither); in float32, float16 and, with a list per head, bfloat16. All of them in 1.2, which is what the library asks for.
SHAPES = [(1, 64, 3, 3, 0, 0, 0, 1), (0, 128, 4, 4, 1, 0, 1, 2), (1, 96, 2, 1, 2, 2, 2, 2), (0, 40, 1, 1, 2, 0, 0, 0)]
STANDARDS = {"CL1.2": SHAPES, "CL2.0": SHAPES[:2], "CL3.0": SHAPES[:2]}


def main():
    root, clang = sys.argv[1:]
    sys.path.insert(0, os.path.join(root, "tools"))
    import embed

    cl, bad, jobs = os.path.join(root, "cl"), [], []
    with tempfile.TemporaryDirectory() as work:
        for name in sorted(n for n in os.listdir(cl) if n.endswith(".cl")):
            text = "".join(embed.pieces_of(os.path.join(cl, name), [os.path.join(root, "src"), os.path.join(root, "include"), cl], set()))
            path = os.path.join(work, name)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            for kernel, std in itertools.product(re.findall(r"^KERNEL void prhs_(\w+)", text, re.M), STANDARDS):
                for shape in STANDARDS[std]:
                    shape = (0, *shape[1:]) if name.startswith("gpu_") else shape
                    jobs.append([clang, *FLAGS, f"-cl-std={std}", f"-DPRHS_ONLY_{kernel}=1",
                                 *[f"-DPRHS_{n}={v}" for n, v in zip(NAMES, shape)], path])
        for std in STANDARDS:  # the example's
            jobs.append([clang, *FLAGS, f"-cl-std={std}", "-DGROUP=256", "-DSEQ_INTS=8", "-DKV_LEN=3",
                         os.path.join(root, "examples", "llama", "layers.cl")])
        with ThreadPoolExecutor(2) as pool:
            for job, done in zip(jobs, pool.map(lambda j: subprocess.run(j, capture_output=True, text=True), jobs)):
                if done.returncode != 0:
                    bad.append(" ".join(job[-11:]) + "\n" + done.stderr)
    print("\n".join(["FAIL " + b for b in bad[:5]]))
    print(f"{len(jobs)} compilations, {len(bad)} failed")
    return 1 if bad or len(jobs) < 14 * 8 else 0


sys.exit(main())
