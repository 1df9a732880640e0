/* SPDX-License-Identifier: Apache-2.0 */
/* libOpenCL.so.1, opened at run time: libprhs loads where there is none. */
#ifndef PRHS_OPENCL_LOADER_H
#define PRHS_OPENCL_LOADER_H

#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 120
#endif
#include <CL/cl.h>

#include <prhs/log.h>

/* Every function that the backend calls, once; all are in OpenCL 1.2. */
#define PRHS_CL_FUNCTIONS(X)      \
    X(BuildProgram)               \
    X(CreateBuffer)               \
    X(CreateCommandQueue)         \
    X(CreateContext)              \
    X(CreateKernel)               \
    X(CreateProgramWithBinary)    \
    X(CreateProgramWithSource)    \
    X(EnqueueCopyBuffer)          \
    X(EnqueueFillBuffer)          \
    X(EnqueueMarkerWithWaitList)  \
    X(EnqueueNDRangeKernel)       \
    X(EnqueueReadBuffer)          \
    X(EnqueueWriteBuffer)         \
    X(Finish)                     \
    X(Flush)                      \
    X(GetCommandQueueInfo)        \
    X(GetContextInfo)             \
    X(GetDeviceIDs)               \
    X(GetDeviceInfo)              \
    X(GetEventInfo)               \
    X(GetEventProfilingInfo)      \
    X(GetKernelWorkGroupInfo)     \
    X(GetMemObjectInfo)           \
    X(GetPlatformIDs)             \
    X(GetPlatformInfo)            \
    X(GetProgramBuildInfo)        \
    X(GetProgramInfo)             \
    X(ReleaseCommandQueue)        \
    X(ReleaseContext)             \
    X(ReleaseEvent)               \
    X(ReleaseKernel)              \
    X(ReleaseMemObject)           \
    X(ReleaseProgram)             \
    X(RetainCommandQueue)         \
    X(RetainContext)              \
    X(RetainMemObject)            \
    X(RetainProgram)              \
    X(SetKernelArg)

typedef struct prhs_cl_api {
#define X(name) __typeof__(cl##name) *name;
    PRHS_CL_FUNCTIONS(X)
#undef X
} prhs_cl_api;

/* Filled once by prhs_cl_load(); read-only afterwards. */
extern prhs_cl_api prhs_cl;

/* Opens the library once a process. 1: prhs_cl is filled. 0: there is none, or it is too old; one sentence is logged. Thread-safe. */
int prhs_cl_load(const prhs_log *log);

#endif
