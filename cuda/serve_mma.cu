/* SPDX-License-Identifier: Apache-2.0 */
/* attend on tensor cores: float16 and bfloat16 K/V, for units whose heads share their rows. */
#include "mma.cuh"
#include "serve.cuh"

/* What a warp has seen of NT * 4 heads: a lane keeps head c of each four, over channels (8 j + g) * 8 ... + 7. */
template <int DP, int NT> struct running {
    float top[NT], sum[NT]; /* sum: a part a lane */
    bool bad[NT];
    float o[NT][DP / 64][8];
};

/* Turns scores of rows g and g + 8 into weights relative to the running maximum. */
template <int DP, int NT> DEV void soften(running<DP, NT> *x, int nt, float s[2], int n)
{
    const int g = lane_id() >> 2;
    float m = x->top[nt];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        s[i] = g + 8 * i < n ? s[i] : NOTHING;
        x->bad[nt] |= bad_score(s[i]);
        m = fmaxf(m, bad_score(s[i]) ? LOWEST : s[i]);
    }
    m = column_max(m);
    const float scale = exp_weight(x->top[nt] - m);
    x->top[nt] = m;
    s[0] = exp_weight(s[0] - m);
    s[1] = exp_weight(s[1] - m);
    x->sum[nt] = x->sum[nt] * scale + (s[0] + s[1]);
    if (__any_sync(FULL, scale != 1.0f)) {
#pragma unroll
        for (int j = 0; j < DP / 64; j++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                x->o[nt][j][i] *= scale;
    }
}

/* The warp's tiles of the chunk. */
template <int T, int DP, int NT>
DEV void attend_tiles(const prhs_cu_serve &p, const job &j, int head, const query_terms<T, DP> (&q)[NT], place *at, running<DP, NT> *x)
{
    const prhs_k_attend &a = p.attend;
    lookup<ROWS> next;
    int base = j.first + warp_id() * ROWS;
    look_up(a, j, base, head, &next);
    for (; base < j.last; base += WARPS * ROWS) {
        key_rows<DP> k;
        value_rows<DP> v;
        weight_terms<T> w[NT];
        const int n = min(ROWS, j.last - base);
        put_places(next, at);
        __syncwarp();
        load_keys(p.mem[PRHS_R_K], at, n, a.shape.dim, &k);
        load_values(p.mem[PRHS_R_V], at, n, a.shape.dim, &v);
        __syncwarp();
        look_up(a, j, base + WARPS * ROWS, head, &next);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float s[2];
            score_keys<T, DP>(k, q[nt], s);
            s[0] *= a.shape.scale;
            s[1] *= a.shape.scale;
            soften(x, nt, s, n);
            spread_weights<T>(s, &w[nt]);
        }
        add_weighted<T, DP, NT>(v, w, x->o);
    }
}

/* The warp's values into shared memory. */
template <int DP, int NT> DEV void put_running(running<DP, NT> *x, meeting<NT * 4> *m, float *acc)
{
    const int g = lane_id() >> 2, c = lane_id() & 3, warp = warp_id();
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const int h = nt * 4 + c;
        x->sum[nt] = column_sum(x->sum[nt]);
        x->bad[nt] = column_any(x->bad[nt]);
#pragma unroll
        for (int j = 0; j < DP / 64; j++) {
            const float *o = x->o[nt][j];
            float4 *to = (float4 *)(acc + (warp * NT * 4 + h) * DP + (j * 8 + g) * 8);
            to[0] = make_float4(o[0], o[1], o[2], o[3]);
            to[1] = make_float4(o[4], o[5], o[6], o[7]);
        }
        if (g == 0) {
            m->top[warp][h] = x->top[nt];
            m->sum[warp][h] = x->sum[nt];
            m->bad[warp][h] = x->bad[nt];
        }
    }
}

/* Heads [h0, h0 + 4 NT) of the unit over the job's chunk. */
template <int T, int DP, int NT> DEV void attend_heads(const prhs_cu_serve &p, const job &j, int h0)
{
    __shared__ place at[WARPS][ROWS];
    __shared__ meeting<NT * 4> m;
    __shared__ __align__(16) float acc[WARPS * NT * 4 * DP];
    const prhs_k_attend &a = p.attend;
    const int heads = min(NT * 4, a.shape.unit_heads - h0), head = j.u * a.shape.unit_heads + h0;
    query_terms<T, DP> q[NT];
    running<DP, NT> x;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        /* Fours of heads past the unit repeat its last head. */
        const int first = min(nt * 4, heads - 1);
        load_query_terms<T, DP>(a.q, p.mem[PRHS_R_Q], j.e.row0 + j.r, head + first, heads - first, a.shape.dim, &q[nt]);
        x.top[nt] = LOWEST;
        x.sum[nt] = 0.0f;
        x.bad[nt] = false;
#pragma unroll
        for (int i = 0; i < DP / 64; i++)
#pragma unroll
            for (int e = 0; e < 8; e++)
                x.o[nt][i][e] = 0.0f;
    }
    attend_tiles<T, DP, NT>(p, j, head / a.shape.group, q, at[warp_id()], &x);
    put_running<DP, NT>(&x, &m, acc);
    __syncthreads();
    const i64 slot = ((j.b * a.batch.rows + j.r) * a.shape.heads + head) * a.work.chunks + j.chunk;
    put_part<DP, NT * 4>(a, m, acc, slot, heads, p.mem[PRHS_R_WORK]);
    __syncthreads();
}

#define SERVE(t, T, dp, nt, hb, blocks)                                        \
    KERNEL(prhs_serve_##t##_d##dp##_h##hb, prhs_cu_serve, THREADS, blocks)     \
    { serve<hb>(p, [&](const job &j, int h0) { attend_heads<T, dp, nt>(p, j, h0); }); }
#define SERVE_DIMS(t, T)         \
    SERVE(t, T, 64, 1, 4, 4)     \
    SERVE(t, T, 64, 2, 8, 4)     \
    SERVE(t, T, 128, 1, 4, 3)    \
    SERVE(t, T, 128, 2, 8, 2)    \
    SERVE(t, T, 256, 1, 4, 2)
SERVE_DIMS(f16, PRHS_K_F16)
SERVE_DIMS(bf16, PRHS_K_BF16)
