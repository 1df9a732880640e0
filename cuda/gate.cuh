/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A query against a reference query: the cosine, and how far the log-sum-exp of the dropped keys has moved. One warp a row, 4 channels a
 * lane, in blocks of 128; plan, finish and gate all come here, so that the same rows always give the same bits.
 */
#ifndef PRHS_GATE_CUH
#define PRHS_GATE_CUH

#include "common.cuh"

#define GATE_BLOCK 128 /* channels */

/* The lane's four channels of a block that starts at `base`; lanes past the row have zeros. */
DEV void lane_channels(const prhs_k_rows &rows, byte *mem, i64 row, int head, int dim, int base, float x[4])
{
    const int c = base + lane_id() * 4;
    if (c >= dim) {
        x[0] = x[1] = x[2] = x[3] = 0.0f;
        return;
    }
    const byte *p = row_at(rows, mem, row, head) + c * element(rows.dtype);
    if (rows.dtype == PRHS_K_F32) {
        const float4 y = *(const float4 *)p;
        x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
        return;
    }
    const unsigned long long y = *(const unsigned long long *)p;
    const unsigned low = (unsigned)y, high = (unsigned)(y >> 32);
    const float2 a = rows.dtype == PRHS_K_F16 ? half2_floats(low) : bf162_floats(low);
    const float2 b = rows.dtype == PRHS_K_F16 ? half2_floats(high) : bf162_floats(high);
    x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y;
}

/* The same of an array of floats, which a caller of the ops tier may have put at any multiple of 4 bytes. */
DEV void lane_floats(const float *row, int dim, int base, float x[4])
{
    const int c = base + lane_id() * 4;
    if (c >= dim) {
        x[0] = x[1] = x[2] = x[3] = 0.0f;
    } else if (((size_t)row & 15) == 0) {
        const float4 y = *(const float4 *)(row + c);
        x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[i] = row[c + i];
    }
}

/* A lane's part of a.b, a.a and b.b. */
struct angle {
    float ab, aa, bb;
};

DEV void add_angle(const float a[4], const float b[4], angle *s)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        s->ab += a[i] * b[i];
        s->aa += a[i] * a[i];
        s->bb += b[i] * b[i];
    }
}

DEV float whole_cosine(const angle &s) { return cosine_of(warp_sum(s.ab), warp_sum(s.aa), warp_sum(s.bb)); }

#define GATE_HEADS 4 /* whose rows are in flight together */

/*
 * The smallest cosine of a row's heads [h0, h0 + heads) with those of a reference, or (null) of the row `other`; one that is NaN is below all
 * others. By a warp.
 */
DEV float least_cosine(const prhs_k_rows &rows, byte *mem, i64 row, i64 other, int h0, int heads, int dim, const float *ref)
{
    float least = 2.0f;
    for (int i = 0; i < heads; i += GATE_HEADS) {
        angle sums[GATE_HEADS] = {};
        for (int base = 0; base < dim; base += GATE_BLOCK) {
            float x[GATE_HEADS][4], y[GATE_HEADS][4];
#pragma unroll
            for (int k = 0; k < GATE_HEADS; k++) {
                if (i + k >= heads)
                    break;
                lane_channels(rows, mem, row, h0 + i + k, dim, base, x[k]);
                if (ref)
                    lane_floats(ref + (i64)(i + k) * dim, dim, base, y[k]);
                else
                    lane_channels(rows, mem, other, h0 + i + k, dim, base, y[k]);
            }
#pragma unroll
            for (int k = 0; k < GATE_HEADS && i + k < heads; k++)
                add_angle(x[k], y[k], &sums[k]);
        }
#pragma unroll
        for (int k = 0; k < GATE_HEADS && i + k < heads; k++) {
            const float cosine = whole_cosine(sums[k]);
            least = cosine >= -2.0f ? fminf(least, cosine) : -2.0f;
        }
    }
    return least;
}

/* A query, the reference's, mean and variance of the dropped keys: what a verdict rests on. */
struct evidence {
    float q[4], ref[4], mean[4], var[4];
};

/*
 * A lane's part of the sums over the evidence: of the step d from the reference times the mean; of d * d, d * reference and reference *
 * reference times the variance.
 */
struct finding {
    angle cosine;
    float linear, square, cross, whole;
};

DEV void load_references(const float *ref, const float *moments, int dim, int base, evidence *v)
{
    lane_floats(ref, dim, base, v->ref);
    lane_floats(moments, dim, base, v->mean);
    lane_floats(moments + dim, dim, base, v->var);
}

DEV void add_evidence(const evidence &v, finding *f)
{
    add_angle(v.q, v.ref, &f->cosine);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float d = v.q[i] - v.ref[i];
        const float w = v.ref[i] * v.var[i];
        f->linear += d * v.mean[i];
        f->square += d * d * v.var[i];
        f->cross += d * w;
        f->whole += v.ref[i] * w;
    }
}

/* The sums of all lanes. */
DEV finding sum_findings(const finding &f)
{
    return finding{ { warp_sum(f.cosine.ab), warp_sum(f.cosine.aa), warp_sum(f.cosine.bb) },
                    warp_sum(f.linear),
                    warp_sum(f.square),
                    warp_sum(f.cross),
                    warp_sum(f.whole) };
}

/* Second-order estimate of the dropped keys' log-sum-exp at the query, relative to the reference's; from sums of all lanes. */
DEV float channel_shift(const finding &f, float scale) { return scale * f.linear + 0.5f * scale * scale * f.square; }

/*
 * The same where the scores' variance is known: the step is a multiple of the reference, in which direction that is what the keys vary by,
 * and a rest, for which the channels speak. Where float32 is too small for that they speak alone.
 */
DEV float dropped_shift(const finding &f, float spread, float scale)
{
    const float along = f.cosine.bb == 0.0f ? 0.0f : (f.cosine.ab - f.cosine.bb) / f.cosine.bb;
    const float across = f.square - 2.0f * along * f.cross + along * along * f.whole;
    const float shift = scale * f.linear + 0.5f * (along * along * spread + scale * scale * across);
    return fabsf(shift) < INFINITY || isnan(spread) ? shift : channel_shift(f, scale);
}

#endif
