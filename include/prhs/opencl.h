/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file opencl.h
 * Interop: libprhs on the engine's own OpenCL objects. Not part of prhs.h, because it needs the OpenCL headers. The library does not
 * link with OpenCL: it opens libOpenCL.so.1 at run time, so the engine's objects must come from that same library (the ICD loader).
 */
#ifndef PRHS_OPENCL_H
#define PRHS_OPENCL_H

#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 120
#endif
#include <CL/cl.h>

#include <prhs/device.h>

PRHS_EXTERN_C_BEGIN

/** How to open a device that the engine holds already. Start from PRHS_OPENCL_PARAMS_INIT. */
typedef struct prhs_opencl_params {
    size_t size;              /**< sizeof(prhs_opencl_params) */
    cl_platform_id platform;  /**< NULL: the device's own */
    cl_device_id device;
    cl_context context;       /**< must contain `device`; retained while the prhs_device lives. NULL: a new context */
    uint32_t caps_mask;       /**< capabilities that may be used; PRHS_CAPS_ALL. PRHS_CAPS in the environment takes away more */
    const char *cache_dir;    /**< as in prhs_device_params */
    const char *tuning;       /**< as in prhs_device_params */
} prhs_opencl_params;
#define PRHS_OPENCL_PARAMS_INIT { sizeof(prhs_opencl_params), NULL, NULL, NULL, PRHS_CAPS_ALL, NULL, NULL }

/**
 * Opens the engine's device; close it with prhs_device_close(). `log` is copied, NULL is silence. Thread-safe.
 * PRHS_ERR_ARGUMENT: params, params->device or device NULL, params->size unknown, the context does not contain the device, the
 * platform is not the device's; the tuning file as in prhs_device_open(). PRHS_ERR_NO_DEVICE: this machine has no
 * libOpenCL.so.1. PRHS_ERR_UNSUPPORTED: built without OpenCL, or the device lacks what libprhs needs. PRHS_ERR_DRIVER,
 * PRHS_ERR_MEMORY: as named.
 */
PRHS_API prhs_status prhs_opencl_device_open(const prhs_opencl_params *params, const prhs_log *log, prhs_device **device);

/**
 * Makes a prhs_queue of the engine's command queue, which is retained until prhs_queue_destroy() (that waits for the queue's work,
 * as for any queue). Calls of the engine and of libprhs on it run in the order in which they were made. Event times need a queue
 * with CL_QUEUE_PROFILING_ENABLE, otherwise prhs_event_elapsed() gives 0. Thread-safe.
 * PRHS_ERR_ARGUMENT: NULL, a device of another backend, a queue of another context or device. PRHS_ERR_UNSUPPORTED: the queue runs
 * out of order. PRHS_ERR_DRIVER: it is no command queue. PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_opencl_queue_wrap(prhs_device *device, cl_command_queue cl_queue, prhs_queue **queue);

/**
 * Makes a prhs_buffer of the engine's buffer or sub-buffer, which is retained until prhs_buffer_destroy(); content and size stay.
 * Offsets of prhs_mem count from its beginning. Thread-safe.
 * PRHS_ERR_ARGUMENT: NULL, a device of another backend, an image, or a buffer of another context. PRHS_ERR_DRIVER: it is no memory
 * object. PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_opencl_buffer_wrap(prhs_device *device, cl_mem cl_buffer, prhs_buffer **buffer);

/**
 * The objects behind a handle, also of handles that libprhs made itself; not retained: they live as long as the handle. NULL for
 * NULL and for handles of another backend. Thread-safe.
 */
PRHS_API cl_platform_id prhs_opencl_platform(const prhs_device *device);
PRHS_API cl_device_id prhs_opencl_device(const prhs_device *device);
PRHS_API cl_context prhs_opencl_context(const prhs_device *device);
PRHS_API cl_command_queue prhs_opencl_queue(const prhs_queue *queue);
PRHS_API cl_mem prhs_opencl_buffer(const prhs_buffer *buffer);

PRHS_EXTERN_C_END

#endif
