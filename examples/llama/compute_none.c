/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "compute.h"

compute *compute_cuda_open(engine *e, const char *cublas, char *why, size_t cap) {
    (void)e, (void)cublas;
    snprintf(why, cap, "this program was built without CUDA");
    return NULL;
}
