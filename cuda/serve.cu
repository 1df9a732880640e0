/* SPDX-License-Identifier: Apache-2.0 */
/* attend without tensor cores: any dtype; float32 arithmetic throughout. */
#include "serve.cuh"
#include "tile.cuh"

/* Rows in flight: fewer where sums take the registers; more warps make up for it. */
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

/* The warp's tiles of the chunk. */
template <int T, int L, int HB>
DEV void attend_tiles(const prhs_cu_serve &p, const job &j, int head, const float q[HB][8], typename tile<T, L, HB, loads<T, HB>()>::shared *sh,
                      running<HB> *x)
{
    typedef tile<T, L, HB, loads<T, HB>()> tl;
    const prhs_k_attend &a = p.attend;
    lookup<tl::TOKENS> next;
    int base = j.first + warp_id() * tl::TOKENS;
    look_up(a, j, base, head, &next);
    for (; base < j.last; base += WARPS * tl::TOKENS) {
        raw8<T> k[loads<T, HB>()], v[loads<T, HB>()];
        const int n = min(tl::TOKENS, j.last - base);
        put_places(next, sh->at);
        __syncwarp();
        load_rows<T, L, HB, loads<T, HB>()>(p.mem[PRHS_R_K], sh->at, false, n, a.shape.dim, k);
        load_rows<T, L, HB, loads<T, HB>()>(p.mem[PRHS_R_V], sh->at, true, n, a.shape.dim, v);
        look_up(a, j, base + WARPS * tl::TOKENS, head, &next);
        score_rows<T, L, HB, loads<T, HB>()>(k, q, sh->s);
        __syncwarp();
        soften<tl::TOKENS, HB>(x, sh->s, n);
        __syncwarp();
        add_values<T, L, HB>(x, v, sh->s);
    }
}

/* Adds the lanes' parts up: afterwards the first L lanes have the warp's values. */
template <int L, int HB> DEV void gather_warp(running<HB> *x)
{
#pragma unroll
    for (int h = 0; h < HB; h++) {
        x->sum[h] = warp_sum(x->sum[h]);
        x->bad[h] = __any_sync(FULL, x->bad[h]);
#pragma unroll
        for (int w = L; w < 32; w <<= 1)
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->acc[h][c] += __shfl_xor_sync(FULL, x->acc[h][c], w);
    }
}

/* Heads [h0, h0 + HB) of the unit over the job's chunk. */
template <int T, int L, int HB> DEV void attend_heads(const prhs_cu_serve &p, const job &j, int h0)
{
    __shared__ typename tile<T, L, HB, loads<T, HB>()>::shared tiles[WARPS];
    __shared__ meeting<HB> m;
    __shared__ __align__(16) float acc[WARPS * HB * L * 8];
    const prhs_k_attend &a = p.attend;
    const int heads = min(HB, a.shape.unit_heads - h0), head = j.u * a.shape.unit_heads + h0, lane = lane_id(), warp = warp_id();
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
    attend_tiles<T, L, HB>(p, j, head / a.shape.group, q, &tiles[warp], &x);
    gather_warp<L, HB>(&x);
#pragma unroll
    for (int h = 0; h < HB; h++) {
        if (lane < L) {
            float4 *to = (float4 *)(acc + (warp * HB + h) * L * 8 + lane * 8);
            to[0] = make_float4(x.acc[h][0], x.acc[h][1], x.acc[h][2], x.acc[h][3]);
            to[1] = make_float4(x.acc[h][4], x.acc[h][5], x.acc[h][6], x.acc[h][7]);
        }
        if (lane == 0) {
            m.top[warp][h] = x.top[h];
            m.sum[warp][h] = x.sum[h];
            m.bad[warp][h] = x.bad[h];
        }
    }
    __syncthreads();
    const i64 at = ((j.b * a.batch.rows + j.r) * a.shape.heads + head) * a.work.chunks + j.chunk;
    put_part<L * 8, HB>(a, m, acc, at, heads, p.mem[PRHS_R_WORK]);
    __syncthreads();
}

#define SERVE(t, T, l, hb, blocks) \
    KERNEL(prhs_serve_##t##_l##l##_h##hb, prhs_cu_serve, THREADS, blocks)                                               \
    { serve<hb>(p, [&](const job &j, int h0) { attend_heads<T, l, hb>(p, j, h0); }); }
#define SERVE_LANES(t, T, hb, blocks)     \
    SERVE(t, T, 8, hb, blocks)            \
    SERVE(t, T, 16, hb, blocks)           \
    SERVE(t, T, 32, hb, blocks)
/* 16-bit rows that heads share are for tensor cores. */
SERVE_LANES(f32, PRHS_K_F32, 1, 4)
SERVE_LANES(f32, PRHS_K_F32, 4, 3)
SERVE_LANES(f16, PRHS_K_F16, 1, 4)
SERVE_LANES(bf16, PRHS_K_BF16, 1, 4)
