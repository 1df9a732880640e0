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

/* --- by a block of four warps --- */

#define END_PARTS 64 /* that the block asks for together: a warp's are every fourth, in groups of four */

struct flight {
    float4 o[END_PARTS / 4];
};

/* Parts first, first + 4, ... of those from `o` on, which is the lane's channels of part `first`; as far as there are `parts`. */
DEV void load_flight(const float *o, unsigned dim, int first, int parts, flight *f)
{
#pragma unroll
    for (int g = 0; g < END_PARTS / 16; g++) {
        if (16 * g >= parts)
            break;
#pragma unroll
        for (int i = 4 * g; i < 4 * g + 4; i++) {
            f->o[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (first + 4 * i < parts)
                f->o[i] = load_shared_result((const float *)((const byte *)o + (size_t)(16 * dim * (unsigned)i)));
        }
    }
}

/* Parts without any token count as zeros, whatever they hold. */
DEV void clear_empty(const lse_parts &l, int first, flight *f)
{
#pragma unroll
    for (int i = 0; i < END_PARTS / 4; i++)
        if (__shfl_sync(FULL, l.l[i / 8], first + 4 * (i % 8)) == NOTHING)
            f->o[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

/* l: of the 64 parts that the flight is from; first: of them, the warp's. */
DEV void add_flight(flight *f, const lse_parts &l, float top, int first, int parts, float acc[4])
{
    const int lane = lane_id();
    if (__any_sync(FULL, (lane < parts && l.l[0] == NOTHING) | (lane + 32 < parts && l.l[1] == NOTHING)))
        clear_empty(l, first, f);
    float w[2] = { part_weight(l.l[0], top), 0.0f };
    if (parts > 32)
        w[1] = part_weight(l.l[1], top);
#pragma unroll
    for (int g = 0; g < END_PARTS / 16; g++) {
        if (16 * g >= parts)
            break;
#pragma unroll
        for (int i = 4 * g; i < 4 * g + 4; i++) {
            const float weight = __shfl_sync(FULL, w[i / 8], first + 4 * (i % 8));
            add_part(&acc[0], true, weight, f->o[i].x);
            add_part(&acc[1], true, weight, f->o[i].y);
            add_part(&acc[2], true, weight, f->o[i].z);
            add_part(&acc[3], true, weight, f->o[i].w);
        }
    }
}

/*
 * A warp's share of a row's parts, [parts][dim] from `o` on, into acc_at. meanwhile(): once, while they are on their way. Returns what
 * weighs them all.
 */
template <class Meanwhile>
DEV weights merge_share(const float *o, const float *lse, int dim, int parts, float *acc_at, Meanwhile meanwhile)
{
    const int warp = warp_id(), lane = lane_id();
    weights all = { 0.0f, 0.0f, 0.0f };
#pragma unroll 1
    for (int base = 0; base < dim; base += 128) {
        const int c = base + lane * 4;
        const float *mine = o + (unsigned)(warp * dim + min(c, dim - 4)); /* lanes past the row have its last channels */
        flight f;
        const lse_parts l = load_lse(lse, 1, parts);
        load_flight(mine, dim, warp, parts, &f);
        if (base == 0)
            meanwhile();
        all = merge_weights(l, lse, 1, parts);
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        add_flight(&f, l, all.top, warp, parts, acc);
#pragma unroll 1
        for (int p = END_PARTS; p < parts; p += END_PARTS) {
            load_flight(mine + (i64)p * dim, dim, warp, parts - p, &f);
            add_flight(&f, load_lse(lse + p, 1, parts - p), all.top, warp, parts - p, acc);
        }
        if (c < dim)
            *(float4 *)(acc_at + c) = make_float4(acc[0], acc[1], acc[2], acc[3]);
    }
    return all;
}

/* Two channels of an output row. */
DEV void put_two(int dtype, byte *row, int c, const float y[2])
{
    if (dtype == PRHS_K_F32)
        *(float2 *)(row + c * 4) = make_float2(y[0], y[1]);
    else if (dtype == PRHS_K_F16)
        *(unsigned *)(row + c * 2) = float_half(y[0]) | (unsigned)float_half(y[1]) << 16;
    else
        *(unsigned *)(row + c * 2) = bfloat_of(y[0]) | (unsigned)bfloat_of(y[1]) << 16;
}

#endif
