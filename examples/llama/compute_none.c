/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "compute.h"

compute *compute_cuda_open(engine *e, const char *cublas, bool half, char *why, size_t cap) {
    (void)e, (void)cublas, (void)half;
    snprintf(why, cap, "this program was built without CUDA");
    return NULL;
}
