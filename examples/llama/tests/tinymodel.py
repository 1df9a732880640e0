# SPDX-License-Identifier: Apache-2.0
"""GGUF files of a few kilobytes, for the tests of prhs-llama."""
import random
import struct


def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(x):
    if isinstance(x, str):
        return struct.pack("<I", 8) + text(x)
    if isinstance(x, float):
        return struct.pack("<If", 6, x)
    if isinstance(x, list):
        return struct.pack("<IIQ", 9, 8, len(x)) + b"".join(map(text, x))
    return struct.pack("<II", 4, x)


def gguf(meta, tensors, element):
    """All tensors float32: their sizes by name; element(name, i)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(text(k) + value(x) for k, x in meta.items())
    data = b""
    for name, dims in tensors.items():
        count = dims[0] * (dims[1] if len(dims) > 1 else 1)
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, len(data))
        data += b"".join(struct.pack("<f", element(name, i)) for i in range(count))
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data


def tensors_of(layers, dim, kv, ffn, vocab):
    """The sizes of a llama model's tensors; kv: kv_heads * head size."""
    tensors = {"token_embd.weight": (dim, vocab), "output_norm.weight": (dim,)}
    for i in range(layers):
        for name, dims in (("attn_norm", (dim,)), ("ffn_norm", (dim,)), ("attn_q", (dim, dim)), ("attn_k", (dim, kv)),
                           ("attn_v", (dim, kv)), ("attn_output", (dim, dim)), ("ffn_gate", (dim, ffn)), ("ffn_up", (dim, ffn)),
                           ("ffn_down", (ffn, dim))):
            tensors[f"blk.{i}.{name}.weight"] = dims
    return tensors


def random_model(seed, layers, heads, kv_heads, head_dim, ffn, letters, context, eos=None):
    """A model with random weights whose tokens are single letters."""
    dim, rng = heads * head_dim, random.Random(seed)
    meta = {
        "general.architecture": "llama", "llama.block_count": layers, "llama.embedding_length": dim, "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads, "llama.feed_forward_length": ffn, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": context, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(letters), "tokenizer.ggml.merges": [f"{letters[0]} {letters[1]}"],
    }
    if eos is not None:
        meta["tokenizer.ggml.eos_token_id"] = eos
    tensors = tensors_of(layers, dim, kv_heads * head_dim, ffn, len(letters))
    tensors["output.weight"] = (dim, len(letters))  # with the embedding's own it would repeat the last token

    def element(name, _):
        if "norm" in name:
            return rng.uniform(0.5, 1.5)
        return rng.gauss(0.0, 1.0 if "embd" in name else (2.0 if "attn" in name else 1.0) / tensors[name][0] ** 0.5)
    return gguf(meta, tensors, element)
