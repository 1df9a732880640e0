/* SPDX-License-Identifier: Apache-2.0 */
/* How many chunks units have: what score and attend take turns over, and what counts them where no plan has. */
#ifndef PRHS_COUNTS_CUH
#define PRHS_COUNTS_CUH

#include "common.cuh"

/* --- attend --- */

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

/* Of all rows of unit i. */
DEV int count_rows(const prhs_k_attend &a, const byte *seqs, const byte *ws, int i)
{
    const int b = (int)((unsigned)i / (unsigned)a.shape.units), u = i - b * a.shape.units;
    const entry e = entry_from(a.batch, *seq_at(a.batch, seqs, (unsigned)b), 0);
    const prhs_set set = ((const prhs_set *)(ws + a.work.set_off))[i];
    int sum = 0;
#pragma unroll 1
    for (int r = 0; r < e.rows; r++)
        sum += attend_chunks(a.work, row_tokens(e, set, work_of_row(a, ws, b, r, u), r));
    return sum;
}

/* --- score --- */

/* Audits that are drawn: few units, whose scores alone are wanted. All other warps wait for them: their chunks are short, and leave no norms. */
#define DRAWN_CHUNK 32
DEV bool for_draws(const prhs_k_score &a) { return a.full && a.sample.limit != 0xffffffffu; }

/* Of unit i < end; 0 past the end. */
DEV int count_keys(const prhs_k_score &a, const byte *seqs, const byte *ws, int i, int end)
{
    const int at = min(i, end - 1);
    const entry e = entry_from(a.batch, *seq_at(a.batch, seqs, (unsigned)at / (unsigned)a.shape.units), 0);
    const int mode = ((const prhs_set *)(ws + a.work.set_off))[at].mode;
    if (i >= end || e.kind == IDLE || !(a.modes >> mode & 1))
        return 0;
    return for_draws(a) ? (e.pos0 + DRAWN_CHUNK) / DRAWN_CHUNK : score_chunks(a.work, e.pos0 + 1);
}

#endif
