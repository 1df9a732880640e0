/* SPDX-License-Identifier: Apache-2.0 */
/* gate: cosine and estimated dropped mass of queries against references, by themselves. A warp a (row, head). */
#include "gate.cuh"

DEV void gate_row(const prhs_k_gate &a, byte *const mem[], int item)
{
    const int dim = a.shape.dim, head = item % a.shape.heads;
    const float *moments = FLOATS(mem[PRHS_R_MOMENTS_IN], a.moment_off) + (i64)item * 2 * dim;
    const float dropped = FLOATS(mem[PRHS_R_DROPPED], a.dropped_off)[item], lse = FLOATS(mem[PRHS_R_LSE], a.lse_off)[item];
    finding f = {};
    for (int base = 0; base < dim; base += GATE_BLOCK) {
        evidence v;
        lane_channels(a.q, mem[PRHS_R_Q], item / a.shape.heads, head, dim, base, v.q);
        load_references(FLOATS(mem[PRHS_R_QREF], a.qref_off) + (i64)item * dim, moments, dim, base, &v);
        add_evidence(v, &f);
    }
    const bool known = a.spread_off != PRHS_NONE;
    const float spread = known ? FLOATS(mem[PRHS_R_SPREADS], a.spread_off)[item] : 0.0f;
    f = sum_findings(f);
    const float cosine = cosine_of(f.cosine.ab, f.cosine.aa, f.cosine.bb);
    const float shift = known ? dropped_shift(f, spread, a.shape.scale) : channel_shift(f, a.shape.scale);
    if (lane_id())
        return;
    FLOATS(mem[PRHS_R_COSINE], a.cosine_off)[item] = cosine;
    FLOATS(mem[PRHS_R_DELTA], a.delta_off)[item] = dropped == NOTHING ? 0.0f : mass_of(dropped + shift - lse);
}

KERNEL(prhs_gate, prhs_cu_gate, 128, 4)
{
    grid_begin();
    const int items = p.a.rows * p.a.shape.heads;
    for (int item = blockIdx.x * 4 + warp_id(); item < items; item += gridDim.x * 4)
        gate_row(p.a, p.mem, item);
}
