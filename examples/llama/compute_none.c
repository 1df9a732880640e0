/* SPDX-License-Identifier: Apache-2.0 */
/* Of the devices that the library is built without. */
#include <stdio.h>

#include "compute.h"

#ifdef LLAMA_NO_CUDA
compute *compute_cuda_open(engine *e, const char *cublas, bool half, char *why, size_t cap) {
    (void)e, (void)cublas, (void)half;
    snprintf(why, cap, "this program was built without CUDA");
    return NULL;
}
#endif

#ifdef LLAMA_NO_OPENCL
compute *compute_opencl_open(engine *e, const char *clblast, char *why, size_t cap) {
    (void)e, (void)clblast;
    snprintf(why, cap, "this program was built without OpenCL");
    return NULL;
}

bool compute_opencl_gpu(const engine *e) {
    (void)e;
    return false;
}
#endif
