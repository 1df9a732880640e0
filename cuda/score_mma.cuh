/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score with tensor cores, for float16 and bfloat16 keys. A warp takes 32 rows at a time, two tiles; while it works on a chunk, the first
 * keys of its next one are on their way already. Which rows a tile has is such that a lane's scores of a head are of neighbours: see
 * row_in_pair(). With moments, lanes change places: a lane then has DP / 32 channels of every key.
 */
#ifndef PRHS_SCORE_MMA_CUH
#define PRHS_SCORE_MMA_CUH

#include "ring.cuh"
#include "score.cuh"

#define PAIR (2 * ROWS)

/* A warp's stages, each of a tile's keys: as many as leave room for four blocks on a multiprocessor, two where heads are long. */
template <int DP> struct keys_ring {
    static const int STAGE = ROWS * DP * 2;
    static const int STAGES = DP == 64 ? 4 : DP == 128 ? 3 : 2;
    static const int BYTES = STAGES * STAGE;
};

/* What a warp does next; the same for all lanes. */
struct order {
    score_job j;
    int h0;           /* first head */
    int tiles;        /* an even number */
    int same;         /* the queries are those of the order before */
    const byte *keys; /* the KV head's first row */
};

/* HB: heads that share a row. With 1, a lane has the score of one row of a pair; else of four neighbours, for a head of each four. */
template <int HB> struct sharing {
    static const int NT = HB > 4 ? HB / 4 : 1;
    static const int N = HB == 1 ? 1 : 4;
};

/* What a warp has seen. A lane's own sums, but that with moments `mid` has the warp's top. */
template <int DP, int HB, bool M> struct score_sums {
    logsum mid[sharing<HB>::NT], rest[sharing<HB>::NT];
    float m1[M ? HB : 1][DP / 32], m2[M ? HB : 1][DP / 32], pivot[DP / 32];
};

/* Where row `row` of tile `tile` (0, 1) of a pair lies among the pair's 32. */
DEV int row_in_pair(int row, int tile) { return 4 * (row & 7) + 2 * tile + (row >> 3); }

/* --- keys on their way --- */

/* How far a warp has sent for keys. */
struct sender {
    shared_at ring;  /* the warp's */
    int put, get;    /* stages: where the next tile goes; the oldest one */
    int sent;        /* tiles that were sent and are not done with */
    int which, tile; /* the order and its tile that are next */
    int page, in;    /* where the lane's row of the pair that is next lies: index of its page, row in it */
    const byte *at;  /* of the pair that is being sent */
};

/* Asks for the page of the lane's row of the pair that is next; past the end that of the last row. */
DEV void look_up(const prhs_k_kv &kv, const order &o, sender *s)
{
    const int pos = min(position(o.j, o.j.begin + s->tile * ROWS + lane_id()), o.j.last - 1);
    const unsigned page = page_index(kv, pos);
    s->in = pos - (int)page * kv.page_size;
    s->page = __ldg(o.j.pages + page);
}

/* Rows I * 4 + lane / 8 and on. Rows past the end are the last one once more: nobody looks at their scores. */
template <int DP, int I> DEV void send_keys(const shared_at (&to)[2], const byte *at, int tile, int left)
{
    if constexpr (I < ROWS / 4) {
        const int group = lane_id() >> 3, piece = lane_id() & 7;
        const byte *from = address_of_lane(at, 4 * group + 16 * (I & 1) + 2 * tile + (I >> 1)) + piece * 16;
        send_pieces<DP, false, I, 0>(to[I & 1], from, nullptr, true, left);
        send_keys<DP, I + 1>(to, at, tile, left);
    }
}

/* Sends until the ring is full or there is nothing to send for; orders[now] is worked on, `more`: the other one is known. */
template <int DP> DEV void fill_ring(const prhs_k_score &a, const order *orders, int now, bool more, sender *s)
{
    typedef keys_ring<DP> r;
    const int group = lane_id() >> 3, piece = lane_id() & 7;
#pragma unroll 1
    while (s->sent < r::STAGES && s->tile < orders[s->which].tiles) {
        const int odd = s->tile & 1;
        if (!odd)
            s->at = orders[s->which].keys + key_offset(a.kv, s->page, s->in) * 2;
        const shared_at row = s->ring + (s->put * r::STAGE + group * DP * 2);
        const shared_at to[2] = { row + piece_in(group, piece) * 16, row + piece_in(group + 4, piece) * 16 };
        send_keys<DP, 0>(to, s->at, odd, a.shape.dim - piece * 8);
        copy_commit();
        s->put = s->put == r::STAGES - 1 ? 0 : s->put + 1;
        s->sent++;
        s->tile++;
        if (odd) {
            if (more && s->which == now && s->tile >= orders[now].tiles) {
                s->which ^= 1;
                s->tile = 0;
            }
            look_up(a.kv, orders[s->which], s);
        }
    }
}

/* Waits for the `ahead`-th of the tiles that were sent and are not done with. */
template <int DP, int AHEAD> DEV void wait_for_keys(const sender &s)
{
    if (s.sent == keys_ring<DP>::STAGES)
        copy_wait<keys_ring<DP>::STAGES - 1 - AHEAD>();
    else
        copy_wait<0>();
    __syncwarp();
}

/* The oldest tile is done with. */
template <int DP> DEV void release(sender *s)
{
    __syncwarp();
    s->get = s->get == keys_ring<DP>::STAGES - 1 ? 0 : s->get + 1;
    s->sent--;
}

/* --- orders --- */

/* Fills *o with what the warp does after *now (nullptr: first in the window). False: the window has nothing left. */
template <int HB> DEV bool next_order(const prhs_cu_score &p, warp_turns *t, const int *prefix, const order *now, order *o)
{
    const prhs_k_score &a = p.a;
    const int h0 = now ? now->h0 + HB : 0;
    const bool heads = now && h0 < a.shape.unit_heads;
    bool again = true;
    int item;
    if (!heads && !next_chunk(p, t, prefix, &again, &item))
        return false;
    if (again) {
        static_assert(sizeof(order) <= 128, "a lane copies a word");
        if (lane_id() < (int)sizeof(order) / 4)
            ((int *)o)[lane_id()] = ((const int *)now)[lane_id()];
        __syncwarp();
    } else {
        const score_job j = job_of(p, t->first + t->unit, item);
        if (lane_id() == 0)
            o->j = j;
    }
    if (lane_id() == 0) {
        if (!heads && again)
            cut_chunk(&o->j, item);
        o->h0 = heads ? h0 : 0;
        o->same = again && now->h0 == o->h0;
        if (!o->same)
            o->keys = p.mem[PRHS_R_K] + a.kv.k_off + kv_head(a, o->j, o->h0) * a.kv.k_head * 2;
        o->tiles = (max(o->j.end - o->j.begin, 0) + PAIR - 1) / PAIR * 2;
    }
    __syncwarp();
    return true;
}

/* --- sums --- */

/* Takes a lane's scores of a head; those that do not count are NOTHING. */
template <int N> DEV void take(logsum *z, const float (&s)[N])
{
    float top = z->top, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++)
        top = fmaxf(top, s[i]);
#pragma unroll
    for (int i = 0; i < N; i++)
        sum += exp_weight(s[i] - top);
    z->sum = z->sum * exp_weight(z->top - top) + sum;
    z->top = top;
}

/* The largest of the lanes that share a head, and the sum over them. */
template <int HB> DEV float lanes_max(float x) { return HB == 1 ? warp_top(x) : column_max(x); }
template <int HB> DEV float lanes_sum(float x) { return HB == 1 ? warp_sum(x) : column_sum(x); }

/* The lanes' sums of a head become one. */
template <int HB> DEV logsum gathered(logsum z)
{
    const float top = lanes_max<HB>(z.top);
    z.sum = lanes_sum<HB>(z.sum * exp_weight(z.top - top));
    z.top = top;
    return z;
}

/* A lane's first row of a pair. */
template <int HB> DEV int first_row() { return HB == 1 ? lane_id() : lane_id() & ~3; }

/*
 * Writes out a lane's scores of a head, those of positions from `pos` on, and takes them into the sums. Where not the whole pair is of the
 * middle: bit i of the result is set where s[i] is, and the others become NOTHING.
 */
template <int N, bool M> DEV unsigned take_scores(const score_job &j, int pos, bool whole, float *out, float (&s)[N], logsum *mid, logsum *rest)
{
    float other[N];
    unsigned inside = 0;
    if (whole) {
        if constexpr (N == 4) {
            if (out)
                *(float4 *)(out + pos) = make_float4(s[0], s[1], s[2], s[3]);
        } else {
            out[pos] = s[0];
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            other[i] = bad_score(s[i]) ? NOTHING : s[i];
        if (!M)
            take(mid, other);
        return ~0u;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        const bool mine = pos + i < j.last && is_scored(j, pos + i), in = mine && is_inside(j, pos + i), bad = bad_score(s[i]);
        if (mine && out)
            out[pos + i] = s[i];
        inside |= in ? 1u << i : 0u;
        other[i] = mine && !in && !bad ? s[i] : NOTHING;
        s[i] = in && (M || !bad) ? s[i] : NOTHING;
    }
    if (!M)
        take(mid, s);
    take(rest, other);
    return inside;
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

/* The warp's weights of a pair's keys into w[row][head]; the earlier sums fade where the top rises. */
template <int DP, int HB> DEV void weigh(score_sums<DP, HB, true> *x, const float (&s)[sharing<HB>::N], unsigned inside, float *w)
{
    const int N = sharing<HB>::N, at = first_row<HB>() * HB + (HB == 1 ? 0 : lane_id() & 3);
    float top = x->mid[0].top;
#pragma unroll
    for (int i = 0; i < N; i++)
        top = fmaxf(top, bad_score(s[i]) ? LOWEST : s[i]);
    top = lanes_max<HB>(top);
    const float scale = exp_weight(x->mid[0].top - top);
    x->mid[0].top = top;
    x->mid[0].sum *= scale;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const bool bad = bad_score(s[i]);
        const float wi = bad ? 0.0f : exp_weight(s[i] - top);
        x->mid[0].sum += wi;
        w[at + i * HB] = !(inside >> i & 1) ? NOT_INSIDE : bad ? NEVER : wi;
    }
    if (__any_sync(FULL, scale != 1.0f)) {
#pragma unroll
        for (int h = 0; h < HB; h++) {
            const float f = __shfl_sync(FULL, scale, h);
#pragma unroll
            for (int i = 0; i < DP / 32; i++) {
                x->m1[h][i] *= f;
                x->m2[h][i] *= f;
            }
        }
    }
}

/* Row r of a tile, weighted. */
template <int T, int DP, int HB> DEV void add_moment(score_sums<DP, HB, true> *x, const byte *keys, const float (&w)[HB], int r)
{
    float y[DP / 32], yy[DP / 32];
    key_channels<T, DP>(keys + r * DP * 2, r, y);
#pragma unroll
    for (int i = 0; i < DP / 32; i++) {
        y[i] -= x->pivot[i];
        yy[i] = y[i] * y[i];
    }
#pragma unroll
    for (int h = 0; h < HB; h++) {
#pragma unroll
        for (int i = 0; i < DP / 32; i++) {
            x->m1[h][i] += w[h] * y[i];
            x->m2[h][i] += w[h] * yy[i];
        }
    }
}

/* Tile `tile` of a pair, all of whose rows are of the middle, or else those that are. */
template <int T, int DP, int HB> DEV void add_moments(score_sums<DP, HB, true> *x, const byte *keys, const float *w, int tile, bool whole)
{
    if (whole) {
#pragma unroll
        for (int r = 0; r < 8; r++) {
            float w0[HB], w1[HB];
            const float *at = w + row_in_pair(r, tile) * HB;
            if constexpr (HB == 1) {
                const float2 both = *(const float2 *)at;
                w0[0] = both.x, w1[0] = both.y;
            } else {
                const float4 a = *(const float4 *)at, b = *(const float4 *)(at + 4);
                w0[0] = a.x, w0[1] = a.y, w0[2] = a.z, w0[3] = a.w;
                w1[0] = b.x, w1[1] = b.y, w1[2] = b.z, w1[3] = b.w;
            }
            add_moment<T, DP, HB>(x, keys, w0, r);
            add_moment<T, DP, HB>(x, keys, w1, r + 8);
        }
        return;
    }
#pragma unroll 1
    for (int r = 0; r < ROWS; r++) {
        float wr[HB];
#pragma unroll
        for (int h = 0; h < HB; h++)
            wr[h] = w[row_in_pair(r, tile) * HB + h];
        if (wr[0] != NOT_INSIDE)
            add_moment<T, DP, HB>(x, keys, wr, r);
    }
}

/* The key of the middle's last token; zeros without a middle. */
template <int DP> DEV void load_pivot(const prhs_k_score &a, const order &o, float (&pivot)[DP / 32])
{
    const bool any = o.j.mid_end > o.j.mid_begin;
    const place at = place_in(a.kv, o.j.pages, any ? o.j.mid_end - 1 : 0, 2);
#pragma unroll
    for (int i = 0; i < DP / 32; i++) {
        const int d = lane_id() * (DP / 32) + i;
        pivot[i] = any && d < a.shape.dim ? load_one(a.kv.dtype, o.keys + at.k, d) : 0.0f;
    }
}

/* A head's moments. */
template <int DP> DEV void put_moments(const float (&m1)[DP / 32], const float (&m2)[DP / 32], int dim, float *out)
{
    const int d = lane_id() * (DP / 32);
    if (d >= dim)
        return;
    if constexpr (DP == 64) {
        *(float2 *)(out + d) = make_float2(m1[0], m1[1]);
        *(float2 *)(out + dim + d) = make_float2(m2[0], m2[1]);
    } else {
#pragma unroll
        for (int i = 0; i < DP / 32; i += 4) {
            *(float4 *)(out + d + i) = make_float4(m1[i], m1[i + 1], m1[i + 2], m1[i + 3]);
            *(float4 *)(out + dim + d + i) = make_float4(m2[i], m2[i + 1], m2[i + 2], m2[i + 3]);
        }
    }
}

/* --- a chunk --- */

/* Tile `tile` of a pair: the lane's scores in it. With one head all columns are the same. */
template <int T, int DP, int HB>
DEV void score_tile(shared_at keys, const query_terms<T, DP> (&q)[sharing<HB>::NT], int tile, float (&s)[sharing<HB>::NT][sharing<HB>::N])
{
    float v[sharing<HB>::NT][2];
    score_stage<T, DP, sharing<HB>::NT>(keys, q, v);
    if constexpr (HB == 1) {
        const int c = lane_id() & 3;
        const float mine = c & 1 ? v[0][1] : v[0][0];
        s[0][0] = c >> 1 == tile ? mine : s[0][0];
    } else {
#pragma unroll
        for (int nt = 0; nt < sharing<HB>::NT; nt++) {
            s[nt][2 * tile] = v[nt][0];
            s[nt][2 * tile + 1] = v[nt][1];
        }
    }
}

/* All of orders[now]. */
template <int T, int DP, int HB, bool M>
DEV void score_tiles(const prhs_k_score &a, const order *orders, int now, bool more, const byte *ring_at,
                     const query_terms<T, DP> (&q)[sharing<HB>::NT], float *const (&rows)[sharing<HB>::NT], float *w, sender *s,
                     score_sums<DP, HB, M> *x)
{
    typedef keys_ring<DP> r;
    const score_job &j = orders[now].j;
    const int end = j.end, from = whole_begin(j), to = whole_end(j), cut = j.cut, gap = j.gap;
#pragma unroll 1
    for (int row = j.begin; row < end; row += PAIR) {
        const bool whole = row >= from && row + PAIR <= to;
        const int mine = row + first_row<HB>(), pos = mine + (mine >= cut ? gap : 0);
        float v[sharing<HB>::NT][sharing<HB>::N] = {};
        unsigned inside = 0;
        wait_for_keys<DP, 0>(*s);
        score_tile<T, DP, HB>(s->ring + s->get * r::STAGE, q, 0, v);
        if (!M) {
            release<DP>(s);
            fill_ring<DP>(a, orders, now, more, s);
        }
        wait_for_keys<DP, M ? 1 : 0>(*s);
        score_tile<T, DP, HB>(s->ring + (!M ? s->get : s->get == r::STAGES - 1 ? 0 : s->get + 1) * r::STAGE, q, 1, v);
        if (!M) {
            release<DP>(s);
            fill_ring<DP>(a, orders, now, more, s);
        }
#pragma unroll
        for (int nt = 0; nt < sharing<HB>::NT; nt++)
            inside = take_scores<sharing<HB>::N, M>(j, pos, whole, rows[nt], v[nt], &x->mid[nt], &x->rest[nt]);
        if constexpr (M) {
            weigh<DP, HB>(x, v[0], inside, w);
            __syncwarp();
#pragma unroll 1
            for (int tile = 0; tile < 2; tile++) {
                add_moments<T, DP, HB>(x, ring_at + s->get * r::STAGE, w, tile, whole);
                release<DP>(s);
                fill_ring<DP>(a, orders, now, more, s);
            }
        }
    }
}

/* The queries of an order; with the scale, which enters where a power of two does already. */
template <int T, int DP, int HB>
DEV void load_queries(const prhs_cu_score &p, const order &o, query_terms<T, DP> (&q)[sharing<HB>::NT])
{
    const prhs_k_score &a = p.a;
    const int heads = min(HB, a.shape.unit_heads - o.h0);
#pragma unroll
    for (int nt = 0; nt < sharing<HB>::NT; nt++) {
        const int first = min(nt * 4, heads - 1);
        query_words<DP> words;
        load_query_words<DP>(a.q, p.mem[PRHS_R_Q], o.j.query, o.j.head + o.h0 + first, heads - first, a.shape.dim, &words);
        make_query_terms<T, DP>(a.q.dtype, words, &q[nt]);
        q[nt].scale *= a.shape.scale;
    }
}

/* Norms, and moments, of heads [h0, h0 + HB). */
template <int DP, int HB, bool M> DEV void put_sums(const prhs_k_score &a, const order &o, int heads, score_sums<DP, HB, M> *x, byte *ws)
{
    const i64 slot = slot_of(a, o.j, o.h0);
    const bool whole = is_whole(o.j, o.j.begin, o.j.end - o.j.begin);
    const int c = HB == 1 ? 0 : lane_id() & 3;
#pragma unroll
    for (int nt = 0; nt < sharing<HB>::NT; nt++) {
        const logsum mid = gathered<HB>(x->mid[nt]), rest = whole ? x->rest[nt] : gathered<HB>(x->rest[nt]);
        if (lane_id() < (HB == 1 ? 1 : 4) && nt * 4 + c < heads)
            put_norm(a, slot + (i64)(nt * 4 + c) * a.work.score_chunks, mid, rest, ws);
    }
    if constexpr (M) {
#pragma unroll
        for (int h = 0; h < HB; h++)
            if (h < heads)
                put_moments<DP>(x->m1[h], x->m2[h], a.shape.dim,
                                FLOATS(ws, a.work.mom_off) + (slot + (i64)h * a.work.score_chunks) * 2 * a.shape.dim);
    }
}

/* Heads [h0, h0 + HB) of the unit of orders[now] over its chunk. */
template <int T, int DP, int HB, bool M>
DEV void score_order(const prhs_cu_score &p, const order *orders, int now, bool more, const query_terms<T, DP> (&q)[sharing<HB>::NT],
                     const byte *ring_at, sender *s)
{
    __shared__ __align__(16) float weights[WARPS][M ? PAIR * HB : 4];
    const prhs_k_score &a = p.a;
    const order &o = orders[now];
    const int heads = min(HB, a.shape.unit_heads - o.h0), c = HB == 1 ? 0 : lane_id() & 3;
    byte *ws = p.mem[PRHS_R_WORK];
    score_sums<DP, HB, M> x;
    float *rows[sharing<HB>::NT];
#pragma unroll
    for (int nt = 0; nt < sharing<HB>::NT; nt++) {
        x.mid[nt] = x.rest[nt] = logsum{ LOWEST, 0.0f };
        rows[nt] = nt * 4 + c < heads ? FLOATS(ws, a.work.score_off) + (o.j.row + o.h0 + nt * 4 + c) * a.work.score_stride : nullptr;
    }
    if constexpr (M) {
        load_pivot<DP>(a, o, x.pivot);
#pragma unroll
        for (int h = 0; h < HB; h++)
#pragma unroll
            for (int i = 0; i < DP / 32; i++)
                x.m1[h][i] = x.m2[h][i] = 0.0f;
    }
    score_tiles<T, DP, HB, M>(a, orders, now, more, ring_at, q, rows, weights[warp_id()], s, &x);
    put_sums<DP, HB, M>(a, orders[opaque(now)], heads, &x, ws);
}

/* The warp's chunks of a window. */
template <int T, int DP, int HB, bool M>
DEV void score_window(const prhs_cu_score &p, const int *prefix, order *orders, const byte *ring_at, warp_turns *t)
{
    const prhs_k_score &a = p.a;
    sender s = { shared_at_of(ring_at), 0, 0, 0, 0, 0, 0, 0, nullptr };
    if (!next_order<HB>(p, t, prefix, nullptr, &orders[0]))
        return;
    look_up(a.kv, orders[0], &s);
    fill_ring<DP>(a, orders, 0, false, &s);
    query_terms<T, DP> q[sharing<HB>::NT];
    bool more = true;
#pragma unroll 1
    for (int now = 0; more; now ^= 1) {
        if (!orders[now].same)
            load_queries<T, DP, HB>(p, orders[now], q);
        more = next_order<HB>(p, t, prefix, &orders[now], &orders[now ^ 1]);
        if (more && s.which == now && s.tile >= orders[now].tiles) {
            s.which = now ^ 1;
            s.tile = 0;
            look_up(a.kv, orders[now ^ 1], &s);
            fill_ring<DP>(a, orders, now, more, &s);
        }
        score_order<T, DP, HB, M>(p, orders, now, more, q, ring_at, &s);
        __syncwarp(); /* the order's place is free for the one after the next */
    }
    copy_wait<0>();
}

#endif
