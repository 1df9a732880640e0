/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score without tensor cores: any dtype, head by head; float32 arithmetic throughout. A warp takes 32 rows at a time, in batches: L lanes
 * hold a row (8 channels each), a lane has loads<T>() rows of a batch, and while it works on these the next batch is on its way. A batch's
 * sums over channels end in L / loads<T>() lanes that have the same; after all batches each lane has kept a row of its own.
 */
#include "score.cuh"
#include "tile.cuh"
#include "values.cuh"

/* Rows of a batch that a lane has a part of. */
template <int T> DEV constexpr int loads() { return T == PRHS_K_F32 ? 2 : 4; }

/* What a warp has seen: a lane's scores inside the middle, and outside of it; the middle's moments, relative to the warp's top. */
template <bool M> struct running {
    logsum mid, rest;
    float top, m1[M ? 8 : 1], m2[M ? 8 : 1], pivot[M ? 8 : 1];
};

/* The row of each 32 whose score a lane ends up with: a batch's rows lie together, and so do those of a load. */
template <int T, int L> DEV int row_of_lane()
{
    const int same = L / loads<T>(), in = lane_id() % L;
    return (in % same * loads<T>() + in / same) * (32 / L) + lane_id() / L;
}

/* Where the lane's row lies: the page's index in the cache, and the row's in the page. */
struct found {
    int page, in;
};

/* What is needed of a job all the time. */
struct reach {
    const int *pages;
    int cut, gap, last, end, whole_begin, whole_end; /* whole: rows of the middle, without a cut among them */
};

DEV reach reach_of(const score_job &j)
{
    return reach{ j.pages, j.cut, j.gap, j.last, j.end, whole_begin(j), whole_end(j) };
}

DEV int position(const reach &r, int row) { return row + (row >= r.cut ? r.gap : 0); }

DEV found find_row(const prhs_k_score &a, const reach &r, int row)
{
    const int pos = min(position(r, row), r.last - 1);
    const unsigned page = page_index(a.kv, pos);
    return found{ __ldg(r.pages + page), pos - (int)page * a.kv.page_size };
}

template <int T> DEV const byte *address_of(const prhs_k_kv &kv, const byte *keys, const found &f)
{
    return keys + key_offset(kv, f.page, f.in) * (T == PRHS_K_F32 ? 4 : 2);
}

/* Rows of batch `batch`; `at` is where the lane's row lies. Lanes past a row's channels have zeros. */
template <int T, int L> DEV void load_batch(const byte *at, int batch, bool real, raw8<T> (&k)[loads<T>()])
{
    const int c = lane_id() % L * 8 * (T == PRHS_K_F32 ? 4 : 2);
#pragma unroll
    for (int i = 0; i < loads<T>(); i++)
        k[i] = load_raw_or_zero<T>(address_of_lane(at, i * (L / loads<T>()) + batch, L) + c, real);
}

/* The score of one of the batch's rows: that which would be the lane's if it kept this batch's. */
template <int T, int L> DEV float score_batch(const raw8<T> (&k)[loads<T>()], const float (&q)[8])
{
    float part[loads<T>()];
#pragma unroll
    for (int i = 0; i < loads<T>(); i++) {
        float x[8];
        floats_of(k[i], x);
        float d = x[0] * q[0];
#pragma unroll
        for (int c = 1; c < 8; c++)
            d += x[c] * q[c];
        part[i] = d;
    }
    int off = 0;
    spread_sum<loads<T>(), L>(part, &off);
    return part[0];
}

/* A lane's score; NOTHING where it does not count. */
DEV void take(logsum *z, float s)
{
    const float top = fmaxf(z->top, s);
    z->sum = z->sum * exp_weight(z->top - top) + exp_weight(s - top);
    z->top = top;
}

/* The lanes' sums become one. */
DEV logsum gathered(logsum z)
{
    const float top = warp_top(z.top);
    z.sum = warp_sum(z.sum * exp_weight(z.top - top));
    z.top = top;
    return z;
}

/* The lanes' scores of 32 rows. */
template <bool M> DEV void take_scores(const score_job *jobs, int pos, bool whole, float s, float *out, running<M> *x)
{
    const bool bad = bad_score(s);
    if (whole) {
        out[pos] = s;
        take(&x->mid, bad ? NOTHING : s);
        return;
    }
    const score_job &j = jobs[opaque(warp_id())];
    const bool mine = pos < j.last && is_scored(j, pos), inside = mine && is_inside(j, pos);
    if (mine)
        out[pos] = s;
    take(&x->mid, inside && !bad ? s : NOTHING);
    take(&x->rest, mine && !inside && !bad ? s : NOTHING);
}

/* The middle's rows of a batch, weighted; s: the score of the row at `pos`. */
template <int T, int L>
DEV void add_moments(const score_job *jobs, int pos, bool whole, float s, const raw8<T> (&k)[loads<T>()], running<true> *x)
{
    bool inside = true;
    const bool bad = bad_score(s);
    if (!whole) {
        const score_job &j = jobs[opaque(warp_id())];
        inside = pos < j.last && is_inside(j, pos);
    }
    const float top = fmaxf(x->top, warp_top(inside && !bad ? s : NOTHING));
    if (top > x->top) {
        const float scale = exp_weight(x->top - top);
#pragma unroll
        for (int c = 0; c < 8; c++) {
            x->m1[c] *= scale;
            x->m2[c] *= scale;
        }
        x->top = top;
    }
    const float w = !inside ? NOT_INSIDE : bad ? NEVER : exp_weight(s - top);
#pragma unroll
    for (int i = 0; i < loads<T>(); i++) {
        float y[8], wi = __shfl_sync(FULL, w, i * (L / loads<T>()), L);
        const bool outside = !whole && wi == NOT_INSIDE; /* the row may hold anything */
        wi = outside ? 0.0f : wi;
        floats_of(k[i], y);
#pragma unroll
        for (int c = 0; c < 8; c++) {
            y[c] = outside ? 0.0f : y[c] - x->pivot[c];
            x->m1[c] += wi * y[c];
            x->m2[c] += wi * (y[c] * y[c]);
        }
    }
}

template <int T, int L, bool M>
DEV void score_rows(const prhs_k_score &a, const score_job *jobs, const byte *keys, const float (&q)[8], float *out, running<M> *x)
{
    const score_job &j = jobs[warp_id()];
    const reach r = reach_of(j);
    const int mine = row_of_lane<T, L>(), batches = L / loads<T>();
    const bool real = lane_id() % L * 8 < a.shape.dim;
    const byte *at = address_of<T>(a.kv, keys, find_row(a, r, j.begin + mine));
    raw8<T> k[loads<T>()];
    load_batch<T, L>(at, 0, real, k);
#pragma unroll 1
    for (int row = j.begin; row < r.end; row += 32) {
        const found then = find_row(a, r, row + 32 + mine); /* past the end: the last row once more */
        const bool whole = row >= r.whole_begin && row + 32 <= r.whole_end;
        float s = 0.0f;
#pragma unroll
        for (int b = 0; b < batches; b++) {
            raw8<T> next[loads<T>()];
            if (b == batches - 1)
                at = address_of<T>(a.kv, keys, then);
            load_batch<T, L>(at, b == batches - 1 ? 0 : b + 1, real, next);
            const float si = score_batch<T, L>(k, q);
            s = lane_id() % batches == b ? si : s;
            if constexpr (M) {
                const int from = (lane_id() % L / batches + b * loads<T>()) * (32 / L) + lane_id() / L;
                add_moments<T, L>(jobs, position(r, row + from), whole, si, k, x);
            }
#pragma unroll
            for (int i = 0; i < loads<T>(); i++)
                k[i] = next[i];
        }
        take_scores<M>(jobs, position(r, row + mine), whole, s, out, x);
    }
}

/*
 * A head's query, 8 channels a lane, times the scale: rounded here, channel by channel, and not once more where the score is as large as it
 * gets.
 */
template <int L> DEV void load_query(const prhs_k_score &a, byte *q, i64 row, int head, float out[8])
{
    const int c = lane_id() % L * 8;
    if (c < a.shape.dim) {
        load_eight(a.q.dtype, row_at(a.q, q, row, head) + c * element(a.q.dtype), out);
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] *= a.shape.scale;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = 0.0f;
    }
}

/* The key of the middle's last token; zeros without a middle. */
template <int T, int L> DEV void load_pivot(const prhs_k_score &a, const score_job &j, const byte *keys, float pivot[8])
{
    const int c = lane_id() % L * 8;
    raw8<T> r = zero_raw<T>();
    if (j.mid_end > j.mid_begin && c < a.shape.dim)
        r = load_raw<T>(keys + place_in(a.kv, j.pages, j.mid_end - 1, T == PRHS_K_F32 ? 4 : 2).k + c * (T == PRHS_K_F32 ? 4 : 2));
    floats_of(r, pivot);
}

/* The moments: lanes past a row's first L hold other rows' parts. */
template <int L> DEV void put_moments(const prhs_k_score &a, running<true> *x, float *out)
{
    const int c = lane_id() * 8, dim = a.shape.dim;
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int w = L; w < 32; w <<= 1) {
            x->m1[i] += __shfl_xor_sync(FULL, x->m1[i], w);
            x->m2[i] += __shfl_xor_sync(FULL, x->m2[i], w);
        }
    if (lane_id() >= L || c >= dim)
        return;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        *(float4 *)(out + c + i) = make_float4(x->m1[i], x->m1[i + 1], x->m1[i + 2], x->m1[i + 3]);
        *(float4 *)(out + dim + c + i) = make_float4(x->m2[i], x->m2[i + 1], x->m2[i + 2], x->m2[i + 3]);
    }
}

/* Head h of the unit over the chunk. */
template <int T, int L, bool M> DEV void score_head(const prhs_cu_score &p, const score_job *jobs, int h)
{
    const prhs_k_score &a = p.a;
    const score_job &j = jobs[warp_id()];
    const byte *keys = p.mem[PRHS_R_K] + a.kv.k_off + kv_head(a, j, h) * a.kv.k_head * (T == PRHS_K_F32 ? 4 : 2);
    byte *ws = p.mem[PRHS_R_WORK];
    float q[8];
    running<M> x;
    load_query<L>(a, p.mem[PRHS_R_Q], j.query, j.head + h, q);
    x.mid = x.rest = logsum{ LOWEST, 0.0f };
    if constexpr (M) {
        x.top = LOWEST;
#pragma unroll
        for (int c = 0; c < 8; c++)
            x.m1[c] = x.m2[c] = 0.0f;
        load_pivot<T, L>(a, j, keys, x.pivot);
    }
    score_rows<T, L, M>(a, jobs, keys, q, FLOATS(ws, a.work.score_off) + (j.row + h) * a.work.score_stride, &x);
    const score_job &late = jobs[opaque(warp_id())];
    const i64 slot = slot_of(a, late, h);
    x.mid = gathered(x.mid);
    if (!is_whole(late, late.begin, late.end - late.begin))
        x.rest = gathered(x.rest);
    if (lane_id() == 0)
        put_norm(a, slot, x.mid, x.rest, ws);
    if constexpr (M)
        put_moments<L>(a, &x, FLOATS(ws, a.work.mom_off) + slot * 2 * a.shape.dim);
}

template <int T, int L, bool M> DEV void score_heads(const prhs_cu_score &p)
{
    score<M>(p, [&](const score_job *jobs) {
#pragma unroll 1
        for (int h = 0; h < p.a.shape.unit_heads; h++)
            score_head<T, L, M>(p, jobs, h);
    });
}

#define SCORE(t, T, l, blocks) \
    KERNEL(prhs_score_##t##_l##l##_h1, prhs_cu_score, THREADS, blocks) { score_heads<T, l, false>(p); }
#define SCORE_MOMENTS(t, T, l, blocks) \
    KERNEL(prhs_score_##t##_l##l##_h1_m, prhs_cu_score, THREADS, blocks) { score_heads<T, l, true>(p); }
/* Keys that heads share are for tensor cores; float32 ones are scored head by head. */
#define SCORE_LANES(t, T, blocks, with_moments) \
    SCORE(t, T, 8, blocks)                      \
    SCORE(t, T, 16, blocks)                     \
    SCORE(t, T, 32, blocks)                     \
    SCORE_MOMENTS(t, T, 8, with_moments)        \
    SCORE_MOMENTS(t, T, 16, with_moments)       \
    SCORE_MOMENTS(t, T, 32, with_moments)
SCORE_LANES(f32, PRHS_K_F32, 5, 4)
SCORE_LANES(f16, PRHS_K_F16, 6, 4)
SCORE_LANES(bf16, PRHS_K_BF16, 6, 4)

/* By now the verdicts are in the counts. */
KERNEL(prhs_values, prhs_cu_score, THREADS, 4)
{
    score<false>(p, [&](const score_job *jobs) {
        const score_job &j = jobs[warp_id()];
#pragma unroll 1
        for (int h0 = 0; h0 < p.a.shape.unit_heads; h0 += VALUE_HEADS)
            value_heads(p, j, h0);
    });
}
