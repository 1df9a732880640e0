/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score: every candidate key against the decision row's queries, with the normalisers and, on demand, the moments of the middle. A warp
 * takes a chunk of absolute positions of a unit, all by itself: the block's warps meet only where units are counted. score.cu and
 * score_mma.cuh say how a warp takes a chunk.
 */
#ifndef PRHS_SCORE_CUH
#define PRHS_SCORE_CUH

#include "counts.cuh"
#include "judge.cuh"

#ifndef WARPS
#define WARPS 4 /* of a block */
#endif
#define THREADS (32 * WARPS)
#define NOT_INSIDE (-1.0f) /* the weight of a token that is not in the middle */

/* Over scores that are neither NaN nor +inf: a lane's, or the whole warp's; sum is relative to top. */
struct logsum {
    float top, sum;
};

/*
 * A chunk, the same for all lanes. Between the sinks and the middle (PSAW) nothing is scored, unless everything is: rows are counted as if
 * the tiles of 16 that lie there, which begin at `cut`, were not. See position().
 */
struct score_job {
    const int *pages;
    i64 row;                          /* of the batch's heads, the unit's first */
    int query, head, chunk;           /* head: of the sequence's, the unit's first */
    int tokens, size;                 /* that the unit's chunks cover; a chunk's */
    int begin, end, last;             /* rows [begin, end); positions before `last` */
    int cut, gap, hole;               /* gap: what lies there of the unit, `hole`, or 0 where the chunk does not reach over it */
    int sink_end, mid_begin, mid_end; /* sink_end: without end where everything is scored */
};

DEV int position(const score_job &j, int row) { return row + (row >= j.cut ? j.gap : 0); }
DEV bool is_scored(const score_job &j, int pos) { return pos < j.sink_end || pos >= j.mid_begin; }
DEV bool is_inside(const score_job &j, int pos) { return pos >= j.mid_begin && pos < j.mid_end; }
/* Whether n positions from `pos` on are the middle's and the chunk's. */
DEV bool is_whole(const score_job &j, int pos, int n) { return pos >= j.mid_begin && pos + n <= min(j.mid_end, j.last); }

/* Rows [begin, end) of the middle, without a cut among them. */
DEV int whole_begin(const score_job &j) { return max(j.mid_begin - j.gap, j.gap ? j.cut : 0); }
DEV int whole_end(const score_job &j) { return min(j.mid_end, j.last) - j.gap; }

/* Elements from a KV head's first row to row `in` of a page. */
DEV i64 key_offset(const prhs_k_kv &kv, int page, int in) { return steps(page_id(kv, page), kv.k_page) + steps((unsigned)in, kv.k_token); }

#ifndef COUNTS
#define COUNTS 8                  /* units that a thread counts */
#endif
#define WINDOW (COUNTS * THREADS) /* units that are counted together */

/* How many chunks each unit has. */
struct tally {
    const int *kept;  /* the counts of the kernels before; null: there are none */
    unsigned *failed; /* shared, WINDOW bits: the units whose lists fail; null: there is no verdict to come to */
};

/* M: with moments, as only the mass gate asks for them. */
template <bool M> DEV tally tally_of(const prhs_cu_score &p)
{
    __shared__ unsigned failed[WINDOW / 32];
    const prhs_k_work &w = p.a.work;
    const bool judged = M && w.judge_off != PRHS_NONE, kept = w.score_count_off != PRHS_NONE && !p.a.full;
    const int *counts = kept ? INTS(p.mem[PRHS_R_WORK], w.score_count_off) : nullptr;
    return tally{ judged ? counts + (i64)p.a.batch.max_seqs * p.a.shape.units : counts, judged ? failed : nullptr };
}

/* --- turns --- */

/*
 * Where a warp stands. Units are counted by the block, WINDOW at a time; then each warp takes its share of these units' chunks, one after
 * another: most are of the same unit as the one before, of which little has to be found out again.
 */
struct warp_turns {
    int next, stop;          /* chunks, from the window's first on */
    int unit, before, after; /* the unit of the chunk before, from the window's first on, and where its chunks lie */
    int first, real;         /* units: where the window begins; from `real` on there is no work, known only once the first are counted */
    int ticket;              /* lane 0's next one, which may be on its way yet */
    bool dynamic;            /* chunks past the first ones go to who comes first: see walk_ticket() */
};

DEV warp_turns turns_of(const prhs_cu_score &p)
{
    return warp_turns{ 0, 0, 0, 0, 0, -WINDOW, seqs_of(p.a.batch, p.mem[PRHS_R_SEQS]) * p.a.shape.units, 0, false };
}

/* For lane 0: asked for only. */
DEV int ask_ticket(const prhs_cu_score &p, const warp_turns &t)
{
    return lane_id() ? 0 : atomicAdd(tickets_at(p.mem[PRHS_R_WORK], p.a.work, PRHS_PASSES) + t.first / WINDOW, 1);
}

/* Whether the audit of unit i is drawn. */
DEV bool is_drawn(const prhs_k_score &a, const byte *seqs, int i)
{
    const unsigned b = (unsigned)i / (unsigned)a.shape.units;
    const entry e = entry_from(a.batch, *seq_at(a.batch, seqs, b), 0);
    return prhs_is_drawn(a.sample, e.slot, i - (int)b * a.shape.units, e.pos0);
}

/* Where numbers are not kept: those of the window from `begin` on, by the whole block; ends with a barrier. Not where it takes registers. */
DEV_CALL void count_all(const prhs_k_score &a, const byte *seqs, const byte *ws, int begin, int end, int *counts)
{
#pragma unroll 4
    for (int k = threadIdx.x; k < WINDOW; k += THREADS)
        counts[k] = begin + k < end ? count_keys(a, seqs, ws, begin + k, end) : 0;
    if (a.sample.limit != 0xffffffffu) /* apart, so that nothing comes between the loads of those who take all */
        for (int k = threadIdx.x; k < WINDOW; k += THREADS)
            if (counts[k] && !is_drawn(a, seqs, begin + k))
                counts[k] = 0;
    __syncthreads();
}

/* Chunks of the thread's units in the window from `begin` on, into the thread's place in `prefix`. Returns their sum. */
DEV int count_units(const prhs_cu_score &p, const tally &c, int begin, int end, int *prefix)
{
    const int mine = COUNTS * (int)threadIdx.x;
    int sum = 0, counts[COUNTS];
    if (!c.kept) {
        count_all(p.a, p.mem[PRHS_R_SEQS], p.mem[PRHS_R_WORK], begin, end, prefix);
        for (int k = 0; k < COUNTS; k++)
            sum += prefix[mine + k];
        return sum;
    }
#pragma unroll
    for (int k = 0; k < COUNTS; k++)
        counts[k] = c.kept[min(begin + mine + k, end - 1)];
#pragma unroll
    for (int k = 0; k < COUNTS; k++) {
        if (counts[k] < 0) /* by its verdict */
            counts[k] = c.failed[(mine + k) >> 5] >> ((mine + k) & 31) & 1 ? -counts[k] : 0;
        counts[k] = begin + mine + k < end ? counts[k] : 0;
        prefix[mine + k] = counts[k];
        sum += counts[k];
    }
    return sum;
}

/*
 * The warp's share of `total` chunks: by tickets, as with walk_window(), where there are counters and enough chunks. Else the first warps of
 * all blocks come before the second ones: few chunks are spread over blocks.
 */
DEV void share_chunks(const prhs_cu_score &p, bool tickets, warp_turns *t, int total)
{
    const unsigned warps = gridDim.x * WARPS;
    t->dynamic = tickets && t->first < PRHS_TICKET_WINDOWS * WINDOW && (unsigned)total >= warps;
    t->before = t->after = 0;
    if (t->dynamic) {
        t->ticket = ask_ticket(p, *t);
        t->next = (int)(blockIdx.x * WARPS) + warp_id();
        t->stop = t->next + (blockIdx.x < owners());
        return;
    }
    take_share(total, warps, (unsigned)total / warps, warp_id() * gridDim.x + blockIdx.x, &t->next, &t->stop);
}

/*
 * The next window that has work; false: there is none. By the whole block; has barriers. prefix: shared, WINDOW ints. tickets: whether
 * there are counters.
 */
template <bool M> DEV bool next_window(const prhs_cu_score &p, const tally &c, bool tickets, warp_turns *t, int *prefix)
{
    const int n = p.a.batch.max_seqs * p.a.shape.units;
    for (;;) {
        t->first += WINDOW;
        const int end = t->first ? min(t->real, n) : n;
        if (t->first >= end)
            return false;
        if (M && c.failed)
            judge_units(p.a, p.mem[PRHS_R_WORK], t->first, min(t->real - t->first, WINDOW), c.failed);
        else if (t->first)
            __syncthreads(); /* the last window's counts are no more read */
        const int sum = count_units(p, c, t->first, end, prefix);
        if (!__syncthreads_or(sum))
            continue;
        int before;
        share_chunks(p, tickets, t, block_prefix(sum, &before));
#pragma unroll
        for (int k = 0; k < COUNTS; k++)
            prefix[COUNTS * threadIdx.x + k] = before += prefix[COUNTS * threadIdx.x + k];
        __syncthreads();
        return true;
    }
}

/* The warp's next chunk of the window: true where there is one. *again: it is of the same unit as the one before. */
DEV bool next_chunk(const prhs_cu_score &p, warp_turns *t, const int *prefix, bool *again, int *item)
{
    if (t->next >= t->stop) {
        if (!t->dynamic)
            return false;
        t->next = (int)(owners() * WARPS) + __shfl_sync(FULL, t->ticket, 0);
        if (t->next >= prefix[WINDOW - 1])
            return false;
        t->stop = t->next + 1;
        t->ticket = ask_ticket(p, *t); /* before it is needed: those who score look a chunk ahead */
    }
    *again = t->next < t->after;
    if (!*again) {
        t->unit = first_above(prefix, WINDOW / 32, t->next);
        t->before = t->unit ? prefix[t->unit - 1] : 0;
        t->after = prefix[t->unit];
    }
    *item = t->next++ - t->before;
    return true;
}

/* The job becomes that of the unit's chunk `item`. */
DEV void cut_chunk(score_job *j, int item)
{
    j->chunk = item;
    j->begin = item * j->size;
    j->end = j->last = min(j->begin + j->size, j->tokens);
    j->gap = j->hole;
    if (j->begin >= j->cut) {
        j->begin = max(j->begin, j->cut + j->gap);
        j->gap = 0;
    } else if (j->end > j->cut) {
        j->end = max(j->end - j->gap, j->cut);
    } else {
        j->gap = 0;
    }
}

/* Item `item` of unit i. */
DEV score_job job_of(const prhs_cu_score &p, int i, int item)
{
    const prhs_k_score &a = p.a;
    const byte *ws = p.mem[PRHS_R_WORK];
    const int b = (int)((unsigned)i / (unsigned)a.shape.units);
    /* A unit whose list has just failed is still on its way to what it shares no more. */
    const prhs_set &set = ((const prhs_set *)(ws + (a.moments && a.work.fresh_off != PRHS_NONE ? a.work.fresh_off : a.work.set_off)))[i];
    score_job j;
    j.sink_end = set.sink_end;
    j.mid_begin = set.mid_begin;
    j.mid_end = set.mid_end;
    const entry e = entry_of(a.batch, p.mem[PRHS_R_SEQS], b);
    const int n = e.pos0 + 1, least = a.work.score_chunk_min, chunks = a.work.score_chunks;
    j.tokens = n;
    j.size = for_draws(a) ? DRAWN_CHUNK : chunk_tokens(n, least, chunks);
    j.pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], e.table);
    j.head = (i - b * a.shape.units) * a.shape.unit_heads;
    j.row = (i64)b * a.shape.heads + j.head;
    j.query = e.row0;
    j.cut = (j.sink_end + 15) & ~15;
    j.hole = a.full ? 0 : max((j.mid_begin & ~15) - j.cut, 0);
    if (a.full)
        j.sink_end = 0x7fffffff;
    cut_chunk(&j, item);
    return j;
}

/* A head of the batch has its chunks' norms and moments from here on. */
DEV i64 slot_of(const prhs_k_score &a, const score_job &j, int h) { return (j.row + h) * a.work.score_chunks + j.chunk; }

/* KV head of the unit's head h. */
DEV int kv_head(const prhs_k_score &a, const score_job &j, int h) { return (int)((unsigned)(j.head + h) / (unsigned)a.shape.group); }

/*
 * work(job) for each of the warp's chunks. The job lies in shared memory, where what is seldom needed of it may be read when it is: see
 * opaque().
 */
template <bool M, class Work> DEV void score(const prhs_cu_score &p, Work work)
{
    __shared__ int prefix[WINDOW];
    __shared__ score_job jobs[WARPS];
    grid_begin(p);
    const tally c = tally_of<M>(p);
    warp_turns t = turns_of(p);
    bool again;
    int item;
    while (next_window<M>(p, c, false, &t, prefix))
        while (next_chunk(p, &t, prefix, &again, &item)) {
            __syncwarp();
            if (!again) {
                const score_job j = job_of(p, t.first + t.unit, item);
                if (lane_id() == 0)
                    jobs[warp_id()] = j;
            } else if (lane_id() == 0) {
                cut_chunk(&jobs[warp_id()], item);
            }
            __syncwarp();
            work(jobs);
        }
}

/* --- sums --- */

/* The normalisers of a chunk, from the warp's sums inside and outside of the middle. */
DEV void put_norm(const prhs_k_score &a, i64 slot, const logsum &mid, const logsum &rest, byte *ws)
{
    if (for_draws(a))
        return;
    const float top = fmaxf(mid.top, rest.top);
    const float sum = mid.sum * exp_weight(mid.top - top) + rest.sum * exp_weight(rest.top - top);
    ((float4 *)(ws + a.work.norm_off))[slot] = make_float4(top, sum, mid.top, mid.sum);
}

#endif
