#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`prhs replay` from outside: program.py PRHS SYNTH-TRACE

Exit statuses and sentences of wrong usage, of damaged and of foreign files; the parts of a run; a sweep's points, front and recommendation.
"""
import json
import os
import subprocess
import sys
import tempfile

bad = 0
BASE = "sinks=2,local=8"


def check(good, what):
    global bad
    bad += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}")


class Replay:
    def __init__(self, prhs, trace):
        self.prhs, self.trace = prhs, trace

    def run(self, *words, trace=None):
        return subprocess.run([self.prhs, "replay", "--backend", "cpu", *words, trace or self.trace], text=True, capture_output=True,
                              check=False, timeout=120)

    def document(self, *words):
        done = self.run("--json", "-", *words)
        check(done.returncode == 0, f"replay {' '.join(words)}: {done.stderr.splitlines()[-1:]}")
        return json.loads(done.stdout) if done.returncode == 0 else {}


def usage(replay):
    for words, status, text in [
            (["--help"], 0, "usage: prhs replay"), (["--only", "lunch"], 2, "--only takes"), (["--page", "0"], 2, "--page takes"), (["--repeat", "0"], 2, "--repeat takes"),
            (["--policy", "none"], 2, "no policy 'none'"), (["--policy", "cis,k"], 2, "not understood"),
            (["--policy", "cis,local=0"], 2, "local must be"), (["--k", "1,2"], 2, "for --sweep"), (["--target-error", "x"], 2, "takes a number"),
            (["--target-delta", "-1"], 2, "takes a number"), (["--sweep", "--k", "1,x"], 2, "takes up to"), (["--sweep", "--s", ","], 2, "takes up to"),
            (["--sweep", "--only", "time"], 2, "leaves nothing"), (["--coverage", "0"], 2, "--coverage takes"),
            (["--confidence", "1"], 2, "between 0 and 1"), (["--audit-rate", "1.1"], 2, "from 0 to 1"), (["--audits", "x"], 2, "--audits takes"),
            (["--coverage", "5", "--only", "time"], 2, "--coverage is for"), (["--unknown"], 2, "prhs replay --help"), (["second", "file"], 2, "one trace"),
            (["--device", "7"], 77, "'prhs info' lists"),
            (["--policy", "cpe,psaw_layer=4"], 1, "psaw_layer must be below"),
            (["--sweep", "--k", ",".join(map(str, range(1, 33))), "--s", ",".join(map(str, range(1, 33))), "--eps", "0,1,2,3,4"], 2,
             "combinations")]:
        done = replay.run(*words)
        check(done.returncode == status and text in done.stdout + done.stderr, f"replay {' '.join(words)[:60]}: {done.returncode}, {text}")
    done = subprocess.run([replay.prhs, "replay"], text=True, capture_output=True, check=False)
    check(done.returncode == 2 and "one trace" in done.stderr, "no trace")
    done = replay.run(trace="/nonexistent.trace")
    check(done.returncode == 1 and "No such file" in done.stderr, "a trace that is not there")
    check(replay.run("--json", "/nonexistent/x.json", "--only", "time").returncode == 1, "a document that cannot be written")


def damage(replay, work):
    with open(replay.trace, "rb") as f:
        data = f.read()
    path = os.path.join(work, "damaged.trace")
    files = {f"{i} quarters": data[:len(data) * i // 4] for i in range(4)}
    for what, at in (("the magic", 2), ("the version", 8), ("the shape", 28), ("the scale", 41), ("a checksum", 90), ("a query or key", 100),
                     ("the middle", len(data) // 2), ("the index", len(data) - 40 * 5), ("the last byte", len(data) - 1)):
        files["a bit of " + what] = data[:at] + bytes([data[at] ^ 8]) + data[at + 1:]
    files.update({"a byte more": data + b"\0", "GGUF": b"GGUF\3\0\0\0" + bytes(500), "text": b"Not a trace at all.\n" * 30, "zeros": bytes(4096),
                  "the file twice": data + data})
    for what, content in files.items():
        with open(path, "wb") as f:
            f.write(content)
        done = replay.run(trace=path)
        said = done.stderr.splitlines()
        check(done.returncode == 1 and len(said) == 1 and said[0].startswith(f"prhs replay: {path}: ") and not done.stdout,
              f"{what}: {done.returncode} {done.stderr.strip()[:120]}")
    os.remove(path)
    done = replay.run(trace=work)
    check(done.returncode == 1 and "no file" in done.stderr, "a folder")


def parts(replay):
    policies = ("--policy", "dense", "--policy", f"cis-mass,k=24,{BASE}")
    both = replay.document(*policies)["policies"]
    check([p["policy"] for p in both] == [policies[1], policies[3]] and all("time" in p and "error" in p for p in both), "both parts")
    accuracy = replay.document("--only", "accuracy", *policies)["policies"]
    check(all("time" not in p for p in accuracy) and [p["error"] for p in accuracy] == [p["error"] for p in both], "accuracy alone, the same")
    time = replay.document("--only", "time", "--repeat", "2", *policies)["policies"]
    check(all("error" not in p and p["time"]["median_s"] > 0 for p in time), "time alone")
    check([p["policy"] for p in replay.document("--only", "time")["policies"]] == ["dense", "cis", "cis-mass"], "the usual policies")
    check(both[0]["error"]["max"] < 1e-5 and both[0]["bytes_of_dense"] == 1 and both[0]["delta"]["mean"] is None, "dense is dense")
    heads = replay.run("--heads", "--only", "accuracy", "--policy", f"cis,k=24,m=4,{BASE}").stdout
    check(heads.count("delta by head") == 2, "a line for every layer")


def coverage(replay):
    policy = ("--only", "accuracy", "--policy", f"cis-mass,k=24,{BASE}", "--coverage", "200")

    def cover(*words):
        row = replay.document(*policy, *words)["policies"][0]
        return row["coverage"], row["delta"]["mean"]

    some, mean = cover("--audits", "40")
    check(some["seeds"] == 200 and some["held"] >= 190, f"bounds at 95 % hold for {some['held']} of 200 seeds")
    check(abs(some["exact_mean"] - mean) < 1e-6 * mean + 1e-9, "the exact mean is the table's")
    check(some["unknown"] > 40 and abs(some["audits_mean"] - 40) < 3, f"{some['audits_mean']} audits of {some['unknown']}")
    check(0 < some["width_median"] <= some["width_max"] <= 1, f"width {some['width_median']}")
    check(cover("--audits", "40", "--confidence", "0.5")[0]["width_median"] < some["width_median"], "less confidence, narrower")
    check(cover("--audits", "80")[0]["width_median"] < some["width_median"], "more audits, narrower")
    every = cover("--audits", "1000000")[0]
    check(every["width_max"] < 1e-9 and every["held"] == 200 and every["audits_mean"] == every["unknown"], "all audited: the mean itself")
    done = replay.run("--only", "accuracy", "--policy", f"topk,k=24,{BASE}", "--coverage", "10")
    check(done.returncode == 0 and "no step whose dropped mass only an audit knows" in done.stdout, "topk knows all of its masses")
    timed = replay.document("--only", "time", "--repeat", "1", "--audit-rate", "0.5", "--policy", f"cis-mass,k=24,{BASE}")["policies"][0]
    check(timed["time"]["median_s"] > 0 and "coverage" not in timed, "timed with audits")


def sweep(replay):
    lists = ("--sweep", "--policy", f"cis-mass,{BASE}", "--k", "8,24,48", "--s", "4,16", "--eps", "0.02,0.2", "--tau", "0.3,0.6")
    points = replay.document(*lists)["sweep"]["points"]
    check(len(points) == 24 and len({p["policy"] for p in points}) == 24, "every combination once")
    front = [p for p in points if p["front"]]

    def reaches(q, p):
        return q["bytes_per_step"] <= p["bytes_per_step"] and q["error"] <= p["error"]

    check(len({(p["bytes_per_step"], p["error"]) for p in front}) == len(front), "no two points of the front are the same")
    check(not any(reaches(q, p) and q is not p for p in front for q in front), "none of them beats another")
    check(all(any(reaches(q, p) for q in front) for p in points), f"they reach all others: {len(front)} points")
    name = f"cis-mass,{BASE},k=24,s=16,eps=0.02,tau=0.3"
    alone = replay.document("--only", "accuracy", "--policy", name)["policies"][0]
    point = [p for p in points if p["policy"] == name][0]
    check(point["error"] == alone["error"]["mean"] and point["bytes_per_step"] == alone["bytes_per_step"] and
          point["delta"] == alone["delta"]["mean"], "a point is what replay says of its policy")
    middle = sorted(p["error"] for p in points)[12]
    for key, words in (("error", ("--target-error", repr(middle))), ("delta", ("--target-delta", "0.15"))):
        got = replay.document(*lists, *words)["sweep"]["recommended"]
        able = [p for p in points if p[key] <= float(words[1])]
        want = min(able, key=lambda p: p["bytes_per_step"])["policy"]
        check(got == want and 0 < len(able) < 24, f"{words[0]}: {got}")
    done = replay.run(*lists, "--target-error", "0", "--json", "-")
    check(done.returncode == 1 and json.loads(done.stdout)["sweep"]["recommended"] is None and "no combination" in done.stderr,
          "a target that nothing meets")
    points = {p["policy"]: p for p in replay.document("--sweep", "--policy", f"cis-mass,{BASE},k=40,kmin=1", "--target", "0.05,0.2,0.6")["sweep"]["points"]}
    tight, middle, loose = (points[f"cis-mass,{BASE},k=40,kmin=1,target={t}"] for t in ("0.05", "0.2", "0.6"))
    check(tight["delta"] < middle["delta"] < loose["delta"] and tight["missed"] > loose["missed"], "a sweep over targets")
    points = replay.document("--sweep", "--policy", f"cis-mass,{BASE},k=24,s=64,eps=0.02", "--refs", "1,2,8")["sweep"]["points"]
    check(sorted(p["policy"].rpartition(",")[2] for p in points) == ["refs=1", "refs=2", "refs=8"] and
          len({p["rho"] for p in points}) > 1, f"a sweep over references: {[p['rho'] for p in points]}")
    done = replay.run("--sweep", "--policy", f"cis,m=8,{BASE}", "--k", "8,24,48")
    check(done.returncode == 0 and "2 combinations;" in done.stdout and "1 combinations left out" in done.stderr,
          "a combination that contradicts itself is left out")
    check("recommended" not in done.stdout, "no target, no recommendation")


def main():
    prhs, synth = sys.argv[1:]
    with tempfile.TemporaryDirectory() as work:
        trace = os.path.join(work, "small.trace")
        subprocess.run([synth, trace], check=True)
        replay = Replay(prhs, trace)
        usage(replay)
        damage(replay, work)
        parts(replay)
        coverage(replay)
        sweep(replay)
    return 1 if bad else 0


sys.exit(main())
