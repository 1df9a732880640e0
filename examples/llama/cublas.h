/* SPDX-License-Identifier: Apache-2.0 */
/* libcublas, opened at run time, without its headers: the few calls that linear layers need. */
#ifndef CUBLAS_H
#define CUBLAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CUBLAS_N = 0, CUBLAS_T = 1 }; /* cublasOperation_t */
enum { CUBLAS_DEFAULT_MATH = 0 };    /* cublasMath_t: float32 products stay float32, no TF32 */
enum { CUDA_R_32F = 0, CUDA_R_16F = 2, CUBLAS_COMPUTE_32F = 68, CUBLAS_GEMM_DEFAULT = -1 };

/* X(name, symbol, parameters); each returns a cublasStatus_t, 0 for success. */
#define CUBLAS_FUNCTIONS(X)                                                                                                \
    X(create, cublasCreate_v2, (void **handle))                                                                            \
    X(destroy, cublasDestroy_v2, (void *handle))                                                                           \
    X(set_stream, cublasSetStream_v2, (void *handle, void *stream))                                                        \
    X(set_workspace, cublasSetWorkspace_v2, (void *handle, void *workspace, size_t size))                                  \
    X(set_math_mode, cublasSetMathMode, (void *handle, int mode))                                                          \
    X(sgemm, cublasSgemm_v2,                                                                                               \
      (void *handle, int op_a, int op_b, int m, int n, int k, const float *alpha, const float *a, int lda, const float *b, \
       int ldb, const float *beta, float *c, int ldc))                                                                     \
    X(gemm, cublasGemmEx,                                                                                                  \
      (void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,       \
       const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute, int algorithm))

typedef struct cublas {
#define X(name, symbol, params) int(*name) params;
    CUBLAS_FUNCTIONS(X)
#undef X
    void *handle;
} cublas;

/*
 * Makes a handle in the context that is current: of the library `file`, or (NULL) of the newest of libcublas.so.13, .12 and .11 that is here and
 * takes this driver. false after a sentence in `why`. The library itself is never closed: its context outlives it.
 */
bool cublas_open(cublas *b, const char *file, char *why, size_t cap);
void cublas_close(cublas *b);

#endif
