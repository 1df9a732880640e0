/* SPDX-License-Identifier: Apache-2.0 */
/* finish by itself; what the blocks of serve do in passing where attend comes first. */
#include "finish.cuh"

KERNEL(prhs_finish, prhs_cu_finish, FINISH_THREADS, 4)
{
    grid_begin();
    grid_release();
    const int units = p.a.shape.units, items = p.a.batch.max_seqs * units;
    for (int i = blockIdx.x; i < items; i += gridDim.x)
        finish_unit(p.a, p.mem, i / units, i % units, -1);
}
