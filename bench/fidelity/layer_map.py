#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which layers may share lists: layer_map.py TRACE [--share N] [--dense N] [--k K] [--queries N]

HShare's rule for layers (openreview Tb5PY5vwp6) on a trace of `prhs-llama --record` (needs numpy): lists of the K tokens with the largest
attention, KV head by KV head, of queries spread over the first sequence's decoded rows (HShare: of its prompt's rows, of which a trace has the
last only); then N times the pair of layers whose lists have most in common: the deeper one uses the other's from then on. Prints what
`--policy hshare,map=` takes, and on standard error what the pairs have in common.
"""
import argparse
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples", "llama", "tests"))
from tracefile import Trace  # noqa: E402


def rows(trace, layer, kind):
    """The first position and [positions][heads][dim] of the first sequence."""
    shape = trace.shape
    heads, dim = shape[3 if kind == 0 else 4], shape[5]
    parts = []
    for offset, _, *where, first, count, _ in trace.blocks:
        if where == [layer, 0, kind]:
            parts.append((first, np.frombuffer(trace.data, np.float16, count * heads * dim, offset).reshape(count, heads, dim)))
    parts.sort(key=lambda x: x[0])
    return parts[0][0], np.concatenate([p for _, p in parts]).astype(np.float32)


def lists(trace, layer, queries, k):
    """[queries][KV heads] sets of positions: the k best by the sum of their heads' weights, sinks and local tokens apart."""
    _, _, _, heads, kv_heads, _ = trace.shape
    (begin, q), (_, keys) = rows(trace, layer, 0), rows(trace, layer, 1)
    out = []
    for t in queries:
        w = np.zeros((kv_heads, t + 1), np.float32)
        for h in range(heads):
            s = keys[:t + 1, h * kv_heads // heads] @ q[t - begin, h] * trace.scale
            e = np.exp(s - s.max())
            w[h * kv_heads // heads] += e / e.sum()
        w[:, :4] = w[:, -32:] = -1
        out.append([set(np.argpartition(-x, k)[:k].tolist()) for x in w])
    return out


def common(a, b, k):
    return sum(len(x & y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)) / (k * len(a) * len(a[0]))


def choose(likeness, layers, share):
    """The map; `likeness`: {(deeper, other): what their lists have in common}."""
    source = list(range(layers))
    for _ in range(share):
        if not likeness:
            break
        pair = max(likeness, key=likeness.get)
        deep, other = pair
        print(f"layer {deep} like {other}: {likeness[pair]:.3f}", file=sys.stderr)
        source = [other if s == deep else s for s in source]
        likeness = {p: x for p, x in likeness.items() if deep not in p}
    return source


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("trace")
    for name, value in (("share", 15), ("dense", 1), ("k", 220), ("queries", 24)):
        a.add_argument("--" + name, type=int, default=value)
    o = a.parse_args()
    trace = Trace(o.trace)
    layers, (context, steps) = trace.shape[0], trace.sequences[0]
    queries = np.linspace(context, context + steps - 1, o.queries).astype(int).tolist()
    found = {i: lists(trace, i, queries, o.k) for i in range(o.dense, layers)}
    likeness = {(i, j): common(found[i], found[j], o.k) for i in found for j in found if j < i}
    print(".".join(str(s) for s in choose(likeness, layers, o.share)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
