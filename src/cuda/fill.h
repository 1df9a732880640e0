/* SPDX-License-Identifier: Apache-2.0 */
/* How launch structs are filled: what enqueue.c and whole.c share. */
#ifndef PRHS_CUDA_FILL_H
#define PRHS_CUDA_FILL_H

#include "host.h"

#include "../../cuda/launch.h"

static inline prhs_quotient prhs_nv_quotient(prhs_i32 divisor) {
    return (prhs_quotient){ divisor, UINT32_MAX / (prhs_u32)(divisor > 0 ? divisor : 1) };
}

/* What appending does to a decode row. Pure. */
prhs_copies prhs_nv_copies(const prhs_k_append *a);

/* whole.c: steps that one launch serves. All pure. */
/* Whether there is a kernel for them where score has this key. */
bool prhs_nv_whole_exists(const prhs_nv_device *dev, const prhs_op_key *key);
/* Whether one launch serves all of the ops: then *key is its kernel's, and *args is full but for its buffers. */
bool prhs_nv_whole(const prhs_nv_device *dev, const prhs_op *ops, size_t n, prhs_op_key *key, prhs_cu_whole *args);
/* The launch's blocks; grid: how many the device holds that have as many threads as the kernel takes. */
void prhs_nv_whole_size(const prhs_nv_device *dev, const prhs_cu_whole *args, prhs_nv_launch *launch, unsigned grid);

#endif
