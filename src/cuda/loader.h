/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcuda.so.1, opened at run time: libprhs loads where there is none, and is built without CUDA's headers. Everything of the driver API
 * that the backend uses is declared here; the symbols are the versioned ones that drivers export, not what a newer cuda.h renames them to.
 */
#ifndef PRHS_CUDA_LOADER_H
#define PRHS_CUDA_LOADER_H

#include <stddef.h>
#include <stdint.h>

#include <prhs/log.h>

typedef int prhs_drv_result;  /* CUresult */
typedef int prhs_drv_device;  /* CUdevice: an ordinal */
typedef uint64_t prhs_drv_ptr;  /* CUdeviceptr */
typedef struct prhs_drv_context_ *prhs_drv_context;
typedef struct prhs_drv_stream_ *prhs_drv_stream;
typedef struct prhs_drv_event_ *prhs_drv_event;
typedef struct prhs_drv_module_ *prhs_drv_module;
typedef struct prhs_drv_function_ *prhs_drv_function;
typedef struct prhs_drv_graph_ *prhs_drv_graph;
typedef struct prhs_drv_exec_ *prhs_drv_exec;
typedef struct prhs_drv_node_ *prhs_drv_node;

/* Results that the backend tells apart. */
enum {
    PRHS_DRV_SUCCESS = 0,
    PRHS_DRV_INVALID_VALUE = 1,
    PRHS_DRV_OUT_OF_MEMORY = 2,
    PRHS_DRV_DEINITIALIZED = 4,
    PRHS_DRV_NO_DEVICE = 100,
    PRHS_DRV_INVALID_DEVICE = 101,
    PRHS_DRV_INVALID_IMAGE = 200,
    PRHS_DRV_INVALID_CONTEXT = 201,
    PRHS_DRV_NO_BINARY_FOR_GPU = 209,
    PRHS_DRV_ECC_UNCORRECTABLE = 214,
    PRHS_DRV_INVALID_PTX = 218,
    PRHS_DRV_NVLINK_UNCORRECTABLE = 220,
    PRHS_DRV_UNSUPPORTED_PTX_VERSION = 222,
    PRHS_DRV_INVALID_HANDLE = 400,
    PRHS_DRV_NOT_FOUND = 500,
    PRHS_DRV_NOT_READY = 600,
    PRHS_DRV_ILLEGAL_ADDRESS = 700,
    PRHS_DRV_LAUNCH_TIMEOUT = 702,
    PRHS_DRV_CONTEXT_IS_DESTROYED = 709,
    PRHS_DRV_ASSERT = 710,
    PRHS_DRV_HARDWARE_STACK_ERROR = 714,
    PRHS_DRV_ILLEGAL_INSTRUCTION = 715,
    PRHS_DRV_MISALIGNED_ADDRESS = 716,
    PRHS_DRV_INVALID_ADDRESS_SPACE = 717,
    PRHS_DRV_INVALID_PC = 718,
    PRHS_DRV_LAUNCH_FAILED = 719,
    PRHS_DRV_CAPTURE_FIRST = 900, /* what a stream that is being captured refuses */
    PRHS_DRV_CAPTURE_LAST = 908
};

enum { /* CUdevice_attribute */
    PRHS_DRV_MULTIPROCESSORS = 16,
    PRHS_DRV_COMPUTE_MAJOR = 75,
    PRHS_DRV_COMPUTE_MINOR = 76,
    PRHS_DRV_SHARED_OPTIN = 97     /* bytes of shared memory a block may have after PRHS_DRV_FUNC_MAX_DYNAMIC */
};

enum { /* CUfunction_attribute */
    PRHS_DRV_FUNC_SHARED = 1,      /* bytes of static shared memory */
    PRHS_DRV_FUNC_REGISTERS = 4,
    PRHS_DRV_FUNC_MAX_DYNAMIC = 8
};

enum { /* CUpointer_attribute */
    PRHS_DRV_POINTER_CONTEXT = 1,
    PRHS_DRV_POINTER_ORDINAL = 9
};

enum { /* CUjit_option */
    PRHS_DRV_JIT_ERROR_LOG = 5,
    PRHS_DRV_JIT_ERROR_LOG_SIZE = 6
};

enum {
    PRHS_DRV_EVENT_DEFAULT = 0,           /* CUevent_flags: with times */
    PRHS_DRV_STREAM_NON_BLOCKING = 1,     /* CUstream_flags */
    PRHS_DRV_CAPTURE_THREAD_LOCAL = 1,    /* CUstreamCaptureMode */
    PRHS_DRV_CAPTURE_NONE = 0,            /* CUstreamCaptureStatus */
    PRHS_DRV_CAPTURE_ACTIVE = 1,
    PRHS_DRV_CAPTURE_INVALIDATED = 2,
    PRHS_DRV_ATTRIBUTE_OVERLAP = 6        /* CUlaunchAttributeID: programmatic stream serialization */
};

/* CUlaunchAttribute and CUlaunchConfig, laid out as cuda.h has them. */
typedef struct prhs_drv_attribute {
    int id;
    int pad;
    union {
        char pad[64];
        int overlap;
    } value;
} prhs_drv_attribute;
typedef struct prhs_drv_launch {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
    prhs_drv_stream stream;
    prhs_drv_attribute *attributes;
    unsigned count;
} prhs_drv_launch;

/* CUDA_KERNEL_NODE_PARAMS_v1 and CUgraphEdgeData, likewise. */
typedef struct prhs_drv_kernel_node {
    prhs_drv_function function;
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
    void **params, **extra;
} prhs_drv_kernel_node;
typedef struct prhs_drv_edge {
    unsigned char from_port, to_port, type, reserved[5];
} prhs_drv_edge;
#define PRHS_DRV_EDGE_OVERLAP ((prhs_drv_edge){ 1, 0, 1, { 0 } }) /* programmatic: what a launch with PRHS_DRV_ATTRIBUTE_OVERLAP becomes */

/* Every function that the backend calls, once: X(name, symbol, parameters); each returns a prhs_drv_result. Driver 470 (CUDA 11.4) has all. */
#define PRHS_DRV_FUNCTIONS(X)                                                                                              \
    X(Init, cuInit, (unsigned flags))                                                                                      \
    X(DriverGetVersion, cuDriverGetVersion, (int *version))                                                                \
    X(GetErrorName, cuGetErrorName, (prhs_drv_result error, const char **name))                                            \
    X(GetErrorString, cuGetErrorString, (prhs_drv_result error, const char **text))                                        \
    X(DeviceGet, cuDeviceGet, (prhs_drv_device *device, int ordinal))                                                      \
    X(DeviceGetCount, cuDeviceGetCount, (int *count))                                                                      \
    X(DeviceGetName, cuDeviceGetName, (char *name, int size, prhs_drv_device device))                                      \
    X(DeviceGetAttribute, cuDeviceGetAttribute, (int *value, int attribute, prhs_drv_device device))                       \
    X(DeviceTotalMem, cuDeviceTotalMem_v2, (size_t *bytes, prhs_drv_device device))                                        \
    X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (prhs_drv_context *context, prhs_drv_device device))               \
    X(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (prhs_drv_device device))                                     \
    X(CtxPushCurrent, cuCtxPushCurrent_v2, (prhs_drv_context context))                                                     \
    X(CtxPopCurrent, cuCtxPopCurrent_v2, (prhs_drv_context * context))                                                     \
    X(CtxGetDevice, cuCtxGetDevice, (prhs_drv_device *device))                                                             \
    X(MemAlloc, cuMemAlloc_v2, (prhs_drv_ptr *pointer, size_t size))                                                       \
    X(MemFree, cuMemFree_v2, (prhs_drv_ptr pointer))                                                                       \
    X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (prhs_drv_ptr dst, const void *src, size_t size, prhs_drv_stream stream))     \
    X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void *dst, prhs_drv_ptr src, size_t size, prhs_drv_stream stream))           \
    X(MemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, (prhs_drv_ptr dst, prhs_drv_ptr src, size_t size, prhs_drv_stream stream))    \
    X(MemsetD32Async, cuMemsetD32Async, (prhs_drv_ptr dst, unsigned word, size_t words, prhs_drv_stream stream))           \
    X(MemHostAlloc, cuMemHostAlloc, (void **pointer, size_t size, unsigned flags))                                         \
    X(MemFreeHost, cuMemFreeHost, (void *pointer))                                                                         \
    X(PointerGetAttribute, cuPointerGetAttribute, (void *value, int attribute, prhs_drv_ptr pointer))                      \
    X(StreamCreate, cuStreamCreate, (prhs_drv_stream *stream, unsigned flags))                                             \
    X(StreamDestroy, cuStreamDestroy_v2, (prhs_drv_stream stream))                                                         \
    X(StreamSynchronize, cuStreamSynchronize, (prhs_drv_stream stream))                                                    \
    X(StreamGetCtx, cuStreamGetCtx, (prhs_drv_stream stream, prhs_drv_context *context))                                   \
    X(StreamIsCapturing, cuStreamIsCapturing, (prhs_drv_stream stream, int *status))                                       \
    X(StreamBeginCapture, cuStreamBeginCapture_v2, (prhs_drv_stream stream, int mode))                                     \
    X(StreamEndCapture, cuStreamEndCapture, (prhs_drv_stream stream, prhs_drv_graph *graph))                               \
    X(GraphCreate, cuGraphCreate, (prhs_drv_graph *graph, unsigned flags))                                                 \
    X(GraphAddKernelNode, cuGraphAddKernelNode,                                                                            \
      (prhs_drv_node *node, prhs_drv_graph graph, const prhs_drv_node *after, size_t count, const prhs_drv_kernel_node *what))\
    X(GraphAddDependencies, cuGraphAddDependencies,                                                                        \
      (prhs_drv_graph graph, const prhs_drv_node *from, const prhs_drv_node *to, size_t count))                            \
    X(GraphSetKernelNode, cuGraphExecKernelNodeSetParams,                                                                  \
      (prhs_drv_exec exec, prhs_drv_node node, const prhs_drv_kernel_node *what))                                          \
    X(GraphInstantiate, cuGraphInstantiateWithFlags, (prhs_drv_exec *exec, prhs_drv_graph graph, unsigned long long flags))\
    X(GraphLaunch, cuGraphLaunch, (prhs_drv_exec exec, prhs_drv_stream stream))                                            \
    X(GraphExecDestroy, cuGraphExecDestroy, (prhs_drv_exec exec))                                                          \
    X(GraphDestroy, cuGraphDestroy, (prhs_drv_graph graph))                                                                \
    X(EventCreate, cuEventCreate, (prhs_drv_event *event, unsigned flags))                                                 \
    X(EventDestroy, cuEventDestroy_v2, (prhs_drv_event event))                                                             \
    X(EventRecord, cuEventRecord, (prhs_drv_event event, prhs_drv_stream stream))                                          \
    X(EventQuery, cuEventQuery, (prhs_drv_event event))                                                                    \
    X(EventElapsedTime, cuEventElapsedTime, (float *milliseconds, prhs_drv_event begin, prhs_drv_event end))               \
    X(ModuleLoadData, cuModuleLoadDataEx,                                                                                  \
      (prhs_drv_module *module, const void *image, unsigned options, int *option, void **value))                           \
    X(ModuleUnload, cuModuleUnload, (prhs_drv_module module))                                                              \
    X(ModuleGetFunction, cuModuleGetFunction, (prhs_drv_function *function, prhs_drv_module module, const char *name))     \
    X(FuncGetAttribute, cuFuncGetAttribute, (int *value, int attribute, prhs_drv_function function))                       \
    X(FuncSetAttribute, cuFuncSetAttribute, (prhs_drv_function function, int attribute, int value))                        \
    X(Occupancy, cuOccupancyMaxActiveBlocksPerMultiprocessor,                                                              \
      (int *blocks, prhs_drv_function function, int block, size_t shared))                                                 \
    X(LaunchKernel, cuLaunchKernel,                                                                                        \
      (prhs_drv_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,  \
       unsigned block_z, unsigned shared, prhs_drv_stream stream, void **params, void **extra))

/* Functions of newer drivers, NULL where one lacks them: what they do is done without. */
#define PRHS_DRV_OPTIONAL(X)                                                                                               \
    X(FuncLoad, cuFuncLoad, (prhs_drv_function function))                                                                  \
    X(LaunchKernelEx, cuLaunchKernelEx,                                                                                    \
      (const prhs_drv_launch *launch, prhs_drv_function function, void **params, void **extra))                            \
    X(GraphAddEdges, cuGraphAddDependencies_v2,                                                                            \
      (prhs_drv_graph graph, const prhs_drv_node *from, const prhs_drv_node *to, const prhs_drv_edge *edges, size_t count))

typedef struct prhs_drv_api {
#define X(name, symbol, params) prhs_drv_result(*name) params;
    PRHS_DRV_FUNCTIONS(X)
    PRHS_DRV_OPTIONAL(X)
#undef X
} prhs_drv_api;

/* Filled once by prhs_drv_load(); read-only afterwards. */
extern prhs_drv_api prhs_drv;

/* Opens and initialises the driver once a process. 1: prhs_drv is filled. 0: there is none, it is too old, or cuInit failed; one sentence is
   logged. Thread-safe. */
int prhs_drv_load(const prhs_log *log);

#endif
