/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend on tensor cores, for float16 and bfloat16 K/V. While a block works on a chunk, the first rows of its next one are on their way
 * already. Dynamic shared memory: ring<DP, true>::BYTES.
 */
#include "ring.cuh"
#include "serve.cuh"

/* What a warp has seen of NT * 4 heads: a lane keeps head c of each four, over channels (8 j + g) * 8 ... + 7. */
template <int DP, int NT> struct running {
    float top[NT], sum[NT]; /* sum: a part a lane */
    bool bad[NT];
    float o[NT][DP / 64][8];
};

/* A job, as the block's threads share it. */
struct order {
    job j;
    int h0;                 /* first head */
    bool chunk;             /* false: there is none */
    const byte *keys, *values; /* the KV head's first rows */
};

/* Where the rows of this warp's first two tiles of an order lie. */
struct starts {
    place first, second;
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

/* Where row lane % 16 of the tile at `base` lies; anything past the chunk. */
DEV place find_row(const prhs_k_kv &kv, const order &o, int base)
{
    const int t = base + (lane_id() & 15);
    place p = { 0, 0 };
    if (t < o.j.last)
        p = place_in(kv, o.j.pages, o.j.work == PRHS_WORK_ALL ? t : set_position(o.j.set, o.j.list, t), 2);
    return p;
}

/* Fills *o with what the block does after *now (nullptr: first): the chunk's next heads, or the next chunk. False: nothing is left. */
template <int HB>
DEV bool next_order(const prhs_cu_serve &p, turns *t, const int *counts, int *prefix, const order *now, order *o, starts *s)
{
    const prhs_k_attend &a = p.attend;
    if (now && now->chunk && now->h0 + HB < a.shape.unit_heads) {
        if (threadIdx.x == 0) {
            *o = *now;
            o->h0 += HB;
        }
    } else {
        int i, item;
        if (!turns_next(
                t, a.batch.max_seqs * a.shape.units, prefix,
                [&](int k) { return counts ? counts[k] : count_unit(a, p.mem[PRHS_R_SEQS], p.mem[PRHS_R_WORK], k); }, &i, &item))
            return false;
        if (threadIdx.x == 0) {
            o->j.first = o->j.last = 0;
            o->chunk = find_job(p, i, item, &o->j);
            o->h0 = 0;
        }
    }
    if (threadIdx.x == 0) {
        const int head = (o->j.u * a.shape.unit_heads + o->h0) / a.shape.group;
        o->keys = p.mem[PRHS_R_K] + a.kv.k_off + head * a.kv.k_head * 2;
        o->values = p.mem[PRHS_R_V] + a.kv.v_off + head * a.kv.v_head * 2;
    }
    __syncthreads();
    const int base = o->j.first + warp_id() * ROWS;
    s->first = find_row(a.kv, *o, base);
    s->second = find_row(a.kv, *o, base + WARPS * ROWS);
    return true;
}

/* Sends this warp's first tile of an order, if it has one. */
template <int DP> DEV void send_first(byte *stage, const order &o, const place &first, int dim)
{
    send_tile<DP, true>(stage, o.keys, o.values, first, o.j.last - o.j.first - warp_id() * ROWS, dim);
}

/*
 * The warp's tiles of an order whose first one has been sent to *stage; sends the later ones, and the first one of the order after it,
 * for which *stage is right afterwards.
 */
template <int T, int DP, int NT>
DEV void attend_tiles(const prhs_k_attend &a, const order &now, place second, const order *next, const place &next_first,
                      const query_terms<T, DP> (&q)[NT], byte *mine, int *stage, running<DP, NT> *x)
{
    typedef ring<DP, true> r;
    int base = now.j.first + warp_id() * ROWS;
    if (base >= now.j.last) {
        if (next)
            send_first<DP>(mine + *stage * r::STAGE, *next, next_first, a.shape.dim);
        copy_commit();
    }
    for (; base < now.j.last; base += WARPS * ROWS) {
        const int n = min(ROWS, now.j.last - base), following = base + WARPS * ROWS;
        byte *other = mine + (*stage ^ 1) * r::STAGE;
        if (following < now.j.last) {
            send_tile<DP, true>(other, now.keys, now.values, second, now.j.last - following, a.shape.dim);
            second = find_row(a.kv, now, following + WARPS * ROWS);
        } else if (next) {
            send_first<DP>(other, *next, next_first, a.shape.dim);
        }
        copy_commit();
        copy_wait<1>();
        __syncwarp();
        const byte *keys = mine + *stage * r::STAGE;
        float s[NT][2];
        weight_terms<T> w[NT];
        score_stage<T, DP, NT>(keys, q, s);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            s[nt][0] *= a.shape.scale;
            s[nt][1] *= a.shape.scale;
            soften(x, nt, s[nt], n);
            spread_weights<T>(s[nt], &w[nt]);
        }
        add_stage<T, DP, NT>(keys + r::SIDE, w, x->o);
        __syncwarp();
        *stage ^= 1;
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

/* Heads [h0, h0 + 4 NT) of the order's unit over its chunk. */
template <int T, int DP, int NT>
DEV void attend_order(const prhs_cu_serve &p, const order &now, const place &second, const order *next, const place &next_first, byte *mine,
                      int *stage)
{
    __shared__ meeting<NT * 4> m;
    __shared__ __align__(16) float acc[WARPS * NT * 4 * DP];
    const prhs_k_attend &a = p.attend;
    const job &j = now.j;
    const int heads = min(NT * 4, a.shape.unit_heads - now.h0), head = j.u * a.shape.unit_heads + now.h0;
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
    attend_tiles<T, DP, NT>(a, now, second, next, next_first, q, mine, stage, &x);
    __syncthreads(); /* the last order's values have been read */
    put_running<DP, NT>(&x, &m, acc);
    __syncthreads();
    const i64 slot = ((j.b * a.batch.rows + j.r) * a.shape.heads + head) * a.work.chunks + j.chunk;
    put_part<DP, NT * 4>(a, m, acc, slot, heads, p.mem[PRHS_R_WORK]);
}

template <int T, int DP, int NT> DEV void serve_rings(const prhs_cu_serve &p)
{
    DYNAMIC_SHARED(rings);
    __shared__ int prefix[TURNS_EACH * THREADS];
    __shared__ order orders[2];
    typedef ring<DP, true> r;
    const prhs_k_attend &a = p.attend;
    byte *ws = p.mem[PRHS_R_WORK], *mine = rings + warp_id() * r::STAGES * r::STAGE;
    const int *counts = a.work.attend_count_off == PRHS_NONE
                            ? nullptr
                            : INTS(ws, a.work.attend_count_off) + (i64)p.pass * a.batch.max_seqs * a.shape.units;
    clear_ring<DP, true>(rings, a.shape.dim);
    grid_begin();
    turns t = turns_begin(counts ? TURNS_EACH : 1);
    starts now, next;
    int stage = 0, o = 0;
    bool more = next_order<NT * 4>(p, &t, counts, prefix, nullptr, &orders[0], &now);
    if (more && orders[0].chunk)
        send_first<DP>(mine, orders[0], now.first, a.shape.dim);
    copy_commit();
    while (more) {
        const order &it = orders[o], &after = orders[o ^ 1];
        more = next_order<NT * 4>(p, &t, counts, prefix, &it, &orders[o ^ 1], &next);
        if (it.chunk) {
            attend_order<T, DP, NT>(p, it, now.second, more && after.chunk ? &after : nullptr, next.first, mine, &stage);
        } else {
            if (more && after.chunk)
                send_first<DP>(mine + stage * r::STAGE, after, next.first, a.shape.dim);
            copy_commit();
        }
        __syncthreads(); /* the order's place is free for the one after the next */
        now = next;
        o ^= 1;
    }
    copy_wait<0>();
}

#define SERVE(t, T, dp, nt, hb, blocks)                                        \
    KERNEL(prhs_serve_##t##_d##dp##_h##hb, prhs_cu_serve, THREADS, blocks) { serve_rings<T, dp, nt>(p); }
#define SERVE_DIMS(t, T)         \
    SERVE(t, T, 64, 2, 8, 3)     \
    SERVE(t, T, 128, 2, 8, 2)    \
    SERVE(t, T, 256, 1, 4, 1)
SERVE_DIMS(f16, PRHS_K_F16)
SERVE_DIMS(bf16, PRHS_K_BF16)
