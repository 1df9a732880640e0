/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score: every candidate key against the decision row's queries, with the normalisers and, on demand, the moments of the middle. A block
 * takes a chunk of absolute positions of a unit, its warps take turns over tiles, and their sums meet in shared memory. score.cu and
 * score_mma.cu say how a warp takes a tile.
 */
#ifndef PRHS_SCORE_CUH
#define PRHS_SCORE_CUH

#include "judge.cuh"

#ifndef WARPS
#define WARPS 4
#define THREADS (32 * WARPS)
#endif

/* Over scores that are neither NaN nor +inf; sum is the whole warp's, relative to top. */
struct logsum {
    float top, sum;
};

/* A chunk of work, the same for all threads of the block. */
struct job {
    entry e;
    prhs_set set;
    const int *pages;
    i64 b;
    int u, first, last, chunk;
    bool full;
};

DEV bool is_scored(const job &j, int pos) { return j.full || pos < j.set.sink_end || pos >= j.set.mid_begin; }
DEV bool is_inside(const job &j, int pos) { return pos >= j.set.mid_begin && pos < j.set.mid_end; }

#define WINDOW (TURNS_EACH * THREADS) /* units that are counted together */

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

/* What tells how many chunks unit i has: their number, or where it was not kept what it follows from. */
struct unit_view {
    int i, kept, mode;
    prhs_seq seq;
};

DEV unit_view view_of(const prhs_cu_score &p, const tally &c, int i)
{
    unit_view v = {};
    v.i = i;
    if (c.kept) {
        v.kept = c.kept[i];
    } else {
        v.seq = *seq_at(p.a.batch, p.mem[PRHS_R_SEQS], i / p.a.shape.units);
        v.mode = ((const prhs_set *)(p.mem[PRHS_R_WORK] + p.a.work.set_off))[i].mode;
    }
    return v;
}

/* begin: the first unit that c.failed has a bit of. */
DEV int count_unit(const prhs_k_score &a, const tally &c, const unit_view &v, int begin)
{
    if (!c.kept) {
        const entry e = entry_from(a.batch, v.seq, 0);
        return e.kind == IDLE || !(a.modes >> v.mode & 1) ? 0 : score_chunks(a.work, e.pos0 + 1);
    }
    return v.kept >= 0 ? v.kept : c.failed[(v.i - begin) >> 5] >> ((v.i - begin) & 31) & 1 ? -v.kept : 0;
}

/* The block's next chunk, as turns_next(). */
template <bool M> DEV bool next_chunk(const prhs_cu_score &p, const tally &c, turns *t, int *prefix, int *i, int *item)
{
    const prhs_k_score &a = p.a;
    int begin = 0;
    return turns_next(
        t, a.batch.max_seqs * a.shape.units, prefix, [&](const unit_view &v) { return count_unit(a, c, v, begin); }, i, item,
        [&](int k) { return view_of(p, c, k); },
        [&](int first) {
            begin = first;
            if (M && c.failed)
                judge_units(a, p.mem[PRHS_R_WORK], first, WINDOW, c.failed);
        });
}

DEV logsum joined(const logsum *z, int count, int step)
{
    logsum r = { LOWEST, 0.0f };
    for (int i = 0; i < count; i++)
        r.top = fmaxf(r.top, z[i * step].top);
    for (int i = 0; i < count; i++)
        r.sum += z[i * step].sum * exp_weight(z[i * step].top - r.top);
    return r;
}

/* The chunk's normalisers, from the warps' sums inside and outside of the middle. */
template <int HB>
DEV void put_norms(const prhs_k_score &a, const logsum (*mid)[HB], const logsum (*out)[HB], int heads, i64 slot, byte *ws)
{
    if ((int)threadIdx.x >= heads)
        return;
    const int h = threadIdx.x;
    const logsum z[2] = { joined(&mid[0][h], WARPS, HB), joined(&out[0][h], WARPS, HB) }, all = joined(z, 2, 1);
    ((float4 *)(ws + a.work.norm_off))[slot + (i64)h * a.work.score_chunks] = make_float4(all.top, all.sum, z[0].top, z[0].sum);
}

/* Item `item` of unit i. */
DEV job job_of(const prhs_cu_score &p, int i, int item)
{
    const prhs_k_score &a = p.a;
    job j;
    j.b = i / a.shape.units;
    j.u = i % a.shape.units;
    j.e = entry_of(a.batch, p.mem[PRHS_R_SEQS], j.b);
    /* A unit whose list has just failed is still on its way to what it shares no more. */
    j.set = a.moments && a.work.fresh_off != PRHS_NONE ? ((const prhs_set *)(p.mem[PRHS_R_WORK] + a.work.fresh_off))[i]
                                                       : *set_at(p.mem[PRHS_R_WORK], a.work, a.shape, j.b, j.u);
    j.pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], j.e.table);
    j.full = a.full;
    j.chunk = item;
    const int n = j.e.pos0 + 1, size = chunk_tokens(n, a.work.score_chunk_min, a.work.score_chunks);
    j.first = item * size;
    j.last = min(j.first + size, n);
    return j;
}

/* Takes turns over chunks; heads(job, h0) scores for HB heads of the unit from h0 on. */
template <int HB, bool M, class Heads> DEV void score(const prhs_cu_score &p, Heads heads)
{
    __shared__ int prefix[WINDOW];
    grid_begin();
    const tally c = tally_of<M>(p);
    turns t = turns_begin(TURNS_EACH, seqs_of(p.a.batch, p.mem[PRHS_R_SEQS]) * p.a.shape.units);
    int i, item;
    while (next_chunk<M>(p, c, &t, prefix, &i, &item)) {
        const job j = job_of(p, i, item);
        for (int h0 = 0; h0 < p.a.shape.unit_heads; h0 += HB)
            heads(j, h0);
    }
}

#endif
