/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libclblast that hands every call on to the machine's, and fails the one whose number, from 1 on, PRHS_FLAKY_CLBLAST is: it
 * then says that there is no memory.
 */
#define CL_TARGET_OPENCL_VERSION 120
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../clblast.h"

static int calls;

static bool fails(void) {
    const char *which = getenv("PRHS_FLAKY_CLBLAST");
    return which && ++calls == atoi(which);
}

/* The real function, into the pointer at `to`. */
static void find(const char *symbol, void *to) {
    static void *lib;
    if (!lib)
        lib = dlopen("libclblast.so.1", RTLD_NOW | RTLD_LOCAL);
    void *const found = lib ? dlsym(lib, symbol) : NULL;
    if (!found) {
        fprintf(stderr, "flaky: no %s\n", symbol);
        abort();
    }
    memcpy(to, &found, sizeof found);
}

#define EXPORT __attribute__((visibility("default")))

EXPORT int CLBlastSgemmWithTempBuffer(int layout, int op_a, int op_b, size_t m, size_t n, size_t k, float alpha, cl_mem a,
                                      size_t a_at, size_t lda, cl_mem b, size_t b_at, size_t ldb, float beta, cl_mem c,
                                      size_t c_at, size_t ldc, cl_command_queue *queue, cl_event *event, cl_mem temp);
EXPORT int CLBlastSGemmTempBufferSize(int layout, int op_a, int op_b, size_t m, size_t n, size_t k, size_t a_at, size_t lda,
                                      size_t b_at, size_t ldb, size_t c_at, size_t ldc, cl_command_queue *queue, size_t *bytes);
EXPORT int CLBlastClearCache(void);
EXPORT int CLBlastSgemm(void); /* by which a file is known for CLBlast; nobody calls it */

int CLBlastSgemmWithTempBuffer(int layout, int op_a, int op_b, size_t m, size_t n, size_t k, float alpha, cl_mem a, size_t a_at,
                               size_t lda, cl_mem b, size_t b_at, size_t ldb, float beta, cl_mem c, size_t c_at, size_t ldc,
                               cl_command_queue *queue, cl_event *event, cl_mem temp) {
    clblast real;
    find("CLBlastSgemmWithTempBuffer", &real.sgemm);
    return fails() ? CL_MEM_OBJECT_ALLOCATION_FAILURE
                   : real.sgemm(layout, op_a, op_b, m, n, k, alpha, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc, queue, event,
                                temp);
}

int CLBlastSGemmTempBufferSize(int layout, int op_a, int op_b, size_t m, size_t n, size_t k, size_t a_at, size_t lda, size_t b_at,
                               size_t ldb, size_t c_at, size_t ldc, cl_command_queue *queue, size_t *bytes) {
    clblast real;
    find("CLBlastSGemmTempBufferSize", &real.temp_size);
    return fails() ? CL_MEM_OBJECT_ALLOCATION_FAILURE
                   : real.temp_size(layout, op_a, op_b, m, n, k, a_at, lda, b_at, ldb, c_at, ldc, queue, bytes);
}

int CLBlastClearCache(void) {
    clblast real;
    find("CLBlastClearCache", &real.clear);
    return real.clear();
}

int CLBlastSgemm(void) { return CL_INVALID_OPERATION; }
