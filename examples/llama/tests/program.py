#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""prhs-llama on models of a few kilobytes: program.py PRHS-LLAMA

A model of one layer generates; models that contradict themselves, and wrong usage, end in a sentence and the right exit status. What
it records is what the model made of its tokens.
"""
import json
import os
import re
import string
import subprocess
import sys
import tempfile

from tinymodel import gguf, random_model, tensors_of
from tracefile import Trace, near

DIM = 32  # one head
bad = 0


def check(good, what):
    global bad
    bad += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}")


def parts():
    meta = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": DIM, "llama.attention.head_count": 1,
        "llama.feed_forward_length": 64, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.context_length": 64,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": ["a", "b", "c", "ab"],
        "tokenizer.ggml.merges": ["a b"],
    }
    tensors = tensors_of(1, DIM, DIM, 64, 4)
    return meta, tensors


def helped(run):
    """--help names every key of a policy that is understood."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "tools", "common", "policy_text.c"), encoding="utf-8") as f:
        keys = set(re.findall(r'\{ "(\w+)", (?:&p->|")', f.read())) | {"map"}
    for command in ("generate", "perplexity"):
        missing = keys - set(re.findall(r"\w+", run(command, "--help").stdout.partition("keys:")[2].partition("  --")[0]))
        check(len(keys) > 25 and not missing, f"{command} --help: {len(keys)} keys, without {sorted(missing)}")


def document(root, kv_heads, head_dim):
    """What the document of perplexity says by layer and head, against its own totals and the rows that topk must read."""
    check((root["kind"], root["format"]) == ("perplexity", 1), "the document says what it is")
    topk, shared = root["policies"][1:3]
    n, row = root["context"] + (root["decode"] + 1) / 2, kv_heads * head_dim * 2
    read = sum(2 * n if layer["attended"] is None else 2 * layer["attended"] + n for layer in topk["layers"]) * row
    dense = 2 * n * len(topk["layers"]) * row
    check(abs(topk["bytes_per_step"] / read - 1) < 1e-6 and abs(topk["bytes_of_dense"] - read / dense) < 1e-6, f"topk reads {read} bytes a step")
    check(root["policies"][0]["bytes_per_step"] == dense, f"dense reads {dense}")
    for p in (topk, shared):
        heads = [d for layer in p["layers"] for d in layer["head_delta"] if d is not None]
        check(p["layers"][0]["head_delta"][0] is None and len(set(heads)) > 4 and abs(sum(heads) / len(heads) - p["delta"]) < 1e-5,
              f"{p['policy']}: the mean of {len(heads)} heads is {p['delta']}")
    e = shared["estimator"]
    rest = shared["delta_exact_retrieved"] * shared["rho"] + e["exact_mean"] * (1 - shared["rho"])
    heads = [x for layer in shared["layers"] for x in zip(layer["head_estimate"], layer["head_exact"]) if x[0] is not None]
    check(e["grade"] == "estimate" and abs(rest - shared["delta"]) < 1e-5 and 0 < e["n"] and abs(e["mean"] - shared["delta_shared"]) < 1e-5 and heads,
          f"{shared['policy']}: estimates {e['mean']} where {e['exact_mean']} was dropped")


def audits(policy, prompt, small):
    """Audits that are drawn: the bounds hold the exact mean, and all of the unknown steps give it."""
    def rows(*args):
        r = policy("perplexity", "--policy", f"topk,{small},dense=1", "--policy", f"cis,{small},dense=1,tau=-1", "--policy", "streaming,sinks=2,local=8,n=0",
                   "--docs", "2", "--context", "60", "--decode", "40", "--json", "-", *args, prompt)
        return json.loads(r.stdout[r.stdout.index("{"):])["policies"][1:], r.stdout
    exact, _ = rows()
    drawn, text = rows("--audit-rate", "0.3", "--audit-seed", "7")
    again, _ = rows("--audit-rate", "0.3", "--audit-seed", "7")
    other, _ = rows("--audit-rate", "0.3", "--audit-seed", "8")
    whole, _ = rows("--audit-rate", "1")
    check("audit" not in exact[1] and drawn[0]["grade"] == "exact" and drawn[0]["audit"]["unknown"] == 0, "topk knows all masses")
    for e, d, w in list(zip(exact, drawn, whole))[1:]:
        a = d["audit"]
        check(0 < a["audits"] < a["unknown"] <= a["steps"] and d["grade"] == "sampled" and a["low"] <= e["delta"] <= a["high"] and d["loss"] == e["loss"],
              f"{d['policy']}: {a['audits']} of {a['unknown']} audited, {e['delta']} within {a['low']} to {a['high']}")
        check(w["audit"]["audits"] == w["audit"]["unknown"] and abs(w["delta"] - e["delta"]) < 1e-6, f"{w['policy']}: all audited, {w['delta']}")
    check([p["delta"] for p in drawn] == [p["delta"] for p in again] != [p["delta"] for p in other], "a seed names its audits")
    check("policy, drawn audits" in text, "the table has them")


def comparisons(policy, prompt, small):
    """Lists of other layers, comparators, and which documents are taken."""
    size = ("--context", "60", "--decode", "12", "--json", "-")

    def rows(*args):
        r = policy("perplexity", *args)
        return json.loads(r.stdout[r.stdout.index("{"):])["policies"]

    texts = (f"hshare,{small}", f"hshare,{small},map=0.1.2", f"hshare,{small},map=0.0.2", "quest,k=500", "h2o,k=500,recent=4,dense=1",
             "quest,k=48,dense=0", "h2o,k=8,recent=12")
    names = [x for t in texts for x in ("--policy", t)]
    dense, own, same, copies, *whole, quest, h2o = rows(*names, "--docs", "2", *size, prompt)
    check(own["rho"] == same["rho"] and abs(own["delta"] - same["delta"]) < 1e-5 and abs(own["loss"] - same["loss"]) < 1e-4 < abs(own["loss"] - copies["loss"]),
          f"step by step is layer by layer: loss {own['loss']} and {same['loss']}, of a copied list {copies['loss']}")
    check(own["rho"] == 0.5 and abs(copies["rho"] - 1 / 3) < 1e-3, f"one layer of three copies: rho {own['rho']} and {copies['rho']}")
    for row in whole:
        check(row["comparator"] and row["delta"] < 1e-6 and abs(row["loss"]) < 1e-5 and row["bytes_of_dense"] >= 1,
              f"{row['policy']} has room for all: loss {row['loss']}, {row['delta']} dropped")
    check(32 < quest["kept"] < 48.01 and quest["rho"] == 0.125 and h2o["kept"] == 20 and h2o["rho"] == 0 and 0 < quest["delta"] < h2o["delta"] < 1,
          f"budgets: {quest['kept']}, {h2o['kept']}; {quest['delta']}, {h2o['delta']}")
    check(all(0 <= d["right"] <= 1 for d in dense["documents"]), "shares of right tokens")
    sets = [rows("--docs", "1", "--set", f"{i}/2", *size, prompt)[0]["documents"] for i in (0, 1)]
    ends = rows("--at-end", *size, prompt, prompt)[0]["documents"]
    check(sets[0] != sets[1] and len(ends) == 2 and ends[0] == ends[1], "documents of two sets, and of two texts")


def records(run, work, model, words, letters):
    """A batch of two prompts; then the first one's text again, teacher-forced."""
    path, text = os.path.join(work, "run.trace"), os.path.join(work, "text.txt")
    base = ("--model", model, "--device", "cpu", "--record", path)

    def trace(*args):
        r = run(args[0], *base, *args[1:])
        check(r.returncode == 0 and os.path.exists(path), f"{args[0]} --record: {r.stderr.strip()}")
        t = Trace(path)
        os.remove(path)
        return t, r.stdout.splitlines()

    prompts = [words[:60], words[100:133]]
    whole, out = trace("generate", "--policy", "dense", "--ids", "-n", "8", *prompts)
    check(whole.shape == (3, 0, 3, 4, 2, 32) and abs(whole.scale - 32 ** -0.5) < 1e-7 and whole.sequences == [(60, 7), (33, 7)],
          f"a trace's shape: {whole.shape}, {whole.sequences}")
    made = [[int(i) for i in line.split()][:7] for line in out]
    tokens = [[letters.index(c) for c in p] + ids for p, ids in zip(prompts, made, strict=True)]
    by_token = {}
    for seq in range(2):
        values = whole.rows(0, seq, 2)
        check([p for p, _ in values] == list(range(len(tokens[seq]))), f"values of every position of sequence {seq}")
        check([p for p, _ in whole.rows(2, seq, 0)] == list(range(len(prompts[seq]) - 1, len(tokens[seq]))), "queries from the prompt's last")
        for (_, row), token in zip(values, tokens[seq]):
            by_token.setdefault(token, set()).add(row)
    first = {token: min(rows) for token, rows in by_token.items()}
    spread = max(abs(x - y) for token, rows in by_token.items() for row in rows for x, y in zip(row, first[token]))
    check(spread < 4e-3 and len(set(first.values())) == len(first), f"in layer 0 a token's value is its own: {len(first)} tokens, {spread:.1e}")

    with open(text, "w", encoding="utf-8") as f:
        f.write(prompts[0] + "".join(letters[i] for i in made[0]) + words[:9])
    forced, _ = trace("perplexity", "--docs", "1", "--context", "60", "--decode", "7", "--policy", "cis,k=16,m=0,dense=0", "--record-layers", "1-2",
                      text)
    check(forced.shape == (3, 1, 2, 4, 2, 32) and forced.sequences == [(60, 7)], f"two layers of a document: {forced.sequences}")
    check(all(near(forced.rows(layer, 0, kind), whole.rows(layer, 0, kind)) and forced.rows(layer, 0, kind)
              for layer in (1, 2) for kind in range(3)), "the same text gives the same rows")
    asked, _ = trace("perplexity", "--docs", "1", "--context", "60", "--decode", "7", "--policy", "dense", "--record-prompts", text)
    queries = asked.rows(1, 0, 0)
    check([p for p, _ in queries] == list(range(67)) and queries[59:] == forced.rows(1, 0, 0), "with the queries of the prompt's rows")
    for what, args, status, sentence in (
            ("layers that the model lacks", ("--record-layers", "2-3"), 1, "not layers of the model"),
            ("layers backwards", ("--record-layers", "1-0"), 2, "no value"), ("no layers", ("--record-layers", "x"), 2, "no value"),
            ("no limit", ("--record-limit", "0"), 2, "no value"), ("one token", ("-n", "1"), 1, "a decoded token"),
            ("a folder that is not there", ("--record", work + "/none/run.trace"), 1, "No such file")):
        r = run("generate", *base, "-n", "8", *args, words[:20])
        check(r.returncode == status and sentence in r.stderr and not os.path.exists(path), f"recording {what}: {r.stderr.strip()}")
    with open(text, "w", encoding="utf-8") as f:
        f.write(words)
    r = run("perplexity", *base, "--record-limit", "1", "--docs", "30", "--context", "60", "--decode", "4", text)
    check(r.returncode == 1 and "the limit is 1" in r.stderr and "run.trace" not in "".join(os.listdir(work)), f"a limit: {r.stderr.strip()}")
    os.remove(text)


def main():
    llama, work = sys.argv[1], tempfile.mkdtemp()
    model, prompt = os.path.join(work, "model.gguf"), os.path.join(work, "prompt.txt")
    with open(prompt, "w", encoding="utf-8") as f:
        f.write("abcab")

    def run(*args):
        return subprocess.run([llama, *args], text=True, capture_output=True, check=False, timeout=60)

    def generate(what, sentence, change=lambda meta, tensors: None, argument="abcab"):
        """Runs the tiny model after `change`; sentence None: it must work."""
        meta, tensors = parts()
        change(meta, tensors)
        with open(model, "wb") as f:
            f.write(gguf(meta, tensors, lambda name, i: (i % 7 - 3) / 16))
        r = run("generate", "--model", model, "--device", "cpu", "--policy", "dense", "--ids", "-n", "8", argument)
        if sentence is None:
            ids = r.stdout.split()
            good = r.returncode == 0 and len(ids) == 8 and all(0 <= int(i) < 6 for i in ids)
            check(good, f"{what}: {r.stdout.strip()} {r.stderr}")
        else:
            check(r.returncode == 1 and sentence in r.stderr and r.stderr.count("\n") == 1, f"{what}: {r.stderr.strip()}")

    generate("a sound model", None)
    r = run("tokenize", "--model", model, prompt)
    check(r.returncode == 0 and r.stdout == "3\n2\n3\n", "tokenize")
    generate("more tokens than embeddings", "more tokens", lambda m, t: m["tokenizer.ggml.tokens"].append("d"))
    generate("fewer tokens than embeddings", None, lambda m, t: t.update({"token_embd.weight": (DIM, 6)}))
    generate("a missing tensor", "missing", lambda m, t: t.pop("blk.0.ffn_up.weight"))
    generate("a tensor of another shape", "shape", lambda m, t: t.update({"blk.0.attn_k.weight": (DIM, 16)}))
    generate("a missing parameter", "parameter", lambda m, t: m.pop("llama.block_count"))
    generate("more layers than tensors", "missing", lambda m, t: m.update({"llama.block_count": 2}))
    generate("heads that do not divide", "contradict", lambda m, t: m.update({"llama.attention.head_count": 3}))
    generate("no key-value heads", "contradict", lambda m, t: m.update({"llama.attention.head_count_kv": 0}))
    generate("another architecture", "llama", lambda m, t: m.update({"general.architecture": "mamba"}))
    generate("no tokenizer", "tokenizer", lambda m, t: m.pop("tokenizer.ggml.model"))
    generate("a prompt longer than the context", "tokens", argument="c" * 60)
    generate("an empty prompt", "tokens", argument="")
    for args, status in ((("tokenize",), 2), (("tokenize", "--model", model), 2), (("tokenize", "--model", prompt, prompt), 1),
                         (("tokenize", "--model", model, work + "/none"), 1), (("tokenize", "--help"), 0), (("none",), 2),
                         (("generate", "--model", model), 2), (("generate", "--model", model, "--temperature", "hot", "a"), 2), (("perplexity", "--model", model), 2),
                         (("perplexity", "--model", model, prompt, prompt), 2), (("perplexity", "--model", model, "--set", "2/2", prompt), 2),
                         (("perplexity", "--model", model, "--audit-rate", "0", prompt), 2), (("perplexity", "--model", model, "--audit-rate", "1.5", prompt), 2),
                         (("speed", "--model", model), 2), (("generate", "--model", model, "--batch", "1", "a", "b"), 2),
                         (("generate", "--model", model, "--device", "cpu", "--linear", work + "/libcublas.so", "a"), 1)):
        r = run(*args)
        check(r.returncode == status and (r.stdout if status == 0 else r.stderr), f"{' '.join(args)}: {status}")

    helped(run)

    # A random model: what the policies' prompts leave behind shows in the tokens and in what they count.
    letters, small = string.ascii_letters, "k=16,m=0,sinks=4,local=8,n=0,dense=0"
    words = "".join(letters[i * i * 31 % 52] for i in range(300))
    with open(model, "wb") as f:
        f.write(random_model(1, 3, 4, 2, 32, 96, letters, 512))
    with open(prompt, "w", encoding="utf-8") as f:
        f.write(words)

    def policy(command, *args):
        r = run(command, "--model", model, "--device", "cpu", *args)
        check(r.returncode == 0, f"{' '.join(args[:2])}: {r.stderr.strip().splitlines()[-1:]}")
        return r

    r = policy("generate", "--policy", f"cis,{small},tau=-1,s=256", "--stats", "-n", "12", words[:60])
    check("rho 0.000" in r.stderr, "the prompt's last query seeds: no step retrieves")
    etf = [policy("generate", "--policy", f"cis,{small}{x}", "--ids", "-n", "12", words[:60]).stdout
           for x in ("", ",etf=1,etf_layer=0,psi=0.5,gamma=3", ",etf=1,etf_layer=2,psi=0.5,gamma=3")]
    check(etf[0] == etf[2] != etf[1], "frozen rows change what follows, in the last layer they do not")
    apart = {policy("generate", "--policy", f"cis,{small}", "--ids", "-n", "12", "--cache-buffer", kib, words[:60]).stdout for kib in ("11", "25", "35")}
    check(apart == {etf[0]}, "the layers' K and V one by one in buffers, two by two and by three")
    r = policy("perplexity", "--policy", f"cis,{small},tau=0.1", "--policy", f"cis,{small},tau=0.1,etf=1,etf_layer=2,psi=0.5,gamma=3",
               "--policy", f"cis,{small},tau=0.1,etf=1,etf_layer=0,psi=0.5,gamma=3", "--docs", "2", "--context", "60", "--decode", "12",
               "--json", "-", prompt)
    seeded, own, frozen = ([x["rho"], x["documents"]] for x in json.loads(r.stdout[r.stdout.index("{"):])["policies"][1:])
    check(seeded == own != frozen and 0 < seeded[0] < 1, f"a shared prompt and one of the policy's own: {seeded} and {own}")
    r = policy("perplexity", "--policy", f"topk,{small},dense=1", "--policy", f"cis-mass,{small},dense=1,eps=0.3,floor=-1", "--docs", "2",
               "--context", "60", "--decode", "12", "--json", "-", prompt)
    document(json.loads(r.stdout[r.stdout.index("{"):]), 2, 32)
    audits(policy, prompt, small)
    comparisons(policy, prompt, small)
    records(run, work, model, words, letters)
    for path in (model, prompt):
        os.remove(path)
    os.rmdir(work)
    return 1 if bad else 0


sys.exit(main())
