/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score: every candidate key against the decision row's queries, with the normalisers and, on demand, the moments of the middle. A block
 * takes a chunk of absolute positions of a unit, its warps take turns over tiles, and their sums meet in shared memory.
 */
#include "tile.cuh"

/* Over scores that are neither NaN nor +inf; sum is the whole warp's, relative to top. */
struct logsum {
    float top, sum;
};

/* A chunk of work, the same for all threads of the block. */
struct job {
    entry e;
    prhs_set set;
    const int *pages;
    i64 b;
    int u, first, last, chunk;
    bool full;
};

/* What a warp has seen: inside the middle, and scored outside of it. */
template <int HB, bool M> struct running {
    logsum mid[HB], out[HB];
    float m1[M ? HB : 1][8], m2[M ? HB : 1][8], pivot[8];
};

DEV bool is_scored(const job &j, int pos) { return j.full || pos < j.set.sink_end || pos >= j.set.mid_begin; }
DEV bool is_inside(const job &j, int pos) { return pos >= j.set.mid_begin && pos < j.set.mid_end; }

/* Chunks of unit i, where no counts were kept. */
DEV int count_unit(const prhs_k_score &a, const byte *seqs, byte *ws, int i)
{
    const i64 b = i / a.shape.units;
    const entry e = entry_of(a.batch, seqs, b);
    if (e.kind == IDLE || !(a.modes >> set_at(ws, a.work, a.shape, b, i % a.shape.units)->mode & 1))
        return 0;
    return score_chunks(a.work, e.pos0 + 1);
}

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
            s[t * HB + h] = inside && bad ? NEVER : inside ? w : 0.0f;
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
    typedef tile<T, L, HB> tl;
#pragma unroll
    for (int i = 0; i < tl::LOADS; i++) {
        float y[8];
        const float *wt = w + (i * tl::ROWS + lane_id() / L) * HB;
        floats_of(k[i], y);
#pragma unroll
        for (int c = 0; c < 8; c++)
            y[c] -= x->pivot[c];
#pragma unroll
        for (int h = 0; h < HB; h++) {
            const float wh = wt[h];
#pragma unroll
            for (int c = 0; c < 8; c++) {
                const float wy = wh == 0.0f ? 0.0f : wh * y[c];
                x->m1[h][c] += wy;
                x->m2[h][c] += wh == 0.0f ? 0.0f : wy * y[c];
            }
        }
    }
}

template <int T, int L, int HB, bool M>
DEV void score_tiles(const prhs_cu_score &p, const job &j, int head, const float q[HB][8], float *const *out,
                     typename tile<T, L, HB>::shared *sh, running<HB, M> *x)
{
    typedef tile<T, L, HB> tl;
    const prhs_k_score &a = p.a;
    const int step = WARPS * tl::TOKENS, lane = lane_id();
    for (int base = j.first + warp_id() * tl::TOKENS; base < j.last; base += step) {
        /* Between the sinks and the middle (PSAW) nothing is scored, unless everything is. */
        if (!j.full && base >= j.set.sink_end && base + tl::TOKENS <= j.set.mid_begin)
            continue;
        raw8<T> k[tl::LOADS];
        for (int t = lane; t < tl::TOKENS; t += 32)
            if (base + t < j.last)
                sh->at[t] = place_of(a.kv, j.pages, base + t, head);
        __syncwarp();
        load_rows<T, L, HB>(p.mem[PRHS_R_K], sh->at, false, min(tl::TOKENS, j.last - base), a.shape.dim, k);
        score_rows<T, L, HB>(k, q, a.shape.scale, sh->s);
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

DEV logsum joined(const logsum *z, int count, int step)
{
    logsum r = { LOWEST, 0.0f };
    for (int i = 0; i < count; i++)
        r.top = fmaxf(r.top, z[i * step].top);
    for (int i = 0; i < count; i++)
        r.sum += z[i * step].sum * exp_weight(z[i * step].top - r.top);
    return r;
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
    __shared__ typename tile<T, L, HB>::shared tiles[WARPS];
    __shared__ logsum mid[WARPS][HB], out[WARPS][HB];
    const prhs_k_score &a = p.a;
    const int heads = min(HB, a.shape.unit_heads - h0), head = j.u * a.shape.unit_heads + h0;
    byte *ws = p.mem[PRHS_R_WORK];
    float q[HB][8], *rows[HB];
    running<HB, M> x;
    load_queries<L, HB>(a.q, p.mem[PRHS_R_Q], j.e.row0, head, heads, a.shape.dim, q);
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
    if ((int)threadIdx.x < heads) {
        const int h = threadIdx.x;
        const logsum z[2] = { joined(&mid[0][h], WARPS, HB), joined(&out[0][h], WARPS, HB) }, all = joined(z, 2, 1);
        ((float4 *)(ws + a.work.norm_off))[slot + (i64)h * a.work.score_chunks] = make_float4(all.top, all.sum, z[0].top, z[0].sum);
    }
    if constexpr (M)
        put_moments<L, HB>(a, &x, mid, heads, slot, ws);
    __syncthreads();
}

template <int T, int L, int HB, bool M> DEV void score(const prhs_cu_score &p)
{
    __shared__ int prefix[THREADS];
    grid_begin();
    const prhs_k_score &a = p.a;
    byte *ws = p.mem[PRHS_R_WORK], *seqs = p.mem[PRHS_R_SEQS];
    const bool kept = a.work.score_count_off != PRHS_NONE && !a.full;
    const int *counts = kept ? INTS(ws, a.work.score_count_off) : nullptr;
    take_turns(
        a.batch.max_seqs * a.shape.units, prefix, [&](int i) { return counts ? counts[i] : count_unit(a, seqs, ws, i); },
        [&](int i, int item) {
            job j;
            j.b = i / a.shape.units;
            j.u = i % a.shape.units;
            j.e = entry_of(a.batch, seqs, j.b);
            j.set = *set_at(ws, a.work, a.shape, j.b, j.u);
            j.pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], j.b);
            j.full = a.full;
            j.chunk = item;
            const int n = j.e.pos0 + 1, size = chunk_tokens(n, a.work.score_chunk_min, a.work.score_chunks);
            j.first = item * size;
            j.last = min(j.first + size, n);
            for (int h0 = 0; h0 < a.shape.unit_heads; h0 += HB)
                score_heads<T, L, HB, M>(p, j, h0);
        });
}

#define SCORE(t, T, l, hb, blocks) \
    KERNEL(prhs_score_##t##_l##l##_h##hb, prhs_cu_score, THREADS, blocks) { score<T, l, hb, false>(p); }
#define SCORE_MOMENTS(t, T, l, hb, blocks) \
    KERNEL(prhs_score_##t##_l##l##_h##hb##_m, prhs_cu_score, THREADS, blocks) { score<T, l, hb, true>(p); }
/* With moments at most 4 heads together: 16 sums a head and lane. */
#define SCORE_HEADS(t, T, l)        \
    SCORE(t, T, l, 1, 6)            \
    SCORE(t, T, l, 2, 5)            \
    SCORE(t, T, l, 4, 4)            \
    SCORE(t, T, l, 8, 3)            \
    SCORE_MOMENTS(t, T, l, 1, 5)    \
    SCORE_MOMENTS(t, T, l, 2, 3)    \
    SCORE_MOMENTS(t, T, l, 4, 2)
#define SCORE_LANES(t, T)     \
    SCORE_HEADS(t, T, 4)      \
    SCORE_HEADS(t, T, 8)      \
    SCORE_HEADS(t, T, 16)     \
    SCORE_HEADS(t, T, 32)
SCORE_LANES(f32, PRHS_K_F32)
SCORE_LANES(f16, PRHS_K_F16)
SCORE_LANES(bf16, PRHS_K_BF16)
