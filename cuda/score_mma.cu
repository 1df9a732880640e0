/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score with tensor cores, for float16 and bfloat16 keys. While a block works on a chunk, the first keys of its next one are on their way
 * already. With moments, lanes change places: a lane then has DP / 32 channels of every key. Dynamic shared memory: ring<DP, false>::BYTES.
 */
#include "ring.cuh"
#include "score.cuh"

/* A job, as the block's threads share it. */
struct order {
    job j;
    int h0; /* first head */
    const byte *keys; /* the KV head's first row */
};

/* What a warp has seen. Without moments the sums are a lane's own; with them `mid` has the warp's top. HM: heads with moments. */
template <int DP, int NT, int HM> struct running {
    logsum mid[NT], out[NT];
    float m1[HM > 0 ? HM : 1][DP / 32], m2[HM > 0 ? HM : 1][DP / 32], pivot[DP / 32];
};

/* --- orders --- */

/* The first of this warp's tiles from `base` on that has something to score: between the sinks and the middle (PSAW) nothing is. */
DEV int tile_from(const job &j, int base)
{
    while (!j.full && base >= j.set.sink_end && base + ROWS <= j.set.mid_begin)
        base += WARPS * ROWS;
    return base;
}

/* Where a lane's key lies: half a warp's keys are those of the tile at `base`, the other half's those of the warp's next tile. */
DEV row_start find_keys(const prhs_k_kv &kv, const order &o, int base)
{
    const int from = lane_id() < 16 ? base : tile_from(o.j, base + WARPS * ROWS);
    return row_start{ o.keys + place_in(kv, o.j.pages, min(from + (lane_id() & 15), o.j.last - 1), 2).k, nullptr };
}

/* Fills *o with what the block does after *now (nullptr: first). False: nothing is left. */
template <int HB, bool M>
DEV bool next_order(const prhs_cu_score &p, turns *t, const tally &counts, int *prefix, const order *now, order *o)
{
    const prhs_k_score &a = p.a;
    const bool again = now && now->h0 + HB < a.shape.unit_heads;
    int i = 0, item = 0;
    if (!again && !next_chunk<M>(p, counts, t, prefix, &i, &item))
        return false;
    if (threadIdx.x == 0) {
        if (again) {
            *o = *now;
            o->h0 += HB;
        } else {
            o->j = job_of(p, i, item);
            o->h0 = 0;
        }
        o->keys = p.mem[PRHS_R_K] + a.kv.k_off + (o->j.u * a.shape.unit_heads + o->h0) / a.shape.group * a.kv.k_head * 2;
    }
    __syncthreads();
    return true;
}

/* Base of this warp's first (tile 0) or second (1) tile of an order. */
DEV int early_tile(const job &j, int tile)
{
    const int first = tile_from(j, j.first + warp_id() * ROWS);
    return tile ? tile_from(j, first + WARPS * ROWS) : first;
}

/* Keys from that tile to the order's end. */
DEV int early_keys(const order &o, int tile) { return o.j.last - early_tile(o.j, tile); }

/* --- sums --- */

/* Takes a lane's two scores of a head; those that do not count are NOTHING. */
DEV void take(logsum *z, float s0, float s1)
{
    const float top = fmaxf(z->top, fmaxf(s0, s1));
    z->sum = z->sum * exp_weight(z->top - top) + (exp_weight(s0 - top) + exp_weight(s1 - top));
    z->top = top;
}

/* The lanes' sums of a head (equal c) become one. */
DEV logsum gathered(logsum z)
{
    const float top = column_max(z.top);
    z.sum = column_sum(z.sum * exp_weight(z.top - top));
    z.top = top;
    return z;
}

/* Writes out the scores of rows base + g and base + g + 8 for head c and takes them into the sums; s keeps the middle's, else NOTHING. */
template <bool M>
DEV void take_scores(const job &j, int base, bool whole, float *out, float s[2], logsum *mid, logsum *rest, bool inside[2])
{
    float other[2];
    if (whole) { /* the tile is of the middle */
        inside[0] = inside[1] = true;
        if (out) {
            out[base + (lane_id() >> 2)] = s[0];
            out[base + (lane_id() >> 2) + 8] = s[1];
        }
        if (!M)
            take(mid, bad_score(s[0]) ? NOTHING : s[0], bad_score(s[1]) ? NOTHING : s[1]);
        return;
    }
    bool any_other = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int pos = base + (lane_id() >> 2) + 8 * i;
        const bool mine = pos < j.last && is_scored(j, pos), good = mine && !bad_score(s[i]);
        inside[i] = mine && is_inside(j, pos);
        if (mine && out)
            out[pos] = s[i];
        other[i] = good && !inside[i] ? s[i] : NOTHING;
        any_other |= mine && !inside[i];
        if (!M || !inside[i])
            s[i] = good && inside[i] ? s[i] : NOTHING;
    }
    if (!M)
        take(mid, s[0], s[1]);
    if (any_other)
        take(rest, other[0], other[1]);
}

/* --- moments --- */

template <int T, int DP> DEV void key_channels(const byte *row, int r, float x[DP / 32])
{
    const int lane = lane_id(), piece = lane * (DP / 32) / 8;
    const byte *at = row + piece_in(r, piece) * 16 + lane * (DP / 32) % 8 * 2;
#pragma unroll
    for (int i = 0; i < DP / 64; i++) {
        const unsigned w = ((const unsigned *)at)[i];
        const float2 f = T == PRHS_K_F16 ? half2_floats(w) : bf162_floats(w);
        x[2 * i] = f.x;
        x[2 * i + 1] = f.y;
    }
}

/* The warp's weights of the middle's keys (lanes: rows g and g + 8, head c) into w[row][head]; the earlier sums fade where the top rises. */
template <int DP, int NT, int HM> DEV void weigh(running<DP, NT, HM> *x, const float s[2], const bool inside[2], float *w)
{
    const int g = lane_id() >> 2, c = lane_id() & 3;
    float top = x->mid[0].top;
#pragma unroll
    for (int i = 0; i < 2; i++)
        top = fmaxf(top, bad_score(s[i]) ? LOWEST : s[i]);
    top = column_max(top);
    const float scale = exp_weight(x->mid[0].top - top);
    x->mid[0].top = top;
    x->mid[0].sum *= scale;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const bool bad = inside[i] && bad_score(s[i]);
        const float wi = bad ? NEVER : exp_weight(s[i] - top);
        x->mid[0].sum += bad ? 0.0f : wi;
        if (c < HM)
            w[(g + 8 * i) * HM + c] = inside[i] ? wi : 0.0f;
    }
    if (__any_sync(FULL, scale != 1.0f)) {
#pragma unroll
        for (int h = 0; h < HM; h++) {
            const float f = __shfl_sync(FULL, scale, h);
#pragma unroll
            for (int i = 0; i < DP / 32; i++) {
                x->m1[h][i] *= f;
                x->m2[h][i] *= f;
            }
        }
    }
}

template <int T, int DP, int NT, int HM> DEV void add_moment(running<DP, NT, HM> *x, const byte *keys, const float *w, int r)
{
    float y[DP / 32], yy[DP / 32];
    key_channels<T, DP>(keys + r * DP * 2, r, y);
#pragma unroll
    for (int i = 0; i < DP / 32; i++) {
        y[i] -= x->pivot[i];
        yy[i] = y[i] * y[i];
    }
#pragma unroll
    for (int h = 0; h < HM; h++) {
        const float wh = w[r * HM + h];
#pragma unroll
        for (int i = 0; i < DP / 32; i++) {
            x->m1[h][i] += wh * y[i];
            x->m2[h][i] += wh * yy[i];
        }
    }
}

/* Rows [first, last) of a stage. */
template <int T, int DP, int NT, int HM> DEV void add_moments(running<DP, NT, HM> *x, const byte *keys, const float *w, int first, int last)
{
    if (first == 0 && last == ROWS) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            add_moment<T, DP, NT, HM>(x, keys, w, r);
    } else {
#pragma unroll 1
        for (int r = first; r < last; r++)
            add_moment<T, DP, NT, HM>(x, keys, w, r);
    }
}

/* The key of the middle's last token; zeros without a middle. */
template <int DP> DEV void load_pivot(const prhs_cu_score &p, const order &o, float pivot[DP / 32])
{
    const bool any = o.j.set.mid_end > o.j.set.mid_begin;
    const place at = place_in(p.a.kv, o.j.pages, any ? o.j.set.mid_end - 1 : 0, 2);
#pragma unroll
    for (int i = 0; i < DP / 32; i++) {
        const int d = lane_id() * (DP / 32) + i;
        pivot[i] = any && d < p.a.shape.dim ? load_one(p.a.kv.dtype, o.keys + at.k, d) : 0.0f;
    }
}

/* Sums of the warps' moments. */
template <int DP, int NT, int HM>
DEV void put_moments(const prhs_k_score &a, const running<DP, NT, HM> &x, const logsum (*mid)[NT * 4], int heads, i64 slot, byte *ws)
{
    __shared__ float sums[WARPS][2][DP];
    const int lane = lane_id(), warp = warp_id(), dim = a.shape.dim;
#pragma unroll
    for (int h = 0; h < HM; h++) {
        float top = LOWEST;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            top = fmaxf(top, mid[w][h].top);
        const float f = exp_weight(mid[warp][h].top - top);
#pragma unroll
        for (int i = 0; i < DP / 32; i++) {
            sums[warp][0][lane * (DP / 32) + i] = x.m1[h][i] * f;
            sums[warp][1][lane * (DP / 32) + i] = x.m2[h][i] * f;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < 2 * dim && h < heads; i += THREADS) {
            const int m = i >= dim, d = i - m * dim;
            float s = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++)
                s += sums[w][m][d];
            FLOATS(ws, a.work.mom_off)[(slot + (i64)h * a.work.score_chunks) * 2 * dim + i] = s;
        }
        __syncthreads();
    }
}

/* --- a chunk --- */

/* The warp's tiles of an order, as in serve_mma.cu. */
template <int T, int DP, int NT, int HM>
DEV void score_tiles(const prhs_k_score &a, const order &now, bool more, const order &next, const row_start &next_rows,
                     const query_terms<T, DP> (&q)[NT], float *const (&rows)[NT], float *w, const byte *mine, int *stage,
                     running<DP, NT, HM> *x)
{
    typedef ring<DP, false> r;
    const job &j = now.j;
    const int step = WARPS * ROWS;
    const shared_at ring_at = shared_at_of(mine);
    row_start starts = next_rows;
    int base = early_tile(j, 0), after = early_tile(j, 1);
    for (int i = 0, early = 0; i < 2 || base < j.last; i++) {
        const byte *at = mine + *stage * r::STAGE;
        const int second = tile_from(j, after + step);
        const bool follows = second < j.last;
        if (follows && !(i & 1))
            starts = find_keys(a.kv, now, second);
        copy_wait<1>();
        __syncwarp();
        if (base < j.last) {
            float s[NT][2];
            bool inside[2];
            const bool whole = base >= j.set.mid_begin && base + ROWS <= min(j.set.mid_end, j.last);
            score_stage<T, DP, NT>(ring_at + *stage * r::STAGE, q, s);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                s[nt][0] *= a.shape.scale;
                s[nt][1] *= a.shape.scale;
                take_scores<(HM > 0)>(j, base, whole, rows[nt], s[nt], &x->mid[nt], &x->out[nt], inside);
            }
            if constexpr (HM > 0) {
                weigh<DP, NT, HM>(x, s[0], inside, w);
                __syncwarp();
                add_moments<T, DP, NT, HM>(x, at, w, max(0, j.set.mid_begin - base), min(ROWS, min(j.last, j.set.mid_end) - base));
            }
            __syncwarp();
        }
        if (!follows)
            starts = next_rows;
        const int tile = follows ? i & 1 : early++;
        send_tile<DP, false>(ring_at + *stage * r::STAGE, starts, tile * 16,
                             follows ? j.last - second : more ? early_keys(next, tile) : 0, a.shape.dim);
        copy_commit();
        *stage ^= 1;
        base = after;
        after = second;
    }
}

/* The queries of an order; with moments HM of them. */
template <int DP, int NT, int HM> DEV void load_queries(const prhs_cu_score &p, const order &o, query_words<DP> (&words)[NT])
{
    const prhs_k_score &a = p.a;
    const int heads = min(HM > 0 ? HM : NT * 4, a.shape.unit_heads - o.h0), head = o.j.u * a.shape.unit_heads + o.h0;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const int first = min(nt * 4, heads - 1);
        load_query_words<DP>(a.q, p.mem[PRHS_R_Q], o.j.e.row0, head + first, heads - first, a.shape.dim, &words[nt]);
    }
}

/* Heads [h0, h0 + 4 NT) of the order's unit over its chunk; with moments HM of them. */
template <int T, int DP, int NT, int HM>
DEV void score_order(const prhs_cu_score &p, const order &now, const query_words<DP> (&words)[NT], bool more, const order &next,
                     const row_start &next_rows, const byte *mine, int *stage)
{
    __shared__ logsum mids[WARPS][NT * 4], outs[WARPS][NT * 4];
    __shared__ __align__(16) float weights[WARPS][ROWS * (HM > 0 ? HM : 1)];
    const prhs_k_score &a = p.a;
    const job &j = now.j;
    const int heads = min(HM > 0 ? HM : NT * 4, a.shape.unit_heads - now.h0), head = j.u * a.shape.unit_heads + now.h0;
    const int lane = lane_id(), warp = warp_id(), c = lane & 3;
    byte *ws = p.mem[PRHS_R_WORK];
    query_terms<T, DP> q[NT];
    running<DP, NT, HM> x;
    float *rows[NT];
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        make_query_terms<T, DP>(a.q.dtype, words[nt], &q[nt]);
        x.mid[nt] = x.out[nt] = logsum{ LOWEST, 0.0f };
        rows[nt] = nt * 4 + c < heads
                       ? FLOATS(ws, a.work.score_off) + (j.b * a.shape.heads + head + nt * 4 + c) * a.work.score_stride
                       : nullptr;
    }
    if constexpr (HM > 0) {
        load_pivot<DP>(p, now, x.pivot);
#pragma unroll
        for (int h = 0; h < HM; h++)
#pragma unroll
            for (int i = 0; i < DP / 32; i++)
                x.m1[h][i] = x.m2[h][i] = 0.0f;
    }
    score_tiles<T, DP, NT, HM>(a, now, more, next, next_rows, q, rows, weights[warp], mine, stage, &x);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        x.mid[nt] = gathered(x.mid[nt]);
        x.out[nt] = gathered(x.out[nt]);
        if (lane < 4) {
            mids[warp][nt * 4 + c] = x.mid[nt];
            outs[warp][nt * 4 + c] = x.out[nt];
        }
    }
    __syncthreads();
    const i64 slot = (j.b * a.shape.heads + head) * a.work.score_chunks + j.chunk;
    put_norms<NT * 4>(a, mids, outs, heads, slot, ws);
    if constexpr (HM > 0)
        put_moments<DP, NT, HM>(a, x, mids, heads, slot, ws);
}

template <int T, int DP, int NT, int HM> DEV void score_rings(const prhs_cu_score &p)
{
    DYNAMIC_SHARED(rings);
    __shared__ int prefix[WINDOW];
    __shared__ order orders[2];
    typedef ring<DP, false> r;
    const prhs_k_score &a = p.a;
    const int HB = HM > 0 ? HM : NT * 4;
    byte *mine = rings + warp_id() * r::STAGES * r::STAGE;
    clear_ring<DP, false>(rings, a.shape.dim);
    grid_begin();
    const tally counts = tally_of<(HM > 0)>(p);
    turns t = turns_begin(TURNS_EACH, seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * a.shape.units);
    row_start rows = { nullptr, nullptr };
    int stage = 0;
    bool any = false, more = true;
    for (int o = 1; more; o ^= 1) {
        const order &now = orders[o], &next = orders[o ^ 1];
        query_words<DP> words[NT];
        if (any && NT == 1)
            load_queries<DP, NT, HM>(p, now, words);
        more = next_order<HB, (HM > 0)>(p, &t, counts, prefix, any ? &now : nullptr, &orders[o ^ 1]);
        if (more)
            rows = find_keys(a.kv, next, early_tile(next.j, 0));
        if (any) {
            if (NT > 1) /* later: they take too many registers */
                load_queries<DP, NT, HM>(p, now, words);
            score_order<T, DP, NT, HM>(p, now, words, more, next, rows, mine, &stage);
            __syncthreads(); /* the order's place is free for the one after the next */
        } else if (more) {
#pragma unroll 1
            for (int i = 0; i < 2; i++) {
                send_tile<DP, false>(shared_at_of(mine) + i * r::STAGE, rows, i * 16, early_keys(next, i), a.shape.dim);
                copy_commit();
            }
        }
        any = true;
    }
    copy_wait<0>();
}

#define SCORE(t, T, dp, nt, hb, blocks) \
    KERNEL(prhs_score_##t##_d##dp##_h##hb, prhs_cu_score, THREADS, blocks) { score_rings<T, dp, nt, 0>(p); }
#define SCORE_MOMENTS(t, T, dp, hb, blocks) \
    KERNEL(prhs_score_##t##_d##dp##_h##hb##_m, prhs_cu_score, THREADS, blocks) { score_rings<T, dp, 1, hb>(p); }
#define SCORE_DIMS(t, T)                 \
    SCORE(t, T, 64, 1, 4, 5)             \
    SCORE(t, T, 64, 2, 8, 4)             \
    SCORE(t, T, 128, 1, 4, 4)            \
    SCORE(t, T, 128, 2, 8, 3)            \
    SCORE(t, T, 256, 1, 4, 2)            \
    SCORE_MOMENTS(t, T, 64, 1, 5)        \
    SCORE_MOMENTS(t, T, 128, 1, 4)       \
    SCORE_MOMENTS(t, T, 256, 1, 2)       \
    SCORE_MOMENTS(t, T, 64, 4, 4)        \
    SCORE_MOMENTS(t, T, 128, 4, 3)       \
    SCORE_MOMENTS(t, T, 256, 4, 2)
SCORE_DIMS(f16, PRHS_K_F16)
SCORE_DIMS(bf16, PRHS_K_BF16)
