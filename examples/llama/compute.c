/* SPDX-License-Identifier: Apache-2.0 */
#include "compute.h"

#include <stdio.h>
#include <string.h>

compute *compute_open(engine *e, const char *where, bool half) {
    const bool free_choice = !where || strcmp(where, "auto") == 0, host = !free_choice && strcmp(where, "host") == 0;
    char why[512] = "";
    prhs_device_info info = { .size = sizeof info };
    if (!free_choice && !host && !strchr(where, '/')) {
        fprintf(stderr, "prhs-llama: --linear %s: it is auto, host, or a file of cuBLAS with a '/' in its name\n", where);
        return NULL;
    }
    if (prhs_device_get_info(e->dev, &info) != PRHS_OK)
        return NULL;
    if (!host && (info.backend == PRHS_BACKEND_CUDA || !free_choice)) {
        compute *c = compute_cuda_open(e, free_choice ? NULL : where, half, why, sizeof why);
        if (c || !free_choice) {
            if (!c)
                fprintf(stderr, "prhs-llama: %s\n", why);
            return c;
        }
        fprintf(stderr, "prhs-llama: warning: %s; float32 weights stay on the host, and its BLAS does the linear layers\n", why);
    } else if (half) {
        fprintf(stderr, "prhs-llama: --weights f16: this machine's BLAS has float32 only, cuBLAS on a cuda device has both\n");
        return NULL;
    }
    return compute_host_open(e);
}

void compute_close(compute *c) {
    if (c)
        c->ops->close(c);
}
