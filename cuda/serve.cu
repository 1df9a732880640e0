/* SPDX-License-Identifier: Apache-2.0 */
/* attend without tensor cores: any dtype; float32 arithmetic throughout. */
#include "serve.cuh"
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
        const float *wt = w + (i * tl::ROWS + lane_id() / L) * HB;
#pragma unroll
        for (int h = 0; h < HB; h++) {
            const float wh = wt[h];
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->acc[h][c] += wh * y[c];
        }
    }
}

/* The tiles of the chunk. While scores become weights the next tile's keys come, while values are added its values. */
template <int T, int L, int HB>
DEV void attend_tiles(const prhs_cu_serve &p, const job &j, int head, const float q[HB][8], typename tile<T, L, HB, loads<T, HB>()>::shared *sh,
                      running<HB> *x)
{
    const int LOADS = loads<T, HB>();
    typedef tile<T, L, HB, LOADS> tl;
    const prhs_k_attend &a = p.attend;
    const byte *keys = p.mem[PRHS_R_K], *values = p.mem[PRHS_R_V];
    raw8<T> k[LOADS], v[LOADS];
    lookup<tl::TOKENS> next;
    int base = j.first;
    look_up(a, j, base, head, &next);
    put_places(next, sh->at);
    __syncwarp();
    load_rows<T, L, HB, LOADS>(keys, sh->at, false, j.last - base, a.shape.dim, k);
    load_rows<T, L, HB, LOADS>(values, sh->at, true, j.last - base, a.shape.dim, v);
    look_up(a, j, base + tl::TOKENS, head, &next);
    __syncwarp();
    for (;;) {
        const int n = j.last - base, left = n - tl::TOKENS;
        score_rows<T, L, HB, LOADS>(k, q, sh->s);
        put_places(next, sh->at);
        __syncwarp();
        if (left > 0) {
            load_rows<T, L, HB, LOADS>(keys, sh->at, false, left, a.shape.dim, k);
            look_up(a, j, base + 2 * tl::TOKENS, head, &next);
        }
        soften<tl::TOKENS, HB>(x, sh->s, n);
        __syncwarp();
        add_values<T, L, HB>(x, v, sh->s);
        __syncwarp();
        if (left <= 0)
            return;
        load_rows<T, L, HB, LOADS>(values, sh->at, true, left, a.shape.dim, v);
        __syncwarp();
        base += tl::TOKENS;
    }
}

/* The part of HB heads from the lanes' sums, of which `heads` count. */
template <int L, int HB> DEV void put_part(const prhs_k_attend &a, const running<HB> &x, i64 at, int heads, byte *ws)
{
    const int c = lane_id() % L * 8, dim = a.shape.dim;
#pragma unroll
    for (int h = 0; h < HB; h++) {
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
        if (h >= heads)
            return;
        if (lane_id() < L && c < dim) {
            float4 *to = (float4 *)(FLOATS(ws, a.work.part_off) + (at + (i64)h * a.work.chunks) * dim + c);
            to[0] = make_float4(o[0], o[1], o[2], o[3]);
            to[1] = make_float4(o[4], o[5], o[6], o[7]);
        }
        if (lane_id() == 0)
            FLOATS(ws, a.work.part_lse_off)[at + (i64)h * a.work.chunks] = part_lse(x.top[h], sum, bad);
    }
}

/* Heads [h0, h0 + HB) of the unit over the job's chunk. */
template <int T, int L, int HB>
DEV void attend_heads(const prhs_cu_serve &p, const job &j, int h0, typename tile<T, L, HB, loads<T, HB>()>::shared *sh)
{
    const prhs_k_attend &a = p.attend;
    const int heads = min(HB, a.shape.unit_heads - h0), head = j.u * a.shape.unit_heads + h0;
    float q[HB][8];
    running<HB> x;
    load_queries<L, HB>(a.q, p.mem[PRHS_R_Q], j.e.row0 + j.r, head, heads, a.shape.dim, a.shape.scale, q);
#pragma unroll
    for (int h = 0; h < HB; h++) {
        x.top[h] = LOWEST;
        x.sum[h] = 0.0f;
        x.bad[h] = false;
#pragma unroll
        for (int c = 0; c < 8; c++)
            x.acc[h][c] = 0.0f;
    }
    attend_tiles<T, L, HB>(p, j, (int)((unsigned)head / (unsigned)a.shape.group), q, sh, &x);
    put_part<L, HB>(a, x, part_index(a, j, head), heads, p.mem[PRHS_R_WORK]);
}

template <int T, int L, int HB> DEV void serve(const prhs_cu_serve &p)
{
    __shared__ typename tile<T, L, HB, loads<T, HB>()>::shared tiles[WARPS];
    __shared__ int prefix[TURNS_EACH * THREADS];
    const int *counts = kept_counts(p);
    grid_begin();
    turns t = chunks_begin(p);
    while (next_window(p, &t, counts, prefix)) {
        int i, item;
        while (walk_next(&t, prefix, &i, &item)) {
            job j;
            if (find_job(p, i, item, &j))
                for (int h0 = 0; h0 < p.attend.shape.unit_heads; h0 += HB)
                    attend_heads<T, L, HB>(p, j, h0, &tiles[warp_id()]);
        }
    }
}

#define SERVE(t, T, l, hb, blocks)     KERNEL(prhs_serve_##t##_l##l##_h##hb, prhs_cu_serve, THREADS, blocks) { serve<T, l, hb>(p); }
#define SERVE_LANES(t, T, hb, blocks)         SERVE(t, T, 8, hb, blocks)                SERVE(t, T, 16, hb, blocks)               SERVE(t, T, 32, hb, blocks)
/* 16-bit rows that heads share are for tensor cores. */
SERVE_LANES(f32, PRHS_K_F32, 1, 3)
SERVE_LANES(f32, PRHS_K_F32, 4, 2)
SERVE_LANES(f16, PRHS_K_F16, 1, 3)
SERVE_LANES(bf16, PRHS_K_BF16, 1, 3)
