/* SPDX-License-Identifier: Apache-2.0 */
/* finish: a block a query head, or a unit where sequences may have several rows. */
#include "finish.cuh"

KERNEL(prhs_finish, prhs_cu_close, FINISH_THREADS, 4)
{
    __shared__ __align__(16) ending_shared shared;
    grid_begin();
    const prhs_k_finish &a = p.a;
    if (a.batch.rows > 1 || a.batch.active_off == PRHS_NONE) {
        finish_units(a, p.mem);
        return;
    }
    const int heads = a.shape.heads, most = a.batch.max_seqs * heads, ahead = min(PRHS_AHEAD * a.shape.unit_heads, most);
    for (int i = blockIdx.x; i < most; i += gridDim.x) {
        const bool later = i >= (int)gridDim.x;
        /* The block's first head is looked at without asking how many there are. */
        if ((later || i >= ahead) && i >= seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * heads)
            return;
        if (later)
            __syncthreads();
        ending x = { a, p.mem, i, 0, 0, 0, false, 0, 0, 0, 0, 0, 0, {} };
        if (find_ending(&x, quotient_by{ p.by_heads }, quotient_by{ p.by_unit_heads }))
            end_head(x, &shared);
    }
}
