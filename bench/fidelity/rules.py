#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rules that the library does not have, beside its own: rules.py TRACE [--layers 1,4,...] [--json FILE]

Walks the first sequence of a trace (`prhs-llama --record`) in double precision (needs numpy), each rule with lists of its own. Of each rule, over all
steps and heads: rho, and the mean square and the mean of the output's relative error against dense attention. Gates: the mass gate; predicted output error
(the estimated mass times the distance of what is dropped from what stands for it, over the output); the largest dropped logit (the dropped keys' own mean
and two standard deviations by channel) against the log-sum-exp of what is kept. Residuals: the mean value, the dropped tokens' own mean at the
reference, the mean values of pages of 16, weighted by today's query and the pages' mean keys. Sizes: of lists. Then what thresholds and sizes by unit are
worth that were learnt on the first half of the steps, on the other half.
"""
import argparse
import json
import sys

import numpy as np

from layer_map import rows
from tracefile import Trace

BLOCK, K, SINKS, LOCAL, PAGE = 64, 476, 4, 32, 16
EPS, SIZES = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3), (220, 316, 476, 636, 796, 988)
RULES = [("mass", e, K, 0.5, "mean") for e in EPS] + [("mass", e, K, -1, "mean") for e in EPS[2:6]]
RULES += [("error", t, K, -1, "mean") for t in (0.02, 0.03, 0.05, 0.08)]
RULES += [("error", t, K, 0.5, "mean") for t in (0.02, 0.03, 0.05)]
RULES += [("largest", t, K, 0.5, "mean") for t in (-7, -6, -5, -4, -3)]
RULES += [("mass", e, K, 0.5, r) for r in ("own", "pages") for e in (0.07, 0.1, 0.15)]
RULES += [("mass", 0.1, k, 0.5, "mean") for k in SIZES if k != K]


class Unit:
    """Queries, keys and values of a selection unit, and what all rules need of a step."""

    def __init__(self, trace, layer, unit):
        (self.begin, queries), (_, keys), (_, values) = (rows(trace, layer, kind) for kind in range(3))
        group = queries.shape[1] // keys.shape[1]
        self.layer, self.scale = layer, trace.scale
        self.keys, self.values = keys[:, unit].astype(np.float64), values[:, unit].astype(np.float64)
        self.queries = queries[:, unit * group:(unit + 1) * group].astype(np.float64)
        self.sums = np.cumsum(self.values, 0)
        pages = len(self.keys) // PAGE
        self.page_keys = self.keys[:pages * PAGE].reshape(pages, PAGE, -1).mean(1)
        self.page_values = self.values[:pages * PAGE].reshape(pages, PAGE, -1).mean(1)

    def step(self, i):
        self.position, self.query = self.begin + i, self.queries[i]
        n = self.position + 1
        self.scores = self.scale * self.keys[:n] @ self.query.T
        self.top = self.scores.max(0)
        self.e = np.exp(self.scores - self.top)
        self.total = self.e.sum(0)
        self.dense = (self.e.T @ self.values[:n]) / self.total[:, None]
        self.mean = self.sums[self.position] / n
        self.norm = np.linalg.norm(self.dense, axis=1)


class Reference:
    """A retrieval: the list, and by head what is known of the dropped tokens."""

    def __init__(self, u, k):
        n = u.position + 1
        weights, self.window = u.e / u.total, n - LOCAL
        order = np.argpartition(-weights[SINKS:self.window].sum(1), k) + SINKS
        dropped = order[k:]
        self.base = np.concatenate([np.arange(SINKS), order[:k]])
        self.block, self.query, self.base_values = (u.position + u.layer) // BLOCK, u.query, u.values[self.base]
        part = u.e[dropped]
        mass = part.sum(0)
        p, keys = part / mass, u.keys[dropped]
        self.delta, self.logs = mass / u.total, np.log(mass) + u.top
        self.mu = p.T @ keys
        self.var = np.maximum(0, p.T @ keys ** 2 - self.mu ** 2)
        self.own = p.T @ u.values[dropped]
        self.plain, self.plain_var = keys.mean(0), keys.var(0)
        self.pages = np.bincount(dropped // PAGE, minlength=len(u.page_keys))[:len(u.page_keys)]


class Rule:
    """One rule's lists and sums over a unit's steps, by half."""

    def __init__(self, rule):
        self.gate, self.threshold, self.k, self.floor, self.residual = rule
        self.reference, self.sums = None, np.zeros((2, 4))  # steps, retrievals, sum of squares, sum of errors

    def kept(self, u):
        """Weight of what the list keeps, relative to the step's largest score, and its output."""
        r = self.reference
        a, b = u.e[r.base], u.e[r.window:]
        weight = a.sum(0) + b.sum(0)
        return weight, (a.T @ r.base_values + b.T @ u.values[r.window:u.position + 1]) / weight[:, None]

    def stands(self, u):
        """What stands for the dropped tokens' values."""
        r = self.reference
        if self.residual == "own":
            return r.own
        if self.residual == "pages":
            some = r.pages > 0
            x = u.scale * u.page_keys[some] @ u.query.T + np.log(r.pages[some])[:, None]
            x = np.exp(x - x.max(0))
            return (x / x.sum(0)).T @ u.page_values[some]
        return u.mean

    def bad(self, u, weight, hat):
        """The verdict."""
        r = self.reference
        cosine = (u.query * r.query).sum(1) / np.linalg.norm(u.query, axis=1) / np.linalg.norm(r.query, axis=1)
        if (cosine <= self.floor).any():
            return True
        if self.gate == "mass":
            return (hat - r.delta > self.threshold).any()
        if self.gate == "error":
            return (hat * np.linalg.norm(r.own - u.mean, axis=1) > self.threshold * u.norm).any()
        largest = u.scale * (u.query @ r.plain + 2 * np.sqrt(u.query ** 2 @ r.plain_var))
        return (largest - np.log(weight) - u.top > self.threshold).any()

    def step(self, u, half):
        r, out = self.reference, None
        if r is not None and r.block == (u.position + u.layer) // BLOCK:
            weight, out = self.kept(u)
            d = u.query - r.query
            x = r.logs + u.scale * (d * r.mu).sum(1) + u.scale ** 2 / 2 * (d * d * r.var).sum(1) - np.log(weight) - u.top
            hat = 1 / (1 + np.exp(-np.minimum(20, x)))
            if self.bad(u, weight, hat):
                out = None
        retrieves = out is None
        if retrieves:
            self.reference = Reference(u, self.k)
            weight, out = self.kept(u)
            hat = 1 - weight / u.total
        out = (1 - hat)[:, None] * out + hat[:, None] * self.stands(u)
        error = np.linalg.norm(out - u.dense, axis=1) / u.norm
        self.sums[half] += (1, retrieves, (error * error).mean(), error.mean())


def learnt(table, wanted, spent):
    """By unit the entry of least (error + price * spent) on the first half, the price such that no more is spent than `wanted` has; both on the second half."""
    train, test = table[:, :, 0], table[:, :, 1]
    budget = train[:, wanted, spent].mean()
    low, high = 1e-9, 1e9
    for _ in range(100):
        price = (low * high) ** 0.5
        best = (train[:, :, 0] + price * train[:, :, spent]).argmin(1)
        over = train[np.arange(len(best)), best, spent].mean() > budget
        low, high = (price, high) if over else (low, price)
    best = (train[:, :, 0] + high * train[:, :, spent]).argmin(1)
    return test[:, wanted].mean(0), test[np.arange(len(best)), best].mean(0)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("trace")
    a.add_argument("--layers", default="1,4,7,10,13,16,19,22,25,28")
    a.add_argument("--json")
    o = a.parse_args()
    trace, sums = Trace(o.trace), []
    for layer in map(int, o.layers.split(",")):
        for unit in range(trace.shape[4]):
            u, walks = Unit(trace, layer, unit), [Rule(r) for r in RULES]
            for i in range(len(u.queries)):
                u.step(i)
                for w in walks:
                    w.step(u, 2 * i // len(u.queries))
            sums.append([w.sums for w in walks])
        print(f"layer {layer}", file=sys.stderr, flush=True)
    x = np.array(sums)  # unit, rule, half, (steps, retrievals, squares, errors)
    whole = x.sum(2).sum(0)
    whole[:, 1:] /= whole[:, :1]
    print("| gate | threshold | k | floor | residual | rho | mean square | mean |\n|---|---|---|---|---|---|---|---|")
    for (gate, threshold, k, floor, residual), w in zip(RULES, whole):
        print(f"| {gate} | {threshold} | {k} | {floor} | {residual} | {w[1]:.4f} | {w[2]:.5f} | {w[3]:.4f} |")
    mean = x[..., 1:] / x[..., :1]
    mean = np.stack([mean[..., 1], mean[..., 0], np.broadcast_to(np.array([r[2] for r in RULES], float)[None, :, None], mean.shape[:3])], -1)  # error, rho, k
    at = [i for i, r in enumerate(RULES) if r[0] == "mass" and r[2:] == (K, 0.5, "mean")]
    plain, by_unit = learnt(mean[:, at], EPS.index(0.1), 1)
    print(f"thresholds by unit: rho {plain[1]:.4f}, {plain[0]:.5f} -> {by_unit[1]:.4f}, {by_unit[0]:.5f}")
    at = [next(i for i, r in enumerate(RULES) if r == ("mass", 0.1, k, 0.5, "mean")) for k in SIZES]
    plain, by_unit = learnt(mean[:, at], SIZES.index(K), 2)
    print(f"sizes by unit: k {plain[2]:.0f}, rho {plain[1]:.4f}, {plain[0]:.5f} -> {by_unit[2]:.0f}, {by_unit[1]:.4f}, {by_unit[0]:.5f}")
    if o.json:
        with open(o.json, "w", encoding="utf-8") as f:
            json.dump({"rules": RULES, "rho": whole[:, 1].tolist(), "mean_square": whole[:, 2].tolist(), "mean": whole[:, 3].tolist()}, f, indent=1)


if __name__ == "__main__":
    sys.exit(main())
