/* SPDX-License-Identifier: Apache-2.0 */
/* libclblast and libOpenCL, opened at run time, the former without its headers: the few calls that linear layers need. */
#ifndef CLBLAST_H
#define CLBLAST_H

#include <stdbool.h>
#include <stddef.h>

#include <prhs/opencl.h>

enum { CLBLAST_COLUMNS = 102, CLBLAST_N = 111, CLBLAST_T = 112 }; /* CLBlastLayoutColMajor, CLBlastTransposeNo, CLBlastTransposeYes */

/* X(name, symbol, parameters); each returns a CLBlastStatusCode, 0 for success. Offsets and leading dimensions count elements. */
#define CLBLAST_FUNCTIONS(X)                                                                                                  \
    X(sgemm, CLBlastSgemmWithTempBuffer,                                                                                      \
      (int layout, int op_a, int op_b, size_t m, size_t n, size_t k, float alpha, cl_mem a, size_t a_at, size_t lda, cl_mem b, \
       size_t b_at, size_t ldb, float beta, cl_mem c, size_t c_at, size_t ldc, cl_command_queue *queue, cl_event *event,      \
       cl_mem temp))                                                                                                          \
    X(temp_size, CLBlastSGemmTempBufferSize,                                                                                  \
      (int layout, int op_a, int op_b, size_t m, size_t n, size_t k, size_t a_at, size_t lda, size_t b_at, size_t ldb,        \
       size_t c_at, size_t ldc, cl_command_queue *queue, size_t *bytes))                                                      \
    X(clear, CLBlastClearCache, (void))

#define CLBLAST_CL_FUNCTIONS(X)  \
    X(BuildProgram)              \
    X(CreateKernel)              \
    X(CreateProgramWithSource)   \
    X(EnqueueNDRangeKernel)      \
    X(GetDeviceInfo)             \
    X(GetKernelWorkGroupInfo)    \
    X(GetProgramBuildInfo)       \
    X(ReleaseKernel)             \
    X(ReleaseProgram)            \
    X(SetKernelArg)

typedef struct clblast {
#define X(name, symbol, params) int(*name) params;
    CLBLAST_FUNCTIONS(X)
#undef X
#define X(name) __typeof__(cl##name) *name;
    CLBLAST_CL_FUNCTIONS(X)
#undef X
} clblast;

/*
 * OpenCL's calls, from the libOpenCL.so.1 that libprhs has opened already; CLBlast's, from the library `file` or (NULL) libclblast.so.1. false after a
 * sentence in `why`. Neither library is ever closed: drivers do not survive that.
 */
bool clblast_open_cl(clblast *b, char *why, size_t cap);
bool clblast_open(clblast *b, const char *file, char *why, size_t cap);

#endif
