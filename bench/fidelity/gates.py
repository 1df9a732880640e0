#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The two gates at equal rho: gates.py RUN.json...

Each RUN.json is `prhs-llama perplexity --json` with thresholds of the cosine gate (`cis,m=0,tau=`, with a residual `cis-mass,eps=1,floor=`, whose mass
gate never refuses) and of the mass gate alone (`floor=-1,eps=`). Loss against rho is a line through each gate's points; where both have one the two
are compared, the cosine gate's loss first. A row a text and residual, and one of the lower line of the two residuals ("either"): loss at some rho, the mean
over the range that both cover (of log rho), and how many documents lose less with the mass gate in that mean. Documents have their own loss, rho is the text's.
"""
import json
import os
import re
import sys

POINTS = (0.08, 0.10, 0.12, 0.15, 0.20, 0.25, 0.30)


def gate(policy):
    """(residual, gate) of a policy's text, or None."""
    keys = dict(re.findall(r"(\w+)=([^,]+)", policy))
    residual = keys.get("residual", "none" if policy.startswith("cis,") else "mean")
    if policy.startswith("cis,") or keys.get("eps") == "1":
        return residual, "cosine"
    return (residual, "mass") if keys.get("floor") == "-1" else None


def curves(rows, loss):
    """{(residual, gate): its line}: [(rho, loss)] by rho."""
    found = {}
    for row in rows:
        key = gate(row["policy"])
        if key:
            found.setdefault(key, []).append((row["rho"], loss(row)))
    return {key: sorted(points) for key, points in found.items()}


def at(lines, rho):
    """The least loss at rho of the lines that reach it; None: none does."""
    losses = []
    for line in lines:
        for (a, x), (b, y) in zip(line, line[1:]):
            if a <= rho <= b:
                losses.append(x + (y - x) * (rho - a) / (b - a) if b > a else min(x, y))
    return min(losses, default=None)


def mean(lines, low, high, n=200):
    return sum(at(lines, low * (high / low) ** ((i + 0.5) / n)) for i in range(n)) / n


def pair(found, residuals):
    """The lines of both gates."""
    return tuple([found[r, kind] for r in residuals] for kind in ("cosine", "mass"))


def row(name, label, rows, residuals):
    gates = pair(curves(rows, lambda r: r["loss"]), residuals)
    low = max(min(line[0][0] for line in lines) for lines in gates)
    high = min(max(line[-1][0] for line in lines) for lines in gates)
    cells = []
    for rho in POINTS:
        losses = [at(lines, rho) for lines in gates]
        cells.append("–" if None in losses else "{:.4f} / {:.4f}".format(*losses))
    better, count = 0, len(rows[0]["documents"])
    for i in range(count):
        own = pair(curves(rows, lambda r, i=i: r["documents"][i]["loss"]), residuals)
        better += mean(own[1], low, high) < mean(own[0], low, high)
    means = "{:.4f} / {:.4f}".format(*(mean(lines, low, high) for lines in gates))
    print(f"| {name} | {label} | {' | '.join(cells)} | {low:.3f}–{high:.3f}: {means} | {better} of {count} |")


def main():
    print(f"| text | residual | {' | '.join(f'ρ {rho:.2f}' for rho in POINTS)} | mean over ρ | documents |")
    print("|---|---|" + "---|" * (len(POINTS) + 2))
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as f:
            rows = json.load(f)["policies"]
        name = os.path.splitext(os.path.basename(path))[0]
        residuals = sorted({key[0] for key in curves(rows, lambda r: r["loss"])})
        for residual in residuals:
            row(name, residual, rows, [residual])
        row(name, "either", rows, residuals)


main()
