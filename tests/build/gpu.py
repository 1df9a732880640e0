#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What can be tested of scripts/gpu and the scripts that it calls where there is no GPU: gpu.py SOURCE-ROOT [BUILD FAKE-LIBCUDA-FOLDER]

With a build and the fake libcuda of tests/cuda it also sees a stage that fails, one that runs out of time and one that is skipped.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

bad = 0


def check(good, what, more=""):
    global bad
    bad += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}" + f": {more[-600:]}" * (not good))


def run(*command, **env):
    return subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          env=dict(os.environ, **env))


def usage(root):
    gpu = root / "scripts/gpu"
    for script in [gpu, root / "bench/peers/run", root / "bench/peers/wheels", root / "bench/fidelity/run"]:
        check(run("bash", "-n", script).returncode == 0, f"bash -n {script.name}")
    listed = run(gpu, "--list")
    names = re.findall(r"^(\w+) \d+ \w", listed.stdout, re.M)
    functions = re.findall(r"^stage_(\w+)\(\)", gpu.read_text(encoding="utf-8"), re.M)
    check(listed.returncode == 0 and sorted(names) == sorted(functions) and len(names) > 8, "--list names every stage", listed.stdout)
    with tempfile.TemporaryDirectory() as out:
        done = run(gpu, out, CUDA_VISIBLE_DEVICES="", LD_LIBRARY_PATH="")
        check(done.returncode == 77 and "no NVIDIA GPU" in done.stdout and not os.listdir(out), "without a GPU it says so", done.stdout)
        done = run(gpu, out, "--only", "suite,lunch")
        check(done.returncode == 2 and "no stage 'lunch'" in done.stdout, "an unknown stage", done.stdout)
    for words in [[], ["a", "b"], ["a", "--limit", "suite"], ["a", "--only"], ["--nonsense"]]:
        done = run(gpu, *words)
        check(done.returncode == 2 and "usage: scripts/gpu" in done.stdout, f"usage: {words}", done.stdout)


def documents(root):
    """A document of ncu's, written by hand: the launches that bench makes, each three times; figures tell them apart."""
    stall = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
    columns = ["ID", "Kernel Name", "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__warps_active.avg.pct_of_peak_sustained_active",
               "gpu__time_duration.sum", stall.format("long_scoreboard"), stall.format("wait"), stall.format("selected"),
               stall.format("wait_not_issued")]
    serve, score = "prhs_serve_f16_l16_h1(prhs_cu_serve)", "prhs_score_f16_l16_h1"
    kernels = [serve] * 12 + [score + "(x)"] * 3 + [score + "_m(x)"] * 3
    lines = ["a table of the program", "==PROF== Profiling", ",".join(f'"{c}"' for c in columns), ",".join('""' for _ in columns)]
    lines += [",".join(f'"{v}"' for v in (i, name, 10 + i, 50, f"{1000 + i},000", 7.5, 2, 99, 98)) for i, name in enumerate(kernels)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "ncu.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        done = run(sys.executable, root / "bench/profile.py", path)
        rates = re.findall(r"^(P\d) .*DRAM ([\d.]+) %, occupancy 50.0 %, top stall long_scoreboard \(7.5 ", done.stdout, re.M)
        check(rates == [("P1", "18.0"), ("P1", "21.0"), ("P2", "24.0"), ("P2", "27.0"), ("P9", "15.0")], "profile.py", done.stdout)
        path.write_text("\n".join(lines[:8]) + "\n", encoding="utf-8")
        check(run(sys.executable, root / "bench/profile.py", path).returncode == 1, "profile.py refuses other launches")
    done = run(sys.executable, root / "bench/fidelity/judge.py", root / "bench/fidelity/handbook-cpu.json")
    check(done.returncode == 0 and done.stdout.count(": met") == 14 and done.stdout.endswith("0 missed\n"), "judge.py", done.stdout)
    for loss, rho, missed in ((0.0099, 0.0999, 0), (0.0101, 0.05, 2), (0.005, 0.1001, 2)):
        rows = [{"policy": "cis-recall", "loss": loss, "rho": rho}]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "recall.json"
            path.write_text(json.dumps({"backend": "b", "device": "d", "kv": "f16", "context": 1, "decode": 1, "policies": rows,
                                        "texts": [{"policies": rows}]}), encoding="utf-8")
            done = run(sys.executable, root / "bench/fidelity/judge.py", path)
        check(done.stdout.endswith(f"\n{missed} missed\n"), f"judge.py of a loss of {loss} at {rho}", done.stdout)


def stages(root, build, fake):
    """A stage that takes too long, one whose tool is missing; then one of them again: the other's lines stay."""
    before = set(pathlib.Path(build).glob("gpu-stages-*"))
    with tempfile.TemporaryDirectory() as folder:
        out, env = pathlib.Path(folder) / "out", dict(LD_LIBRARY_PATH=fake, PRHS_DATA=folder)
        first = run(root / "scripts/gpu", out, "--build", build, "--only", "suite,fidelity", "--limit", "suite=1", **env)
        text = (out / "summary.txt").read_text(encoding="utf-8") if out.exists() else ""
        check(first.returncode == 1 and "suite: FAILED: not done after 1 s" in text, "a stage that takes too long", first.stdout)
        check("fidelity: skipped" in text and "scripts/fetch brings it" in text, "a stage that is skipped", text)
        again = run(root / "scripts/gpu", out, "--build", build, "--only", "fidelity", **env)
        text = (out / "summary.txt").read_text(encoding="utf-8")
        check(again.returncode == 0 and "suite: FAILED" in text and len(os.listdir(out)) <= 8, "what ran before stays", again.stdout)
        logs = (out / "logs.txt").read_text(encoding="utf-8")
        check(logs.index("=== suite") < logs.index("=== fidelity"), "logs in the stages' order", logs)
    for path in set(pathlib.Path(build).glob("gpu-stages-*")) - before:
        shutil.rmtree(path)


def main():
    root = pathlib.Path(sys.argv[1])
    usage(root)
    documents(root)
    if len(sys.argv) > 2:
        stages(root, *sys.argv[2:])
    return 1 if bad else 0


sys.exit(main())
