#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A second opinion on the dense engine: the llama architecture in float32 numpy, written from its publication and GGUF's.

usage: twin.py nll MODEL TOKENS-FILE [--docs 8] [--context 3584] [--decode 512]   mean next-token NLL by document, as JSON
       twin.py greedy MODEL --tokens 1,2,3 [-n 128] [--gaps]                      token ids of the greedy continuation

Nothing is shared with examples/llama. TOKENS-FILE has one id a line (`prhs-llama tokenize`). Debian's python3-numpy suffices.
"""
import argparse
import json
import mmap
import struct
import sys

import numpy as np

f32 = np.float32


class Gguf:
    """Metadata and de-quantised tensors of a GGUF file (version 2 or 3, little-endian)."""

    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0
        magic, version, tensors, pairs = self.take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            sys.exit(f"twin: {path} is no GGUF file of version 2 or 3")
        self.meta = {}
        for _ in range(pairs):
            key = self.string()
            self.meta[key] = self.value(*self.take("<I"))
        self.tensors = {}
        for _ in range(tensors):
            name = self.string()
            (rank,) = self.take("<I")
            dims = self.take(f"<{rank}Q")
            self.tensors[name] = (dims, *self.take("<IQ"))
        align = self.meta.get("general.alignment", 32)
        self.base = (self.at + align - 1) // align * align

    def take(self, form):
        fields = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return fields

    def string(self):
        (n,) = self.take("<Q")
        self.at += n
        return self.data[self.at - n : self.at].decode("utf-8", "replace")

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            item, n = self.take("<IQ")
            return [self.value(item) for _ in range(n)]
        return self.take("<" + self.SCALARS[kind])[0]

    def tensor(self, name):
        """float32, the slowest dimension first (GGUF lists the fastest first)."""
        dims, kind, offset = self.tensors[name]
        n = int(np.prod(dims))
        raw = lambda dtype, count: np.frombuffer(self.data, dtype, count, self.base + offset)
        if kind == 0:
            x = raw("<f4", n).astype(f32)
        elif kind == 1:
            x = raw("<f2", n).astype(f32)
        elif kind == 3:  # Q4_1: scale and minimum of 32 elements; low nibbles are the first sixteen
            b = raw([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], n // 32)
            q = np.concatenate((b["q"] & 15, b["q"] >> 4), axis=1).astype(f32)
            x = b["d"].astype(f32)[:, None] * q + b["m"].astype(f32)[:, None]
        elif kind == 8:  # Q8_0: scale of 32 signed bytes
            b = raw([("d", "<f2"), ("q", "i1", 32)], n // 32)
            x = b["d"].astype(f32)[:, None] * b["q"].astype(f32)
        else:
            sys.exit(f"twin: {name} is of GGUF type {kind}, which this program does not read")
        return x.reshape(dims[::-1])


class Llama:
    """The model, and one sequence's float32 keys and values."""

    def __init__(self, path):
        g = Gguf(path)
        get = lambda key: g.meta["llama." + key]
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.eps = f32(get("attention.layer_norm_rms_epsilon"))
        self.theta = float(g.meta.get("llama.rope.freq_base", 10000.0))
        self.eos = g.meta["tokenizer.ggml.eos_token_id"]
        self.embedding = g.tensor("token_embd.weight")
        self.head = g.tensor("output.weight") if "output.weight" in g.tensors else self.embedding
        self.norm = g.tensor("output_norm.weight")
        parts = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        self.layers = [{p: g.tensor(f"blk.{i}.{p}.weight") for p in parts} for i in range(get("block_count"))]
        self.dim = self.layers[0]["attn_q"].shape[0] // self.heads

    def start(self, capacity):
        self.n = 0
        shape = (len(self.layers), self.kv_heads, capacity, self.dim)
        self.k, self.v = np.zeros(shape, f32), np.zeros(shape, f32)

    def rms(self, x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight

    def rotate(self, x):
        """x [rows, heads, dim] at positions n ...: elements 2i and 2i + 1 are a pair, as llama's GGUF files order Q and K."""
        angle = np.outer(np.arange(self.n, self.n + len(x)), self.theta ** (-np.arange(0, self.dim, 2) / self.dim))
        cos, sin = np.cos(angle).astype(f32)[:, None], np.sin(angle).astype(f32)[:, None]
        out = np.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return out

    def attend(self, layer, q):
        """q [rows, heads, dim]; all keys up to each row's own."""
        rows, end, group = len(q), self.n + len(q), self.heads // self.kv_heads
        future = np.triu(np.full((rows, rows), -np.inf, f32), 1)
        out = np.empty((rows, self.heads, self.dim), f32)
        for h in range(self.heads):
            keys, values = self.k[layer, h // group, :end], self.v[layer, h // group, :end]
            w = (q[:, h] * f32(self.dim**-0.5)) @ keys.T
            w[:, self.n :] += future
            w -= w.max(axis=1, keepdims=True)
            np.exp(w, out=w)
            out[:, h] = (w @ values) / w.sum(axis=1, keepdims=True)
        return out.reshape(rows, -1)

    def forward(self, ids):
        """The next tokens of the sequence through all layers; their normalised last hidden states."""
        x, end = self.embedding[ids], self.n + len(ids)
        for i, w in enumerate(self.layers):
            y = self.rms(x, w["attn_norm"])
            q, k, v = ((y @ w[p].T).reshape(len(ids), -1, self.dim) for p in ("attn_q", "attn_k", "attn_v"))
            self.k[i, :, self.n : end] = self.rotate(k).transpose(1, 0, 2)
            self.v[i, :, self.n : end] = v.transpose(1, 0, 2)
            x = x + self.attend(i, self.rotate(q)) @ w["attn_output"].T
            y = self.rms(x, w["ffn_norm"])
            gate = y @ w["ffn_gate"].T
            with np.errstate(over="ignore"):  # exp(-gate) = inf gives the right 0
                gate /= 1 + np.exp(-gate)
            x = x + (gate * (y @ w["ffn_up"].T)) @ w["ffn_down"].T
        self.n = end
        return self.rms(x, self.norm)


def nll(args):
    model = Llama(args.model)
    with open(args.tokens_file) as f:
        ids = np.array(f.read().split(), dtype=np.int64)
    length, chunk = args.context + args.decode, 512
    stride = (len(ids) - length - 2) // args.docs
    if stride < 0:
        sys.exit(f"twin: {args.tokens_file} has {len(ids)} tokens; {length + 2} are needed")
    by_document = []
    for doc in range(args.docs):
        tokens, losses = ids[doc * stride :][: length + 1], []
        model.start(length)
        for at in range(0, length, chunk):
            hidden = model.forward(tokens[at : min(at + chunk, length)])
            first = max(at, args.context)
            if first < at + len(hidden):
                logits = hidden[first - at :] @ model.head.T
                targets = tokens[first + 1 : at + len(hidden) + 1]
                top = logits.max(axis=1)
                total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
                losses.append(np.log(total) + top - logits[np.arange(len(targets)), targets])
        by_document.append(float(np.concatenate(losses).mean()))
        print(f"twin: document {doc + 1} of {args.docs}: {by_document[-1]:.6f}", file=sys.stderr)
    result = {"context": args.context, "decode": args.decode, "documents": by_document, "nll": float(np.mean(by_document))}
    print(json.dumps(result, indent=1))


def greedy(args):
    model = Llama(args.model)
    prompt = [int(t) for t in args.tokens.split(",")]
    model.start(len(prompt) + args.n)
    logits = model.forward(prompt)[-1] @ model.head.T
    made, gaps = [], []
    while len(made) < args.n:
        best = int(np.argmax(logits))
        if best == model.eos:
            break
        made.append(best)
        gaps.append(float(logits[best] - np.partition(logits, -2)[-2]))
        logits = model.forward([best])[-1] @ model.head.T
    print(*made)
    if args.gaps:
        print(*(f"{g:.6f}" for g in gaps))


def main():
    parser = argparse.ArgumentParser(description="Dense float32 llama forward in numpy.")
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("nll", help="mean NLL by document over the last predictions")
    p.add_argument("model")
    p.add_argument("tokens_file")
    p.add_argument("--docs", type=int, default=8)
    p.add_argument("--context", type=int, default=3584)
    p.add_argument("--decode", type=int, default=512)
    p.set_defaults(run=nll)
    p = commands.add_parser("greedy", help="token ids of the greedy continuation")
    p.add_argument("model")
    p.add_argument("--tokens", required=True, help="the prompt's ids, with commas")
    p.add_argument("-n", type=int, default=128)
    p.add_argument("--gaps", action="store_true", help="a second line: best logit less the second best, for each token")
    p.set_defaults(run=greedy)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
