#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Dense attention by the peers, on one NVIDIA GPU: the bars that libprhs is measured against.

Prints one JSON object a line. Decode: {"peer", "B", "N", "H", "HK", "D", "us_median", "us_min", "us_max", "gbps"}: one query token a
sequence and B caches of N tokens in float16; the K/V that a call reads rotate over enough copies that none finds its cache in L2.
Prompts: the same with "rows": N and "tflops" in place of "gbps": causal attention of all N rows. Times are CUDA events around a captured graph
of REPS calls, over 20 replays that are enqueued without a wait. Peers: torch's FlashAttention-2 and cuDNN back ends of
scaled_dot_product_attention (K and V as [B, HK, N, D]), and FlashInfer's paged decode where the package is importable (page sizes 1 and 16);
where it is not: {"peer": "flashinfer", "skipped": why}; the same for torch, without which nothing is measured. A peer that fails on a shape has an "error" there.

usage: dense_peers.py [--shapes B,N,H,HK,D ...] [--prompts B,N,H,HK,D ...]
"""
import argparse
import json

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as absent:
    torch, no_torch = None, str(absent)

REPS, REPLAYS = 20, 20
DECODE = [(8, 1024, 32, 32, 128), (8, 2048, 32, 32, 128), (8, 4096, 32, 32, 128), (16, 1024, 32, 32, 128), (16, 2048, 32, 32, 128),
          (16, 4096, 32, 32, 128), (8, 4096, 32, 8, 128), (16, 8192, 32, 8, 128), (1, 32768, 32, 8, 128), (8, 32768, 32, 8, 128),
          (1, 131072, 32, 8, 128)]
PROMPTS = [(1, 4096, 32, 32, 128), (1, 8192, 32, 32, 128), (1, 16384, 32, 32, 128)]


def graph_us(calls, reps=REPS):
    """Median, least and greatest microseconds of one call; `calls` is a list of thunks that are captured in turn."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(reps):
            calls[i % len(calls)]()
    for _ in range(2):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    us = sorted(a.elapsed_time(b) * 1e3 / reps for a, b in zip(events, events[1:]))
    return us[len(us) // 2], us[0], us[-1]


def emit(peer, shape, us, **more):
    batch, n, heads, kv_heads, dim = shape
    print(json.dumps(dict(peer=peer, B=batch, N=n, H=heads, HK=kv_heads, D=dim, us_median=round(us[0], 2), us_min=round(us[1], 2),
                          us_max=round(us[2], 2), **more)), flush=True)


def normals(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.float16)


def copies_of(shape):
    batch, n, _, kv_heads, dim = shape
    return max(1, min(REPS, (256 << 20) // (2 * batch * n * kv_heads * dim * 2) + 1))


def sdpa(shape, backend, rows, causal, copies, reps=REPS):
    batch, n, heads, kv_heads, dim = shape
    q = normals(batch, heads, rows, dim)
    cache = [(normals(batch, kv_heads, n, dim), normals(batch, kv_heads, n, dim)) for _ in range(copies)]

    def call(k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)

    return graph_us([lambda k=k, v=v: call(k, v) for k, v in cache], reps)


def flashinfer_paged(shape, page, copies):
    import flashinfer
    batch, n, heads, kv_heads, dim = shape
    q = normals(batch, heads, dim)
    pages = batch * n // page
    cache = [normals(pages, 2, page, kv_heads, dim) for _ in range(copies)]
    indptr = torch.arange(0, batch + 1, device="cuda", dtype=torch.int32) * (n // page)
    ids = torch.randperm(pages, device="cuda").to(torch.int32)
    last = torch.full((batch,), page, device="cuda", dtype=torch.int32)
    space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        space, "NHD", use_cuda_graph=True, use_tensor_cores=heads != kv_heads, paged_kv_indptr_buffer=indptr.clone(),
        paged_kv_indices_buffer=ids.clone(), paged_kv_last_page_len_buffer=last.clone())
    wrapper.plan(indptr, ids, last, heads, kv_heads, dim, page, q_data_type=torch.float16, kv_data_type=torch.float16)
    return graph_us([lambda c=c: wrapper.run(q, c) for c in cache])


def missing(package):
    """Why a package cannot be imported; None: it can."""
    try:
        __import__(package)
        return None
    except Exception as error:  # noqa: BLE001 - an import may fail in any way
        return (str(error).splitlines() or [type(error).__name__])[0][:160]


def attempt(peer, shape, measure, **fixed):
    """A peer that cannot run is a line, not a crash. `fixed`: members of the line, which may be functions of the median."""
    try:
        us = measure()
        emit(peer, shape, us, **{k: v(us[0]) if callable(v) else v for k, v in fixed.items()})
    except Exception as error:  # noqa: BLE001 - whatever a package raises
        batch, n, heads, kv_heads, dim = shape
        words = (str(error).splitlines() or [type(error).__name__])[0][:160]
        print(json.dumps(dict(peer=peer, B=batch, N=n, H=heads, HK=kv_heads, D=dim, error=words)), flush=True)
    torch.cuda.empty_cache()


def decode(shape, flashinfer):
    batch, n, _, kv_heads, dim = shape
    size, copies = 2 * batch * n * kv_heads * dim * 2, copies_of(shape)
    rate = dict(gbps=lambda us: round(size / us / 1e3, 1))
    attempt("fa2", shape, lambda: sdpa(shape, SDPBackend.FLASH_ATTENTION, 1, False, copies), **rate)
    attempt("cudnn", shape, lambda: sdpa(shape, SDPBackend.CUDNN_ATTENTION, 1, False, copies), **rate)
    if flashinfer:
        attempt("flashinfer-p16", shape, lambda: flashinfer_paged(shape, 16, copies), **rate)
        attempt("flashinfer-p1", shape, lambda: flashinfer_paged(shape, 1, copies), **rate)


def prompt(shape):
    batch, n, heads, _, dim = shape
    flops = 4.0 * batch * heads * dim * n * (n + 1) / 2
    rate = dict(rows=n, tflops=lambda us: round(flops / us / 1e6, 1))
    attempt("fa2", shape, lambda: sdpa(shape, SDPBackend.FLASH_ATTENTION, n, True, 2, 4), **rate)
    attempt("cudnn", shape, lambda: sdpa(shape, SDPBackend.CUDNN_ATTENTION, n, True, 2, 4), **rate)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=None)
    parser.add_argument("--prompts", nargs="*", default=None)
    args = parser.parse_args()

    def shapes(words, default):
        return default if words is None else [tuple(int(x) for x in word.split(",")) for word in words]

    if torch is None:
        print(json.dumps(dict(peer="torch", skipped=no_torch)), flush=True)
        return
    print(json.dumps(dict(device=torch.cuda.get_device_name(), torch=torch.__version__)), flush=True)
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us = graph_us([lambda: target.copy_(source)])
    print(json.dumps(dict(peer="copy", gbps_read_plus_write=round(2 * (1 << 30) / us[0] / 1e3, 1))), flush=True)
    del source, target
    why = missing("flashinfer")
    if why:
        print(json.dumps(dict(peer="flashinfer", skipped=why)), flush=True)
    for shape in shapes(args.shapes, DECODE):
        decode(shape, not why)
    for shape in shapes(args.prompts, PROMPTS):
        prompt(shape)


if __name__ == "__main__":
    main()
