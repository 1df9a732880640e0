/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file opencl.h
 * Interop: the engine's own OpenCL context, queues and buffers, used as they are. Needs the OpenCL headers; libprhs itself opens
 * libOpenCL.so.1 at run time, the same one that the engine is linked to.
 */
#ifndef PRHS_OPENCL_H
#define PRHS_OPENCL_H

#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 120
#endif
#include <CL/cl.h>

#include <prhs/device.h>

PRHS_EXTERN_C_BEGIN

/** Start from PRHS_OPENCL_PARAMS_INIT. */
typedef struct prhs_opencl_params {
    size_t size;             /**< sizeof(prhs_opencl_params) */
    cl_platform_id platform;
    cl_device_id device;
    cl_context context;      /**< that holds `device`; retained while the device lives. NULL: libprhs makes one */
    uint32_t caps_mask;      /**< as prhs_device_params.caps_mask */
    const char *cache_dir;   /**< as prhs_device_params.cache_dir */
} prhs_opencl_params;
#define PRHS_OPENCL_PARAMS_INIT { sizeof(prhs_opencl_params), NULL, NULL, NULL, PRHS_CAPS_ALL, NULL }

/**
 * Opens a device on the engine's context; close it with prhs_device_close(). Thread-safe. PRHS_ERR_ARGUMENT: NULL or params->size.
 * PRHS_ERR_NO_DEVICE: no libOpenCL. PRHS_ERR_UNSUPPORTED: the device lacks what libprhs needs. PRHS_ERR_DRIVER, PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_opencl_device_open(const prhs_opencl_params *params, const prhs_log *log, prhs_device **device);

/**
 * Makes a queue of the engine's in-order command queue, retained until prhs_queue_destroy(). Event times need a queue made with
 * CL_QUEUE_PROFILING_ENABLE, else they read 0. PRHS_ERR_ARGUMENT: NULL. PRHS_ERR_UNSUPPORTED: an out-of-order queue, or a device of
 * another backend. PRHS_ERR_DRIVER, PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_opencl_queue_wrap(prhs_device *device, cl_command_queue object, prhs_queue **queue);

/** Makes a buffer of the engine's cl_mem, retained until prhs_buffer_destroy(). Errors as above. */
PRHS_API prhs_status prhs_opencl_buffer_wrap(prhs_device *device, cl_mem object, prhs_buffer **buffer);

/** The cl_mem of a buffer; NULL for another backend's. Not retained. Thread-safe. */
PRHS_API cl_mem prhs_opencl_buffer_object(const prhs_buffer *buffer);

/** The cl_context of a device; NULL for another backend's. Not retained. Thread-safe. */
PRHS_API cl_context prhs_opencl_device_context(const prhs_device *device);

PRHS_EXTERN_C_END

#endif
