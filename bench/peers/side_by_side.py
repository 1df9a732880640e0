#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One table of libprhs and its dense peers, and what each figure has to reach, from files that were made on one device in one job.

usage: side_by_side.py PRHS.json PEERS.jsonl [--sm80 PRHS.json] [--opencl PRHS.json]

PRHS.json: `prhs bench --backend cuda --preset paper --preset long ... --json`; PEERS.jsonl: dense_peers.py. Markdown on standard output.
Own steps are means over whole blocks (append, gate, retrieval, attention, merge, all launches); peers are medians of attention alone.
"""
import argparse
import json
import re
import sys

SIX = [(b, n, 32, 32, 128) for b in (8, 16) for n in (1024, 2048, 4096)]
LONG = [(8, 4096, 32, 8, 128), (16, 8192, 32, 8, 128), (1, 32768, 32, 8, 128), (8, 32768, 32, 8, 128), (1, 131072, 32, 8, 128)]
MAIN = (16, 4096, 32, 32, 128)
CIS, MASS6, MASS7 = "cis, rho 1/16, single tokens", "cis-mass, rho 1/6, mean", "cis-mass, rho 1/7, mean"
CIS_DENSE0 = "cis, rho 1/16, single tokens, layer 0 dense"
STEPS, OUTSIDE = "decode steps, by layer", "outside a graph, by layer"


class Own:
    """The document of `prhs bench`."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            self.document = json.load(f)
        self.rows = self.document["rows"]

    def all(self, section, name=None):
        return [r for r in self.rows if r["section"] == section and (name is None or r["name"] == name) and "of" not in r]

    def row(self, section, name, shape, kept=None):
        for r in self.all(section, name):
            if tuple(r["shape"]) == shape and (kept is None or r["kept"] == kept):
                return r
        return None

    def us(self, section, name, shape, key="mean_s", kept=None):
        r = self.row(section, name, shape, kept)
        return r[key] * 1e6 if r else None

    def step(self, name, shape, key="mean_s"):
        return self.us(STEPS, name, shape, key)

    def mass(self, shape):
        """cis-mass at a residual rho of 0.15, between the measured 1/7 and 1/6: the time is linear in rho."""
        seven, six = self.step(MASS7, shape), self.step(MASS6, shape)
        if seven is None or six is None:
            return None
        part = (0.15 - 1 / 7) / (1 / 6 - 1 / 7)
        return seven + part * (six - seven)


class Peers:
    """The lines of dense_peers.py."""

    def __init__(self, path):
        self.decode, self.prompt, self.rates, self.head, self.copy = {}, {}, [], {}, None
        self.absent = {}  # by peer: why, and on how many shapes; 0: on none, it was not tried
        with open(path, encoding="utf-8") as f:
            for line in f:
                r = json.loads(line) if line.lstrip().startswith("{") else {}
                if "device" in r:
                    self.head = r
                elif r.get("peer") == "copy":
                    self.copy = r["gbps_read_plus_write"]
                elif "skipped" in r or "error" in r:
                    why, count = self.absent.get(r["peer"], (r.get("skipped") or r.get("error"), 0))
                    self.absent[r["peer"]] = (why, count + ("error" in r))
                elif "us_median" in r:
                    shape = (r["B"], r["N"], r["H"], r["HK"], r["D"])
                    (self.prompt if "rows" in r else self.decode).setdefault(shape, {})[r["peer"]] = r["us_median"]
                    self.rates += [r["gbps"]] if "gbps" in r else []

    def best(self, shape):
        times = self.decode.get(shape)
        return min(times.values()) if times else None


def ratio(a, b):
    return a / b if a and b else None


def print_absent(peers):
    for name, (why, count) in sorted(peers.absent.items()):
        print(f"\n{name} was not measured{f' on {count} shapes' if count else ''}: {why}.")


def show(value, digits=1, unit=""):
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def least(values):
    values = [v for v in values if v is not None]
    return min(values) if values else None


def greatest(values):
    values = [v for v in values if v is not None]
    return max(values) if values else None


class Verdicts:
    """The rows of the second table."""

    def __init__(self):
        self.lines, self.missed, self.absent = [], 0, 0

    def add(self, number, what, value, bar, above=True, digits=2, unit="", note=""):
        """`value` has to reach `bar` from above or below; None: it was not measured."""
        good = None if value is None else value >= bar if above else value <= bar
        self.missed += good is False
        self.absent += good is None
        word = {True: "met", False: "**missed**", None: "not measured"}[good]
        sign = "≥" if above else "≤"
        self.lines.append(f"| {number} | {what} | {show(value, digits, unit)}{note and f' ({note})'} | {sign} {bar:g}{unit} | {word} |")

    def print(self):
        print("\n| # | what | figure | bar | |\n|---|---|---|---|---|")
        print("\n".join(self.lines))
        print(f"\n{len(self.lines) - self.missed - self.absent} met, {self.missed} missed, {self.absent} not measured")


def shape_table(own, peers):
    print("\nMicroseconds of a layer step. Peers: median of attention alone. Own: mean of whole steps; in brackets median and worst step.\n")
    names = ["fa2", "cudnn", "flashinfer-p16", "flashinfer-p1"]
    print("| B×N, H_kv, kept | FA2 | cuDNN | FlashInfer p16 | p1 | own dense: attention | step | cis ρ 1/16 | × best peer | × FA2 "
          "| layer 0 dense | × best peer | first step | cis-mass ρ 0.15 | × best peer | × FA2 |")
    print("|---" * 16 + "|")
    for shape in SIX + LONG:
        b, n, _, kv, _ = shape
        cis, times, best = own.row(STEPS, CIS, shape), peers.decode.get(shape, {}), peers.best(shape)
        mean = own.step(CIS, shape)
        first = next((r["mean_s"] * 1e6 for r in own.rows if r.get("of") == CIS and tuple(r["shape"]) == shape), None)
        spread = f" ({cis['median_s'] * 1e6:.1f}, {cis['max_s'] * 1e6:.1f})" if cis else ""
        cells = [f"{b}×{n}, {kv}, {cis['kept'] if cis else '–'}"] + [show(times.get(p)) for p in names]
        cells += [show(own.us("ops", "attend all (own dense)", shape, "median_s")), show(own.step("dense", shape)), show(mean) + spread,
                  show(ratio(best, mean), 2), show(ratio(times.get("fa2"), mean), 2), show(own.step(CIS_DENSE0, shape)),
                  show(ratio(best, own.step(CIS_DENSE0, shape)), 2), show(first), show(own.mass(shape)),
                  show(ratio(best, own.mass(shape)), 2), show(ratio(times.get("fa2"), own.mass(shape)), 2)]
        print("| " + " | ".join(cells) + " |")


def op_table(own, read):
    shapes = [s for s in SIX + LONG if own.row("ops", "score", s)]
    if not shapes:
        return
    print("\nOps: microseconds (median), and the bytes that must move over the time as a share of the run's best dense read rate.\n")
    names = ["attend all (own dense)", "attend list, single tokens", "attend list, runs of 16", "score", "score with moments", "select",
             "moments of the dropped keys", "append"]
    print("| | " + " | ".join(f"{s[0]}×{s[1]}, {s[3]}" for s in shapes) + " |\n|---" + "|---" * len(shapes) + "|")
    for name in names:
        cells = []
        for shape in shapes:
            r = own.row("ops", name, shape)
            share = f" ({r['bytes_per_s'] / read:.2f})" if r and read and r.get("bytes_per_s") and name not in ("select", "append") else ""
            cells.append(show(r["median_s"] * 1e6 if r else None) + share)
        print(f"| {name} | " + " | ".join(cells) + " |")


def judge_ops(v, own, read):
    def share(name, shape):
        r = own.row("ops", name, shape)
        return ratio(r["bytes_per_s"], read) if r else None

    v.add("P1", "attend over a list, 16×4096, of the best dense read rate", share("attend list, single tokens", MAIN), 0.85)
    v.add("P2", "score all of K, 16×4096, of that rate", share("score", MAIN), 0.9)
    v.add("P2", "score with moments, 16×4096, G = 1", share("score with moments", MAIN), 0.75)
    v.add("P2", "score with moments, 16×8192, G = 4", share("score with moments", (16, 8192, 32, 8, 128)), 0.5)
    v.add("P3", "select of 4096 for 512 units", own.us("select", "select", MAIN, "median_s"), 15, False, 1, " µs")
    for heads in (8, 32):
        for kept in (2048, 16384):
            v.add("P3", f"select {kept} of 131072 for 8 units of {heads // 8} query head{'s' * (heads > 8)}",
                  own.us("select", "select", (1, 131072, heads, 8, 128), "median_s", kept), 40, False, 1, " µs")


def judge_steps(v, own, peers, h200):
    def times(own_us, shape, peer=None):
        return ratio(peers.decode.get(shape, {}).get(peer) if peer else peers.best(shape), own_us)

    v.add("P4", "cis, ρ 1/16, 16×4096, against the best dense peer", times(own.step(CIS, MAIN), MAIN), 4.5 if h200 else 5, unit="×")
    v.add("P4", "the same, least of the first six", least(times(own.step(CIS, s), s) for s in SIX), 2, unit="×")
    v.add("P5", "cis, 16×4096, against FlashAttention-2", times(own.step(CIS, MAIN), MAIN, "fa2"), 9 if h200 else 6.2, unit="×")
    v.add("P6", "cis-mass, ρ 0.15, 16×4096, against the best dense peer", times(own.mass(MAIN), MAIN), 3.2, unit="×")
    v.add("P6", "the same, least of the first six", least(times(own.mass(s), s) for s in SIX), 1.2 if h200 else 1.5, unit="×")
    for shape, kept, bar in (((8, 32768, 32, 8, 128), 1024, 10), ((1, 131072, 32, 8, 128), 2048, 8)):
        us = own.us(STEPS, CIS, shape, kept=kept)
        v.add("P7", f"cis, ρ 1/16, {shape[0]}×{shape[1]}, {kept} kept", times(us, shape), bar, unit="×")
    scripted = [own.row(STEPS, name, shape) for name in (CIS, MASS7) for shape in SIX + LONG]
    at = max((r for r in scripted if r), key=lambda r: r["worst_of_median"], default=None)
    v.add("P8", "worst / median step, scripted and staggered, greatest of all shapes", at and at["worst_of_median"], 1.1, False, 3,
          note=at and f"{at['name']}, {at['shape'][0]}×{at['shape'][1]}" or "")
    dense = [(times(own.step("dense", s), s), s) for s in SIX + LONG if own.step("dense", s) and peers.best(s)]
    op = least(times(own.us("ops", "attend all (own dense)", s, "median_s"), s) for s in SIX + LONG)
    low = min(dense) if dense else (None, None)
    v.add("P9", "own dense step against the best dense peer, least of all shapes", low[0], 0.95, unit="×",
          note=f"{low[1][0]}×{low[1][1]}, {low[1][3]}; attention alone: {show(op, 2)}×" if low[1] else "")


def judge_host(v, own):
    rows = [r for r in own.all(OUTSIDE) if r["name"] != "dense"]
    v.add("P10", "launches of a layer step", greatest(r["launches"] for r in rows), 6, False, 2)
    v.add("P10", "host time of a layer step outside a graph", greatest(r["host_s"] * 1e6 for r in rows), 15, False, 2, " µs")
    v.add("P10", "launches by the library in replays", own.document.get("replay_launches"), 0, False, 0)


def judge_prefill(v, own, peers):
    shapes = {4096: 0.7, 8192: 0.8, 16384: 0.88}
    for n, bar in shapes.items():
        shape = (1, n, 32, 32, 128)
        us = own.us("prefill", "all rows of a prompt", shape)
        v.add("P11", f"causal prefill of {n} rows against FA2", ratio(peers.prompt.get(shape, {}).get("fa2"), us), 0.7, unit="×")
        v.add("P11", "of the arithmetic that PSAW and ETF leave out, share that is saved time",
              own.document.get(f"prefill_saved_share_1_{n}_32"), bar)


def judge_cross(v, own):
    rows = own.all("crossover")
    for shape in sorted({(r["shape"][0], *r["shape"][2:]) for r in rows}):
        here = [r for r in rows if (r["shape"][0], *r["shape"][2:]) == shape]
        us = {(r["name"], r["shape"][1]): r["mean_s"] * 1e6 for r in here}
        worst, stars = None, []
        for name in sorted({r["name"] for r in here if r["name"].startswith("k ")}, key=lambda x: int(x[2:])):
            star = own.document.get(f"n_star_{shape[0]}_{shape[1]}_{shape[2]}_{shape[3]}_k{name[2:]}") or float("inf")
            stars.append(f"{name}: {star:g}" if star < float("inf") else f"{name}: none")
            for (other, n), dense in us.items():
                if other != "dense":
                    continue
                cost = us.get((name, n)) if n >= star else us.get(("fallback", n))
                if cost is not None:
                    worst = greatest([worst, cost - 1.05 * dense])
        v.add("P13", f"B {shape[0]}, H_kv {shape[2]}: above 1.05 × own dense, with min_sparse_n = N*", worst, 8, False, 2, " µs",
              "N* " + ", ".join(stars))


def judge_slots(v, own):
    ratios = []
    for r in own.all("slots"):
        if r["name"].startswith("64 slots"):
            ratios.append(ratio(1, r.get("times_dense")))
    v.add("slots", "64 slots × 131072 with short sequences over a session sized for them, greatest", greatest(ratios), 1.1, False, 3)


def judge_other(v, number, what, own, path, names, bar, shapes):
    """Own times over those of another run of the same program."""
    if not path:
        return
    other = Own(path)
    found = []
    for section, name, key in names:
        for shape in shapes:
            found.append((ratio(own.us(section, name, shape, key), other.us(section, name, shape, key)), f"{name}, {shape[0]}×{shape[1]}"))
    found = [f for f in found if f[0] is not None]
    low = min(found) if found else (None, "")
    v.add(number, what, low[0], bar, unit="×", note=low[1])


def judge_replay(v, path):
    """Steps of a recorded run: what the gates do there, nobody scripts."""
    rows = []
    if path:
        with open(path, encoding="utf-8") as f:
            rows = [p for p in json.load(f)["policies"] if p["time"]["p99_of_median"] and p["policy"].split(",")[0] != "dense"]
    at = max(rows, key=lambda p: p["time"]["p99_of_median"], default=None)
    v.add("P8", "a replayed real trace, 99th percentile / median step, greatest of its sparse policies", at and at["time"]["p99_of_median"], 1.5,
          False, 3, note="; ".join(f"{p['policy']}: median {p['time']['median_s'] * 1e6:.1f} µs, first {p['time']['first_s'] * 1e6:.1f}" for p in rows))


OPS = [("ops", "attend all (own dense)", "median_s"), ("ops", "attend list, single tokens", "median_s"), ("ops", "score", "median_s")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prhs")
    parser.add_argument("peers")
    parser.add_argument("--sm80")
    parser.add_argument("--opencl")
    parser.add_argument("--replay")
    args = parser.parse_args()
    own, peers = Own(args.prhs), Peers(args.peers)
    device = own.document["device"]
    if peers.head.get("device") and peers.head["device"] != device:
        print(f"side_by_side: the peers ran on {peers.head['device']}, libprhs on {device}", file=sys.stderr)
        return 1
    dense = [r["bytes_per_s"] for r in own.rows if r["name"] == "attend all (own dense)"]
    read = greatest(dense + [rate * 1e9 for rate in peers.rates])
    print(f"{device}, driver {own.document['driver']}, {own.document['backend']} {'with' if own.document.get('graphs') else 'without'} graphs; "
          f"torch {peers.head.get('torch', '–')}. Best dense read rate {show(read and read / 1e9)} GB/s "
          f"(own: {show(greatest(dense) and greatest(dense) / 1e9)}); copy, read + write: own {own.document['copy_bytes_per_second'] / 1e9:.1f}, "
          f"torch {show(peers.copy)} GB/s.")
    print_absent(peers)
    if not re.search(r"H[12]00", device):
        print("\nThe bars below are those of an H100: this device has none of its own.")
    shape_table(own, peers)
    op_table(own, read)
    v = Verdicts()
    judge_ops(v, own, read)
    judge_steps(v, own, peers, "H200" in device)
    judge_replay(v, args.replay)
    judge_host(v, own)
    judge_prefill(v, own, peers)
    judge_other(v, "P12", "code for 8.0 (through its PTX) against code for 9.0, least", own, args.sm80,
                OPS + [("ops", "select", "median_s"), (STEPS, CIS, "mean_s"), (STEPS, MASS7, "mean_s")], 0.9, SIX + LONG)
    judge_cross(v, own)
    judge_slots(v, own)
    judge_other(v, "O1", "NVIDIA's OpenCL against CUDA, 16×4096: attend, score, full step, least", own, args.opencl,
                OPS + [(STEPS, CIS, "mean_s")], 0.8, [MAIN])
    judge_other(v, "O1", "the same: select", own, args.opencl, [("ops", "select", "median_s")], 0.5, [MAIN])
    v.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
