/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score: every candidate key against the decision row's queries, with the normalisers and, on demand, the moments of the middle. A block
 * takes a chunk of absolute positions of a unit, its warps take turns over tiles, and their sums meet in shared memory. score.cu and
 * score_mma.cu say how a warp takes a tile.
 */
#ifndef PRHS_SCORE_CUH
#define PRHS_SCORE_CUH

#include "common.cuh"

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

/* What tells how many chunks a unit has: their number, or where it was not kept what it follows from. */
struct unit_view {
    int kept, mode;
    prhs_seq seq;
};

/* The kept numbers; nullptr: there are none. */
DEV const int *kept_counts(const prhs_cu_score &p)
{
    return p.a.work.score_count_off != PRHS_NONE && !p.a.full ? INTS(p.mem[PRHS_R_WORK], p.a.work.score_count_off) : nullptr;
}

DEV unit_view look_at_unit(const prhs_cu_score &p, const int *counts, int i)
{
    unit_view v = {};
    if (counts) {
        v.kept = counts[i];
    } else {
        v.seq = *seq_at(p.a.batch, p.mem[PRHS_R_SEQS], i / p.a.shape.units);
        v.mode = ((const prhs_set *)(p.mem[PRHS_R_WORK] + p.a.work.set_off))[i].mode;
    }
    return v;
}

DEV int count_unit(const prhs_cu_score &p, const int *counts, const unit_view &v)
{
    if (counts)
        return v.kept;
    const entry e = entry_from(p.a.batch, v.seq);
    return e.kind == IDLE || !(p.a.modes >> v.mode & 1) ? 0 : score_chunks(p.a.work, e.pos0 + 1);
}

/* The block's next item: of unit *i, *item. */
DEV bool next_item(const prhs_cu_score &p, turns *t, const int *counts, int *prefix, int *i, int *item)
{
    return turns_next(
        t, p.a.batch.max_seqs * p.a.shape.units, prefix, [&](int k) { return look_at_unit(p, counts, k); },
        [&](const unit_view &v) { return count_unit(p, counts, v); }, i, item);
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
    j.set = *set_at(p.mem[PRHS_R_WORK], a.work, a.shape, j.b, j.u);
    j.pages = pages_of(a.batch, p.mem[PRHS_R_PAGES], j.b);
    j.full = a.full;
    j.chunk = item;
    const int n = j.e.pos0 + 1, size = chunk_tokens(n, a.work.score_chunk_min, a.work.score_chunks);
    j.first = item * size;
    j.last = min(j.first + size, n);
    return j;
}

/* Takes turns over chunks; heads(job, h0) scores for HB heads of the unit from h0 on. */
template <int HB, class Heads> DEV void score(const prhs_cu_score &p, Heads heads)
{
    __shared__ int prefix[TURNS_EACH * THREADS];
    const int *counts = kept_counts(p);
    int i, item;
    grid_begin();
    grid_release();
    turns t = turns_begin(TURNS_EACH);
    while (next_item(p, &t, counts, prefix, &i, &item)) {
        const job j = job_of(p, i, item);
        for (int h0 = 0; h0 < p.a.shape.unit_heads; h0 += HB)
            heads(j, h0);
    }
}

#endif
