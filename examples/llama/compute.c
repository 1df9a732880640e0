/* SPDX-License-Identifier: Apache-2.0 */
#include "compute.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef enum place { NOWHERE, HOST, CUBLAS, CLBLAST } place;

/* A library is CLBlast where it has CLBlast's product; what else it may be, cuBLAS says. It stays open for who uses it. */
static place place_of_file(const char *file) {
    void *lib = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        fprintf(stderr, "prhs-llama: --linear: %s cannot be opened (%s)\n", file, dlerror());
    return !lib ? NOWHERE : dlsym(lib, "CLBlastSgemm") ? CLBLAST : CUBLAS;
}

static place place_of(const engine *e, const char *where) {
    prhs_device_info info = { .size = sizeof info };
    if (strcmp(where, "host") == 0)
        return HOST;
    if (strcmp(where, "clblast") == 0)
        return CLBLAST;
    if (strchr(where, '/'))
        return place_of_file(where);
    if (strcmp(where, "auto") == 0 && prhs_device_get_info(e->dev, &info) == PRHS_OK)
        return info.backend == PRHS_BACKEND_CUDA ? CUBLAS : compute_opencl_gpu(e) ? CLBLAST : HOST;
    fprintf(stderr, "prhs-llama: --linear %s: it is auto, host, clblast, or a file of cuBLAS or CLBlast with a '/' in its name\n", where);
    return NOWHERE;
}

compute *compute_open(engine *e, const char *where, bool half) {
    char why[512] = "";
    where = where ? where : "auto";
    const char *file = strchr(where, '/') ? where : NULL;
    const place at = place_of(e, where);
    if (half && (at == HOST || at == CLBLAST)) {
        fprintf(stderr, "prhs-llama: --weights f16: this machine's BLAS and CLBlast have float32 only here, cuBLAS on a cuda device has both\n");
        return NULL;
    }
    compute *c = at == CUBLAS    ? compute_cuda_open(e, file, half, why, sizeof why)
                 : at == CLBLAST ? compute_opencl_open(e, file, why, sizeof why)
                                 : NULL;
    if (c || at == NOWHERE)
        return c;
    if (at != HOST && strcmp(where, "auto") != 0) {
        fprintf(stderr, "prhs-llama: --linear %s: %s\n", where, why);
        return NULL;
    }
    if (at != HOST)
        fprintf(stderr, "prhs-llama: warning: %s; float32 weights stay on the host, and its BLAS does the linear layers\n", why);
    return compute_host_open(e);
}

void compute_close(compute *c) {
    if (c)
        c->ops->close(c);
}
