/* SPDX-License-Identifier: Apache-2.0 */
/* gate: cosine and estimated dropped mass of queries against references, by themselves. */
#include "common.clh"

KERNEL void prhs_gate(mem q, mem queries, mem moments, mem dropped, mem spreads, mem lse, mem cosine, mem delta, const prhs_k_gate args)
{
    prhs_k_gate a = args;
    long items = (long)a.rows * a.shape.heads;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        const __global uchar *row = row_at(&a.q, q, item / a.shape.heads, (int)(item % a.shape.heads));
        const __global float *ref = FLOATS(queries, a.qref_off) + item * PRHS_D, *m = FLOATS(moments, a.moment_off) + item * 2 * PRHS_D;
        const bool known = a.spread_off != PRHS_NONE;
        const float l_dropped = FLOATS(dropped, a.dropped_off)[item], spread = known ? FLOATS(spreads, a.spread_off)[item] : 0.0f;
        vf ab = 0.0f, aa = 0.0f, bb = 0.0f, dot = 0.0f, linear = 0.0f, square = 0.0f, cross = 0.0f, whole = 0.0f;
        for (int v = 0; v < NV; v++) {
            vf p = load_vec(PRHS_Q, row, v), c = VLOAD(v, ref), d = p - c;
            ab += p * c;
            aa += p * p;
            bb += c * c;
            const vf w = VLOAD(v, m + PRHS_D);
            dot += d * c;
            linear += d * VLOAD(v, m);
            square += d * d * w;
            cross += d * c * w;
            whole += c * c * w;
        }
        const float along = known ? along_of(sum_lanes(dot), sum_lanes(bb)) : 0.0f;
        const float x =
            dropped_shift(a.shape.scale, sum_lanes(linear), sum_lanes(square), sum_lanes(cross), sum_lanes(whole), along, spread);
        FLOATS(cosine, a.cosine_off)[item] = cosine_of(sum_lanes(ab), sum_lanes(aa), sum_lanes(bb));
        FLOATS(delta, a.delta_off)[item] = l_dropped == -INFINITY ? 0.0f : mass_of(l_dropped + x - FLOATS(lse, a.lse_off)[item]);
    }
}
