#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""libprhs's OpenCL backend on a CPU beside ggml's FLASH_ATTN_EXT, in turn, on one machine: what O2 to O4 ask for.

usage: ggml.py PRHS [--rounds N] [--threads N] [--json FILE] [--shape H,H_KV,D,N ...]

PRHS is the program (build/tools/prhs/prhs). ggml's source comes from PyPI's source package of llama-cpp-python; it is unpacked and built in
~/.cache/prhs/ggml (pip, cmake and a C++ compiler), outside this tree. Every round runs ggml, then `prhs bench`; the fastest call of all rounds counts
(of cis steps, which are not alike, the best round's mean), as other work on a shared machine only ever adds time. ggml: attention alone, K/V float16, a head's tokens in a row, four copies in turn.
Ours: attention over all tokens, and a whole dense step (append, plan, attention, merge).
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tarfile

PACKAGE = "llama-cpp-python==0.3.36"
SHAPES = ["32,32,128,2048", "32,32,128,8192", "32,8,128,8192", "9,3,64,4096", "9,3,64,8192", "64,8,64,7680"]
HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.expanduser("~/.cache/prhs/ggml")


def fetch():
    """Where ggml's source lies."""
    found = glob.glob(os.path.join(CACHE, "*", "vendor", "llama.cpp", "ggml"))
    if found:
        return found[0]
    os.makedirs(CACHE, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", "llama-cpp-python",
                    "-d", CACHE, PACKAGE], check=True)
    with tarfile.open(glob.glob(os.path.join(CACHE, "llama_cpp_python-*.tar.gz"))[0]) as tar:
        tar.extractall(CACHE, [m for m in tar.getmembers() if "/vendor/llama.cpp/ggml/" in m.name])
    source = glob.glob(os.path.join(CACHE, "*", "vendor", "llama.cpp", "ggml"))[0]
    open(os.path.join(source, "ggml.pc.in"), "a", encoding="utf-8").close()  # the package leaves it out, and its build wants it
    return source


def build(source):
    program, work, c = os.path.join(CACHE, "ggml_dense"), os.path.join(CACHE, "build"), os.path.join(HERE, "ggml_dense.c")
    if os.path.exists(program) and os.path.getmtime(program) > os.path.getmtime(c):
        return program
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["cmake", "-S", source, "-B", work, "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DGGML_OPENMP=OFF",
                    "-DGGML_BUILD_TESTS=OFF", "-DGGML_BUILD_EXAMPLES=OFF"], **quiet)
    subprocess.run(["cmake", "--build", work, "-j", str(os.cpu_count())], **quiet)
    subprocess.run(["cc", "-O2", "-std=c11", "-D_GNU_SOURCE", "-I", os.path.join(source, "include"), "-c", c, "-o", program + ".o"], check=True)
    subprocess.run(["c++", program + ".o", *(os.path.join(work, "src", f"lib{n}.a") for n in ("ggml-cpu", "ggml-base")), "-lpthread", "-o", program],
                   check=True)
    return program


def least(best, key, value):
    best[key] = min(best.get(key, value), value)


def ours(prhs, threads, shapes, only, best, reads):
    """The least times by (shape, name); and, as that is a ratio within a run, the share of the read speed that the best dense step reached."""
    command = [prhs, "bench", "--backend", "opencl", "--json", "-"]
    for h, hk, d, n in shapes:
        command += ["--shape", f"1,{n},{h},{hk},{d}"]
    for o in only:
        command += ["--only", o]
    env = dict(os.environ, POCL_MAX_PTHREAD_COUNT=str(threads), POCL_CPU_MAX_CU_COUNT=str(threads))
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    document = json.loads(out[out.index("{\n"):] if not out.startswith("{") else out)
    for r in document["rows"]:
        if "of" in r or "shape" not in r:
            continue
        _, n, h, hk, d = r["shape"]
        us = r["mean_s" if r["name"].startswith("cis") else "min_s"] * 1e6
        least(best, ((h, hk, d, n), r["name"]), us)
        if r["name"] == "attend all (own dense)":
            reads.setdefault((h, hk, d, n), []).append(r["of_read"])
    return document


def measure(args, shapes, program):
    best, peer, reads, document = {}, {}, {}, None
    for i in range(args.rounds):
        text = [",".join(map(str, s)) for s in shapes]
        for line in subprocess.run([program, str(args.threads), "60", *text], check=True, capture_output=True, text=True).stdout.splitlines():
            row = json.loads(line)
            least(peer, tuple(row["shape"]), row["min_us"])
        document = ours(args.prhs, args.threads, shapes, ["ops", "steps"], best, reads)
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    return best, peer, reads, document


def table(shapes, best, peer, reads):
    """Markdown, and the figures."""
    print("| H, H_kv, D, N | ggml | attend all | ggml's time over it | dense step | ggml's time over it | bar (O2) | of the read speed |\n|" + "---|" * 8)
    rows = []
    for s in shapes:
        attend, step, g = best[s, "attend all (own dense)"], best[s, "dense"], peer[s]
        bar = 0.9 if s[0] == s[1] else 2.0
        print(f"| {', '.join(map(str, s))} | {g:.0f} | {attend:.0f} | {g / attend:.2f} | {step:.0f} | {g / step:.2f} | {bar} | {max(reads[s]):.2f} |")
        rows.append({"shape": s, "ggml_us": g, "attend_us": attend, "dense_step_us": step, "bar": bar, "of_read": max(reads[s])})
    print("\n| H, H_kv, D, N | list, runs of 16 (O3: 0.55 of own dense rate) | single (0.3) | cis step, runs of 16 (O4: 3.5x own dense step) | single (2x) |\n|"
          + "---|" * 5)
    for s, row in zip(shapes, rows):
        rates = [best[s, "attend all (own dense)"] / best[s, f"attend list, {n}"] / 8 for n in ("runs of 16", "single tokens")]
        steps = [best[s, "dense"] / best[s, f"cis, rho 1/16, {n}"] for n in ("runs of 16", "single tokens")]
        print(f"| {', '.join(map(str, s))} | {rates[0]:.2f} | {rates[1]:.2f} | {steps[0]:.2f} | {steps[1]:.2f} |")
        row.update(list_rate=rates, cis_times=steps)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("prhs")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--json")
    p.add_argument("--shape", action="append")
    args = p.parse_args()
    shapes = [tuple(int(x) for x in s.split(",")) for s in args.shape or SHAPES]
    best, peer, reads, document = measure(args, shapes, build(fetch()))
    print(f"{document['device']}, {document['platform']} {document['driver']}, {args.threads} threads; {PACKAGE}; µs, best of {args.rounds} rounds\n")
    rows = table(shapes, best, peer, reads)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"kind": "ggml", "device": document["device"], "threads": args.threads, "package": PACKAGE, "rows": rows}, f, indent=1)


main()
