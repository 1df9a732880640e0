/* SPDX-License-Identifier: Apache-2.0 */
/* score with tensor cores. Dynamic shared memory: the warps' keys_ring<DP>. */
#include "score_mma.cuh"

template <int T, int DP, int HB, bool M> DEV void score_rings(const prhs_cu_score &p)
{
    DYNAMIC_SHARED(rings);
    __shared__ int prefix[WINDOW];
    __shared__ order orders[WARPS][2];
    clear_rings<DP>(rings, WARPS * keys_ring<DP>::BYTES, p.a.shape.dim);
    grid_begin(p);
    const tally counts = tally_of<M>(p);
    warp_turns t = turns_of(p);
    /* With moments what tickets take of the registers costs every step more than they give to those that retrieve. */
    const bool tickets = !M && counts.kept;
    while (next_window<M>(p, counts, tickets, &t, prefix))
        score_window<T, DP, HB, M>(p, prefix, orders[warp_id()], rings + warp_id() * keys_ring<DP>::BYTES, &t);
}

#define SCORE(t, T, dp, hb, blocks) \
    KERNEL(prhs_score_##t##_d##dp##_h##hb, prhs_cu_score, THREADS, blocks) { score_rings<T, dp, hb, false>(p); }
#define SCORE_MOMENTS(t, T, dp, hb, blocks) \
    KERNEL(prhs_score_##t##_d##dp##_h##hb##_m, prhs_cu_score, THREADS, blocks) { score_rings<T, dp, hb, true>(p); }
#define SCORE_DIMS(t, T)                 \
    SCORE(t, T, 64, 1, 5)                \
    SCORE(t, T, 128, 1, 4)               \
    SCORE(t, T, 256, 1, 2)               \
    SCORE(t, T, 64, 4, 5)                \
    SCORE(t, T, 64, 8, 4)                \
    SCORE(t, T, 128, 4, 4)               \
    SCORE(t, T, 128, 8, 3)               \
    SCORE(t, T, 256, 4, 2)               \
    SCORE_MOMENTS(t, T, 64, 1, 5)        \
    SCORE_MOMENTS(t, T, 128, 1, 4)       \
    SCORE_MOMENTS(t, T, 256, 1, 2)       \
    SCORE_MOMENTS(t, T, 64, 4, 4)        \
    SCORE_MOMENTS(t, T, 128, 4, 3)       \
    SCORE_MOMENTS(t, T, 256, 4, 2)
SCORE_DIMS(f16, PRHS_K_F16)
SCORE_DIMS(bf16, PRHS_K_BF16)
