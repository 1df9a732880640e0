/* SPDX-License-Identifier: Apache-2.0 */
/* score without tensor cores: any dtype; float32 arithmetic throughout. */
#include "score.cuh"
#include "tile.cuh"
#include "values.cuh"

#define OUTSIDE (-1.0f) /* the weight of a token that is not in the middle */

/* Rows in flight. */
template <int T, int HB, bool M> DEV constexpr int loads() { return 4; }

/* What a warp has seen: inside the middle, and scored outside of it. */
template <int HB, bool M> struct running {
    logsum mid[HB], out[HB];
    float m1[M ? HB : 1][8], m2[M ? HB : 1][8], pivot[8];
};

/* Adds a warp's lanes' scores; s is NOTHING where a lane has none. Returns the weight relative to the new top; *scale: of the old sum. */
DEV float add_scores(logsum *z, float s, float *scale)
{
    const float top = fmaxf(warp_top(s), z->top), w = exp_weight(s - top);
    *scale = exp_weight(z->top - top);
    z->sum = z->sum * *scale + warp_sum(w);
    z->top = top;
    return w;
}

/* A tile of 32 tokens at most: writes the scores out, updates the sums, leaves the middle's weights in s. */
template <int TOKENS, int HB, bool M> DEV void take_scores(const job &j, running<HB, M> *x, float *s, int base, int at, float *const *out)
{
    const int t = at + lane_id(), pos = base + t;
    const bool mine = t < TOKENS && pos < j.last && is_scored(j, pos), inside = mine && is_inside(j, pos);
    const bool any_in = __any_sync(FULL, inside), any_out = __any_sync(FULL, mine && !inside);
#pragma unroll
    for (int h = 0; h < HB; h++) {
        const float v = mine ? s[t * HB + h] : NOTHING;
        const bool bad = mine && bad_score(v);
        float scale = 1.0f, w = 0.0f;
        if (mine && out[h])
            out[h][pos] = v;
        if (any_out)
            add_scores(&x->out[h], mine && !inside && !bad ? v : NOTHING, &scale);
        scale = 1.0f;
        if (any_in)
            w = add_scores(&x->mid[h], inside && !bad ? v : NOTHING, &scale);
        if (!M)
            continue;
        if (t < TOKENS)
            s[t * HB + h] = inside ? (bad ? NEVER : w) : OUTSIDE;
        if (scale != 1.0f) {
#pragma unroll
            for (int c = 0; c < 8; c++) {
                x->m1[M ? h : 0][c] *= scale;
                x->m2[M ? h : 0][c] *= scale;
            }
        }
    }
}

/* The middle's rows of the tile, weighted. */
template <int T, int L, int HB> DEV void add_moments(running<HB, true> *x, const raw8<T> *k, const float *w)
{
#pragma unroll
    for (int i = 0; i < loads<T, HB, true>(); i++) {
        float y[8], yy[8], wh[HB];
        const float *wt = w + (i * (32 / L) + lane_id() / L) * HB;
        const bool outside = wt[0] == OUTSIDE; /* its row may hold anything */
        floats_of(k[i], y);
#pragma unroll
        for (int h = 0; h < HB; h++)
            wh[h] = outside ? 0.0f : wt[h];
#pragma unroll
        for (int c = 0; c < 8; c++) {
            y[c] = outside ? 0.0f : y[c] - x->pivot[c];
            yy[c] = y[c] * y[c];
#pragma unroll
            for (int h = 0; h < HB; h++) {
                x->m1[h][c] += wh[h] * y[c];
                x->m2[h][c] += wh[h] * yy[c];
            }
        }
    }
}

template <int T, int L, int HB, bool M>
DEV void score_tiles(const prhs_cu_score &p, const job &j, int head, const float q[HB][8], float *const *out,
                     typename tile<T, L, HB, loads<T, HB, M>()>::shared *sh, running<HB, M> *x)
{
    typedef tile<T, L, HB, loads<T, HB, M>()> tl;
    const prhs_k_score &a = p.a;
    const int step = WARPS * tl::TOKENS, lane = lane_id();
    for (int base = j.first + warp_id() * tl::TOKENS; base < j.last; base += step) {
        /* Between the sinks and the middle (PSAW) nothing is scored, unless everything is. */
        if (!j.full && base >= j.set.sink_end && base + tl::TOKENS <= j.set.mid_begin)
            continue;
        raw8<T> k[loads<T, HB, M>()];
        for (int t = lane; t < tl::TOKENS; t += 32)
            sh->at[t] = place_of(a.kv, j.pages, min(base + t, j.last - 1), head);
        __syncwarp();
        load_rows<T, L, HB, loads<T, HB, M>()>(p.mem[PRHS_R_K], sh->at, false, min(tl::TOKENS, j.last - base), a.shape.dim, k);
        score_rows<T, L, HB, loads<T, HB, M>()>(k, q, sh->s);
        __syncwarp();
#pragma unroll
        for (int at = 0; at < tl::TOKENS; at += 32)
            take_scores<tl::TOKENS, HB, M>(j, x, sh->s, base, at, out);
        __syncwarp();
        if constexpr (M)
            if (base < j.set.mid_end && base + tl::TOKENS > j.set.mid_begin)
                add_moments<T, L, HB>(x, k, sh->s);
        __syncwarp();
    }
}

/* The key of the middle's last token; zeros without a middle. */
template <int T, int L> DEV void load_pivot(const prhs_cu_score &p, const job &j, int head, float pivot[8])
{
    const int c = lane_id() % L * 8;
    raw8<T> r = zero_raw<T>();
    if (j.set.mid_end > j.set.mid_begin && c < p.a.shape.dim)
        r = load_raw<T>(p.mem[PRHS_R_K] + place_of(p.a.kv, j.pages, j.set.mid_end - 1, head).k + c * (T == PRHS_K_F32 ? 4 : 2));
    floats_of(r, pivot);
}

/* Sums of the warps' moments: lanes past a row's first L hold other rows' parts. */
template <int L, int HB> DEV void put_moments(const prhs_k_score &a, running<HB, true> *x, const logsum (*mid)[HB], int heads, i64 slot, byte *ws)
{
    __shared__ __align__(16) float sums[WARPS * 2 * L * 8];
    const int lane = lane_id(), warp = warp_id(), dim = a.shape.dim;
    for (int h = 0; h < HB; h++) {
        float top = LOWEST;
        for (int w = 0; w < WARPS; w++)
            top = fmaxf(top, mid[w][h].top);
        const float f = exp_weight(x->mid[h].top - top);
#pragma unroll
        for (int c = 0; c < 8; c++) {
            float m1 = x->m1[h][c] * f, m2 = x->m2[h][c] * f;
#pragma unroll
            for (int w = L; w < 32; w <<= 1) {
                m1 += __shfl_xor_sync(FULL, m1, w);
                m2 += __shfl_xor_sync(FULL, m2, w);
            }
            if (lane < L) {
                sums[(warp * 2) * L * 8 + lane * 8 + c] = m1;
                sums[(warp * 2 + 1) * L * 8 + lane * 8 + c] = m2;
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < 2 * dim && h < heads; i += THREADS) {
            const int m = i >= dim, d = i - m * dim;
            float s = 0.0f;
            for (int w = 0; w < WARPS; w++)
                s += sums[(w * 2 + m) * L * 8 + d];
            FLOATS(ws, a.work.mom_off)[(slot + (i64)h * a.work.score_chunks) * 2 * dim + i] = s;
        }
        __syncthreads();
    }
}

/* Heads [h0, h0 + HB) of the unit over the job's chunk. */
template <int T, int L, int HB, bool M> DEV void score_heads(const prhs_cu_score &p, const job &j, int h0)
{
    __shared__ typename tile<T, L, HB, loads<T, HB, M>()>::shared tiles[WARPS];
    __shared__ logsum mid[WARPS][HB], out[WARPS][HB];
    const prhs_k_score &a = p.a;
    const int heads = min(HB, a.shape.unit_heads - h0), head = j.u * a.shape.unit_heads + h0;
    byte *ws = p.mem[PRHS_R_WORK];
    float q[HB][8], *rows[HB];
    running<HB, M> x;
    load_queries<L, HB>(a.q, p.mem[PRHS_R_Q], j.e.row0, head, heads, a.shape.dim, a.shape.scale, q);
#pragma unroll
    for (int h = 0; h < HB; h++) {
        rows[h] = h < heads ? FLOATS(ws, a.work.score_off) + (j.b * a.shape.heads + head + h) * a.work.score_stride : nullptr;
        x.mid[h] = x.out[h] = logsum{ LOWEST, 0.0f };
#pragma unroll
        for (int c = 0; c < 8; c++)
            x.m1[M ? h : 0][c] = x.m2[M ? h : 0][c] = 0.0f;
    }
    if (M)
        load_pivot<T, L>(p, j, head / a.shape.group, x.pivot);
    score_tiles<T, L, HB, M>(p, j, head / a.shape.group, q, rows, &tiles[warp_id()], &x);
    if (lane_id() == 0) {
#pragma unroll
        for (int h = 0; h < HB; h++) {
            mid[warp_id()][h] = x.mid[h];
            out[warp_id()][h] = x.out[h];
        }
    }
    __syncthreads();
    const i64 slot = (j.b * a.shape.heads + head) * a.work.score_chunks + j.chunk;
    put_norms<HB>(a, mid, out, heads, slot, ws);
    if constexpr (M)
        put_moments<L, HB>(a, &x, mid, heads, slot, ws);
    __syncthreads();
}

#define SCORE(t, T, l, hb, blocks) \
    KERNEL(prhs_score_##t##_l##l##_h##hb, prhs_cu_score, THREADS, blocks)                                              \
    { score<hb, false>(p, [&](const job &j, int h0) { score_heads<T, l, hb, false>(p, j, h0); }); }
#define SCORE_MOMENTS(t, T, l, hb, blocks) \
    KERNEL(prhs_score_##t##_l##l##_h##hb##_m, prhs_cu_score, THREADS, blocks)                                              \
    { score<hb, true>(p, [&](const job &j, int h0) { score_heads<T, l, hb, true>(p, j, h0); }); }
/* Keys that heads share are for tensor cores; float32 ones are scored head by head. */
#define SCORE_HEADS(t, T, l)        \
    SCORE(t, T, l, 1, 8)            \
    SCORE_MOMENTS(t, T, l, 1, 5)
#define SCORE_LANES(t, T)     \
    SCORE_HEADS(t, T, 8)      \
    SCORE_HEADS(t, T, 16)     \
    SCORE_HEADS(t, T, 32)
SCORE_LANES(f32, PRHS_K_F32)
SCORE_LANES(f16, PRHS_K_F16)
SCORE_LANES(bf16, PRHS_K_BF16)

/* By now the verdicts are in the counts. */
KERNEL(prhs_values, prhs_cu_score, THREADS, 4)
{
    score<VALUE_HEADS, false>(p, [&](const job &j, int h0) { value_heads(p, j, h0); });
}
