/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mass gate's verdicts on shared lists, for the blocks that score: each comes to all of them by itself, from a few numbers a head, so
 * that no launch has to lie between row 0's attention and the scores of units whose list fails. Nothing is written that verdicts rest on.
 */
#ifndef PRHS_JUDGE_CUH
#define PRHS_JUDGE_CUH

#include "common.cuh"

#define LOG2E 1.44269504f
#define JUDGED 4       /* heads that a thread asks for together */
#define JUDGE_PARTS 16 /* of each, at a time */

/* A head on which a verdict depends. */
struct accused {
    int head;             /* of the batch */
    int index, candidate; /* of its unit: counted from the window's first; see score_count_off */
    int parts;            /* of row 0 */
    float4 record;        /* of judge_off */
    float l[JUDGE_PARTS];
};

DEV const float *lses_of(const prhs_k_score &a, const byte *ws, int head)
{
    const int rows_before = a.batch.rows > 1 ? head / a.shape.heads * (a.batch.rows - 1) * a.shape.heads : 0;
    return (const float *)(ws + a.work.part_lse_off) + (i64)(head + rows_before) * a.work.chunks;
}

/* Fours as far as there are four. */
DEV void load_lses(accused *x, const float *lse, int first, bool fours)
{
    const int n = x->parts - first;
#pragma unroll
    for (int i = 0; i < JUDGE_PARTS; i += 4) {
        float4 l = make_float4(NOTHING, NOTHING, NOTHING, NOTHING);
        if (fours && i + 4 <= n) {
            l = *(const float4 *)(lse + first + i);
        } else if (i < n) {
            l.x = lse[first + i];
            l.y = i + 1 < n ? lse[first + i + 1] : NOTHING;
            l.z = i + 2 < n ? lse[first + i + 2] : NOTHING;
            l.w = i + 3 < n ? lse[first + i + 3] : NOTHING;
        }
        x->l[i] = l.x, x->l[i + 1] = l.y, x->l[i + 2] = l.z, x->l[i + 3] = l.w;
    }
}

/* Head `head` of the batch, a unit's at `index` of the window from `first` on. */
DEV void load_accused(const prhs_k_score &a, const byte *ws, int first, int index, int head, accused *x)
{
    const prhs_k_work &w = a.work;
    x->head = head;
    x->index = index;
    x->candidate = ((const int *)(ws + w.score_count_off))[a.batch.max_seqs * a.shape.units + first + index];
    x->parts = ((const int *)(ws + w.attend_count_off))[first + index];
}

DEV void load_record(const prhs_k_score &a, const byte *ws, accused *x)
{
    if (x->candidate >= 0)
        x->parts = 0;
    else
        x->record = ((const float4 *)(ws + a.work.judge_off))[x->head];
    load_lses(x, lses_of(a, ws, x->head), 0, (a.work.chunks & 3) == 0);
}

/* Whether the list fails by this head: the parts' log-sum-exp, in their order, is the row's. */
DEV bool fails(const prhs_k_score &a, const byte *ws, accused &x)
{
    float top = NOTHING, sum = 0.0f;
    bool nan = false;
    if (x.candidate >= 0)
        return false;
#pragma unroll 1
    for (int first = 0; first < x.parts; first += JUDGE_PARTS) {
        if (first)
            load_lses(&x, lses_of(a, ws, x.head), first, (a.work.chunks & 3) == 0);
        float m = top;
#pragma unroll
        for (int i = 0; i < JUDGE_PARTS; i++) {
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
    return !(mass - x.record.z <= x.record.w);
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
            load_accused(a, ws, first, h / a.shape.unit_heads, first * a.shape.unit_heads + h, &x[k]);
        }
#pragma unroll
        for (int k = 0; k < JUDGED; k++)
            load_record(a, ws, &x[k]);
#pragma unroll
        for (int k = 0; k < JUDGED; k++)
            if (fails(a, ws, x[k]))
                atomicOr(&failed[x[k].index >> 5], 1u << (x[k].index & 31));
    }
    __syncthreads();
    put_verdicts(a, ws, first, units, failed);
}

#endif
