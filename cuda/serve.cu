/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend: partial attention of a row of a unit over a chunk of its set; with finishes, the block that ends a unit's last chunk also
 * merges and ends the unit's rows. A block takes a chunk, its warps take turns over tiles, and their results meet in shared memory.
 */
#include "finish.cuh"
#include "tile.cuh"

/* A chunk of work, the same for all threads of the block. */
struct job {
    entry e;
    prhs_set set;
    const int *list, *pages;
    i64 b;
    int u, r, work;
    int first, last, chunk; /* tokens [first, last) of the row's linear index */
};

/* What a warp has seen so far. */
template <int HB> struct running {
    float top[HB], sum[HB]; /* sum: a part a lane */
    float acc[HB][8];
    bool bad[HB];
};

template <int HB> struct meeting {
    float top[WARPS][HB], sum[WARPS][HB];
    int bad[WARPS][HB];
};

DEV int chunks_of_row(const prhs_k_attend &a, const entry &e, const prhs_set &set, int work, int r, int *tokens)
{
    const int end = e.flags & PRHS_SEQ_FULL ? e.kv_len - 1 : e.pos0 + r;
    *tokens = work_tokens(set, work, end);
    return attend_chunks(a.work, *tokens);
}

DEV int work_of_row(const prhs_k_attend &a, const byte *ws, i64 b, int r, int u)
{
    if (a.work.work_off == PRHS_NONE)
        return PRHS_WORK_SET;
    return ((const int *)(ws + a.work.work_off))[(b * a.batch.rows + r) * a.shape.units + u];
}

/* Chunks of all rows of unit i, where no counts were kept. */
DEV int count_unit(const prhs_k_attend &a, const byte *seqs, byte *ws, int i)
{
    const i64 b = i / a.shape.units;
    const int u = i % a.shape.units;
    const entry e = entry_of(a.batch, seqs, b);
    int sum = 0, tokens;
    if (e.kind == IDLE)
        return 0;
    const prhs_set set = *set_at(ws, a.work, a.shape, b, u);
    for (int r = 0; r < e.rows; r++)
        sum += chunks_of_row(a, e, set, work_of_row(a, ws, b, r, u), r, &tokens);
    return sum;
}

/* Item `item` of unit i. False: no chunk, the unit only waits for its finish. */
DEV bool find_job(const prhs_cu_serve &p, int i, int item, job *j)
{
    const prhs_k_attend &a = p.attend;
    byte *ws = p.mem[PRHS_R_WORK];
    j->b = i / a.shape.units;
    j->u = i % a.shape.units;
    j->set = *set_at(ws, a.work, a.shape, j->b, j->u);
    j->e = entry_of(a.batch, p.mem[PRHS_R_SEQS], j->b);
    for (j->r = 0; j->r < j->e.rows; j->r++) {
        int tokens;
        j->work = work_of_row(a, ws, j->b, j->r, j->u);
        const int chunks = chunks_of_row(a, j->e, j->set, j->work, j->r, &tokens);
        if (item < chunks) {
            const int size = chunk_tokens(tokens, a.work.chunk_min, a.work.chunks);
            j->chunk = item;
            j->first = item * size;
            j->last = min(j->first + size, tokens);
            j->pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], j->b);
            j->list = a.state.list_off == PRHS_NONE
                          ? nullptr
                          : SLOT_AT(p.mem[PRHS_R_STATE], a.state, list_off, j->e.slot, int) + (i64)j->u * a.state.list_cap;
            return true;
        }
        item -= chunks;
    }
    return false;
}

/* Where the tile's rows lie: a lane looks one (or several) up. */
template <int TOKENS> struct lookup {
    static const int EACH = (TOKENS + 31) / 32;
    place at[EACH];
};

template <int TOKENS> DEV void look_up(const prhs_k_attend &a, const job &j, int base, int head, lookup<TOKENS> *l)
{
#pragma unroll
    for (int i = 0; i < lookup<TOKENS>::EACH; i++) {
        const int t = base + lane_id() + 32 * i;
        if (lane_id() + 32 * i < TOKENS && t < j.last)
            l->at[i] = place_of(a.kv, j.pages, j.work == PRHS_WORK_ALL ? t : set_position(j.set, j.list, t), head);
    }
}

template <int TOKENS> DEV void put_places(const lookup<TOKENS> &l, place *at)
{
#pragma unroll
    for (int i = 0; i < lookup<TOKENS>::EACH; i++)
        if (lane_id() + 32 * i < TOKENS)
            at[lane_id() + 32 * i] = l.at[i];
}

/* Turns the tile's scores into weights relative to the running maximum. */
template <int TOKENS, int HB> DEV void soften(running<HB> *x, float *s, int n)
{
    const int lane = lane_id();
#pragma unroll
    for (int h = 0; h < HB; h++) {
        float w[(TOKENS + 31) / 32], m = LOWEST;
#pragma unroll
        for (int i = 0; i < (TOKENS + 31) / 32; i++) {
            const int t = lane + 32 * i;
            w[i] = t < min(n, TOKENS) ? s[t * HB + h] : NOTHING;
            x->bad[h] |= bad_score(w[i]);
            m = fmaxf(m, bad_score(w[i]) ? LOWEST : w[i]);
        }
        m = fmaxf(warp_top(m), x->top[h]);
        const float scale = exp_weight(x->top[h] - m);
        x->top[h] = m;
        x->sum[h] *= scale;
#pragma unroll
        for (int i = 0; i < (TOKENS + 31) / 32; i++) {
            w[i] = exp_weight(w[i] - m);
            x->sum[h] += w[i];
            if (lane + 32 * i < TOKENS)
                s[(lane + 32 * i) * HB + h] = w[i];
        }
        if (scale != 1.0f) {
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->acc[h][c] *= scale;
        }
    }
}

template <int T, int L, int HB> DEV void add_values(running<HB> *x, const raw8<T> *v, const float *w)
{
    typedef tile<T, L, HB> tl;
#pragma unroll
    for (int i = 0; i < tl::LOADS; i++) {
        float y[8];
        floats_of(v[i], y);
        const float *wt = w + (i * tl::ROWS + lane_id() / L) * HB;
#pragma unroll
        for (int h = 0; h < HB; h++) {
            const float wh = wt[h];
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->acc[h][c] += wh * y[c];
        }
    }
}

/* The warp's tiles of the chunk. */
template <int T, int L, int HB>
DEV void attend_tiles(const prhs_cu_serve &p, const job &j, int head, const float q[HB][8], typename tile<T, L, HB>::shared *sh,
                      running<HB> *x)
{
    typedef tile<T, L, HB> tl;
    const prhs_k_attend &a = p.attend;
    lookup<tl::TOKENS> next;
    int base = j.first + warp_id() * tl::TOKENS;
    look_up(a, j, base, head, &next);
    for (; base < j.last; base += WARPS * tl::TOKENS) {
        raw8<T> k[tl::LOADS], v[tl::LOADS];
        const int n = min(tl::TOKENS, j.last - base);
        put_places(next, sh->at);
        __syncwarp();
        load_rows<T, L, HB>(p.mem[PRHS_R_K], sh->at, false, n, a.shape.dim, k);
        load_rows<T, L, HB>(p.mem[PRHS_R_V], sh->at, true, n, a.shape.dim, v);
        look_up(a, j, base + WARPS * tl::TOKENS, head, &next);
        score_rows<T, L, HB>(k, q, a.shape.scale, sh->s);
        __syncwarp();
        soften<tl::TOKENS, HB>(x, sh->s, n);
        __syncwarp();
        add_values<T, L, HB>(x, v, sh->s);
    }
}

/* Adds the lanes' parts up: afterwards the first L lanes have the warp's values. */
template <int L, int HB> DEV void gather_warp(running<HB> *x)
{
#pragma unroll
    for (int h = 0; h < HB; h++) {
        x->sum[h] = warp_sum(x->sum[h]);
        x->bad[h] = __any_sync(FULL, x->bad[h]);
#pragma unroll
        for (int w = L; w < 32; w <<= 1)
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->acc[h][c] += __shfl_xor_sync(FULL, x->acc[h][c], w);
    }
}

/* The block's normalised part of heads [0, heads), from the warps' values. */
template <int L, int HB>
DEV void put_part(const prhs_k_attend &a, const meeting<HB> &m, const float *acc, i64 at, int heads, byte *ws)
{
    const int dim = a.shape.dim;
    for (int i = threadIdx.x; i < heads * dim; i += THREADS) {
        const int h = i / dim, d = i - h * dim;
        float top = LOWEST, sum = 0.0f, o = 0.0f;
        bool bad = false;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            top = fmaxf(top, m.top[w][h]);
            bad |= m.bad[w][h];
        }
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float f = exp_weight(m.top[w][h] - top);
            sum += f * m.sum[w][h];
            o += f * acc[(w * HB + h) * L * 8 + d];
        }
        FLOATS(ws, a.work.part_off)[(at + (i64)h * a.work.chunks) * dim + d] = bad ? NEVER : sum > 0.0f ? o / sum : 0.0f;
        if (d == 0)
            FLOATS(ws, a.work.part_lse_off)[at + (i64)h * a.work.chunks] = bad ? NEVER : sum > 0.0f ? top + logf(sum) : NOTHING;
    }
}

/* Heads [h0, h0 + HB) of the unit over the job's chunk. */
template <int T, int L, int HB> DEV void attend_heads(const prhs_cu_serve &p, const job &j, int h0)
{
    __shared__ typename tile<T, L, HB>::shared tiles[WARPS];
    __shared__ meeting<HB> m;
    __shared__ __align__(16) float acc[WARPS * HB * L * 8];
    const prhs_k_attend &a = p.attend;
    const int heads = min(HB, a.shape.unit_heads - h0), head = j.u * a.shape.unit_heads + h0, lane = lane_id(), warp = warp_id();
    float q[HB][8];
    running<HB> x;
    load_queries<L, HB>(a.q, p.mem[PRHS_R_Q], j.e.row0 + j.r, head, heads, a.shape.dim, q);
#pragma unroll
    for (int h = 0; h < HB; h++) {
        x.top[h] = LOWEST;
        x.sum[h] = 0.0f;
        x.bad[h] = false;
#pragma unroll
        for (int c = 0; c < 8; c++)
            x.acc[h][c] = 0.0f;
    }
    attend_tiles<T, L, HB>(p, j, head / a.shape.group, q, &tiles[warp], &x);
    gather_warp<L, HB>(&x);
#pragma unroll
    for (int h = 0; h < HB; h++) {
        if (lane < L) {
            float4 *to = (float4 *)(acc + (warp * HB + h) * L * 8 + lane * 8);
            to[0] = make_float4(x.acc[h][0], x.acc[h][1], x.acc[h][2], x.acc[h][3]);
            to[1] = make_float4(x.acc[h][4], x.acc[h][5], x.acc[h][6], x.acc[h][7]);
        }
        if (lane == 0) {
            m.top[warp][h] = x.top[h];
            m.sum[warp][h] = x.sum[h];
            m.bad[warp][h] = x.bad[h];
        }
    }
    __syncthreads();
    const i64 at = ((j.b * a.batch.rows + j.r) * a.shape.heads + head) * a.work.chunks + j.chunk;
    put_part<L, HB>(a, m, acc, at, heads, p.mem[PRHS_R_WORK]);
    __syncthreads();
}

/* Whether this block is the last of the unit's `items` to come here; what the others wrote can be read then. */
DEV bool arrive(int *arrived, int items)
{
    __shared__ int last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1) == items - 1;
        if (last)
            *arrived = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

template <int T, int L, int HB> DEV void serve(const prhs_cu_serve &p)
{
    __shared__ int prefix[THREADS];
    grid_begin();
    const prhs_k_attend &a = p.attend;
    const int units = a.batch.max_seqs * a.shape.units;
    byte *ws = p.mem[PRHS_R_WORK];
    const int *counts = a.work.attend_count_off == PRHS_NONE ? nullptr : INTS(ws, a.work.attend_count_off) + (i64)p.pass * units;
    take_turns(
        units, prefix, [&](int i) { return counts ? counts[i] : count_unit(a, p.mem[PRHS_R_SEQS], ws, i); },
        [&](int i, int item) {
            job j;
            if (find_job(p, i, item, &j))
                for (int h0 = 0; h0 < a.shape.unit_heads; h0 += HB)
                    attend_heads<T, L, HB>(p, j, h0);
            if (p.finishes && arrive(INTS(ws, a.work.arrived_off) + i, counts[i]))
                finish_unit(p.finish, p.mem, j.b, j.u, p.pass);
        });
}

#define SERVE(t, T, l, hb, blocks) \
    KERNEL(prhs_serve_##t##_l##l##_h##hb, prhs_cu_serve, THREADS, blocks) { serve<T, l, hb>(p); }
#define SERVE_HEADS(t, T, l)  \
    SERVE(t, T, l, 1, 4)      \
    SERVE(t, T, l, 2, 4)      \
    SERVE(t, T, l, 4, 3)      \
    SERVE(t, T, l, 8, 2)
#define SERVE_LANES(t, T)     \
    SERVE_HEADS(t, T, 4)      \
    SERVE_HEADS(t, T, 8)      \
    SERVE_HEADS(t, T, 16)     \
    SERVE_HEADS(t, T, 32)
SERVE_LANES(f32, PRHS_K_F32)
SERVE_LANES(f16, PRHS_K_F16)
SERVE_LANES(bf16, PRHS_K_BF16)
