/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend: partial attention of a row of a unit over a chunk of its set. A warp takes a chunk: no warp waits for another one. (What is
 * merged is left to another kernel: a fence after every chunk costs more than a launch.) serve.cu and serve_mma.cu say how a warp takes a
 * tile.
 */
#ifndef PRHS_SERVE_CUH
#define PRHS_SERVE_CUH

#include "counts.cuh"

#ifndef WARPS
#define WARPS 4 /* of a block */
#endif
#define THREADS (32 * WARPS)

/* A chunk of work, the same for all lanes of the warp. */
struct job {
    prhs_set set;
    const int *list, *pages;
    short work, chunk;
    int u, first, last; /* tokens [first, last) of the row's linear index */
    int tokens, size;   /* of the row, and of its chunks but the last one */
    int record;         /* index of the first head's record that a verdict will rest on; < 0: there is no verdict to come */
    i64 row, parts;     /* of the queries; rows before it times heads: where its parts are */
};

/* The units' chunks in this attend. */
DEV const int *counts_of(const prhs_cu_serve &p)
{
    const prhs_k_attend &a = p.attend;
    return INTS(p.mem[PRHS_R_WORK], a.work.attend_count_off) + (i64)p.pass * a.batch.max_seqs * a.shape.units;
}

/* The chunks of all units, as the grid's warps share them. */
DEV walk chunks_begin(const prhs_cu_serve &p)
{
    const prhs_k_attend &a = p.attend;
    return walk_begin(a.batch.max_seqs * a.shape.units, seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * a.shape.units,
                      tickets_at(p.mem[PRHS_R_WORK], a.work, p.pass));
}

/* The next units that have chunks, by the whole block. False: there are none. */
DEV bool next_window(const prhs_cu_serve &p, walk *w, const int *counts, int *prefix)
{
    return walk_window(w, p.attend.batch.max_seqs * p.attend.shape.units, prefix, [](int chunks) { return chunks; },
                       [&](int i) { return counts[i]; });
}

/* What tells which chunk an item is, as it lies in memory. */
struct job_view {
    prhs_set set;
    prhs_seq seq;
    int work, i, item, words[9]; /* 32 words */
};

/* Asks for a lane's word of the view of item `item` of unit i. */
DEV int ask_view(const prhs_cu_serve &p, int i, int item)
{
    const prhs_k_attend &a = p.attend;
    const byte *ws = p.mem[PRHS_R_WORK];
    const int b = (int)((unsigned)i / (unsigned)a.shape.units), lane = lane_id(), sets = sizeof(prhs_set) / 4, seqs = sizeof(prhs_seq) / 4;
    const int *word = lane < sets ? (const int *)((const prhs_set *)(ws + a.work.set_off) + i) + lane
                                  : (const int *)seq_at(a.batch, p.mem[PRHS_R_SEQS], b) + min(lane - sets, seqs - 1);
    if (lane < sets + seqs)
        return *word;
    return lane == sets + seqs ? work_of_row(a, ws, b, 0, i - b * a.shape.units) : lane == sets + seqs + 1 ? i : item;
}

/* False: no chunk. */
DEV bool make_job(const prhs_cu_serve &p, const job_view &v, job *j)
{
    const prhs_k_attend &a = p.attend;
    const int b = (int)((unsigned)v.i / (unsigned)a.shape.units);
    const entry e = entry_from(a.batch, v.seq, a.batch.active_off == PRHS_NONE ? b : v.seq.reserved[0]);
    int r = 0, item = v.item;
    j->u = v.i - b * a.shape.units;
    j->set = v.set;
    j->work = (short)v.work;
    int tokens = row_tokens(e, v.set, v.work, 0);
    if (e.rows != 1) {
        for (;; r++) {
            if (r >= e.rows)
                return false;
            if (r)
                j->work = (short)work_of_row(a, p.mem[PRHS_R_WORK], b, r, j->u);
            tokens = row_tokens(e, v.set, j->work, r);
            const int chunks = attend_chunks(a.work, tokens);
            if (item < chunks)
                break;
            item -= chunks;
        }
    }
    j->tokens = tokens;
    j->size = attend_chunk_tokens(a.work, tokens);
    j->chunk = (short)item;
    j->first = item * j->size;
    j->last = min(j->first + j->size, tokens);
    j->record = p.pass == 0 && r == 0 && a.work.judge_off != PRHS_NONE && v.set.mode == PRHS_MODE_SHARE
                    ? (b * a.shape.units + j->u) * a.shape.unit_heads
                    : -1;
    j->row = e.row0 + r;
    j->parts = ((i64)b * a.batch.rows + r) * a.shape.heads;
    j->pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], e.table);
    j->list = a.state.list_off == PRHS_NONE ? nullptr
                                            : SLOT_AT(p.mem[PRHS_R_STATE], a.state, list_off, e.slot, int) + (i64)j->u * a.state.list_cap;
    return j->first < j->last;
}

/* What a part is divided by, and its log-sum-exp. */
DEV float part_scale(float sum, bool bad) { return bad ? NEVER : sum > 0.0f ? 1.0f / sum : 0.0f; }
DEV float part_lse(float top, float sum, bool bad) { return bad ? NEVER : sum > 0.0f ? top + logf(sum) : NOTHING; }

/* Index of a head's part of a job, counted in parts; heads are work.chunks apart. */
DEV i64 part_index(const prhs_k_attend &a, const job &j, int head) { return (j.parts + head) * a.work.chunks + j.chunk; }

#endif
