/* SPDX-License-Identifier: Apache-2.0 */
/* finish: a block a unit. */
#include "finish.cuh"

KERNEL(prhs_finish, prhs_cu_finish, FINISH_THREADS, 4)
{
    grid_begin();
    const int units = p.a.shape.units, items = seqs_of(p.a.batch, p.mem[PRHS_R_SEQS]) * units;
    /* How many there are is on its way yet when the first one is looked at. */
    int ahead = min(PRHS_AHEAD, p.a.batch.max_seqs * units);
    for (int i = blockIdx.x; i < ahead || i < items; i += gridDim.x, ahead = 0)
        finish_unit(p.a, p.mem, i / units, i % units);
}
