/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mass gate's verdicts on shared lists, for the blocks that score: each comes to all of them by itself, from a number a head, so that
 * no launch has to lie between row 0's attention and the scores of units whose list fails. Nothing is written that verdicts rest on.
 */
#ifndef PRHS_JUDGE_CUH
#define PRHS_JUDGE_CUH

#include "common.cuh"

/* What select and finish have to know of the verdicts; each unit by one block of all. */
DEV void put_verdicts(const prhs_k_score &a, byte *ws, int first, int units, const unsigned *failed)
{
    const prhs_k_work &w = a.work;
    const int all = a.batch.max_seqs * a.shape.units;
    int *counts = INTS(ws, w.score_count_off);
    for (int i = threadIdx.x; i < units; i += blockDim.x) {
        if ((first + i) % gridDim.x != blockIdx.x)
            continue;
        const int candidate = counts[all + first + i], b = (first + i) / a.shape.units, u = (first + i) % a.shape.units;
        const bool fell = failed[i >> 5] >> (i & 31) & 1;
        counts[first + i] = candidate >= 0 ? candidate : fell ? -candidate : 0;
        if (candidate < 0 && fell)
            *set_at(ws, w, a.shape, b, u) = ((const prhs_set *)(ws + w.fresh_off))[first + i];
        else if (candidate < 0 && a.batch.rows > 1)
            INTS(ws, w.work_off)[(i64)b * a.batch.rows * a.shape.units + u] = PRHS_WORK_HELD;
    }
}

/*
 * By all threads of the block: a bit of `failed` (shared) for each of `most` units from `first` on, as far as there are so many, whose
 * shared list fails. The verdicts are there after a barrier, which lies at the end.
 */
DEV_CALL void judge_units(const prhs_k_score &a, byte *ws, int first, int most, unsigned *failed)
{
    const int units = min(most, a.batch.max_seqs * a.shape.units - first), each = a.shape.unit_heads, heads = units * each;
    const int *candidates = INTS(ws, a.work.score_count_off) + a.batch.max_seqs * a.shape.units + first;
    const head_record *records = records_at(ws, a.work) + (i64)first * each;
    for (int i = threadIdx.x; i < (most + 31) / 32; i += blockDim.x)
        failed[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (int h = threadIdx.x; h < heads; h += blockDim.x) {
        const int index = each == 1 ? h : small_quotient(h, each);
        const int candidate = candidates[index], sum = records[h].sum; /* both at once, whether or not there is a verdict */
        if ((candidate < 0) & (sum < VERDICT_ONE))
            atomicOr(&failed[index >> 5], 1u << (index & 31));
    }
    __syncthreads();
    put_verdicts(a, ws, first, units, failed);
}

#endif
