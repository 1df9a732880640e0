/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libOpenCL.so.1 that hands every call on to the real one, and fails those that it was told to. The test loads it before libprhs
 * looks for that name. flaky_after: how many more matching calls go well before one fails, < 0: none fails; flaky_only: the
 * function that counts, NULL: every one; flaky_sticky: those after it fail too; flaky_error: what a failed call returns;
 * flaky_hits: failures so far; flaky_calls: calls so far, flaky_source: how many there had been when a program was made from source.
 * flaky_live: objects that were made and retained and not released. flaky_prefix: goes before every program's source, as the work of a
 * compiler that gets something wrong. flaky_group: the most work-items a group that a kernel runs in, 0: as the real driver says;
 * flaky_largest: the largest group that was launched.
 */
#define CL_TARGET_OPENCL_VERSION 120
#define CL_USE_DEPRECATED_OPENCL_1_2_APIS
#include <CL/cl.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((visibility("default"))) int flaky_after = -1, flaky_sticky, flaky_hits, flaky_calls, flaky_source, flaky_live;
__attribute__((visibility("default"))) const char *flaky_only, *flaky_prefix;
__attribute__((visibility("default"))) size_t flaky_group, flaky_largest;
__attribute__((visibility("default"))) cl_int flaky_error = CL_OUT_OF_RESOURCES;

/* The real function; the test names the library in the environment. */
static void *real(const char *name) {
    static void *lib;
    if (!lib)
        lib = dlopen(getenv("FLAKY_OPENCL"), RTLD_NOW | RTLD_LOCAL);
    void *symbol = lib ? dlsym(lib, name) : NULL;
    if (!symbol) {
        fprintf(stderr, "flaky: no %s in %s\n", name, getenv("FLAKY_OPENCL"));
        abort();
    }
    return symbol;
}

static int fails(const char *name) {
    flaky_calls++;
    if (!flaky_source && strcmp(name, "clCreateProgramWithSource") == 0)
        flaky_source = flaky_calls;
    if (flaky_after < 0 || (flaky_only && strcmp(flaky_only, name) != 0))
        return 0;
    if (flaky_after > 0) {
        flaky_after--;
        return 0;
    }
    if (!flaky_sticky)
        flaky_after = -1;
    flaky_hits++;
    return 1;
}

/* A function that returns a status, and one that makes an object. */
#define STATUS(name, params, args) \
    __attribute__((visibility("default"))) cl_int name params { \
        __typeof__(name) *call; \
        void *symbol = real(#name); \
        memcpy(&call, &symbol, sizeof call); \
        return fails(#name) ? flaky_error : call args; \
    }

/* A new reference, or NULL. */
static void *counted(void *object) {
    __atomic_fetch_add(&flaky_live, object != NULL, __ATOMIC_RELAXED);
    return object;
}
#define OBJECT(type, name, params, args) \
    __attribute__((visibility("default"))) type name params { \
        __typeof__(name) *call; \
        void *symbol = real(#name); \
        memcpy(&call, &symbol, sizeof call); \
        if (!fails(#name)) \
            return counted(call args); \
        *e = flaky_error; \
        return NULL; \
    }
#define RETAIN(name, type) \
    __attribute__((visibility("default"))) cl_int name(type x) { \
        __typeof__(name) *call; \
        void *symbol = real(#name); \
        memcpy(&call, &symbol, sizeof call); \
        if (fails(#name)) \
            return flaky_error; \
        counted(x); \
        return call(x); \
    }
/* Releasing never fails. */
#define RELEASE(name, type) \
    __attribute__((visibility("default"))) cl_int name(type x) { \
        __typeof__(name) *call; \
        void *symbol = real(#name); \
        memcpy(&call, &symbol, sizeof call); \
        __atomic_fetch_sub(&flaky_live, 1, __ATOMIC_RELAXED); \
        return call(x); \
    }
#define QUERY(name, object, what) STATUS(name, (object a, what b, size_t c, void *d, size_t *e), (a, b, c, d, e))

static int too_large(size_t local) {
    flaky_largest = local > flaky_largest ? local : flaky_largest;
    return flaky_group && local > flaky_group;
}

static cl_int capped(cl_kernel_work_group_info what, void *value) {
    if (what == CL_KERNEL_WORK_GROUP_SIZE && flaky_group)
        memcpy(value, &flaky_group, sizeof flaky_group);
    return CL_SUCCESS;
}

typedef void CL_CALLBACK on_error(const char *text, const void *data, size_t size, void *user);
typedef void CL_CALLBACK on_build(cl_program program, void *user);

/* The pieces of a text and their lengths, behind the prefix; the library makes one program at a time. */
enum { PIECES = 64 };
static const char *piece[1 + PIECES];
static size_t piece_size[1 + PIECES];

static cl_uint behind_prefix(cl_uint count, const char **text, const size_t *size) {
    if (count > PIECES) {
        fprintf(stderr, "flaky: %u pieces\n", count);
        abort();
    }
    piece[0] = flaky_prefix ? flaky_prefix : "";
    piece_size[0] = strlen(piece[0]);
    memcpy(piece + 1, text, count * sizeof *text);
    memcpy(piece_size + 1, size, count * sizeof *size);
    return 1 + count;
}

#define PREFIXED(a, b, c, d, e) (a, behind_prefix(b, c, d), piece, piece_size, e)

OBJECT(cl_context, clCreateContext,
       (const cl_context_properties *a, cl_uint b, const cl_device_id *c, on_error *d, void *f, cl_int *e), (a, b, c, d, f, e))
OBJECT(cl_command_queue, clCreateCommandQueue, (cl_context a, cl_device_id b, cl_command_queue_properties c, cl_int *e), (a, b, c, e))
OBJECT(cl_mem, clCreateBuffer, (cl_context a, cl_mem_flags b, size_t c, void *d, cl_int *e), (a, b, c, d, e))
OBJECT(cl_program, clCreateProgramWithSource, (cl_context a, cl_uint b, const char **c, const size_t *d, cl_int *e), PREFIXED(a, b, c, d, e))
OBJECT(cl_program, clCreateProgramWithBinary,
       (cl_context a, cl_uint b, const cl_device_id *c, const size_t *d, const unsigned char **f, cl_int *g, cl_int *e),
       (a, b, c, d, f, g, e))
OBJECT(cl_kernel, clCreateKernel, (cl_program a, const char *b, cl_int *e), (a, b, e))
STATUS(clBuildProgram, (cl_program a, cl_uint b, const cl_device_id *c, const char *d, on_build *e, void *f), (a, b, c, d, e, f))
STATUS(clGetPlatformIDs, (cl_uint a, cl_platform_id *b, cl_uint *c), (a, b, c))
STATUS(clGetDeviceIDs, (cl_platform_id a, cl_device_type b, cl_uint c, cl_device_id *d, cl_uint *e), (a, b, c, d, e))
STATUS(clSetKernelArg, (cl_kernel a, cl_uint b, size_t c, const void *d), (a, b, c, d))
STATUS(clEnqueueNDRangeKernel,
       (cl_command_queue a, cl_kernel b, cl_uint c, const size_t *d, const size_t *e, const size_t *f, cl_uint g, const cl_event *h,
        cl_event *i),
       (a, too_large(*f) ? NULL : b, c, d, e, f, g, h, i))
STATUS(clEnqueueReadBuffer,
       (cl_command_queue a, cl_mem b, cl_bool c, size_t d, size_t e, void *f, cl_uint g, const cl_event *h, cl_event *i),
       (a, b, c, d, e, f, g, h, i))
STATUS(clEnqueueWriteBuffer,
       (cl_command_queue a, cl_mem b, cl_bool c, size_t d, size_t e, const void *f, cl_uint g, const cl_event *h, cl_event *i),
       (a, b, c, d, e, f, g, h, i))
STATUS(clEnqueueCopyBuffer,
       (cl_command_queue a, cl_mem b, cl_mem c, size_t d, size_t e, size_t f, cl_uint g, const cl_event *h, cl_event *i),
       (a, b, c, d, e, f, g, h, i))
STATUS(clEnqueueFillBuffer,
       (cl_command_queue a, cl_mem b, const void *c, size_t d, size_t e, size_t f, cl_uint g, const cl_event *h, cl_event *i),
       (a, b, c, d, e, f, g, h, i))
STATUS(clEnqueueMarkerWithWaitList, (cl_command_queue a, cl_uint b, const cl_event *c, cl_event *d), (a, b, c, counted(d)))
STATUS(clFinish, (cl_command_queue a), (a))
STATUS(clFlush, (cl_command_queue a), (a))
STATUS(clGetKernelWorkGroupInfo, (cl_kernel a, cl_device_id b, cl_kernel_work_group_info c, size_t d, void *e, size_t *f),
       (a, b, c, d, e, f) | capped(c, e))
STATUS(clGetProgramBuildInfo, (cl_program a, cl_device_id b, cl_program_build_info c, size_t d, void *e, size_t *f), (a, b, c, d, e, f))
QUERY(clGetPlatformInfo, cl_platform_id, cl_platform_info)
QUERY(clGetDeviceInfo, cl_device_id, cl_device_info)
QUERY(clGetContextInfo, cl_context, cl_context_info)
QUERY(clGetCommandQueueInfo, cl_command_queue, cl_command_queue_info)
QUERY(clGetMemObjectInfo, cl_mem, cl_mem_info)
QUERY(clGetProgramInfo, cl_program, cl_program_info)
QUERY(clGetEventInfo, cl_event, cl_event_info)
QUERY(clGetEventProfilingInfo, cl_event, cl_profiling_info)
RETAIN(clRetainContext, cl_context)
RETAIN(clRetainCommandQueue, cl_command_queue)
RETAIN(clRetainMemObject, cl_mem)
RETAIN(clRetainProgram, cl_program)
RELEASE(clReleaseCommandQueue, cl_command_queue)
RELEASE(clReleaseContext, cl_context)
RELEASE(clReleaseEvent, cl_event)
RELEASE(clReleaseKernel, cl_kernel)
RELEASE(clReleaseMemObject, cl_mem)
RELEASE(clReleaseProgram, cl_program)
