/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libcublas over the fake driver, with the calls that examples/llama makes. Stricter than the real one: it has no workspace of its own, and
 * setting the stream takes the caller's away, as it does there. PRHS_FAKE_CUBLAS_FAIL=1: there are no handles.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../../examples/llama/cublas.h"
#include "../../../examples/llama/driver.h"
#include "gemm.h"

#define PUBLIC __attribute__((visibility("default")))
enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, INTERNAL_ERROR = 14 };

/* A function whose parameters differ from the example's table does not compile. */
#define X(name, symbol, params) PUBLIC int symbol params;
CUBLAS_FUNCTIONS(X)
#undef X

typedef struct fake_handle {
    driver drv;
    void *module, *function, *stream, *workspace;
} fake_handle;

static int bind(driver *d) {
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *found;
#define X(name, symbol, params) \
    found = lib ? dlsym(lib, #symbol) : NULL; \
    memcpy(&d->name, &found, sizeof found); \
    if (!found) \
        return 0;
    DRIVER_FUNCTIONS(X)
#undef X
    return 1;
}

int cublasCreate_v2(void **handle) {
    const char *fail = getenv("PRHS_FAKE_CUBLAS_FAIL");
    fake_handle *h = fail && strcmp(fail, "1") == 0 ? NULL : calloc(1, sizeof *h);
    *handle = h;
    if (h && bind(&h->drv) && h->drv.load(&h->module, ".entry fake_gemm", 0, NULL, NULL) == 0 &&
        h->drv.function(&h->function, h->module, "fake_gemm") == 0)
        return SUCCESS;
    if (h && h->module)
        h->drv.unload(h->module);
    free(h);
    *handle = NULL;
    return NOT_INITIALIZED;
}

int cublasDestroy_v2(void *handle) {
    fake_handle *h = handle;
    const int status = h->drv.unload(h->module);
    free(h);
    return status ? INTERNAL_ERROR : SUCCESS;
}

int cublasSetStream_v2(void *handle, void *stream) {
    ((fake_handle *)handle)->stream = stream;
    ((fake_handle *)handle)->workspace = NULL;
    return SUCCESS;
}

int cublasSetWorkspace_v2(void *handle, void *workspace, size_t size) {
    if ((uintptr_t)workspace % 256 || size == 0)
        return INVALID_VALUE;
    ((fake_handle *)handle)->workspace = workspace;
    return SUCCESS;
}

int cublasSetMathMode(void *handle, int mode) {
    (void)handle;
    return mode == CUBLAS_DEFAULT_MATH ? SUCCESS : INVALID_VALUE;
}

static int multiply(fake_handle *h, int op_a, int op_b, const fake_gemm_args *p) {
    fake_gemm_args args = *p;
    void *params[] = { &args };
    if (op_a != CUBLAS_T || op_b != CUBLAS_N || p->m < 0 || p->n < 0 || p->k < 0 || p->w_row < p->k || p->x_row < p->k || p->c_row < p->m)
        return INVALID_VALUE;
    if (!h->workspace)
        return INTERNAL_ERROR;
    return h->drv.launch(h->function, 1, 1, 1, 1, 1, 1, 0, h->stream, params, NULL) ? EXECUTION_FAILED : SUCCESS;
}

int cublasSgemm_v2(void *handle, int op_a, int op_b, int m, int n, int k, const float *alpha, const float *a, int lda, const float *b,
                   int ldb, const float *beta, float *c, int ldc) {
    return multiply(handle, op_a, op_b, &(fake_gemm_args){ a, b, c, m, n, k, lda, ldb, ldc, 0, *alpha, *beta });
}

int cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda, const void *b,
                 int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute, int algorithm) {
    if (type_a != CUDA_R_16F || type_b != CUDA_R_16F || type_c != CUDA_R_32F || compute != CUBLAS_COMPUTE_32F ||
        algorithm != CUBLAS_GEMM_DEFAULT)
        return INVALID_VALUE;
    return multiply(handle, op_a, op_b,
                    &(fake_gemm_args){ a, b, c, m, n, k, lda, ldb, ldc, 1, *(const float *)alpha, *(const float *)beta });
}
