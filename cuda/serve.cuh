/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend: partial attention of a row of a unit over a chunk of its set. A warp takes a chunk: no warp waits for another one. (What is
 * merged is left to another kernel: a fence after every chunk costs more than a launch.) serve.cu and serve_mma.cu say how a warp takes a
 * tile.
 */
#ifndef PRHS_SERVE_CUH
#define PRHS_SERVE_CUH

#include "common.cuh"

#ifndef WARPS
#define WARPS 4
#define THREADS (32 * WARPS)
#endif

/* A chunk of work, the same for all lanes of the warp. */
struct job {
    entry e;
    prhs_set set;
    const int *list, *pages;
    i64 b;
    int u, r, work;
    int first, last, chunk; /* tokens [first, last) of the row's linear index */
};

DEV int row_tokens(const entry &e, const prhs_set &set, int work, int r)
{
    return work_tokens(set, work, e.flags & PRHS_SEQ_FULL ? e.kv_len - 1 : e.pos0 + r);
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
    int sum = 0;
#pragma unroll 1
    for (int r = 0; r < e.rows; r++)
        sum += attend_chunks(a.work, row_tokens(e, v.set, work_of_row(a, p.mem[PRHS_R_WORK], v.i / a.shape.units, r, v.i % a.shape.units), r));
    return sum;
}

/* The chunks of all units, as the grid's warps share them. */
DEV turns chunks_begin(const prhs_cu_serve &p) { return walk_begin(seqs_of(p.attend.batch, p.mem[PRHS_R_SEQS]) * p.attend.shape.units); }

/* The next units that have chunks, by the whole block. False: there are none. */
DEV bool next_window(const prhs_cu_serve &p, turns *t, const int *counts, int *prefix)
{
    return walk_window(
        t, p.attend.batch.max_seqs * p.attend.shape.units, prefix, [&](const unit_view &v) { return count_unit(p, counts, v); },
        [&](int k) { return view_of(p, counts, k); });
}

/* Item `item` of unit i. False: no chunk. */
DEV bool find_job(const prhs_cu_serve &p, int i, int item, job *j)
{
    const prhs_k_attend &a = p.attend;
    byte *ws = p.mem[PRHS_R_WORK];
    const int b = (int)((unsigned)i / (unsigned)a.shape.units);
    j->b = b;
    j->u = i - b * a.shape.units;
    j->set = ((const prhs_set *)(ws + a.work.set_off))[i];
    j->e = entry_of(a.batch, p.mem[PRHS_R_SEQS], b);
    j->work = work_of_row(a, ws, b, 0, j->u); /* comes with the set and the record */
    j->r = 0;
    int tokens = row_tokens(j->e, j->set, j->work, 0);
    if (j->e.rows != 1) {
        for (;; j->r++) {
            if (j->r >= j->e.rows)
                return false;
            if (j->r)
                j->work = work_of_row(a, ws, b, j->r, j->u);
            tokens = row_tokens(j->e, j->set, j->work, j->r);
            const int chunks = attend_chunks(a.work, tokens);
            if (item < chunks)
                break;
            item -= chunks;
        }
    }
    const int size = chunk_tokens(tokens, a.work.chunk_min, a.work.chunks);
    j->chunk = item;
    j->first = item * size;
    j->last = min(j->first + size, tokens);
    j->pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], j->e.table);
    j->list = a.state.list_off == PRHS_NONE
                  ? nullptr
                  : SLOT_AT(p.mem[PRHS_R_STATE], a.state, list_off, j->e.slot, int) + (i64)j->u * a.state.list_cap;
    return j->first < j->last;
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

/* What a part is divided by, and its log-sum-exp. */
DEV float part_scale(float sum, bool bad) { return bad ? NEVER : sum > 0.0f ? 1.0f / sum : 0.0f; }
DEV float part_lse(float top, float sum, bool bad) { return bad ? NEVER : sum > 0.0f ? top + logf(sum) : NOTHING; }

/* Index of the first head's part of a job, counted in parts; heads are work.chunks apart. */
DEV i64 part_index(const prhs_k_attend &a, const job &j, int head)
{
    return ((j.b * a.batch.rows + j.r) * a.shape.heads + head) * a.work.chunks + j.chunk;
}

#endif
