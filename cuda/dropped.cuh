/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L_D: the log-sum-exp of a head's dropped scores. Positions are summed in groups of GROUP, each by a warp in an order of its own, and the
 * groups are added in theirs: the bits are the same whatever the blocks are.
 */
#ifndef PRHS_DROPPED_CUH
#define PRHS_DROPPED_CUH

#include "topk.cuh"

#define GROUP PRHS_K_GROUP
#define LOG2_E 1.44269504f

/* Tokens [first, end) but for those of marked runs; bit i of the bitmaps stands for the run at origin + i * run. */
struct dropping {
    const unsigned *marks, *also; /* also: a second bitmap, or null */
    int first, end, origin, run;
    DEV_MEMBER bool holds(int p) const
    {
        if (p < first || p >= end)
            return false;
        const int i = run == 1 ? p - origin : (p - origin) / run;
        const unsigned taken = marks[i >> 5] | (also ? also[i >> 5] : 0);
        return !(taken >> (i & 31) & 1);
    }
};

/* A lane's eight scores; NOTHING where there is none. Returns (largest, sum relative to it) of the warp's: NaN where one is NaN or +inf. */
DEV float2 sum_eight(const float x[8])
{
    float top = LOWEST, w[8];
#pragma unroll
    for (int t = 0; t < 8; t++)
        top = fmaxf(top, x[t]);
    top = warp_top(top);
#pragma unroll
    for (int t = 0; t < 8; t++)
        w[t] = exp2_weight((x[t] - top) * LOG2_E);
    return make_float2(top, warp_sum(((w[0] + w[1]) + (w[2] + w[3])) + ((w[4] + w[5]) + (w[6] + w[7]))));
}

DEV float2 add_part(float2 z, float2 y)
{
    const float top = fmaxf(z.x, y.x);
    return make_float2(top, z.y * exp_weight(z.x - top) + y.y * exp_weight(y.x - top));
}

/* One group, from p on. */
DEV float2 sum_group(const dropping &d, const float *scores, int p)
{
    const int lane = lane_id();
    float x[8];
    if (d.run == 1 && p >= d.first && p + GROUP <= d.end) {
        const unsigned *marks = d.marks + ((p - d.origin) >> 5), *also = (d.also ? d.also : d.marks) + ((p - d.origin) >> 5);
#pragma unroll
        for (int t = 0; t < 8; t++)
            x[t] = __ldg(scores + p + lane + 32 * t);
#pragma unroll
        for (int t = 0; t < 8; t++)
            x[t] = (marks[t] | also[t]) >> lane & 1 ? NOTHING : x[t];
    } else {
        unsigned held = 0;
#pragma unroll 1
        for (int t = 0; t < 8; t++)
            held |= d.holds(p + lane + 32 * t) ? 1u << t : 0u;
#pragma unroll
        for (int t = 0; t < 8; t++)
            x[t] = held >> t & 1 ? __ldg(scores + p + lane + 32 * t) : NOTHING;
    }
    return sum_eight(x);
}

/* The first `groups` groups from d.origin on, of all heads; parts: [group][head]. */
DEV void sum_groups(const dropping &d, const float *scores, i64 stride, int heads, int groups, float2 *parts)
{
    for (int i = warp_id(); i < groups * heads; i += blockDim.x >> 5) {
        const int g = i / heads, h = i - g * heads;
        const float2 z = sum_group(d, scores + h * stride, d.origin + g * GROUP);
        if (lane_id() == 0)
            parts[i] = z;
    }
}

/* Token r of the runs at places[0, n) that group g has: a lane's eight scores. */
DEV void scores_at(const int *places, int n, int g, const float *scores, float x[8])
{
    const int first = g * GROUP + lane_id();
#pragma unroll
    for (int t = 0; t < 8; t++)
        x[t] = __ldg(scores + places[min(first + 32 * t, n - 1)]);
#pragma unroll
    for (int t = 0; t < 8; t++)
        x[t] = first + 32 * t < n ? x[t] : NOTHING;
}

/*
 * The runs at places[0, n), in groups of GROUP; parts as above. A warp has two groups on their way together. Reads what other threads
 * wrote: a barrier before.
 */
DEV void sum_places(const int *places, int n, int run, const float *scores, i64 stride, int heads, float2 *parts)
{
    const int sums = (n + GROUP - 1) / GROUP * heads, warps = blockDim.x >> 5;
#pragma unroll 1
    for (int i = warp_id(); i < sums; i += 2 * warps) {
        const int second = min(i + warps, sums - 1), g = small_quotient(i, heads), g2 = small_quotient(second, heads);
        const float *const from = scores + (i - g * heads) * stride, *const from2 = scores + (second - g2 * heads) * stride;
        float2 z = make_float2(LOWEST, 0.0f), z2 = z;
#pragma unroll 1
        for (int r = 0; r < run; r++) {
            float x[8], x2[8];
            scores_at(places, n, g, from + r, x);
            scores_at(places, n, g2, from2 + r, x2);
            z = add_part(z, sum_eight(x));
            z2 = add_part(z2, sum_eight(x2));
        }
        if (lane_id() == 0) {
            parts[i] = z;
            if (i + warps < sums)
                parts[second] = z2;
        }
    }
}

/* The log-sum-exp of head h's parts, by a warp. */
DEV float join_groups(const float2 *parts, int groups, int heads, int h)
{
    float top = LOWEST, sum = 0.0f;
    for (int i = lane_id(); i < groups; i += 32)
        top = fmaxf(top, parts[i * heads + h].x);
    top = warp_max(top);
    for (int i = lane_id(); i < groups; i += 32)
        sum += parts[i * heads + h].y * expf(parts[i * heads + h].x - top);
    sum = warp_sum(sum);
    return sum == 0.0f ? NOTHING : top + logf(sum);
}

#endif
