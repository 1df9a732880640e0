/* SPDX-License-Identifier: Apache-2.0 */
/* finish: a block a unit. */
#include "finish.cuh"

KERNEL(prhs_finish, prhs_cu_finish, FINISH_THREADS, 4)
{
    grid_begin();
    const int units = p.a.shape.units, items = p.a.batch.max_seqs * units;
    for (int i = blockIdx.x; i < items; i += gridDim.x)
        finish_unit(p.a, p.mem, i / units, i % units);
}
