/* SPDX-License-Identifier: Apache-2.0 */
/*
 * select: exact top-k of the middle's runs, the list, and what later steps need of the retrieval. A block takes a unit. Of a long middle it takes a slice: it keeps the keys that a sample says may be listed,
 * and sums up the rest; the block that comes last at the unit chooses among what all have kept. Where the sample misled it does their work
 * anew, so that the list is exact in any case. Slices are cut by positions: bits do not depend on blocks.
 */
#include "select.cuh"
#ifdef TEAM_KERNEL
#include "team.cuh"
#endif

/* The slices of unit i. */
DEV int count_slices(const prhs_k_select &a, const byte *seqs, byte *ws, int i)
{
    const bool kept = a.work.score_count_off != PRHS_NONE;
    const int count = kept ? INTS(ws, a.work.score_count_off)[i] : 0;
    if (kept && (count <= 0 || a.work.slice_off == PRHS_NONE))
        return count > 0;
    const i64 b = i / a.shape.units;
    return slices_of(a, kept, count, entry_of(a.batch, seqs, b), *set_at(ws, a.work, a.shape, b, i % a.shape.units));
}

/* Whether no unit of a step retrieves, as far as as many counts as are always kept tell. By every warp, without a barrier. */
DEV bool all_idle(const prhs_cu_retrieve &p, int units)
{
    const prhs_k_select &a = p.select;
    if (a.work.score_count_off == PRHS_NONE || units > PRHS_AHEAD)
        return false;
    bool some = false;
#pragma unroll 8
    for (int i = lane_id(); i < units; i += 32)
        some |= INTS(p.mem[PRHS_R_WORK], a.work.score_count_off)[i] > 0;
    return !__any_sync(FULL, some);
}

/* Whether a sequence is longer than a slice. By every warp, without a barrier. */
DEV bool some_long(const prhs_k_select &a, const byte *seqs)
{
    const int n = seqs_of(a.batch, seqs);
    bool some = false;
#pragma unroll 2
    for (int b = lane_id(); b < n; b += 32)
        some |= entry_of(a.batch, seqs, b).pos0 >= PRHS_K_SLICE;
    return __any_sync(FULL, some);
}

KERNEL(prhs_retrieve, prhs_cu_retrieve, PRHS_RETRIEVE_MOST, 1)
{
    __shared__ int prefix[PRHS_RETRIEVE_MOST];
    __shared__ topk_shared sh;
    DYNAMIC_SHARED(shared);
    grid_begin();
    const prhs_k_select &a = p.select;
    const int units = a.batch.max_seqs * a.shape.units, threads = blockDim.x;
    const int slices = a.work.slice_off == PRHS_NONE ? 1 : PRHS_K_SLICES(a.batch.max_kv_len);
    const bool direct = (i64)gridDim.x >= (i64)units * slices; /* each has a block of its own */
    const int own = slices == 1 ? (int)blockIdx.x : (int)blockIdx.x / slices;
    if (direct && (own >= units || (a.work.score_count_off != PRHS_NONE && INTS(p.mem[PRHS_R_WORK], a.work.score_count_off)[own] <= 0)))
        return;
    if (!direct && all_idle(p, units))
        return;
    const int real = direct ? 0 : seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * a.shape.units;
    turns t = turns_begin(min(min(TURNS_EACH, PRHS_RETRIEVE_MOST / threads), (units + threads - 1) / threads), real);
    int i = own, slice = (int)blockIdx.x - own * slices;
    do {
        if (!direct &&
            !turns_next(&t, units, prefix, [&](int k) { return count_slices(a, p.mem[PRHS_R_SEQS], p.mem[PRHS_R_WORK], k); }, &i, &slice))
            return;
        retrieve(p, i, slice, (unsigned *)shared, &sh);
    } while (!direct);
}

#ifdef TEAM_KERNEL
/*
 * The same where middles may be sliced: these by teams, all of whose blocks see the same units and so keep together. Then the others, by blocks.
 */
TEAM_KERNEL(prhs_retrieve_team, prhs_cu_retrieve, PRHS_RETRIEVE_MOST, 1)
{
    __shared__ int prefix[PRHS_RETRIEVE_MOST];
    __shared__ topk_shared sh;
    __shared__ team_desk desk;
    DYNAMIC_SHARED(shared);
    grid_begin();
    const prhs_k_select &a = p.select;
    byte *const ws = p.mem[PRHS_R_WORK], *const seqs = p.mem[PRHS_R_SEQS];
    const int units = a.batch.max_seqs * a.shape.units, threads = blockDim.x, teams = (int)gridDim.x / PRHS_TEAM, own = (int)blockIdx.x / PRHS_TEAM;
    if (teams >= units) { /* each has a team of its own */
        if (own < units && (a.work.score_count_off == PRHS_NONE || INTS(ws, a.work.score_count_off)[own] > 0))
            retrieve_together(p, own, (unsigned *)shared, &desk, &sh);
        return;
    }
    if (all_idle(p, units))
        return;
    const turns start = turns_begin(min(min(TURNS_EACH, PRHS_RETRIEVE_MOST / threads), (units + threads - 1) / threads),
                                    seqs_of(a.batch, seqs) * a.shape.units);
    turns t = start;
    int i, one;
    if (some_long(a, seqs)) {
        t.next = own;
        while (turns_next(&t, units, prefix, [&](int k) { return count_slices(a, seqs, ws, k) > 1 ? 1 : 0; }, &i, &one, teams))
            retrieve_together(p, i, (unsigned *)shared, &desk, &sh);
        __syncthreads();
        t = start;
    }
    while (turns_next(&t, units, prefix, [&](int k) { return count_slices(a, seqs, ws, k) == 1 ? 1 : 0; }, &i, &one))
        retrieve(p, i, 0, (unsigned *)shared, &sh);
}
#endif
