#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where the estimate of the dropped mass errs: estimator.py TRACE [--layers 1,4,...]

Walks the first sequence of a trace (`prhs-llama --record`) with the preset `cis-mass` in double precision (needs numpy). Of shared steps, by layer,
distance from the reference and exact mass: the median of estimate / exact mass (each + 1e-4) and the share of ratios within 1.25, for the library's
verdicts (variance channel by channel), for its estimate (along the reference's query the variance of the scores), with all of the keys' covariance, with
the third and the fourth cumulant as well, and for two in between: with all that the reference's query says of the covariance, and with the covariance's
largest direction.
"""
import argparse
import sys

import numpy as np

from layer_map import rows
from tracefile import Trace

BLOCK, K, SINKS, LOCAL, EPS, FLOOR = 64, 476, 4, 32, 0.1, 0.5  # the preset's
NAMES = ("channels", "along q_ref", "covariance", "+ third", "+ fourth", "query known", "one direction")


class Reference:
    """A retrieval: the query, the dropped tokens, and by head what is known of them."""

    def __init__(self, position, query, keys, scores, layer):
        e = np.exp(scores - scores.max(0))
        weights = e / e.sum(0)
        middle = np.arange(SINKS, len(keys) - LOCAL)
        dropped = np.delete(middle, np.argpartition(-weights[middle].sum(1), K)[:K])
        self.block, self.position, self.query, self.dropped = (position + layer) // BLOCK, position, query, dropped
        self.delta, self.heads = weights[dropped].sum(0), []
        for g in range(query.shape[0]):
            s = scores[dropped, g]
            w = np.exp(s - s.max())
            p = w / w.sum()
            mean = p @ keys[dropped]
            apart = keys[dropped] - mean
            covariance = (apart * p[:, None]).T @ apart
            lengths, axes = np.linalg.eigh(covariance)
            self.heads.append((s.max() + np.log(w.sum()), mean, p, apart, covariance, axes[:, -1] * lengths[-1] ** 0.5))


def shifts(scale, step, query, head):
    """What each of NAMES adds to the log-sum-exp of the dropped keys."""
    _, mean, p, apart, covariance, axis = head
    first, y = scale * step @ mean, scale * apart @ step
    moments = [p @ y ** i for i in range(5)]
    variances = covariance.diagonal() @ (step * step)
    along = step @ query / (query @ query)
    rest = step - along * query
    known = (along * query + 2 * rest) @ covariance @ query * along + covariance.diagonal() @ (rest * rest)
    apart_along = along * along * (query @ covariance @ query) + covariance.diagonal() @ (rest * rest)
    direction = (step @ axis) ** 2 + (covariance.diagonal() - axis * axis) @ (step * step)
    second = moments[2] / 2
    third = second + moments[3] / 6
    half = scale * scale / 2
    return [first + x for x in (half * variances, half * apart_along, second, third, third + (moments[4] - 3 * moments[2] ** 2) / 24, half * max(0.0, known), half * direction)]


def walk(trace, layer, unit, out):
    """Appends (distance, exact mass, the estimates) of every shared step and head."""
    (begin, queries), (_, keys) = rows(trace, layer, 0), rows(trace, layer, 1)
    group = queries.shape[1] // keys.shape[1]
    keys, queries = keys[:, unit].astype(np.float64), queries[:, unit * group:(unit + 1) * group].astype(np.float64)
    reference = None
    for i, query in enumerate(queries):
        position = begin + i
        scores = trace.scale * keys[:position + 1] @ query.T
        shared = reference is not None and (position + layer) // BLOCK == reference.block
        found = []
        if shared:
            top = scores.max(0)
            e = np.exp(scores - top)
            dropped = e[reference.dropped].sum(0)
            kept = top + np.log(e.sum(0) - dropped)
            for g, head in enumerate(reference.heads):
                was = reference.query[g]
                x = head[0] + np.array(shifts(trace.scale, query[g] - was, was, head)) - kept[g]
                hat = 1 / (1 + np.exp(-np.minimum(20, x)))
                found.append((position - reference.position, dropped[g] / e[:, g].sum(), *hat))
                cosine = query[g] @ was / (np.linalg.norm(query[g]) * np.linalg.norm(was))
                shared = shared and cosine > FLOOR and hat[0] - reference.delta[g] <= EPS
        if shared:
            out.extend(found)
        else:
            reference = Reference(position, query, keys[:position + 1], scores, layer)


def line(label, x):
    if len(x):
        ratio = (x[:, 2:] + 1e-4) / (x[:, 1:2] + 1e-4)
        within = ((ratio >= 0.8) & (ratio <= 1.25)).mean(0)
        print(f"| {label} | {len(x)} | " + " | ".join(f"{m:.3f}, {w:.3f}" for m, w in zip(np.median(ratio, 0), within)) + " |", flush=True)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("trace")
    a.add_argument("--layers", default="1,4,7,10,13,16,19,22,25,28")
    o = a.parse_args()
    trace, out = Trace(o.trace), []
    print(f"| | n | {' | '.join(NAMES)} |\n|---|---|{'---|' * len(NAMES)}")
    for layer in map(int, o.layers.split(",")):
        own = []
        for unit in range(trace.shape[4]):
            walk(trace, layer, unit, own)
        line(f"layer {layer}", np.array(own))
        out += own
    x = np.array(out)
    for low, high in ((1, 3), (4, 7), (8, 15), (16, 31), (32, 63)):
        line(f"{low}–{high} steps", x[(x[:, 0] >= low) & (x[:, 0] <= high)])
    for low, high in ((0, 1e-3), (1e-3, 1e-2), (1e-2, 0.1), (0.1, 1)):
        line(f"δ {low:g}–{high:g}", x[(x[:, 1] >= low) & (x[:, 1] < high)])
    line("all", x)


if __name__ == "__main__":
    sys.exit(main())
