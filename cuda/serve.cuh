/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend: partial attention of a row of a unit over a chunk of its set. A block takes a chunk, its warps take turns over tiles, and their
 * results meet in shared memory. (What is merged is left to another kernel: a fence after every chunk costs more than a launch.)
 * serve.cu and serve_mma.cu say how a warp takes a tile.
 */
#ifndef PRHS_SERVE_CUH
#define PRHS_SERVE_CUH

#include "common.cuh"

#ifndef WARPS
#define WARPS 4
#define THREADS (32 * WARPS)
#endif

/* A chunk of work, the same for all threads of the block. */
struct job {
    entry e;
    prhs_set set;
    const int *list, *pages;
    i64 b;
    int u, r, work;
    int first, last, chunk; /* tokens [first, last) of the row's linear index */
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

/* What tells how many chunks a unit has: their number, or where it was not kept what it follows from. */
struct unit_view {
    int i, kept;
    prhs_seq seq;
    prhs_set set;
};

/* The kept numbers; nullptr: there are none. */
DEV const int *kept_counts(const prhs_cu_serve &p)
{
    const prhs_k_attend &a = p.attend;
    return a.work.attend_count_off == PRHS_NONE
               ? nullptr
               : INTS(p.mem[PRHS_R_WORK], a.work.attend_count_off) + (i64)p.pass * a.batch.max_seqs * a.shape.units;
}

DEV unit_view view_of(const prhs_cu_serve &p, const int *counts, int i)
{
    const prhs_k_attend &a = p.attend;
    unit_view v = {};
    v.i = i;
    if (counts) {
        v.kept = counts[i];
    } else {
        v.seq = *seq_at(a.batch, p.mem[PRHS_R_SEQS], i / a.shape.units);
        v.set = ((const prhs_set *)(p.mem[PRHS_R_WORK] + a.work.set_off))[i];
    }
    return v;
}

/* Chunks of all rows of the unit. */
DEV int count_unit(const prhs_cu_serve &p, const int *counts, const unit_view &v)
{
    const prhs_k_attend &a = p.attend;
    if (counts)
        return v.kept;
    const entry e = entry_from(a.batch, v.seq, 0);
    int sum = 0, tokens;
#pragma unroll 1
    for (int r = 0; r < e.rows; r++)
        sum += chunks_of_row(a, e, v.set, work_of_row(a, p.mem[PRHS_R_WORK], v.i / a.shape.units, r, v.i % a.shape.units), r, &tokens);
    return sum;
}

/* Turns over the chunks of all units. */
DEV turns turns_of(const prhs_cu_serve &p)
{
    return turns_begin(TURNS_EACH, seqs_of(p.attend.batch, p.mem[PRHS_R_SEQS]) * p.attend.shape.units);
}

/* The block's next item: of unit *i, *item. */
DEV bool next_item(const prhs_cu_serve &p, turns *t, const int *counts, int *prefix, int *i, int *item)
{
    return turns_next(
        t, p.attend.batch.max_seqs * p.attend.shape.units, prefix, [&](const unit_view &v) { return count_unit(p, counts, v); }, i, item,
        [&](int k) { return view_of(p, counts, k); });
}

/* Item `item` of unit i. False: no chunk. */
DEV bool find_job(const prhs_cu_serve &p, int i, int item, job *j)
{
    const prhs_k_attend &a = p.attend;
    byte *ws = p.mem[PRHS_R_WORK];
    j->b = i / a.shape.units;
    j->u = i % a.shape.units;
    j->set = *set_at(ws, a.work, a.shape, j->b, j->u);
    j->e = entry_of(a.batch, p.mem[PRHS_R_SEQS], j->b);
    const int first = work_of_row(a, ws, j->b, 0, j->u); /* comes with the set and the record */
    for (j->r = 0; j->r < j->e.rows; j->r++) {
        int tokens;
        j->work = j->r ? work_of_row(a, ws, j->b, j->r, j->u) : first;
        const int chunks = chunks_of_row(a, j->e, j->set, j->work, j->r, &tokens);
        if (item < chunks) {
            const int size = chunk_tokens(tokens, a.work.chunk_min, a.work.chunks);
            j->chunk = item;
            j->first = item * size;
            j->last = min(j->first + size, tokens);
            j->pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], j->e.table);
            j->list = a.state.list_off == PRHS_NONE
                          ? nullptr
                          : SLOT_AT(p.mem[PRHS_R_STATE], a.state, list_off, j->e.slot, int) + (i64)j->u * a.state.list_cap;
            return true;
        }
        item -= chunks;
    }
    return false;
}

/* Where the tile's rows lie: a lane looks one (or several) up. Past the chunk: where its last row lies. */
template <int TOKENS> struct lookup {
    static const int EACH = (TOKENS + 31) / 32;
    place at[EACH];
};

template <int TOKENS> DEV void look_up(const prhs_k_attend &a, const job &j, int base, int head, lookup<TOKENS> *l)
{
#pragma unroll
    for (int i = 0; i < lookup<TOKENS>::EACH; i++) {
        const int t = min(base + lane_id() + 32 * i, j.last - 1);
        if (lane_id() + 32 * i < TOKENS)
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

/* The block's normalised part of heads [0, heads), from the warps' values acc[warp][head][W]. */
template <int W, int HB>
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
            o += f * acc[(w * HB + h) * W + d];
        }
        FLOATS(ws, a.work.part_off)[(at + (i64)h * a.work.chunks) * dim + d] = bad ? NEVER : sum > 0.0f ? o / sum : 0.0f;
        if (d == 0)
            FLOATS(ws, a.work.part_lse_off)[at + (i64)h * a.work.chunks] = bad ? NEVER : sum > 0.0f ? top + logf(sum) : NOTHING;
    }
}

/* Takes turns over chunks; attend(job, h0) attends with HB heads of the unit from h0 on. */
template <int HB, class Attend> DEV void serve(const prhs_cu_serve &p, Attend attend)
{
    __shared__ int prefix[TURNS_EACH * THREADS];
    const int *counts = kept_counts(p);
    int i, item;
    grid_begin();
    turns t = turns_of(p);
    while (next_item(p, &t, counts, prefix, &i, &item)) {
        job j;
        if (find_job(p, i, item, &j))
            for (int h0 = 0; h0 < p.attend.shape.unit_heads; h0 += HB)
                attend(j, h0);
    }
}

#endif
