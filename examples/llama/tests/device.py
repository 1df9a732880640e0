#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""prhs-llama on a device beside the cpu backend, a random model of two layers: device.py PRHS-LLAMA cuda LIBCUBLAS, or opencl clblast FLAKY

Tokens are the same with and without a graph, by policy and batch; so are losses, and what the policies did. What happens where the library is
missing, and where it fails (FLAKY: tests/flaky_clblast.c). 77, a skip, where this machine has no CLBlast or no OpenCL device.
"""
import ctypes
import json
import os
import random
import string
import subprocess
import sys
import tempfile

from tinymodel import random_model
from tracefile import Trace, near

LETTERS = string.ascii_letters + string.digits
SMALL = "k=16,m=0,sinks=4,local=8,n=0,dense=0"
POLICIES = ["dense", f"cis,{SMALL},tau=0.1", f"cis-mass,{SMALL},eps=0.9,tau=-1", f"cpe,{SMALL},psaw=1,psaw_layer=1,etf=1,etf_layer=1"]
MASS = POLICIES[2]
RANDOM = random.Random(3)
WORDS = "".join(RANDOM.choice(LETTERS) for _ in range(600))
PROMPTS = [WORDS[:60], WORDS[100:380], WORDS[590:]]  # the second one is longer than a chunk
LLAMA, DEVICE, LIBRARY, *FLAKY = sys.argv[1:]
CUDA = DEVICE == "cuda"
bad = 0


def check(good, what):
    global bad
    bad += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}")


def write_model(path, eos=None):
    with open(path, "wb") as f:
        f.write(random_model(1, 2, 4, 2, 32, 96, LETTERS, 512, eos))


def run(command, model, device, *args, env=None, status=0, linear=LIBRARY):
    """status None: any."""
    where = ["--linear", linear] if device == DEVICE and linear else []
    r = subprocess.run([LLAMA, command, "--model", model, "--device", device, *where, *args], text=True, capture_output=True,
                       check=False, timeout=120, env={**os.environ, "PRHS_FAKE_CUDA_SMS": "1", "OPENBLAS_NUM_THREADS": "1", **(env or {})})
    if status is not None and r.returncode != status:
        check(False, f"{command} {' '.join(args[:4])} on {device}: status {r.returncode}, {r.stderr}")
    return r


def generate(model, device, policy, *args, **how):
    return run("generate", model, device, "--policy", policy, "--ids", "-n", "18", *args, **how).stdout.splitlines()


def tokens(model):
    """Each prompt's tokens, which no batch and no graph may change."""
    for policy in POLICIES:
        want = generate(model, "cpu", policy, PROMPTS[0])
        check(len(want) == 1 and len(set(want[0].split())) > 5, f"{policy} on cpu: {want}")
        for args in ((), ("--no-graph",)) if CUDA and policy == POLICIES[1] else ((),):
            got = generate(model, DEVICE, policy, *args, PROMPTS[0])
            check(got == want, f"{policy} on {DEVICE} {' '.join(args)}: {got}")
    single = [generate(model, "cpu", MASS, p)[0] for p in PROMPTS]
    for device in ("cpu", DEVICE):
        check(generate(model, device, MASS, "--batch", "4", *PROMPTS) == single + single[:1], f"a batch of 4 on {device}")
    warm = ("--temperature", "0.7", "--batch", "2", PROMPTS[0])
    check(generate(model, DEVICE, MASS, *warm) == generate(model, "cpu", MASS, *warm) != [single[0]] * 2, "sampled tokens")
    return single


def ends(model, single):
    """The end comes within the second burst, and in one sequence only."""
    write_model(model, eos=int(single[0].split()[15]))
    ended = [generate(model, "cpu", MASS, p)[0] for p in PROMPTS[::2]]
    check(ended[0].split() == single[0].split()[:15], f"the end on cpu: {ended}")
    check(generate(model, DEVICE, MASS, PROMPTS[0]) == ended[:1], f"the end on {DEVICE}")
    check(generate(model, DEVICE, MASS, *PROMPTS[::2]) == ended != single[::2], f"the ends of two sequences on {DEVICE}")
    write_model(model)


def losses(model, text):
    """float32 caches: no rounding that a last bit could tip over."""
    def one(device, *args):
        r = run("perplexity", model, device, "--kv", "f32", "--docs", "2", "--context", "60", "--decode", "12", "--json", "-", *args, text)
        return json.loads(r.stdout[r.stdout.index("{"):])["policies"]

    chosen = [x for p in POLICIES for x in ("--policy", p)]
    full = one(DEVICE, *chosen)
    if CUDA:
        half = one(DEVICE, "--weights", "f16")[0]["nll"]
        check(0 < abs(half - full[0]["nll"]) < 1e-3, f"float16 weights: nll {half}, with float32 ones {full[0]['nll']}")
    for a, b in zip(one("cpu", *chosen), full, strict=True):
        same = all(a[key] == b[key] for key in ("policy", "kept", "rho", "grade", "top1"))
        # Summaries of dropped keys, here of much, weigh last bits more; attention alone on the device differs from the cpu's as much.
        bar = 5e-5 if a["policy"] == MASS else 2e-6
        near = all(abs(x["nll"] - y["nll"]) < bar for x, y in zip(a["documents"], b["documents"], strict=True))
        mass = a["delta"] == b["delta"] or abs(a["delta"] - b["delta"]) < 1e-5
        check(same and near and mass, f"perplexity of {a['policy']}: nll {a['nll']} and {b['nll']}, rho {a['rho']} and {b['rho']}, "
                                      f"delta {a['delta']} and {b['delta']}")


def recordings(model, work):
    """Rows of the device, which holds a row's queries, keys and values together, beside the host's."""
    def one(device, command, *args):
        path = os.path.join(work, device + ".trace")
        run(command, model, device, "--record", path, *args)
        t = Trace(path)
        os.remove(path)
        return t

    text = os.path.join(work, "text")
    for command, args in (("generate", ("--policy", "dense", "-n", "9", *PROMPTS)),
                          ("perplexity", ("--docs", "2", "--context", "60", "--decode", "6", text))):
        a, b = one("cpu", command, *args), one(DEVICE, command, *args)
        check(a.shape == b.shape and a.sequences == b.sequences and all(
            near(b.rows(layer, seq, kind), a.rows(layer, seq, kind)) and a.rows(layer, seq, kind)
            for layer in range(2) for seq in range(len(a.sequences)) for kind in range(3)), f"{command} --record: {b.sequences}")


def speed(model, text):
    for device in ("cpu", DEVICE):
        r = run("speed", model, device, "--context", "40", "--batch", "1", "--batch", "2", "-n", "3", "--repeat", "2", "--policy", MASS, "--json", "-", text)
        table, _, document = r.stdout.partition("{")
        table, document = [line.split() for line in table.splitlines()[3:]], json.loads("{" + document)
        rows = document["rows"]
        check([x[:3] for x in table] == [["40", b, p] for b in "12" for p in ("dense", MASS)] and
              [[str(x["context"]), str(x["batch"]), x["policy"]] for x in rows] == [x[:3] for x in table] and
              all(x["tokens_per_second"] > 0 and 0 < x["attended"] <= 40 for x in rows) and rows[0]["times_dense"] == 1 and
              document["graph"] == (device == "cuda") and document["linear"] == {"cpu": "host", "cuda": "cublas", "opencl": "clblast"}[device],
              f"speed on {device}: {len(rows)} rows")
    run("speed", model, "cpu", "--context", "600", text, status=1)


def failures(model):
    """A call of the driver fails, now and then: the same tokens or a sentence, and nothing left behind (the fake driver ends with 23 then)."""
    tail = ("--policy", "dense", "--ids", "-n", "12", PROMPTS[0][:20])
    want = run("generate", model, "cpu", *tail).stdout
    for n in () if CUDA else (0, 1, 5, 6, 9, 10, 14, 15, 60, 101):
        r = run("generate", model, DEVICE, *tail, env={"PRHS_FLAKY_CLBLAST": str(n)}, linear=FLAKY[0], status=None)
        check(r.returncode == (n > 0) and ("CLBlast" in r.stderr if n else r.stdout == want), f"call {n} of CLBlast fails: {r.stderr.strip()}")
    for n in range(11, 480, 47) if CUDA else ():
        r = run("generate", model, "cuda", *tail, env={"PRHS_FAKE_CUDA_FAIL": str(n)}, status=None)
        if r.returncode or r.stdout != want:
            check(r.returncode == 1 and "prhs-llama: " in r.stderr,
                  f"call {n} fails: status {r.returncode}, {r.stderr.strip().splitlines()[-1:]}")


def refused(model, words, *args, device=DEVICE, linear=None, env=None):
    """A run that ends with one sentence."""
    r = run("generate", model, device, *args, PROMPTS[0], env=env, linear=linear, status=1)
    check(words in r.stderr and r.stderr.count("\n") == 1 and not r.stdout, f"{linear} {' '.join(args)} on {device}: {r.stderr.strip()}")


def fallbacks(model, work, single):
    tail = ("--policy", MASS, "--ids", "-n", "18", PROMPTS[0])
    if CUDA:
        r = run("generate", model, DEVICE, *tail, env={"PRHS_FAKE_CUBLAS_FAIL": "1"}, linear=None)
        check(r.stdout.splitlines() == single[:1] and "cublasCreate returns" in r.stderr and r.stderr.count("\n") == 1,
              f"no handle of cuBLAS: {r.stderr.strip()}")
        refused(model, "OpenCL", linear="clblast")
    else:
        r = run("generate", model, DEVICE, *tail, "--stats", linear=None)  # a CPU device, whose host has a BLAS that is faster
        check(r.stdout.splitlines() == single[:1] and "layers: host" in r.stderr and "warning" not in r.stderr, "nothing named on a CPU device")
        path = loaded("libclblast.so.1")
        r = run("generate", model, DEVICE, *tail, "--stats", linear=path)
        check(r.stdout.splitlines() == single[:1] and "layers: clblast" in r.stderr, f"--linear {path}")
        refused(model, "no OpenCL device", "--linear", path, device="cpu")
        refused(model, "CUDA", linear=loaded("libOpenCL.so.1"))
    r = run("generate", model, DEVICE, *tail, linear="host")
    check(r.stdout.splitlines() == single[:1] and not r.stderr, "--linear host")
    broken = os.path.join(work, "libclblast.so.1")
    refused(model, "cannot be opened", linear=broken)
    with open(broken, "w", encoding="utf-8"):
        pass
    if not CUDA:
        refused(model, "libclblast.so.1 cannot be opened", linear="clblast", env={"LD_LIBRARY_PATH": work})
    refused(model, "float32 only", "--weights", "f16", linear="host")
    if not CUDA:
        refused(model, "float32 only", "--weights", "f16", linear="clblast")
    refused(model, "auto, host, clblast, or", linear="cublas")


def loaded(name):
    """The file that the loader takes for a library's name."""
    ctypes.CDLL(name)
    with open("/proc/self/maps", encoding="utf-8") as f:
        return next(line.split()[-1] for line in f if os.path.basename(line.split()[-1]).startswith(name.split(".so", maxsplit=1)[0]))


def missing(model):
    """What this machine lacks for a run on the device, or None."""
    if CUDA:
        return None
    try:
        ctypes.CDLL("libclblast.so.1")
    except OSError as e:
        return str(e)
    r = run("generate", model, DEVICE, "-n", "1", PROMPTS[0], status=None, linear="host")
    return r.stderr.strip() if "is no OpenCL device" in r.stderr else None


def main():
    with tempfile.TemporaryDirectory() as work:
        model, text = os.path.join(work, "model.gguf"), os.path.join(work, "text")
        write_model(model)
        lack = missing(model)
        if lack:
            print(f"skipped: {lack}")
            return 77
        with open(text, "w", encoding="utf-8") as f:
            f.write(WORDS)
        single = tokens(model)
        ends(model, single)
        losses(model, text)
        recordings(model, work)
        speed(model, text)
        failures(model)
        fallbacks(model, work, single)
    return 1 if bad else 0


sys.exit(main())
