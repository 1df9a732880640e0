/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend on tensor cores, for float16 and bfloat16 K/V. While a warp works on a tile the next one is on its way, be it of the same chunk or
 * of another one. Dynamic shared memory: the warps' rings, then their warp_shared with queries as they lie in memory.
 */
#include "ring.cuh"
#include "ahead.cuh"

/* What a warp has seen of NT * 4 heads: a lane keeps head c of each four. */
template <int DP, int NT> struct running {
    float top[NT], sum[NT]; /* sum: a part a lane */
    bool bad[NT];
    value_sums<DP, NT> values;
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
        for (int j = 0; j < DP / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                x->values.o[nt][j][i] *= scale;
    }
}

/* The part of a segment's heads from the lanes' sums. */
template <int T, int DP, int NT> DEV void put_part(const prhs_k_attend &a, running<DP, NT> *x, const segment &s, byte *ws)
{
    const int g = lane_id() >> 2, c = lane_id() & 3, dim = a.shape.dim;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const int h = nt * 4 + c;
        head_record *const record = s.record < 0 || g || h >= s.heads ? nullptr : records_at(ws, a.work) + s.record + h;
        const float limit = record ? record->limit : 0.0f; /* on its way while sums meet */
        const float sum = column_sum(x->sum[nt]);
        const bool bad = column_any(x->bad[nt]);
        if (h >= s.heads)
            continue;
        const float scale = part_scale(sum, bad);
        float *o = FLOATS(ws, a.work.part_off) + (s.part + (i64)h * a.work.chunks) * dim + g;
#pragma unroll
        for (int j = 0; j < DP / 8; j++)
            if (j * 8 < dim)
                o[j * 8] = joined_terms<T>(x->values.o[nt][j][0], x->values.o[nt][j][1]) * scale;
        if (g == 0) {
            const float lse = part_lse(x->top[nt], sum, bad);
            FLOATS(ws, a.work.part_lse_off)[s.part + (i64)h * a.work.chunks] = lse;
            if (record)
                add_verdict(record, limit, lse);
        }
    }
}

/* A tile in the ring: n rows (0: none) of a segment, of which it may be the first or the last. */
struct tile_note {
    short n;
    unsigned char segment;
    bool first, last;
};

struct warp_shared {
    tile_note notes[2];
    ahead_shared<16> ahead; /* the queries lie at its end, and past it */
};
static_assert(sizeof(warp_shared) - 16 <= PRHS_SERVE_WARP, "what the host counts on");

/* What a warp sends from: rows [done, tokens) of a segment are to come. */
struct sender {
    int segment, done, tokens;
};

/* The tile after the last one that was sent, to stage `stage`. */
template <int DP, int NT>
DEV void send_next(const prhs_cu_serve &p, const int *prefix, finder *f, sender *from, shared_at ring_at, int stage, warp_shared *sh)
{
    typedef ring<DP> r;
    const int dim = p.attend.shape.dim;
    const bool inside = from->done < from->tokens;
    seek<NT * 4>(p, prefix, f, &sh->ahead, !inside);
    if (!inside) {
        from->done = from->tokens = 0;
        if (f->state == AHEAD_READY) {
            from->segment = take_segment(f);
            from->tokens = sh->ahead.segments[from->segment].tokens;
        }
    }
    __syncwarp();
    const int n = from->tokens - from->done;
    if (lane_id() == 0)
        sh->notes[stage] = tile_note{ (short)n, (unsigned char)from->segment, from->done == 0, n <= ROWS };
    if (n > 0) {
        const segment &s = sh->ahead.segments[from->segment];
        send_places<DP>(ring_at + stage * r::STAGE, s.keys, s.values, sh->ahead.at[from->segment] + from->done, n, dim);
        from->done += ROWS;
    }
    copy_commit();
    __syncwarp();
}

/* The queries of the segment that begins, from shared memory. */
template <int T, int DP, int NT>
DEV void take_queries(const prhs_k_attend &a, const byte *queries, int heads, query_terms<T, DP> (&q)[NT])
{
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        /* Fours of heads past the unit repeat its last head. */
        const int first = min(nt * 4, heads - 1);
        query_words<DP> words;
        query_words_of<DP>(a.q.dtype, queries + first * a.shape.dim * element(a.q.dtype), a.shape.dim, heads - first, a.shape.dim, &words);
        make_query_terms<T, DP>(a.q.dtype, words, &q[nt]);
    }
}

template <int DP, int NT> DEV void start(running<DP, NT> *x)
{
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        x->top[nt] = LOWEST;
        x->sum[nt] = 0.0f;
        x->bad[nt] = false;
#pragma unroll
        for (int i = 0; i < DP / 8; i++)
            x->values.o[nt][i][0] = x->values.o[nt][i][1] = 0.0f;
    }
}

/* The tile in a stage. */
template <int T, int DP, int NT>
DEV void attend_stage(shared_at at, int n, float scale, const query_terms<T, DP> (&q)[NT], running<DP, NT> *x)
{
    float s[NT][2];
    weight_terms<T> w[NT];
    score_stage<T, DP, NT>(at, q, s);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        s[nt][0] *= scale;
        s[nt][1] *= scale;
        soften(x, nt, s[nt], n);
        spread_weights<T>(s[nt], &w[nt]);
    }
    add_stage<T, DP, NT>(at + ring<DP>::SIDE, w, &x->values);
}

/* The warp's chunks of a window. */
template <int T, int DP, int NT>
DEV void serve_window(const prhs_cu_serve &p, const walk &w, const int *prefix, shared_at ring_at, warp_shared *sh)
{
    const prhs_k_attend &a = p.attend;
    finder f;
    sender from = { 0, 0, 0 };
    query_terms<T, DP> q[NT];
    running<DP, NT> x;
    finder_begin(a, w, &f);
    __syncwarp();
    if (lane_id() < 2)
        sh->notes[lane_id()].n = 0;
    /* At first, and where queries had to be taken before more could be sent, a stage is empty. */
    int stage = 0;
    do {
        copy_wait<1>();
        __syncwarp();
        const tile_note note = sh->notes[stage];
        if (note.n > 0) {
            const segment &s = sh->ahead.segments[note.segment];
            if (note.first && s.asks) {
                take_queries<T, DP, NT>(a, sh->ahead.queries, s.heads, q);
                __syncwarp();
                f.untaken = false;
            }
            if (note.first && s.begins)
                start(&x);
            attend_stage<T, DP, NT>(ring_at + stage * ring<DP>::STAGE, note.n, a.shape.scale, q, &x);
            if (note.last && s.ends)
                put_part<T, DP, NT>(a, &x, s, p.mem[PRHS_R_WORK]);
        }
        __syncwarp();
        send_next<DP, NT>(p, prefix, &f, &from, ring_at, stage, sh);
        stage ^= 1;
    } while (f.state != AHEAD_OVER || sh->notes[0].n > 0 || sh->notes[1].n > 0);
    copy_wait<0>();
}

template <int T, int DP, int NT> DEV void serve_rings(const prhs_cu_serve &p)
{
    DYNAMIC_SHARED(rings);
    __shared__ int prefix[TURNS_EACH * THREADS];
    typedef ring<DP> r;
    const int *counts = counts_of(p);
    const int each = PRHS_SERVE_WARP + NT * 4 * DP * element(p.attend.q.dtype), warp = warp_id();
    warp_shared *sh = (warp_shared *)(rings + WARPS * r::BYTES + warp * each);
    clear_rings<DP>(rings, WARPS * r::BYTES, p.attend.shape.dim);
    grid_begin();
    walk w = chunks_begin(p);
    while (next_window(p, &w, counts, prefix))
        serve_window<T, DP, NT>(p, w, prefix, shared_at_of(rings + warp * r::BYTES), sh);
}

#define SERVE(t, T, dp, nt, hb, blocks)                                        \
    KERNEL(prhs_serve_##t##_d##dp##_h##hb, prhs_cu_serve, THREADS, blocks) { serve_rings<T, dp, nt>(p); }
#define SERVE_DIMS(t, T)         \
    SERVE(t, T, 64, 1, 4, 4)     \
    SERVE(t, T, 64, 2, 8, 3)     \
    SERVE(t, T, 128, 1, 4, 3)    \
    SERVE(t, T, 128, 2, 8, 2)    \
    SERVE(t, T, 256, 1, 4, 1)
SERVE_DIMS(f16, PRHS_K_F16)
SERVE_DIMS(bf16, PRHS_K_BF16)
