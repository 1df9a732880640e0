/* SPDX-License-Identifier: Apache-2.0 */
/* moments by itself; in a session finish does it. A block a (sequence, head). */
#include "moments.cuh"

KERNEL(prhs_moments, prhs_cu_moments, 128, 4)
{
    __shared__ __align__(16) float scratch[PRHS_MOMENT_SHARED(256) / 4];
    grid_begin();
    const int heads = p.a.shape.heads, items = seqs_of(p.a.batch, p.mem[PRHS_R_SEQS]) * heads;
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
        const int b = i / heads, h = i % heads;
        const entry e = entry_of(p.a.batch, p.mem[PRHS_R_SEQS], b);
        const prhs_set set = *set_at(p.mem[PRHS_R_WORK], p.a.work, p.a.shape, b, h / p.a.shape.unit_heads);
        if (e.kind != IDLE && set.mode == PRHS_MODE_RETRIEVE)
            moments_of_head(p.a, p.mem, b, h, e, set, scratch);
    }
}
