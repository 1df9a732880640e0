/* SPDX-License-Identifier: Apache-2.0 */
/* What a warp does with tiles of scattered rows where attend goes without tensor cores: scores, weights, sums, and the part at the end. */
#ifndef PRHS_SERVE_TILE_CUH
#define PRHS_SERVE_TILE_CUH

#include "ahead.cuh"
#include "tile.cuh"

/* Rows in flight: fewer where sums take the registers. */
template <int T, int HB> DEV constexpr int loads() { return T == PRHS_K_F32 || HB > 1 ? 4 : 8; }

/* What a warp has seen so far. */
template <int HB> struct running {
    float top[HB], sum[HB]; /* sum: a part a lane */
    float acc[HB][8];
    bool bad[HB];
};

/* Turns the tile's scores into weights relative to the running maximum. */
template <int TOKENS, int HB> DEV void soften(running<HB> *x, float *s, int n)
{
    const int lane = lane_id();
#pragma unroll
    for (int h = 0; h < HB; h++) {
        float w[(TOKENS + 31) / 32], m = LOWEST;
#pragma unroll
        for (int i = 0; i < (TOKENS + 31) / 32; i++) {
            const int t = lane + 32 * i;
            w[i] = t < min(n, TOKENS) ? s[t * HB + h] : NOTHING;
            x->bad[h] |= bad_score(w[i]);
            m = fmaxf(m, bad_score(w[i]) ? LOWEST : w[i]);
        }
        m = fmaxf(warp_top(m), x->top[h]);
        const float scale = exp_weight(x->top[h] - m);
        x->top[h] = m;
        x->sum[h] *= scale;
#pragma unroll
        for (int i = 0; i < (TOKENS + 31) / 32; i++) {
            w[i] = exp_weight(w[i] - m);
            x->sum[h] += w[i];
            if (lane + 32 * i < TOKENS)
                s[(lane + 32 * i) * HB + h] = w[i];
        }
        if (scale != 1.0f) {
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->acc[h][c] *= scale;
        }
    }
}

template <int T, int L, int HB> DEV void add_values(running<HB> *x, const raw8<T> *v, const float *w)
{
    typedef tile<T, L, HB, loads<T, HB>()> tl;
#pragma unroll
    for (int i = 0; i < loads<T, HB>(); i++) {
        float y[8];
        floats_of(v[i], y);
        const float *wt = w + (i * tl::AT_ONCE + lane_id() / L) * HB;
#pragma unroll
        for (int h = 0; h < HB; h++) {
            const float wh = wt[h];
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->acc[h][c] += wh * y[c];
        }
    }
}

/* Rows of a tile, 8 channels a lane; rows past n, and lanes past the row, are zeros and not read. */
template <int T, int L, int HB, bool V> DEV void load_tile(const byte *base, const row_place *at, int n, int dim, raw8<T> *r)
{
    const int LOADS = loads<T, HB>(), lane = lane_id(), c = lane % L * 8;
    base += c * (T == PRHS_K_F32 ? 4 : 2);
    at += lane / L;
    if (n >= LOADS * (32 / L) && dim == L * 8) {
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            r[i] = load_raw<T>(base + (unsigned long long)(V ? at[i * (32 / L)].v : at[i * (32 / L)].k) * 16);
        return;
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const unsigned place = V ? at[i * (32 / L)].v : at[i * (32 / L)].k;
        r[i] = load_raw_or_zero<T>(base + (unsigned long long)place * 16, i * (32 / L) + lane / L < n && c < dim);
    }
}

/* The part of a segment's HB heads from the lanes' sums. */
template <int L, int HB>
DEV void put_part(const prhs_k_attend &a, const running<HB> &x, const segment &s, byte *ws)
{
    const i64 at = s.part;
    const int c = lane_id() % L * 8, dim = a.shape.dim;
#pragma unroll
    for (int h = 0; h < HB; h++) {
        head_record *const record = s.record < 0 ? nullptr : records_at(ws, a.work) + s.record + h;
        const float limit = lane_id() == 0 && record && h < s.heads ? record->limit : 0.0f; /* on its way while sums meet */
        const bool bad = __any_sync(FULL, x.bad[h]);
        const float sum = warp_sum(x.sum[h]), scale = part_scale(sum, bad);
        float o[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            o[i] = x.acc[h][i];
#pragma unroll
            for (int w = L; w < 32; w <<= 1)
                o[i] += __shfl_xor_sync(FULL, o[i], w);
            o[i] *= scale;
        }
        if (h >= s.heads)
            return;
        if (lane_id() < L && c < dim) {
            float4 *to = (float4 *)(FLOATS(ws, a.work.part_off) + (at + (i64)h * a.work.chunks) * dim + c);
            to[0] = make_float4(o[0], o[1], o[2], o[3]);
            to[1] = make_float4(o[4], o[5], o[6], o[7]);
        }
        if (lane_id() == 0) {
            const float lse = part_lse(x.top[h], sum, bad);
            FLOATS(ws, a.work.part_lse_off)[at + (i64)h * a.work.chunks] = lse;
            if (record)
                add_verdict(record, limit, lse);
        }
    }
}

/* The queries of the segment that begins, from shared memory, times the scale; heads past the last one repeat it. */
template <int L, int HB> DEV void take_queries(const prhs_k_attend &a, const byte *queries, int heads, float q[HB][8])
{
    const int c = lane_id() % L * 8, size = element(a.q.dtype);
#pragma unroll
    for (int h = 0; h < HB; h++) {
        const bool real = c < a.shape.dim;
        const byte *from = queries + (min(h, heads - 1) * a.shape.dim + (real ? c : 0)) * size;
        shared_eight(a.q.dtype, from, q[h]);
#pragma unroll
        for (int i = 0; i < 8; i++)
            q[h][i] = real ? q[h][i] * a.shape.scale : 0.0f;
    }
}

template <int HB> DEV void start(running<HB> *x)
{
#pragma unroll
    for (int h = 0; h < HB; h++) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            x->acc[h][i] = 0.0f;
        x->top[h] = LOWEST;
        x->sum[h] = 0.0f;
        x->bad[h] = false;
    }
}

#endif
