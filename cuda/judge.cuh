/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mass gate's verdicts on shared lists, for the blocks that score: each comes to all of them by itself, from a few numbers a head, so
 * that no launch has to lie between row 0's attention and the scores of units whose list fails. Nothing is written that verdicts rest on.
 */
#ifndef PRHS_JUDGE_CUH
#define PRHS_JUDGE_CUH

#include "common.cuh"

#define LOG2E 1.44269504f
#define JUDGED 2      /* heads that a thread asks for together */
#define JUDGE_PARTS 8 /* of each, at a time */

/* A head on which a verdict depends. */
struct accused {
    int head;             /* of the batch */
    int index, candidate; /* of its unit: counted from the window's first; see score_count_off */
    int parts;            /* of row 0 */
    const float *lse;
    float4 record;        /* of judge_off */
    float l[JUDGE_PARTS];
};

DEV void load_lses(accused *x, int first, int parts)
{
#pragma unroll
    for (int i = 0; i < JUDGE_PARTS; i++)
        x->l[i] = first + i < parts ? x->lse[first + i] : NOTHING;
}

/* Head `head` of the batch, a unit's at `index` of the window from `first` on. */
DEV accused load_accused(const prhs_k_score &a, const byte *ws, int first, int index, int head)
{
    const prhs_k_work &w = a.work;
    const int rows_before = a.batch.rows > 1 ? head / a.shape.heads * (a.batch.rows - 1) * a.shape.heads : 0;
    accused x;
    x.head = head;
    x.index = index;
    x.candidate = ((const int *)(ws + w.score_count_off))[a.batch.max_seqs * a.shape.units + first + index];
    x.parts = ((const int *)(ws + w.attend_count_off))[first + index];
    x.lse = (const float *)(ws + w.part_lse_off) + (i64)(head + rows_before) * w.chunks;
    return x;
}

DEV void load_record(const prhs_k_score &a, const byte *ws, accused *x)
{
    if (x->candidate >= 0)
        x->parts = 0;
    else
        x->record = ((const float4 *)(ws + a.work.judge_off))[x->head];
    load_lses(x, 0, x->parts);
}

/* Whether the list fails by this head: the parts' log-sum-exp, in their order, is the row's. */
DEV bool fails(accused &x)
{
    float top = NOTHING, sum = 0.0f;
    bool nan = false;
#pragma unroll 1
    for (int first = 0; x.candidate < 0 && first < x.parts; first += JUDGE_PARTS) {
        if (first)
            load_lses(&x, first, x.parts);
        float m = top;
#pragma unroll
        for (int i = 0; i < JUDGE_PARTS; i++) {
            x.l[i] = first + i < x.parts ? x.l[i] : NOTHING;
            nan |= isnan(x.l[i]);
            m = x.l[i] > m ? x.l[i] : m;
        }
        const float from = m == NOTHING ? 0.0f : m;
        sum *= exp2_weight(LOG2E * (top - from));
#pragma unroll
        for (int i = 0; i < JUDGE_PARTS; i++)
            sum += exp2_weight(LOG2E * (x.l[i] - from));
        top = m;
    }
    const float lse = nan ? NEVER : sum == 0.0f ? NOTHING : top + logf(sum);
    const float mass = x.record.x == NOTHING ? 0.0f : mass_of(x.record.x + x.record.y - lse);
    return x.candidate < 0 && !(mass - x.record.z <= x.record.w);
}

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
    const int units = min(most, a.batch.max_seqs * a.shape.units - first), heads = units * a.shape.unit_heads;
    for (int i = threadIdx.x; i < (most + 31) / 32; i += blockDim.x)
        failed[i] = 0;
    __syncthreads();
#pragma unroll 1
    for (int base = threadIdx.x; base < heads; base += JUDGED * blockDim.x) {
        accused x[JUDGED];
#pragma unroll
        for (int k = 0; k < JUDGED; k++) {
            const int i = base + k * (int)blockDim.x, h = min(i, heads - 1);
            x[k] = load_accused(a, ws, first, h / a.shape.unit_heads, first * a.shape.unit_heads + h);
        }
#pragma unroll
        for (int k = 0; k < JUDGED; k++)
            load_record(a, ws, &x[k]);
#pragma unroll
        for (int k = 0; k < JUDGED; k++)
            if (fails(x[k]))
                atomicOr(&failed[x[k].index >> 5], 1u << (x[k].index & 31));
    }
    __syncthreads();
    put_verdicts(a, ws, first, units, failed);
}

#endif
