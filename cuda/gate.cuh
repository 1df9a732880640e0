/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A query against a reference query: the cosine, and how far the log-sum-exp of the dropped keys has moved. One warp a row, 8 channels a
 * lane; plan, finish and gate all come here, so that the same rows always give the same bits.
 */
#ifndef PRHS_GATE_CUH
#define PRHS_GATE_CUH

#include "common.cuh"

DEV void no_channels(float x[8])
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] = 0.0f;
}

/* The lane's channels of a row; lanes past it have zeros. */
DEV void lane_channels(const prhs_k_rows &rows, byte *base, i64 row, int head, int dim, float x[8])
{
    const int c = lane_id() * 8;
    if (c < dim)
        load_eight(rows.dtype, row_at(rows, base, row, head) + c * element(rows.dtype), x);
    else
        no_channels(x);
}

/* The same of an array of floats, which a caller of the ops tier may have put at any multiple of 4 bytes. */
DEV void lane_floats(const float *row, int dim, float x[8])
{
    const int c = lane_id() * 8;
    if (c >= dim) {
        no_channels(x);
    } else if (((size_t)row & 15) == 0) {
        const float4 lo = *(const float4 *)(row + c), hi = *(const float4 *)(row + c + 4);
        x[0] = lo.x, x[1] = lo.y, x[2] = lo.z, x[3] = lo.w;
        x[4] = hi.x, x[5] = hi.y, x[6] = hi.z, x[7] = hi.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = row[c + i];
    }
}

DEV float row_cosine(const float a[8], const float b[8])
{
    float ab = 0.0f, aa = 0.0f, bb = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        ab += a[i] * b[i];
        aa += a[i] * a[i];
        bb += b[i] * b[i];
    }
    return cosine_of(warp_sum(ab), warp_sum(aa), warp_sum(bb));
}

/* Second-order estimate of the dropped keys' log-sum-exp at q, relative to the reference's. */
DEV float dropped_shift(const float q[8], const float ref[8], const float mean[8], const float var[8], float scale)
{
    float linear = 0.0f, square = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float d = q[i] - ref[i];
        linear += d * mean[i];
        square += d * d * var[i];
    }
    return scale * warp_sum(linear) + 0.5f * scale * scale * warp_sum(square);
}

#endif
