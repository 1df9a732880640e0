/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partial results become one. Part p goes to sum p % 4 and the four sums are added at the end, in every kernel that merges, so that the
 * bits do not depend on who does it.
 */
#ifndef PRHS_PARTS_CUH
#define PRHS_PARTS_CUH

#include "common.cuh"

/* What weighs parts: exp(l - top); NaN everywhere where one of them is. */
struct weights {
    float lse, top, sum;
};

/* By a whole warp. What other multiprocessors wrote in this kernel is seen. */
DEV weights merge_weights(const float *lse, i64 step, int parts)
{
    float l[2], sum = 0.0f, m = NOTHING;
    bool nan = false;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int i = lane_id() + 32 * k;
        l[k] = i < parts ? __ldcg(lse + i * step) : NOTHING;
    }
    for (int i = lane_id() + 64; i < parts; i += 32) {
        const float x = __ldcg(lse + i * step);
        nan |= isnan(x);
        m = x > m ? x : m;
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        nan |= isnan(l[k]);
        m = l[k] > m ? l[k] : m;
    }
    m = warp_max(m);
    if (__any_sync(FULL, nan))
        return weights{ NEVER, NEVER, NEVER };
    if (m == NOTHING)
        return weights{ NOTHING, 0.0f, 1.0f };
#pragma unroll
    for (int k = 0; k < 2; k++)
        sum += expf(l[k] - m);
    for (int i = lane_id() + 64; i < parts; i += 32)
        sum += expf(__ldcg(lse + i * step) - m);
    sum = warp_sum(sum);
    return weights{ m + logf(sum), m, sum };
}

/* A part's weight; parts without any token are ignored, whatever their output holds. */
DEV float part_weight(float l, float top) { return expf(l - top); }
DEV void add_part(float *acc, float l, float weight, float o) { *acc += l == NOTHING ? 0.0f : weight * o; }

#endif
