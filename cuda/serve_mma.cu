/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend on tensor cores, for float16 and bfloat16 K/V. While a warp works on a chunk, the first rows of its next one are on their way
 * already. Dynamic shared memory: ring<DP, true>::BYTES.
 */
#include "ring.cuh"
#include "serve.cuh"

/* What a warp has seen of NT * 4 heads: a lane keeps head c of each four. */
template <int DP, int NT> struct running {
    float top[NT], sum[NT]; /* sum: a part a lane */
    bool bad[NT];
    value_sums<DP, NT> values;
};

/* A job, as the warp's lanes share it. */
struct order {
    job j;
    int h0;                    /* first head */
    const byte *keys, *values; /* the KV head's first rows */
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

/*
 * Where a lane's row lies: half a warp's rows are those of the tile at `base`, the other half's those of the next tile. Past the chunk it is
 * the chunk's last row.
 */
DEV row_start find_rows(const prhs_k_kv &kv, const order &o, int base)
{
    const int t = min(base + lane_id(), o.j.last - 1);
    const place at = place_in(kv, o.j.pages, o.j.work == PRHS_WORK_ALL ? t : set_position(o.j.set, o.j.list, t), 2);
    return row_start{ o.keys + at.k, o.values + at.v };
}

/* Fills *o with what the warp does after *now (nullptr: first): the chunk's next heads, or the next chunk. False: nothing is left here. */
template <int HB> DEV bool next_order(const prhs_cu_serve &p, turns *t, const int *prefix, const order *now, order *o)
{
    const prhs_k_attend &a = p.attend;
    const bool again = now && now->h0 + HB < a.shape.unit_heads;
    bool chunk = again;
    do {
        int i = 0, item = 0;
        if (!again && !walk_next(t, prefix, &i, &item))
            return false;
        if (lane_id() == 0) {
            if (again) {
                *o = *now;
                o->h0 += HB;
            } else {
                chunk = find_job(p, i, item, &o->j);
                o->h0 = 0;
            }
            const int head = (int)((unsigned)(o->j.u * a.shape.unit_heads + o->h0) / (unsigned)a.shape.group);
            o->keys = p.mem[PRHS_R_K] + a.kv.k_off + head * a.kv.k_head * 2;
            o->values = p.mem[PRHS_R_V] + a.kv.v_off + head * a.kv.v_head * 2;
        }
    } while (!__any_sync(FULL, chunk)); /* a count may stand for nothing */
    __syncwarp();
    return true;
}

/* Rows from the first (tile 0) or second (1) tile of an order to its end. */
DEV int early_rows(const order &o, int tile) { return o.j.last - o.j.first - tile * ROWS; }

/*
 * The tiles of an order whose first two have been sent, to *stage and the other one. Sends the later ones, and the first two of the
 * order after it, for which *stage is right afterwards.
 */
template <int T, int DP, int NT>
DEV void attend_tiles(const prhs_k_attend &a, const order &now, bool more, const order &next, const row_start &next_rows,
                      const query_terms<T, DP> (&q)[NT], shared_at mine, int *stage, running<DP, NT> *x)
{
    typedef ring<DP, true> r;
    const int last = now.j.last;
    row_start rows = next_rows;
    int base = now.j.first;
    for (int i = 0, early = 0; i < 2 || base < last; i++, base += ROWS) {
        const int second = base + 2 * ROWS;
        const bool inside = second < last;
        const shared_at at = mine + *stage * r::STAGE;
        if (inside && !(i & 1))
            rows = find_rows(a.kv, now, second);
        copy_wait<1>();
        __syncwarp();
        if (base < last) {
            float s[NT][2];
            weight_terms<T> w[NT];
            score_stage<T, DP, NT>(at, q, s);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                s[nt][0] *= a.shape.scale;
                s[nt][1] *= a.shape.scale;
                soften(x, nt, s[nt], last - base);
                spread_weights<T>(s[nt], &w[nt]);
            }
            add_stage<T, DP, NT>(at + r::SIDE, w, &x->values);
            __syncwarp();
        }
        if (!inside)
            rows = next_rows;
        const int tile = inside ? i & 1 : early++;
        send_tile<DP, true>(at, rows, tile * 16, inside ? last - second : more ? early_rows(next, tile) : 0, a.shape.dim);
        copy_commit();
        *stage ^= 1;
    }
}

/* The part of `heads` heads from the lanes' sums. */
template <int T, int DP, int NT> DEV void put_part(const prhs_k_attend &a, running<DP, NT> *x, i64 at, int heads, byte *ws)
{
    const int g = lane_id() >> 2, c = lane_id() & 3, dim = a.shape.dim;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const int h = nt * 4 + c;
        const float sum = column_sum(x->sum[nt]);
        const bool bad = column_any(x->bad[nt]);
        if (h >= heads)
            continue;
        const float scale = part_scale(sum, bad);
        float *o = FLOATS(ws, a.work.part_off) + (at + (i64)h * a.work.chunks) * dim + g;
#pragma unroll
        for (int j = 0; j < DP / 8; j++)
            if (j * 8 < dim)
                o[j * 8] = joined_terms<T>(x->values.o[nt][j][0], x->values.o[nt][j][1]) * scale;
        if (g == 0)
            FLOATS(ws, a.work.part_lse_off)[at + (i64)h * a.work.chunks] = part_lse(x->top[nt], sum, bad);
    }
}

/* The queries of an order. */
template <int DP, int NT> DEV void load_queries(const prhs_cu_serve &p, const order &o, query_words<DP> (&words)[NT])
{
    const prhs_k_attend &a = p.attend;
    const int heads = min(NT * 4, a.shape.unit_heads - o.h0), head = o.j.u * a.shape.unit_heads + o.h0;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        /* Fours of heads past the unit repeat its last head. */
        const int first = min(nt * 4, heads - 1);
        load_query_words<DP>(a.q, p.mem[PRHS_R_Q], o.j.e.row0 + o.j.r, head + first, heads - first, a.shape.dim, &words[nt]);
    }
}

/* Heads [h0, h0 + 4 NT) of the order's unit over its chunk. */
template <int T, int DP, int NT>
DEV void attend_order(const prhs_cu_serve &p, const order &now, const query_words<DP> (&words)[NT], bool more, const order &next,
                      const row_start &next_rows, shared_at mine, int *stage)
{
    const prhs_k_attend &a = p.attend;
    const job &j = now.j;
    const int heads = min(NT * 4, a.shape.unit_heads - now.h0), head = j.u * a.shape.unit_heads + now.h0;
    query_terms<T, DP> q[NT];
    running<DP, NT> x;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        make_query_terms<T, DP>(a.q.dtype, words[nt], &q[nt]);
        x.top[nt] = LOWEST;
        x.sum[nt] = 0.0f;
        x.bad[nt] = false;
#pragma unroll
        for (int i = 0; i < DP / 8; i++)
            x.values.o[nt][i][0] = x.values.o[nt][i][1] = 0.0f;
    }
    attend_tiles<T, DP, NT>(a, now, more, next, next_rows, q, mine, stage, &x);
    put_part<T, DP, NT>(a, &x, part_index(a, j, head), heads, p.mem[PRHS_R_WORK]);
}

/* The warp's orders of a window. */
template <int T, int DP, int NT> DEV void serve_window(const prhs_cu_serve &p, turns *t, const int *prefix, order (&orders)[2], shared_at mine)
{
    typedef ring<DP, true> r;
    const prhs_k_attend &a = p.attend;
    row_start rows = { nullptr, nullptr };
    int stage = 0;
    bool any = false, more = true;
    /* What is looked up for the order after this one comes while this one's first tiles are on their way. */
    for (int o = 1; more; o ^= 1) {
        const order &now = orders[o], &next = orders[o ^ 1];
        query_words<DP> words[NT];
        if (any && NT == 1)
            load_queries<DP, NT>(p, now, words);
        more = next_order<NT * 4>(p, t, prefix, any ? &now : nullptr, &orders[o ^ 1]);
        if (more)
            rows = find_rows(a.kv, next, next.j.first);
        if (any) {
            if (NT > 1) /* later: they take too many registers */
                load_queries<DP, NT>(p, now, words);
            attend_order<T, DP, NT>(p, now, words, more, next, rows, mine, &stage);
            __syncwarp(); /* the order's place is free for the one after the next */
        } else if (more) {
#pragma unroll 1
            for (int i = 0; i < 2; i++) {
                send_tile<DP, true>(mine + i * r::STAGE, rows, i * 16, early_rows(next, i), a.shape.dim);
                copy_commit();
            }
        }
        any = true;
    }
    copy_wait<0>();
}

template <int T, int DP, int NT> DEV void serve_rings(const prhs_cu_serve &p)
{
    DYNAMIC_SHARED(rings);
    __shared__ int prefix[TURNS_EACH * THREADS];
    __shared__ order orders[WARPS][2];
    typedef ring<DP, true> r;
    const int *counts = kept_counts(p);
    clear_ring<DP, true>(rings, p.attend.shape.dim);
    grid_begin();
    turns t = chunks_begin(p);
    while (next_window(p, &t, counts, prefix))
        serve_window<T, DP, NT>(p, &t, prefix, orders[warp_id()], shared_at_of(rings + warp_id() * r::STAGES * r::STAGE));
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
