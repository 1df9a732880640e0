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

/* The first 64 parts' log-sum-exps, two a lane: asked for early. What other multiprocessors wrote in this kernel is seen. */
struct lse_parts {
    float l[2];
};

DEV lse_parts load_lse(const float *lse, i64 step, int parts)
{
    lse_parts x;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int i = lane_id() + 32 * k;
        x.l[k] = NOTHING;
        if (i < parts)
            x.l[k] = __ldcg(lse + i * step);
    }
    return x;
}

/* By a whole warp. */
DEV weights merge_weights(const lse_parts &x, const float *lse, i64 step, int parts)
{
    float sum, m = NOTHING;
    bool nan = false;
#pragma unroll 1
    for (int i = lane_id() + 64; i < parts; i += 32) {
        const float l = __ldcg(lse + i * step);
        nan |= isnan(l);
        m = l > m ? l : m;
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        nan |= isnan(x.l[k]);
        m = x.l[k] > m ? x.l[k] : m;
    }
    m = warp_max(m);
    if (__any_sync(FULL, nan))
        return weights{ NEVER, NEVER, NEVER };
    if (m == NOTHING)
        return weights{ NOTHING, 0.0f, 1.0f };
    sum = expf(x.l[0] - m);
    if (parts > 32)
        sum += expf(x.l[1] - m);
#pragma unroll 1
    for (int i = lane_id() + 64; i < parts; i += 32)
        sum += expf(__ldcg(lse + i * step) - m);
    sum = warp_sum(sum);
    return weights{ m + logf(sum), m, sum };
}

/* A part's weight; parts without any token are ignored, whatever their output holds. */
DEV float part_weight(float l, float top) { return expf(l - top); }
DEV void add_part(float *acc, bool counts, float weight, float o)
{
    if (counts)
        *acc = __fmaf_rn(weight, o, *acc);
}

#endif
