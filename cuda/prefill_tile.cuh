/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a tile of prefill on tensor cores has in shared memory: its queries, keys and values on their way, and what all threads know of it.
 */
#ifndef PRHS_PREFILL_TILE_CUH
#define PRHS_PREFILL_TILE_CUH

#include "prefill.cuh"

/* What a pass over the keys is for. From COUNT_NANS on, O counts the lane's weighted tokens whose channel is NaN, +inf, -inf. */
enum { FAST, FINITE, COUNT_NANS, COUNT_PLUS, COUNT_MINUS, LAST = COUNT_MINUS };

/* DP: channels of a row in shared memory; DK: channels that are multiplied. */
template <bool BF16, int DP, int DK> struct geometry {
    static constexpr bool bf16 = BF16;
    static constexpr int dtype = BF16 ? PRHS_K_BF16 : PRHS_K_F16;
    static constexpr int steps = DK / 16;                /* of 16 channels */
    static constexpr int stripes = DP > 128 ? 1 : 2;     /* of 16 lanes a warp */
    static constexpr int keys = DP > 128 ? 32 : 64;      /* a block of keys */
    static constexpr int warp_lanes = 16 * stripes, lanes = 4 * warp_lanes;
    static constexpr int row = 2 * DP, pieces = DP / 8;  /* bytes; words of 16 bytes */
    static constexpr int slot = keys * row;              /* K or V of a block */
    static constexpr int warp_rows = 32 / pieces;        /* rows that a warp copies at once, one word a thread */
    static constexpr int turns = keys / (4 * warp_rows); /* until four warps have copied a slot */
    static constexpr int q_at = 0, ring_at = lanes * row, exponent_at = ring_at + 3 * slot, rest_at = exponent_at + 128;
};

/* Offset of a word: the eight words that ldmatrix reads at once, one a row, lie in different banks. */
template <class G> DEV int word_at(int row, int piece) { return row * G::row + ((piece ^ (row & 7)) << 4); }

/*
 * A thread's place. Each phase asks for it anew: what follows from it is a few instructions, and would take registers from the phases
 * that need all there are.
 */
struct place_in_block {
    int warp, lane;
};

DEV place_in_block here()
{
    const int thread = opaque(threadIdx.x);
    place_in_block me = { thread >> 5, thread & 31 };
    return me;
}

/* Row of this thread's word in turn i of copying, and its word. */
template <class G> DEV int copied_row(place_in_block me, int i) { return (i * 4 + me.warp) * G::warp_rows + me.lane / G::pieces; }
template <class G> DEV int copied_piece(place_in_block me) { return me.lane % G::pieces; }

#define LOG2E 1.44269504f

DEV float power_of_2(int e) { return __int_as_float((127 + e) << 23); }
template <class G> DEV unsigned pack(float x, float y) { return G::bf16 ? floats_bf162(x, y) : floats_half2(x, y); }

/* --- queries --- */

/* Eight channels as 16-bit words, and what they are off by. */
struct narrowed {
    uint4 word, rest;
};

template <class G> DEV void narrow_pair(float x, float y, unsigned *word, unsigned *rest)
{
    *word = pack<G>(x, y);
    const float2 f = G::bf16 ? bf162_floats(*word) : half2_floats(*word);
    const float dx = x - f.x, dy = y - f.y;
    *rest = pack<G>(isnan(dx) ? 0.0f : dx, isnan(dy) ? 0.0f : dy);
}

/*
 * Rows of another dtype are brought to [1, 2) by a power of two, which `exponent` undoes: so nothing overflows or vanishes; and the rest
 * goes through the products as well.
 */
template <class G> DEV narrowed narrow(const prhs_k_rows &q, const byte *row, int d, bool real, int *exponent)
{
    float x[8], top = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] = real ? load_one(q.dtype, row, d + i) : 0.0f;
        const float size = fabsf(x[i]);
        top = fmaxf(top, size <= 3.4e38f ? size : 0.0f);
    }
#pragma unroll
    for (int w = 1; w < G::pieces; w <<= 1)
        top = fmaxf(top, __shfl_xor_sync(FULL, top, w));
    const int e = top > 0.0f ? min(max((int)(__float_as_uint(top) >> 23) - 127, -126), 126) : 0;
    const float factor = power_of_2(-e);
    narrowed r;
    narrow_pair<G>(x[0] * factor, x[1] * factor, &r.word.x, &r.rest.x);
    narrow_pair<G>(x[2] * factor, x[3] * factor, &r.word.y, &r.rest.y);
    narrow_pair<G>(x[4] * factor, x[5] * factor, &r.word.z, &r.rest.z);
    narrow_pair<G>(x[6] * factor, x[7] * factor, &r.word.w, &r.rest.w);
    *exponent = e;
    return r;
}

/* Queries of the keys' dtype are only sent for: they come with the copies of the first block. */
template <class G> DEV void send_queries(const prhs_cu_prefill &p, const tile &t, unsigned char *shared)
{
    const place_in_block me = here();
    const int piece = copied_piece<G>(me);
#pragma unroll 4
    for (int i = 0; i < G::lanes / (4 * G::warp_rows); i++) {
        const int lane = copied_row<G>(me, i);
        const bool real = lane < t.lanes && piece * 8 < p.a.shape.dim;
        const byte *row = row_at(p.a.q, p.mem[PRHS_R_Q], lane_row(p.a, t, real ? lane : 0), lane_head(p.a, t, real ? lane : 0));
        copy_async_or_zero(shared + G::q_at + word_at<G>(lane, piece), row + (real ? piece * 16 : 0), real);
        if (piece == 0)
            ((signed char *)(shared + G::exponent_at))[lane] = 0;
    }
}

template <class G> DEV void load_queries(const prhs_cu_prefill &p, const tile &t, unsigned char *shared)
{
    const place_in_block me = here();
    const int piece = copied_piece<G>(me);
    const prhs_k_rows &q = p.a.q;
    if (q.dtype == G::dtype) {
        send_queries<G>(p, t, shared);
        return;
    }
#pragma unroll 1
    for (int i = 0; i < G::lanes / (4 * G::warp_rows); i++) {
        const int lane = copied_row<G>(me, i);
        const bool real = lane < t.lanes && piece * 8 < p.a.shape.dim;
        const byte *row = row_at(q, p.mem[PRHS_R_Q], lane_row(p.a, t, real ? lane : 0), lane_head(p.a, t, real ? lane : 0));
        int exponent = 0;
        const narrowed n = narrow<G>(q, row, piece * 8, real, &exponent);
        *(uint4 *)(shared + G::q_at + word_at<G>(lane, piece)) = n.word;
        *(uint4 *)(shared + G::rest_at + word_at<G>(lane, piece)) = n.rest;
        if (piece == 0)
            ((signed char *)(shared + G::exponent_at))[lane] = (signed char)exponent;
    }
}

/* --- keys and values on their way to shared memory --- */

/* What all threads of the block know; kept in shared memory, where it takes no registers. */
struct job {
    tile t;
    view all, own[4]; /* of the tile; of each warp's lanes */
    const int *pages;
    i64 next;   /* the tile's place among all tiles */
    int shift;  /* log2 of the page size, or -1 */
    int spoilt; /* an output is NaN although no score was */
    int pass;
};

/* By all threads, between two barriers. */
template <class G> DEV void set_job(const prhs_cu_prefill &p, const tile &t, i64 next, job *j)
{
    const int ps = p.a.kv.page_size;
    if (threadIdx.x == 0) {
        j->t = t;
        j->all = view_of(p.a, t, 0, G::lanes);
        j->pages = pages_of(p.a.batch, p.mem[PRHS_R_PAGES], t.b);
        j->shift = (ps & (ps - 1)) == 0 ? __ffs(ps) - 1 : -1;
        j->next = next;
        j->spoilt = 0;
        j->pass = FAST;
    }
    if (lane_id() == 0)
        j->own[warp_id()] = view_of(p.a, t, warp_id() * G::warp_lanes, G::warp_lanes);
}

DEV int page_of(const prhs_k_kv &kv, const job &j, int key) { return j.shift >= 0 ? key >> j.shift : key / kv.page_size; }

/*
 * Each thread finds one row of the next block: lanes 0-15 of a warp K rows, lanes 16-31 V rows, of those that the warp copies; the warp
 * hands the addresses round when it copies. Keys past the tile's last row are not read: their row is the last row.
 */
template <class G> DEV int found_key(const job &j, int key)
{
    const place_in_block me = here();
    const int i = me.lane & 15 & (G::turns * G::warp_rows - 1);
    return min(key + (i / G::warp_rows * 4 + me.warp) * G::warp_rows + i % G::warp_rows, j.all.last);
}

template <class G> DEV int page_id(const prhs_k_kv &kv, const job &j, int key)
{
    return __ldg(j.pages + page_of(kv, j, found_key<G>(j, key)));
}

/* Address of the thread's row of the block at `key`, whose page is `id`. */
template <class G> DEV const byte *address(const prhs_cu_prefill &p, const job &j, int key, int id)
{
    const prhs_k_kv &kv = p.a.kv;
    const int at = found_key<G>(j, key), in = at - page_of(kv, j, at) * kv.page_size;
    const i64 page = page_id(kv, id);
    if (lane_id() < 16)
        return p.mem[PRHS_R_K] + kv.k_off + 2 * (page * kv.k_page + in * kv.k_token + j.t.hk * kv.k_head);
    return p.mem[PRHS_R_V] + kv.v_off + 2 * (page * kv.v_page + in * kv.v_token + j.t.hk * kv.v_head);
}

/* One group of copies: K (from 0) or V (from 16) of the block at `key`, or nothing. */
template <class G> DEV void copy_block(const prhs_k_shape &s, int last, unsigned char *slot, const byte *at, int from, int key, bool any)
{
    if (any) {
        constexpr int rows = 4 * G::warp_rows; /* a turn */
        const place_in_block me = here();
        const int piece = copied_piece<G>(me), row = copied_row<G>(me, 0), left = last - key - row;
        const int to = word_at<G>(row, piece);
#pragma unroll
        for (int i = 0; i < G::turns; i++) {
            const byte *word = (const byte *)__shfl_sync(FULL, (unsigned long long)at, from + i * G::warp_rows + me.lane / G::pieces);
            /* word_at of the turn's row: its last three bits stay, but for every other turn of four rows. */
            const int flip = rows == 4 ? (i & 1) << 6 : 0;
            if (piece * 8 < s.dim)
                copy_async_or_zero(slot + (to ^ flip) + i * rows * G::row, word + piece * 16, i * rows <= left);
        }
    }
    copy_commit();
}

/* Channels past the head's size that are multiplied are zeros; no copy ever touches them. */
template <class G> DEV void clear_padding(const prhs_k_shape &s, unsigned char *ring)
{
    if (s.dim < 16 * G::steps)
#pragma unroll 1
        for (int i = opaque(threadIdx.x); i < 3 * G::keys * G::pieces; i += PREFILL_THREADS)
            if (i % G::pieces * 8 >= s.dim)
                *(uint4 *)(ring + i / (G::keys * G::pieces) * G::slot + word_at<G>(i / G::pieces % G::keys, i % G::pieces)) =
                    make_uint4(0, 0, 0, 0);
}

#endif
