/* SPDX-License-Identifier: Apache-2.0 */
/*
 * append, range_sum, truncate: what changes when rows come and go. Here append serves any batch: the blocks share the copying row by row,
 * and one block a (sequence, KV head) sums; it reads the step's rows where they come from, so that it need not wait for the copies.
 */
#include "append.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)
#define TILE 64 /* rows that a block copies at a time */

/* The block's sums: of the warps' lanes, then of memory. */
struct block_sums {
    u64 sum[256];
    int nonfinite;
};

/* Adds the lanes' parts into memory. Nobody else changes these sums. */
DEV void put_sums(const lanes &l, const summed &s, int dim, i64 sign, i64 *sum, prhs_value_count *count, int rows)
{
    __shared__ block_sums all;
    for (int d = threadIdx.x; d < 256; d += THREADS)
        all.sum[d] = 0;
    if (threadIdx.x == 0)
        all.nonfinite = 0;
    __syncthreads();
    if (l.real)
#pragma unroll
        for (int i = 0; i < 8; i++)
            atomicAdd(&all.sum[l.channel + i], (u64)s.sum[i]);
    if (s.nonfinite)
        atomicAdd(&all.nonfinite, s.nonfinite);
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += THREADS)
        sum[d] += sign * (i64)all.sum[d];
    if (threadIdx.x == 0) {
        count->nonfinite += (int)sign * all.nonfinite;
        count->rows = rows;
    }
    __syncthreads();
}

/* Rows of the cache. */
template <int T> DEV void sum_cached(const prhs_k_kv &kv, const byte *v, const int *pages, const lanes &l, int head, int first, int last, summed *s)
{
    const int c = l.channel * (T == PRHS_K_F32 ? 4 : 2);
    sum_rows<T>(l, first, last, warp_id(), WARPS, [&](int j) { return load_raw<T>(v + place_of(kv, pages, j, head).v + c); }, s);
}

template <int T> DEV void sum_arrival(const prhs_k_append &a, byte *const mem[], const arrival &x, const int *pages, int hk)
{
    const lanes l = lanes_of(a.shape.dim);
    prhs_value_count *count = SLOT_AT(mem[PRHS_R_STATE], a.state, vcount_off, x.slot, prhs_value_count) + hk;
    const int counted = count->rows, written = x.writes ? min(x.first, x.target) : x.target;
    if (counted >= x.target)
        return;
    summed s = nothing_summed();
    sum_cached<T>(a.kv, mem[PRHS_R_V], pages, l, hk, counted, written, &s);
    sum_rows<T>(
        l, max(written, counted), x.target, warp_id(), WARPS,
        [&](int j) { return load_input<T>(a.v, mem[PRHS_R_VIN], x.row_begin + j - x.first, hk, l.channel); }, &s);
    put_sums(l, s, a.shape.dim, 1, SLOT_AT(mem[PRHS_R_STATE], a.state, vsum_off, x.slot, i64) + (i64)hk * a.shape.dim, count, x.target);
}

template <int T> DEV void copy_tile(const prhs_k_append &a, byte *const mem[], const arrival &x, const int *pages, int hk, int first)
{
    const int EACH = 4;
    const lanes l = lanes_of(a.shape.dim);
    const int last = min(first + TILE, x.rows), step = WARPS * l.per;
    if (!l.real)
        return;
    for (int i = first + warp_id() * l.per + l.row; i < last; i += EACH * step) {
        row_pair<T> r[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++)
            r[k] = load_pair<T>(a, mem, x, min(i + k * step, last - 1), hk, l.channel);
#pragma unroll
        for (int k = 0; k < EACH; k++)
            if (i + k * step < last)
                store_pair<T>(a, mem, r[k], pages, x.first + i + k * step, hk, l.channel);
    }
}

/* Fault of entry b, the same for all threads of the block; `raises`: this block tells. */
DEV int block_fault(const prhs_k_append &a, byte *const mem[], i64 b, bool raises)
{
    __shared__ int shared;
    const prhs_seq *s = seq_at(a.batch, mem[PRHS_R_SEQS], b);
    if (threadIdx.x == 0)
        shared = fault_of(a, s);
    __syncthreads();
    if (pages_bad(a, s, pages_of(a.batch, mem[PRHS_R_PAGES], b), threadIdx.x, THREADS))
        atomicOr(&shared, PRHS_FAULT_PAGE);
    __syncthreads();
    const int fault = shared;
    if (fault && raises && threadIdx.x == 0)
        atomicOr(INTS(mem[PRHS_R_STATE], a.state.fault_off), fault);
    __syncthreads();
    return fault;
}

/* Item 0 of (b, hk) validates and sums, the others copy a tile each. */
template <int T> DEV void append_item(const prhs_k_append &a, byte *const mem[], int b, int hk, int item)
{
    const int *pages = pages_of(a.batch, mem[PRHS_R_PAGES], b);
    const arrival x = arrival_of(a, seq_at(a.batch, mem[PRHS_R_SEQS], b));
    if ((a.validate && block_fault(a, mem, b, item == 0 && hk == 0)) || x.rows == 0)
        return;
    if (item > 0)
        copy_tile<T>(a, mem, x, pages, hk, (item - 1) * TILE);
    else if (a.state.vsum_off != PRHS_NONE)
        sum_arrival<T>(a, mem, x, pages, hk);
}

template <int T> DEV void append(const prhs_cu_append &p)
{
    __shared__ int prefix[THREADS];
    const prhs_k_append &a = p.a;
    const int heads = a.shape.kv_heads;
    take_turns(
        a.batch.max_seqs * heads, a.batch.max_seqs * heads, 1, prefix,
        [&](int i) {
            const arrival x = arrival_of(a, seq_at(a.batch, p.mem[PRHS_R_SEQS], i / heads));
            return x.rows == 0 ? a.validate : 1 + (x.writes ? (x.rows + TILE - 1) / TILE : 0);
        },
        [&](int i, int item) { append_item<T>(a, p.mem, i / heads, i % heads, item); });
}

KERNEL(prhs_append, prhs_cu_append, THREADS, 4)
{
    grid_begin();
    if (p.a.kv.dtype == PRHS_K_F32)
        append<PRHS_K_F32>(p);
    else if (p.a.kv.dtype == PRHS_K_F16)
        append<PRHS_K_F16>(p);
    else
        append<PRHS_K_BF16>(p);
}

DEV bool slot_ok(const prhs_k_batch &k, const prhs_seq *s)
{
    return s->slot >= 0 && s->slot < k.max_slots && s->kv_len >= 0 && s->kv_len <= k.max_kv_len;
}

template <int T> DEV void range_sum(const prhs_k_range_sum &a, byte *const mem[], int b, int hk)
{
    const prhs_seq *q = seq_at(a.batch, mem[PRHS_R_SEQS], b);
    if (!slot_ok(a.batch, q))
        return;
    const lanes l = lanes_of(a.shape.dim);
    i64 *sum = SLOT_AT(mem[PRHS_R_STATE], a.state, vsum_off, q->slot, i64) + (i64)hk * a.shape.dim;
    prhs_value_count *count = SLOT_AT(mem[PRHS_R_STATE], a.state, vcount_off, q->slot, prhs_value_count) + hk;
    /* Sums of rows past what the table holds now cannot leave: there are no pages for them. */
    const int had = count->rows, first = a.sign > 0 ? 0 : q->kv_len, last = a.sign > 0 ? q->kv_len : min(had, a.batch.max_kv_len);
    __syncthreads();
    if (a.sign > 0) {
        for (int d = threadIdx.x; d < a.shape.dim; d += THREADS)
            sum[d] = 0;
        if (threadIdx.x == 0)
            count->nonfinite = 0;
    }
    summed s = nothing_summed();
    sum_cached<T>(a.kv, mem[PRHS_R_V], pages_of(a.batch, mem[PRHS_R_PAGES], b), l, hk, first, last, &s);
    put_sums(l, s, a.shape.dim, a.sign, sum, count, a.sign > 0 ? q->kv_len : min(had, q->kv_len));
}

KERNEL(prhs_range_sum, prhs_cu_range_sum, THREADS, 4)
{
    grid_begin();
    const prhs_k_range_sum &a = p.a;
    const int items = a.batch.max_seqs * a.shape.kv_heads;
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
        const int b = i / a.shape.kv_heads, hk = i % a.shape.kv_heads;
        if (a.kv.dtype == PRHS_K_F32)
            range_sum<PRHS_K_F32>(a, p.mem, b, hk);
        else if (a.kv.dtype == PRHS_K_F16)
            range_sum<PRHS_K_F16>(a, p.mem, b, hk);
        else
            range_sum<PRHS_K_BF16>(a, p.mem, b, hk);
    }
}

KERNEL(prhs_truncate, prhs_cu_truncate, THREADS, 4)
{
    grid_begin();
    const prhs_k_truncate &a = p.a;
    const int items = a.batch.max_seqs * a.shape.units;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < items; i += gridDim.x * THREADS) {
        const prhs_seq *s = seq_at(a.batch, p.mem[PRHS_R_SEQS], i / a.shape.units);
        if (!slot_ok(a.batch, s))
            continue;
        const int u = i % a.shape.units;
        prhs_unit_state *unit = SLOT_AT(p.mem[PRHS_R_STATE], a.state, unit_off, s->slot, prhs_unit_state) + u;
        prhs_unit_state *kept = kept_at(p.mem[PRHS_R_STATE], a.state, a.pool, s->slot, u);
        for (int k = -1; k < a.pool.count; k++) {
            prhs_unit_state *one = k < 0 ? unit : kept + k;
            if (a.all || one->ref_pos >= s->kv_len)
                one->ref_pos = one->used = -1;
        }
    }
}
