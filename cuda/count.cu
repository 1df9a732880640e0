/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Before score and attend of the ops tier, where no plan has been: every unit's chunks, and tickets of which none is given out. Blocks that
 * counted for themselves would wait for a look at memory more, and could not give what is left to who is free: neither knows when the grid begins.
 */
#include "counts.cuh"

#define THREADS 128

/* count(i) into counts[i], a thread a unit; no tickets. */
template <class Count> DEV void put_counts(byte *ws, const prhs_k_work &w, int units, int *counts, Count count)
{
    for (int i = (int)(blockIdx.x * THREADS + threadIdx.x); i < units; i += (int)gridDim.x * THREADS)
        counts[i] = count(i);
    if (blockIdx.x == 0 && threadIdx.x < PRHS_TICKETS)
        tickets_at(ws, w, 0)[threadIdx.x] = 0;
}
static_assert(PRHS_TICKETS <= THREADS, "a thread a ticket");

KERNEL(prhs_count_attend, prhs_cu_serve, THREADS, 4)
{
    const prhs_k_attend &a = p.attend;
    grid_begin(p);
    byte *ws = p.mem[PRHS_R_WORK];
    put_counts(ws, a.work, a.batch.max_seqs * a.shape.units, INTS(ws, a.work.attend_count_off),
               [&](int i) { return count_rows(a, p.mem[PRHS_R_SEQS], ws, i); });
}

KERNEL(prhs_count_score, prhs_cu_score, THREADS, 4)
{
    const prhs_k_score &a = p.a;
    grid_begin(p);
    byte *ws = p.mem[PRHS_R_WORK];
    const int units = a.batch.max_seqs * a.shape.units;
    put_counts(ws, a.work, units, INTS(ws, a.work.score_count_off), [&](int i) { return count_keys(a, p.mem[PRHS_R_SEQS], ws, i, units); });
}
