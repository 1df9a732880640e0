/* SPDX-License-Identifier: Apache-2.0 */
/* finish: a block a query head, or a unit where sequences may have several rows; and the moments of what a retrieval has dropped. */
#include "finish.cuh"
#include "moments.cuh"

/* Of the heads whose unit has retrieved: those of the block's items from `first` on, every `step`. Seldom: called. */
DEV_CALL void bring_moments(const prhs_cu_close &p, int first, int step, int count, float *scratch)
{
    const prhs_k_moments &a = p.moments;
    const int heads = a.shape.heads, items = seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * heads;
    for (int i = first; i < items; i += step)
        for (int k = i; k < i + count; k++) {
            const int b = k / heads, h = k - b * heads;
            const entry e = entry_of(a.batch, p.mem[PRHS_R_SEQS], b);
            const prhs_set set = *set_at(p.mem[PRHS_R_WORK], a.work, a.shape, b, h / a.shape.unit_heads);
            if (e.kind == IDLE || set.mode != PRHS_MODE_RETRIEVE)
                continue;
            moments_of_head(a, p.mem, b, h, e, set, scratch);
            __syncthreads();
        }
}

/* A block a unit; what further rows are judged by, and what stands in for dropped values, comes first. */
DEV_CALL void finish_batch(const prhs_cu_close &p, float *scratch)
{
    const int each = p.a.shape.unit_heads;
    if (p.has_moments)
        bring_moments(p, blockIdx.x * each, gridDim.x * each, each, scratch);
    finish_units(p.a, p.mem);
}

/* A block a query head. */
DEV bool finish_heads(const prhs_cu_close &p)
{
    __shared__ __align__(16) ending_shared shared;
    const prhs_k_finish &a = p.a;
    const int heads = a.shape.heads, most = a.batch.max_seqs * heads, ahead = min(PRHS_AHEAD * a.shape.unit_heads, most);
    bool retrieved = false;
    for (int i = blockIdx.x; i < most; i += gridDim.x) {
        const bool later = i >= (int)gridDim.x;
        /* The block's first head is looked at without asking how many there are. */
        if ((later || i >= ahead) && i >= seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * heads)
            break;
        if (later)
            __syncthreads();
        ending x = { a, p.mem, i, 0, 0, 0, false, 0, 0, 0, 0, 0, 0, {} };
        if (!find_ending(&x, quotient_by{ p.by_heads }, quotient_by{ p.by_unit_heads }))
            continue;
        retrieved = retrieved || x.set.mode == PRHS_MODE_RETRIEVE;
        end_head(x, &shared);
    }
    return retrieved;
}

KERNEL(prhs_finish, prhs_cu_close, FINISH_THREADS, 4)
{
    DYNAMIC_SHARED(scratch);
    grid_begin(p);
    if (p.a.batch.rows > 1 || p.a.batch.active_off == PRHS_NONE || p.a.policy.residual == PRHS_K_RESIDUAL_RETRIEVED) {
        finish_batch(p, (float *)scratch);
        return;
    }
    if (finish_heads(p) && p.has_moments)
        bring_moments(p, blockIdx.x, gridDim.x, 1, (float *)scratch);
}
