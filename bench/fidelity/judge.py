#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loss and rho of bench/fidelity/run against what they have to reach: judge.py OUT.json

The handbook's rows: loss within 0.003 and rho within 0.01 of the prototype's figures, or better; the preset: at most 0.006 at rho 0.20, and
0.012 at 0.20 in the mean over other texts; with the residual `retrieved` and no floor at most 0.005 at rho 0.15; `cis-recall`: at most 0.010 at
rho 0.10 on both.
"""
import json
import sys

TABLE = {
    "topk,k=220": (0.0169, 1), "cis,k=220,tau=0.8,m=0": (0.0178, 0.60), "cis,k=220,tau=0.6,m=0": (0.0457, 0.22),
    "cis,k=220,tau=0.4,m=0": (0.1421, 0.085), "cis-mass,k=220,s=16,floor=-1,residual=none": (0.0302, 0.255),
    "cis-mass,k=220,s=16,floor=-1": (0.0173, 0.243), "topk": (0.0071, 1), "topk,k=220,residual=mean": (0.0064, 1),
    "cis-mass,floor=-1": (0.0096, 0.147), "cis-mass,floor=0.3": (0.0077, 0.151), "cis-mass": (0.0050, 0.192),
    "cis-mass,eps=0.05,floor=-1": (0.0043, 0.248), "cis-mass,k=988,floor=-1": (0.0051, 0.103),
    "cis-mass,k=220,s=16,floor=-1,residual=retrieved": (0.0101, 0.241), "cis-mass,floor=-1,residual=retrieved": (0.0029, 0.146),
    "cis-mass,eps=0.2,floor=-1,residual=retrieved": (0.0121, 0.086),
}
BARS = {"cis-mass": ("F3", 0.006, 0.20), "cis-mass,floor=-1,residual=retrieved": ("F4", 0.005, 0.15), "cis-recall": ("F5", 0.010, 0.10)}
OTHER = {"cis-mass": ("F3", 0.012, 0.20), "cis-recall": ("F5", 0.010, 0.10)}  # the mean over other texts


def verdict(good):
    return "met" if good else "MISSED"


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        document = json.load(f)
    missed = 0
    print(f"{document['backend']}: {document['device']}, {document['kv']} K/V, {document['context']} + {document['decode']} tokens")
    for row in document["policies"]:
        name, loss, rho = row["policy"], row["loss"], row["rho"]
        line = f"{name}: loss {loss:.4f}, rho {'–' if rho is None else format(rho, '.3f')}"
        if name in TABLE:
            want, share = TABLE[name]
            good = loss <= want + 0.003 and rho <= share + 0.01
            missed += not good
            line += f"; F2 {want:.4f} + 0.003, {share:g} + 0.01: {verdict(good)}"
        if name in BARS:
            bar, most, share = BARS[name]
            good = loss <= most and rho <= share
            missed += not good
            line += f"; {bar} {most:g}, {share:g}: {verdict(good)}"
        print(line)
    for name, (bar, most, share) in OTHER.items():
        rows = [r for text in document.get("texts", []) for r in text["policies"] if r["policy"] == name]
        if rows:
            loss, rho = (sum(r[key] for r in rows) / len(rows) for key in ("loss", "rho"))
            good = loss <= most and rho <= share
            missed += not good
            print(f"{name} on {len(rows)} other texts: loss {loss:.4f}, rho {rho:.3f}; {bar} {most:g}, {share:g}: {verdict(good)}")
    print(f"{missed} missed")
    return 0


sys.exit(main())
