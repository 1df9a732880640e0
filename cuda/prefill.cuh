/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both prefill kernels share: tiles of prompt rows, what a row sees, and the blocks of keys that a tile walks through. A tile's lanes
 * are (row, head) pairs: the heads of a KV head share its keys. Lane l of an entry is head l % G of live row l / G.
 */
#ifndef PRHS_PREFILL_CUH
#define PRHS_PREFILL_CUH

#include "common.cuh"

#define PREFILL_THREADS 128

/* An entry's live rows: those that ETF does not freeze. */
struct prompt {
    int row, pos, rows; /* index and position of the first one; how many */
};

DEV prompt prompt_of(const prhs_cu_prefill &p, i64 b)
{
    const prhs_seq *s = seq_at(p.a.batch, p.mem[PRHS_R_SEQS] + opaque(0), b); /* an address that no register keeps meanwhile */
    prompt x = { 0, 0, 0 };
    if (!seq_ok(p.a.batch, s) || !(s->flags & PRHS_SEQ_PREFILL))
        return x;
    const int first = s->kv_len - s->row_count;
    int frozen = 0;
    if (p.a.etf && s->prompt_len > 0)
        frozen = (int)((unsigned long long)p.a.etf * (unsigned long long)(s->prompt_len - 1) >> 32);
    else if (p.a.etf && p.a.fault_off != PRHS_NONE)
        atomicOr(INTS(p.mem[PRHS_R_STATE], p.a.fault_off), PRHS_FAULT_PROMPT);
    const int skip = min(max(frozen - first, 0), s->row_count);
    x.row = s->row_begin + skip;
    x.pos = first + skip;
    x.rows = s->row_count - skip;
    return x;
}

/* Lanes [lane, lane + lanes) of entry b, of KV head hk. */
struct tile {
    int b, hk, lane, lanes;
    prompt of;
};

/* First position of PSAW's window of the row at `pos`; 0 where it lies inside the sinks. */
DEV int window_start(const prhs_k_prefill &a, int pos)
{
    const int start = (int)((unsigned long long)a.psaw * (unsigned long long)pos >> 32);
    return start <= a.sinks ? 0 : start;
}

DEV int lane_pos(const prhs_k_prefill &a, const tile &t, int lane) { return t.of.pos + (t.lane + lane) / a.shape.group; }
DEV int lane_row(const prhs_k_prefill &a, const tile &t, int lane) { return t.of.row + (t.lane + lane) / a.shape.group; }
DEV int lane_head(const prhs_k_prefill &a, const tile &t, int lane)
{
    return t.hk * a.shape.group + (t.lane + lane) % a.shape.group;
}

/*
 * Lanes that the first of several tiles leaves empty, so that tiles begin and end where blocks of KEYS keys do, wherever the rows begin:
 * a tile that ends inside a block has that block's products to do all the same.
 */
template <int LANES, int KEYS> DEV int empty_lanes(const prhs_k_prefill &a, const prompt &x)
{
    const int group = a.shape.group;
    return (i64)x.rows * group > LANES ? (int)((i64)x.pos * group % min(LANES, KEYS * group)) : 0;
}

/*
 * Tile `next` of all tiles of up to LANES lanes; false: there is none. An entry's longest tiles come first, so that the grid ends with
 * short ones, and the KV heads of a tile of rows come side by side. All threads call it; prefix: shared, PREFILL_THREADS ints, free
 * afterwards.
 */
template <int LANES, int KEYS> DEV bool find_tile(const prhs_cu_prefill &p, i64 next, int *prefix, tile *t)
{
    for (int first = 0; first < p.a.batch.max_seqs; first += PREFILL_THREADS) {
        const int i = first + threadIdx.x;
        prompt x = { 0, 0, 0 };
        if (i < p.a.batch.max_seqs)
            x = prompt_of(p, i);
        const int lanes = x.rows * p.a.shape.group + empty_lanes<LANES, KEYS>(p.a, x);
        const int own = (lanes + LANES - 1) / LANES * p.a.shape.kv_heads;
        int before;
        const int total = block_prefix(own, &before);
        prefix[threadIdx.x] = before + own;
        __syncthreads();
        if (next >= total) {
            next -= total;
            __syncthreads();
            continue;
        }
        int low = 0, high = PREFILL_THREADS - 1; /* the first entry whose prefix is above `next` */
        while (low < high) {
            const int mid = (low + high) >> 1;
            if (prefix[mid] > next)
                high = mid;
            else
                low = mid + 1;
        }
        const int at = (int)next - (low ? prefix[low - 1] : 0), tiles = (prefix[low] - (low ? prefix[low - 1] : 0)) / p.a.shape.kv_heads;
        __syncthreads();
        t->b = first + low;
        t->of = prompt_of(p, t->b);
        t->hk = at % p.a.shape.kv_heads;
        const int begin = (tiles - 1 - at / p.a.shape.kv_heads) * LANES - empty_lanes<LANES, KEYS>(p.a, t->of);
        t->lane = max(begin, 0);
        t->lanes = min(begin + LANES, t->of.rows * p.a.shape.group) - t->lane;
        return true;
    }
    return false;
}

/* What consecutive lanes see between them: rows first .. last, window starts low .. high. first > last: no lane. */
struct view {
    int first, last, low, high;
};

DEV view view_of(const prhs_k_prefill &a, const tile &t, int lane, int lanes)
{
    view v = { 1, 0, 0, 0 };
    lanes = min(lanes, t.lanes - lane);
    if (lanes <= 0)
        return v;
    v.first = lane_pos(a, t, lane);
    v.last = lane_pos(a, t, lane + lanes - 1);
    v.low = window_start(a, v.first);
    v.high = window_start(a, v.last);
    return v;
}

/* Some lane sees some key of [key, key + n); all lanes see all of them. */
DEV bool sees_some(const view &v, int sinks, int key, int n) { return key <= v.last && (key < sinks || key + n > v.low); }
DEV bool sees_all(const view &v, int sinks, int key, int n) { return key + n - 1 <= v.first && (key >= v.high || key + n <= sinks); }

/* The first block of n keys from block i on that the lanes may see: past the sinks, on to the window. */
DEV int block_from(const view &v, int sinks, int i, int n) { return i * n >= sinks && (i + 1) * n <= v.low ? v.low / n : i; }

/* A channel of the output. A zero's sign and a NaN's bits do not tell which blocks the row came through. */
DEV float ended(float o, float sum, float inverse)
{
    const float x = o * inverse + 0.0f;
    return sum == 0.0f ? 0.0f : isnan(x) ? NEVER : x;
}

DEV void store_pair(int dtype, byte *row, int d, float x, float y)
{
    if (dtype == PRHS_K_F32)
        *(float2 *)(row + 4 * d) = make_float2(x, y);
    else
        *(unsigned *)(row + 2 * d) = dtype == PRHS_K_F16 ? floats_half2(x, y) : floats_bf162(x, y);
}

#endif
