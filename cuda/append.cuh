/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows that come: K and V into the cache, and V into the value sums. A row takes the fewest lanes that hold it with 8 channels each; the
 * sums are integers, so that any order of addition gives the same.
 */
#ifndef PRHS_APPEND_CUH
#define PRHS_APPEND_CUH

#include "common.cuh"

typedef unsigned long long u64;

/* Which rows of a step a lane serves, and which channels of them. */
struct lanes {
    int per, row, channel; /* rows side by side in a warp; this lane's; its first channel */
    bool real;             /* the channels are within the row */
};

DEV lanes lanes_of(int dim)
{
    const int width = dim <= 32 ? 4 : dim <= 64 ? 8 : dim <= 128 ? 16 : 32, c = lane_id() % width * 8;
    return lanes{ 32 / width, lane_id() / width, c, c < dim };
}

/* --- eight channels in the cache's dtype --- */

DEV unsigned pack_two(unsigned short a, unsigned short b) { return a | (unsigned)b << 16; }

template <int T> DEV raw8<T> pack(const float x[8])
{
    raw8<T> r;
    unsigned w[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        w[i] = T == PRHS_K_F16 ? pack_two(float_half(x[2 * i]), float_half(x[2 * i + 1])) : pack_two(bfloat_of(x[2 * i]), bfloat_of(x[2 * i + 1]));
    r.w[0] = make_uint4(w[0], w[1], w[2], w[3]);
    return r;
}

/* The caller's row as the cache keeps it: rounded where the cache is narrower. */
template <int T> DEV raw8<T> load_input(const prhs_k_rows &rows, byte *base, i64 row, int head, int channel)
{
    const byte *p = row_at(rows, base, row, head);
    if (T != PRHS_K_F32 && rows.dtype == PRHS_K_F32) {
        float x[8];
        floats_of(load_raw<PRHS_K_F32>(p + channel * 4), x);
        return pack<T>(x);
    }
    return load_raw<T>(p + channel * (T == PRHS_K_F32 ? 4 : 2));
}

template <int T> DEV void store_raw(byte *p, const raw8<T> &r)
{
    ((uint4 *)p)[0] = r.w[0];
    if (T == PRHS_K_F32)
        ((uint4 *)p)[1] = r.w[T == PRHS_K_F32 ? 1 : 0];
}

/* --- sums --- */

/* A lane's part of the sums. */
struct summed {
    i64 sum[8];
    int nonfinite; /* rows; counted by the row's first lane */
};

DEV summed nothing_summed()
{
    summed s;
#pragma unroll
    for (int i = 0; i < 8; i++)
        s.sum[i] = 0;
    s.nonfinite = 0;
    return s;
}

/* By a whole warp: a row a group of lanes; `counts` where the lane's row is to be added. */
template <int T> DEV void sum_row(const lanes &l, const raw8<T> &raw, bool counts, summed *s)
{
    float x[8];
    floats_of(raw, x);
    bool bad = false;
#pragma unroll
    for (int i = 0; i < 8; i++)
        bad |= (__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u;
    const unsigned votes = __ballot_sync(FULL, bad && counts && l.real);
    const int width = 32 / l.per;
    if (!counts || !l.real)
        return;
    if (votes >> (l.row * width) & (FULL >> (32 - width))) {
        s->nonfinite += l.channel == 0;
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        s->sum[i] += llrintf(fminf(fmaxf(x[i], -65536.0f), 65536.0f) * 16777216.0f);
}

/* Rows [first, last) that `load(j)` reads, in steps by warps [0, warps). */
template <int T, class Load> DEV void sum_rows(const lanes &l, int first, int last, int warp, int warps, Load load, summed *s)
{
    const int UNROLL = 4, step = UNROLL * l.per;
    for (int j = first + warp * step; j < last; j += warps * step) {
        raw8<T> r[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            const int t = j + i * l.per + l.row;
            r[i] = t < last && l.real ? load(t) : zero_raw<T>();
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            sum_row<T>(l, r[i], j + i * l.per + l.row < last, s);
    }
}

/* Adds the groups of lanes up; afterwards every lane has its channels' sums over the warp's rows. */
DEV void gather_sums(const lanes &l, summed *s)
{
    for (int w = 32 / l.per; w < 32; w <<= 1)
#pragma unroll
        for (int i = 0; i < 8; i++)
            s->sum[i] += (i64)__shfl_xor_sync(FULL, (u64)s->sum[i], w);
    s->nonfinite = warp_sum_int(s->nonfinite);
}

DEV i64 two_words(unsigned low, unsigned high) { return (i64)((u64)high << 32 | low); }

/* The lane's channels of the sums in memory, which nobody else is changing. */
struct kept_sums {
    uint4 w[4];
};

DEV kept_sums load_sums(const i64 *sum)
{
    kept_sums k;
#pragma unroll
    for (int i = 0; i < 4; i++)
        k.w[i] = ((const uint4 *)sum)[i];
    return k;
}

DEV void store_sums(i64 *sum, const kept_sums &k, const summed &s)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u64 a = (u64)(two_words(k.w[i].x, k.w[i].y) + s.sum[2 * i]);
        const u64 b = (u64)(two_words(k.w[i].z, k.w[i].w) + s.sum[2 * i + 1]);
        ((uint4 *)sum)[i] = make_uint4((unsigned)a, (unsigned)(a >> 32), (unsigned)b, (unsigned)(b >> 32));
    }
}

/* --- what is appended --- */

/* What an entry brings; rows 0: nothing. */
struct arrival {
    int slot, row_begin, rows, first; /* the step's rows; position of row 0 */
    int target;                       /* rows that the sums reach */
    bool writes;
};

DEV arrival arrival_of(const prhs_k_append &a, const prhs_seq *s)
{
    const bool prompt = s->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED);
    const bool seed_only = (s->flags & PRHS_SEQ_SEED) && !(s->flags & PRHS_SEQ_PREFILL);
    if (!seq_ok(a.batch, s) || (!prompt && s->row_count > a.batch.rows))
        return arrival{ 0, 0, 0, 0, 0, false };
    const int first = s->kv_len - s->row_count;
    return arrival{ s->slot, s->row_begin, s->row_count, first, prompt ? s->kv_len : first + 1, a.write && !seed_only };
}

/* Fault bits of an entry without its pages. */
DEV int fault_of(const prhs_k_append &a, const prhs_seq *s)
{
    int fault = 0;
    if (s->slot < 0 || s->row_count == 0)
        return 0;
    if (s->slot >= a.batch.max_slots)
        fault |= PRHS_FAULT_SLOT;
    if (s->row_count < 0 || s->kv_len < s->row_count || s->kv_len > a.batch.max_kv_len)
        return fault | PRHS_FAULT_LENGTH;
    if (s->row_begin < 0 || s->row_begin > a.batch.max_rows - s->row_count ||
        (!(s->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) && s->row_count > a.batch.rows))
        fault |= PRHS_FAULT_ROWS;
    return fault;
}

/* Whether one of the entry's page ids is bad, as far as threads thread, thread + threads, ... see. */
DEV bool pages_bad(const prhs_k_append &a, const prhs_seq *s, const int *pages, int thread, int threads)
{
    if (s->slot < 0 || s->row_count <= 0 || s->kv_len < s->row_count || s->kv_len > a.batch.max_kv_len)
        return false;
    const int n = (s->kv_len + a.kv.page_size - 1) / a.kv.page_size;
    bool bad = n > a.batch.page_stride;
#pragma unroll 4
    for (int i = thread; i < min(n, a.batch.page_stride); i += threads)
        bad |= pages[i] < 0 || pages[i] >= a.kv.pages;
    return bad;
}

/* Fault of entry b, by a whole warp; raised by head 0. */
DEV int warp_fault(const prhs_k_append &a, byte *const mem[], i64 b, int hk)
{
    const prhs_seq *s = seq_at(a.batch, mem[PRHS_R_SEQS], b);
    const bool bad = pages_bad(a, s, pages_of(a.batch, mem[PRHS_R_PAGES], b), lane_id(), 32);
    const int fault = fault_of(a, s) | (__any_sync(FULL, bad) ? PRHS_FAULT_PAGE : 0);
    if (fault && hk == 0 && lane_id() == 0)
        atomicOr(INTS(mem[PRHS_R_STATE], a.state.fault_off), fault);
    return fault;
}

/* A lane's channels of K and V of one row. */
template <int T> struct row_pair {
    raw8<T> k, v;
};

template <int T> DEV row_pair<T> load_pair(const prhs_k_append &a, byte *const mem[], const arrival &x, int i, int hk, int channel)
{
    row_pair<T> r;
    r.k = load_input<T>(a.k, mem[PRHS_R_KIN], x.row_begin + i, hk, channel);
    r.v = load_input<T>(a.v, mem[PRHS_R_VIN], x.row_begin + i, hk, channel);
    return r;
}

template <int T>
DEV void store_pair(const prhs_k_append &a, byte *const mem[], const row_pair<T> &r, const int *pages, int j, int hk, int channel)
{
    const place to = place_of(a.kv, pages, j, hk);
    store_raw<T>(mem[PRHS_R_K] + to.k + channel * (T == PRHS_K_F32 ? 4 : 2), r.k);
    store_raw<T>(mem[PRHS_R_V] + to.v + channel * (T == PRHS_K_F32 ? 4 : 2), r.v);
}

/* All of entry b for KV head hk, by one warp. */
template <int T> DEV void append_by_warp(const prhs_k_append &a, byte *const mem[], i64 b, int hk)
{
    const arrival x = arrival_of(a, seq_at(a.batch, mem[PRHS_R_SEQS], b));
    const int *pages = pages_of(a.batch, mem[PRHS_R_PAGES], b);
    const bool sums = a.state.vsum_off != PRHS_NONE;
    if ((a.validate && warp_fault(a, mem, b, hk)) || x.rows == 0)
        return;
    const lanes l = lanes_of(a.shape.dim);
    if (hk == 0) /* attend looks at the pages next */
        for (unsigned i = lane_id() * 32; i < page_index(a.kv, x.first); i += 1024)
            bring_closer(pages + i);
    prhs_value_count *count = sums ? SLOT_AT(mem[PRHS_R_STATE], a.state, vcount_off, x.slot, prhs_value_count) + hk : nullptr;
    i64 *sum = sums ? SLOT_AT(mem[PRHS_R_STATE], a.state, vsum_off, x.slot, i64) + (i64)hk * a.shape.dim + l.channel : nullptr;
    const bool adds = sums && l.row == 0 && l.real;
    /* What is there already comes together with the rows. */
    const int counted = sums ? count->rows : x.target;
    kept_sums kept = {};
    if (adds)
        kept = load_sums(sum);
    summed s = nothing_summed();
    for (int base = 0; x.writes && base < x.rows; base += l.per) {
        const int i = base + l.row, j = x.first + i;
        row_pair<T> r = { zero_raw<T>(), zero_raw<T>() };
        if (i < x.rows && l.real) {
            r = load_pair<T>(a, mem, x, i, hk, l.channel);
            store_pair<T>(a, mem, r, pages, j, hk, l.channel);
        }
        if (counted < x.target)
            sum_row<T>(l, r.v, i < x.rows && j >= counted && j < x.target, &s);
    }
    if (counted >= x.target)
        return;
    /* Rows that the sums have missed, and all that another writes. */
    const int c = l.channel * (T == PRHS_K_F32 ? 4 : 2);
    sum_rows<T>(
        l, counted, x.writes ? min(x.first, x.target) : x.target, 0, 1,
        [&](int j) { return load_raw<T>(mem[PRHS_R_V] + place_of(a.kv, pages, j, hk).v + c); }, &s);
    gather_sums(l, &s);
    if (adds)
        store_sums(sum, kept, s);
    if (lane_id() == 0) {
        count->nonfinite += s.nonfinite;
        count->rows = x.target;
    }
}

#endif
