#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What ncu says of attend over a list (P1), score (P2) and dense attention (P9): profile.py NCU.csv, or profile.py --metrics

NCU.csv: `ncu --csv --page raw -k 'regex:prhs_(serve|score)' --metrics $(profile.py --metrics) prhs bench --no-graph --repeat 1 --rotate 1 --only ops
--shape ...`: dense attention for the ceiling, dense attention, a list of single tokens, one of runs, score, score with moments, each as
often. The last call of each is reported.
"""
import csv
import sys

DRAM, OCCUPANCY, TIME = "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__warps_active.avg.pct_of_peak_sustained_active", "gpu__time_duration.sum"
STALL, END = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
METRICS = [DRAM, "dram__bytes_read.sum", TIME, OCCUPANCY, f"regex:{STALL}.*{END}"]


def launches(path):
    """Kernel and metrics of each launch, in order. What is not CSV is the program's own output."""
    with open(path, encoding="utf-8") as f:
        rows = list(csv.DictReader(line for line in f if line.startswith('"')))
    return [(r["Kernel Name"].split("(")[0], r) for r in rows if r["ID"]]


def number(row, name):
    try:
        return float(row[name].replace(",", ""))
    except (KeyError, ValueError):
        return None


def top_stall(row):
    """Why a warp's next instruction waits longest, in cycles an issued instruction; the issue itself and a turn of others are no stalls."""
    stalls = {}
    for name in row:
        why = name[len(STALL):-len(END)] if name.startswith(STALL) and name.endswith(END) else ""
        if why and not why.endswith("_not_issued") and why not in ("selected", "not_selected"):
            stalls[why] = number(row, name) or 0.0
    return max(stalls.items(), key=lambda s: s[1]) if stalls else ("unknown", 0.0)


def show(number_, what, name, row):
    stall, cycles = top_stall(row)
    values = [number(row, key) for key in (DRAM, OCCUPANCY, TIME)]
    if None in values:
        sys.exit(f"profile.py: ncu gave no figures for {name}")
    print(f"{number_} {what} ({name}): DRAM {values[0]:.1f} %, occupancy {values[1]:.1f} %, top stall {stall} ({cycles:.1f} cycles an instruction), "
          f"{values[2] / 1e3:.1f} µs under ncu")


def main():
    if sys.argv[1:] == ["--metrics"]:
        print(",".join(METRICS))
        return 0
    found = launches(sys.argv[1])
    serve = [x for x in found if x[0].startswith("prhs_serve")]
    plain = [x for x in found if x[0].startswith("prhs_score") and not x[0].endswith("_m")]
    moments = [x for x in found if x[0].startswith("prhs_score") and x[0].endswith("_m")]
    if not serve or len(serve) % 4 or not plain or not moments:
        sys.exit(f"profile.py: {len(serve)} launches of serve, {len(plain)} and {len(moments)} of score are not what bench makes")
    each = len(serve) // 4
    show("P1", "attend over a list of single tokens", *serve[3 * each - 1])
    show("P1", "attend over a list of runs of 16", *serve[4 * each - 1])
    show("P2", "score", *plain[-1])
    show("P2", "score with moments", *moments[-1])
    show("P9", "dense attention", *serve[2 * each - 1])
    return 0


sys.exit(main())
