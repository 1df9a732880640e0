#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a part of the suite that launches every CUDA kernel, and shows that it did: covered.py PRHS-TESTS BUILD [--brief] [--seed N] [-- PREFIX...]

PREFIX stands before the command, as in `-- compute-sanitizer --tool memcheck --error-exitcode 9`. BUILD: where the kernels' images lie
(*.ptx.lzma), which name them; the ops are those of src/kernels.def. --brief: no more than it takes. Exit status 1: a case failed, or a
kernel or an op was never launched.
"""
import glob
import lzma
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GROUPS = ["retrieve", "attend", "merge", "gate"]
MORE = ["append", "prefill", "session", "graph"]
# Without PRHS_CAP_TENSOR prompts of 16-bit K/V take the kernels that tensor cores replace.
RUNS = [["--filter", "whole/cis"], ["--filter", "retrieve/slices, ties"], ["--filter", "target/equals, just enough"], ["--filter", "recall/3 of G3 D64"], ["--filter", "variants/"], ["--filter", "variants/", "--caps", "fffffff7"]]


def kernels(build):
    names = set()
    for path in glob.glob(os.path.join(build, "**", "*.ptx.lzma"), recursive=True):
        with open(path, "rb") as f:
            names |= set(re.findall(r"^//:(\w+)$", lzma.decompress(f.read()).decode(), re.M))
    return names


def team_kernels():
    """There is no PTX of these, only machine code for 9.0."""
    names = set()
    for path in glob.glob(os.path.join(ROOT, "cuda", "*.cu")):
        with open(path, encoding="utf-8") as f:
            names |= set(re.findall(r"^TEAM_KERNEL\((\w+)", f.read(), re.M))
    return names


def ops():
    with open(os.path.join(ROOT, "src", "kernels.def"), encoding="utf-8") as f:
        return set(re.findall(r"^X\(\w+,\s*(\w+),", f.read(), re.M))


def main():
    words, prefix = sys.argv[1:], []
    if "--" in words:
        prefix = words[words.index("--") + 1:]
        words = words[:words.index("--")]
    tests, build, *more = words
    want = {"kernel": kernels(build), "op": ops()}
    seen, counts, bad = {"kernel": set(), "op": set()}, [0, 0, 0], 0
    brief = "--brief" in more
    more = [word for word in more if word != "--brief"]
    for run in RUNS + [["--quick", "--filter", group + "/"] for group in GROUPS + ([] if brief else MORE)]:
        command = [*prefix, tests, "--backend", "cuda", "--kernels", *more, *run]
        # Emulated: multiprocessors enough for one launch to serve a step, and for teams.
        env = {**os.environ, "PRHS_FAKE_CUDA_SMS": "70"} if run in RUNS[:2] else None
        done = subprocess.run(command, text=True, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        for kind, name in re.findall(r"^launched (kernel|op) (\w+)$", done.stdout, re.M):
            seen[kind].add(name)
        caps = re.search(r"^cuda device .*capabilities 0x([0-9a-f]+)", done.stdout, re.M)
        if caps and int(caps.group(1), 16) & 1 << 4:  # PRHS_CAP_SM90
            want["kernel"] |= team_kernels()
        found = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", done.stdout, re.M)
        counts = [a + int(b) for a, b in zip(counts, found.groups())] if found else counts
        if done.returncode or not found or found.group(1) == "0":
            bad += 1
            print(f"FAIL {' '.join(command)}: exit status {done.returncode}\n{done.stdout[-4000:]}", flush=True)
    for kind in want:
        missed = sorted(want[kind] - seen[kind])
        print(f"{len(want[kind] & seen[kind])} of {len(want[kind])} {kind}s launched" + f"; never: {' '.join(missed)}" * bool(missed))
        bad += bool(missed) or not want[kind]
    print("launched: " + " ".join(sorted(seen["kernel"])))
    print(f"{counts[0]} passed, {counts[1]} failed, {counts[2]} skipped, {bad} runs or lists bad")
    return 1 if bad else 0


sys.exit(main())
