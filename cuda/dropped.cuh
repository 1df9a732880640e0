/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L_D, the log-sum-exp of a head's dropped scores, and the variance of these. Positions are summed in groups of GROUP, each by a warp in an order
 * of its own, and the groups are added in theirs: the bits are the same whatever the blocks are.
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

/*
 * What tokens sum up to, as it lies in memory: their largest score; the weights relative to it, NaN where one is NaN or +inf; these times
 * their logarithms, and times the squares of their logarithms.
 */
struct __align__(16) dropped_part {
    float top, sum, first, second;
};

DEV dropped_part no_part() { return dropped_part{ LOWEST, 0.0f, 0.0f, 0.0f }; }

/* The same in a warp: lanes have `sum` of one kind, eight lanes each of `sum`, `first` and `second`. */
struct warp_part {
    float top, sum;
};

DEV void put_part(dropped_part *to, warp_part z)
{
    const int kind = lane_id() >> 3;
    if ((lane_id() & 7) == 0)
        ((float *)to)[(kind + 1) & 3] = kind == 3 ? z.top : z.sum;
}

#define FARTHEST (-200.0f) /* logarithm of a weight that is 0, as any below is */

/* A lane's eight scores; NOTHING where there is none. */
DEV warp_part sum_eight(const float x[8])
{
    float top = LOWEST, w[8], y[8], sums[4];
#pragma unroll
    for (int t = 0; t < 8; t++)
        top = fmaxf(top, x[t]);
    top = warp_top(top);
#pragma unroll
    for (int t = 0; t < 8; t++)
        w[t] = exp2_weight((x[t] - top) * LOG2_E);
#pragma unroll
    for (int k = 0; k < 3; k++) {
        sums[k] = ((w[0] + w[1]) + (w[2] + w[3])) + ((w[4] + w[5]) + (w[6] + w[7]));
#pragma unroll
        for (int t = 0; t < 8; t++) {
            y[t] = fmaxf(x[t] - top, FARTHEST);
            w[t] *= y[t];
        }
    }
    sums[3] = 0.0f;
    return warp_part{ top, scattered_sums<4>(sums) };
}

/* Relative to a larger score, of which the old one is `by` above. */
DEV float moved_sum(warp_part z, float top)
{
    const float sum = __shfl_sync(FULL, z.sum, 0), first = __shfl_sync(FULL, z.sum, 8), by = fmaxf(z.top - top, FARTHEST);
    const int kind = lane_id() >> 3;
    const float more = kind == 0 ? 0.0f : kind == 1 ? by * sum : by * (2.0f * first + by * sum);
    return (z.sum + more) * exp_weight(z.top - top);
}

DEV warp_part add_part(warp_part z, warp_part y)
{
    const float top = fmaxf(z.top, y.top);
    return warp_part{ top, moved_sum(z, top) + moved_sum(y, top) };
}

/* One group, from p on. */
DEV warp_part sum_group(const dropping &d, const float *scores, int p)
{
    const int lane = lane_id();
    float x[8];
    if (d.run == 1 && p >= d.first && p + GROUP <= d.end) {
        const unsigned *marks = d.marks + ((p - d.origin) >> 5), *also = (d.also ? d.also : d.marks) + ((p - d.origin) >> 5);
#pragma unroll
        for (int t = 0; t < 8; t++)
            x[t] = load_score(scores + p + lane + 32 * t);
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
            x[t] = held >> t & 1 ? load_score(scores + p + lane + 32 * t) : NOTHING;
    }
    return sum_eight(x);
}

/* The first `groups` groups from d.origin on, of all heads; parts: [group][head]. */
DEV void sum_groups(const dropping &d, const float *scores, i64 stride, int heads, int groups, dropped_part *parts)
{
    for (int i = warp_id(); i < groups * heads; i += blockDim.x >> 5) {
        const int g = i / heads, h = i - g * heads;
        put_part(parts + i, sum_group(d, scores + h * stride, d.origin + g * GROUP));
    }
}

/* Token r of the runs at places[0, n) that group g has: a lane's eight scores. */
DEV void scores_at(const int *places, int n, int g, const float *scores, float x[8])
{
    const int first = g * GROUP + lane_id();
#pragma unroll
    for (int t = 0; t < 8; t++)
        x[t] = load_score(scores + places[min(first + 32 * t, n - 1)]);
#pragma unroll
    for (int t = 0; t < 8; t++)
        x[t] = first + 32 * t < n ? x[t] : NOTHING;
}

/*
 * The runs at places[0, n), in groups of GROUP; parts as above. A warp has two groups on their way together. Reads what other threads
 * wrote: a barrier before.
 */
DEV void sum_places(const int *places, int n, int run, const float *scores, i64 stride, int heads, dropped_part *parts)
{
    const int sums = (n + GROUP - 1) / GROUP * heads, warps = blockDim.x >> 5;
#pragma unroll 1
    for (int i = warp_id(); i < sums; i += 2 * warps) {
        const int second = min(i + warps, sums - 1), g = small_quotient(i, heads), g2 = small_quotient(second, heads);
        const float *const from = scores + (i - g * heads) * stride, *const from2 = scores + (second - g2 * heads) * stride;
        warp_part z, z2;
#pragma unroll 1
        for (int r = 0; r < run; r++) {
            float x[8], x2[8];
            scores_at(places, n, g, from + r, x);
            scores_at(places, n, g2, from2 + r, x2);
            z = r ? add_part(z, sum_eight(x)) : sum_eight(x);
            z2 = r ? add_part(z2, sum_eight(x2)) : sum_eight(x2);
        }
        put_part(parts + i, z);
        if (i + warps < sums)
            put_part(parts + second, z2);
    }
}

/* The log-sum-exp of head h's parts, and its scores' variance; by a warp. */
DEV float join_groups(const dropped_part *parts, int groups, int heads, int h, float *spread)
{
    float top = LOWEST, sum = 0.0f, first = 0.0f, second = 0.0f;
    for (int i = lane_id(); i < groups; i += 32)
        top = fmaxf(top, parts[i * heads + h].top);
    top = warp_max(top);
    for (int i = lane_id(); i < groups; i += 32) {
        const dropped_part y = parts[i * heads + h];
        const float e = expf(y.top - top), by = fmaxf(y.top - top, FARTHEST);
        sum += y.sum * e;
        first += (y.first + by * y.sum) * e;
        second += (y.second + by * (2.0f * y.first + by * y.sum)) * e;
    }
    sum = warp_sum(sum);
    const float mean = warp_sum(first) / sum, variance = warp_sum(second) / sum - mean * mean;
    *spread = sum == 0.0f || variance < 0.0f ? 0.0f : variance; /* a NaN passes */
    return sum == 0.0f ? NOTHING : top + logf(sum);
}

#endif
