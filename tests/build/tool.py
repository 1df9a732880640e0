#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program `prhs` from outside: tool.py PRHS CACHE-DIR

Its device list against clinfo's, its exit statuses, what it says to wrong usage, and that bench and tune write what they
should.
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


def check(good, what):
    global bad
    bad += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}")


def run(*command):
    return subprocess.run(command, text=True, capture_output=True, check=False)


def devices_of_clinfo():
    """Device names by platform, in clinfo's order; None where there is no clinfo."""
    if not shutil.which("clinfo"):
        return None
    names = []
    for line in run("clinfo", "--raw").stdout.splitlines():
        match = re.match(r"\[\S+/\S+\]\s+CL_DEVICE_NAME\s+(.*)", line)
        if match:
            names.append(match.group(1).strip())
    return names


def peers(document):
    """The table beside the peers, of a run that has none of its shapes: every line is there, nothing is met or missed."""
    script = pathlib.Path(__file__).parents[2] / "bench" / "peers" / "side_by_side.py"
    with tempfile.TemporaryDirectory() as folder:
        own, other = pathlib.Path(folder) / "own.json", pathlib.Path(folder) / "peers.jsonl"
        own.write_text(json.dumps(document), encoding="utf-8")
        lines = [{"device": document.get("device")}, {"peer": "flashinfer", "skipped": "No module named 'flashinfer'"},
                 {"peer": "fa2", "B": 8, "N": 1024, "H": 32, "HK": 32, "D": 128, "error": "out of memory"}]
        other.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        done = run(sys.executable, script, own, other, "--sm80", own)
        lines = [line for line in done.stdout.splitlines() if line.startswith("| P")]
        check(done.returncode == 0 and len(lines) > 20 and all("not measured" in line for line in lines), "the table beside the peers")
        check("flashinfer was not measured: No module" in done.stdout and "fa2 was not measured on 1 shapes: out of memory" in done.stdout,
              "peers that are absent are named with the reason")
        other.write_text('{"device": "another one"}\n', encoding="utf-8")
        check(run(sys.executable, script, own, other).returncode == 1, "figures of two devices are not put into one table")


def tune(prhs, cache):
    """Rows of tuning into an old file: those of the same class are replaced, the others stay; and the library takes what was written."""
    shape = ("--backend", "opencl", "--cache-dir", cache, "--shape", "1,1024,4,2,32", "--rotate", "1", "--repeat", "1")
    with tempfile.TemporaryDirectory() as folder:
        table, document = pathlib.Path(folder) / "rows.def", pathlib.Path(folder) / "tune.json"
        kept = "/* mine */\nX(opencl, cpu, attend, f16, 64, 2, 3)\nX(cuda, sm_80, any, any, 0, 0, 0)\n"
        table.write_text(kept + "".join(f"X(opencl, {device}, attend, f16, 32, 2, 999)\n" for device in ("cpu", "gpu")), encoding="utf-8")
        done = run(prhs, "tune", *shape, "--rounds", "1", "--write", str(table), "--json", str(document))
        check(done.returncode == 0, "tune runs" + done.stderr[-200:] * (done.returncode != 0))
        text = table.read_text(encoding="utf-8")
        rows = re.findall(r"^X\(opencl, (?:cpu|gpu), (\w+), f16, 32, 2, \d+\)$", text, re.M)
        check(text.startswith(kept) and text.count("999") == 1 and sorted(set(rows)) == sorted(
            ["append", "score", "select", "moments", "attend", "gate", "merge", "prefill"]), "tune brings a file up to date")
        found = json.loads(document.read_text(encoding="utf-8")) if document.exists() else {"groups": [], "shapes": []}
        check(len(found["shapes"]) == 1 and all(len(v) == len(found["groups"]) and min(min(v)) > 0
                                                for v in found["shapes"][0]["median_s"].values()), "tune's document has every median")
        done = subprocess.run([prhs, "bench", *shape, "--only", "ops"], text=True, capture_output=True, check=False,
                              env=dict(os.environ, PRHS_TUNING=str(table)))
        check(done.returncode == 0, "a device takes the rows" + done.stderr[-200:] * (done.returncode != 0))
        table.write_text("nonsense\n", encoding="utf-8")
        done = subprocess.run([prhs, "bench", *shape, "--only", "ops"], text=True, capture_output=True, check=False,
                              env=dict(os.environ, PRHS_TUNING=str(table)))
        check(done.returncode == 1 and "rows.def, line 1: it is no X(...)" in done.stderr, "and refuses what are none")


def main():
    prhs, cache = sys.argv[1:]
    brief = run(prhs, "info", "--brief")
    rows = [line.split("\t") for line in brief.stdout.splitlines()]
    check(brief.returncode == 0 and rows and all(len(r) == 4 for r in rows), "info --brief lists devices")
    check([r[0] for r in rows].count("cpu") == 1, "the cpu backend is there once")
    clinfo = devices_of_clinfo()
    if clinfo is None:
        print("     no clinfo here: the list is not compared")
    elif any(r[0] == "opencl" for r in rows):
        check([r[3].strip() for r in rows if r[0] == "opencl"] == clinfo, f"OpenCL devices as clinfo lists them: {clinfo}")
    full = run(prhs, "info", "--shape", "9,3,64")
    check(full.returncode == 0 and full.stdout.count("attend ") == len(rows), "info shows a path for every op of every device")

    for words, status, text in [
            ([], 2, "usage: prhs COMMAND"), (["--help"], 0, "usage: prhs COMMAND"), (["nonsense"], 2, "no command 'nonsense'"),
            (["info", "--help"], 0, "usage: prhs info"), (["info", "--shape", "x"], 2, "three numbers"),
            (["info", "--shape", "9,3,64x"], 2, "three numbers"),
            (["verify", "--help"], 0, "usage: prhs verify"), (["verify", "--backend", "abacus"], 2, "no backend 'abacus'"),
            (["verify", "--backend", "cpu", "--device", "7"], 77, "'prhs info' lists"),
            (["verify", "--seed", "-1"], 2, "--seed takes a number"), (["bench", "--help"], 0, "usage: prhs bench"),
            (["bench", "--shape", "1,2"], 2, "--shape takes"), (["bench", "--only", "lunch"], 2, "--only takes"),
            (["bench", "--preset", "dinner"], 2, "--preset takes"), (["bench", "--kept-tokens", "8000"], 2, "can be kept, not 8000"),
            (["tune", "--help"], 0, "usage: prhs tune"), (["tune", "--backend", "cpu"], 2, "no work-groups to tune"),
            (["tune", "--rounds", "0"], 2, "--rounds takes"), (["bench", "--unknown"], 2, "prhs bench --help"), (["bench", "--backend", "cpu", "--device", "7"], 77, "'prhs info' lists")]:
        done = run(prhs, *words)
        check(done.returncode == status and text in done.stdout + done.stderr, f"prhs {' '.join(words)}: {done.returncode}, {text}")

    done = run(prhs, "verify", "--backend", "cpu", "--filter", "merge/", "--quick", "--seed", "7")
    check(done.returncode == 0 and re.search(r"^seed 7$\n^[1-9]\d* passed, 0 failed, 0 skipped$", done.stdout, re.M), "verify runs a group")

    done = run(prhs, "bench", "--backend", "cpu", "--cache-dir", cache, "--shape", "2,1024,4,2,32", "--rotate", "1", "--repeat", "2",
               "--json", "-")
    check(done.returncode == 0, "bench runs" + done.stderr[-200:] * (done.returncode != 0))
    document = json.loads(done.stdout) if done.returncode == 0 else {"rows": []}
    names = {(row["section"], row["name"]) for row in document["rows"]}
    for name in [("ops", "attend all (own dense)"), ("ops", "attend list, runs of 16"), ("ops", "select"),
                 ("decode steps, by layer", "cis, rho 1/16, single tokens")]:
        check(name in names, f"bench reports {name[1]}")
    check(all(row["median_s"] > 0 for row in document["rows"]), "every row has a time")
    check(all(row["of_read"] > 0 and row["of_copy"] > 0 for row in document["rows"] if "bytes" in row), "rates beside the memory's own")
    check("start_cold_session_s" in document and document.get("read_bytes_per_second", 0) > 0, "start-up and the memory's speed")
    check((document.get("kind"), document.get("format")) == ("bench", 1), "the document says what it is")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "bench.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        page = run(prhs, "report", "--out", "-", path)
        check(page.returncode == 0 and "Decode step of one layer: batch 2, 4 query heads, 2 KV heads of 32" in page.stdout, "a page of it")
    peers(document)

    done = run(prhs, "bench", "--backend", "cpu", "--shape", "1,1024,4,2,32", "--rotate", "1", "--repeat", "2", "--kept-tokens", "100",
               "--only", "select", "--only", "host", "--only", "cross", "--only", "sure", "--only", "prefill", "--json", "-")
    document = json.loads(done.stdout) if done.returncode == 0 else {"rows": []}
    sections = {row["section"] for row in document["rows"]}
    check(sections == {"select", "outside a graph, by layer", "crossover", "the cost of being sure, by layer", "prefill"}, f"the other parts of bench: {sorted(sections)}")
    check("n_star_1_4_2_32_k64" in document and all(row["kept"] == 100 for row in document["rows"] if row["section"] == "select"),
          "crossover lengths, and the kept tokens asked for")
    if re.search(r"^opencl\t0\t", run(prhs, "info", "--brief").stdout, re.M):
        tune(prhs, cache)
    return 1 if bad else 0


sys.exit(main())
