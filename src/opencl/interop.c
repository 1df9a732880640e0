/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's own OpenCL objects, used as they are. */
#include <prhs/opencl.h>

#include <stdlib.h>

#include "host.h"

prhs_status prhs_opencl_device_open(const prhs_opencl_params *params, const prhs_log *log, prhs_device **device) {
    if (!params || !device || params->size != sizeof *params || !params->platform || !params->device)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_device_open: a NULL argument, or params->size is not this library's");
    *device = NULL;
    if (!prhs_cl_load(log))
        return prhs_fail(log, PRHS_ERR_NO_DEVICE, "prhs_opencl_device_open: there is no usable libOpenCL.so.1");
    prhs_device_params p = PRHS_DEVICE_PARAMS_INIT;
    p.backend = PRHS_BACKEND_OPENCL;
    p.caps_mask = params->caps_mask;
    p.cache_dir = params->cache_dir;
    return prhs_cl_open_device(params->platform, params->device, prhs_cl_find(params->device), params->context, &p, log, device);
}

static prhs_status check(prhs_device *device, const void *object, const void *out, const char *call) {
    if (!device || !object || !out)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    if (device->backend != &prhs_backend_opencl)
        return prhs_fail(&device->log, PRHS_ERR_UNSUPPORTED, "%s: this is a device of the %s backend", call, device->backend->name);
    return PRHS_OK;
}

prhs_status prhs_opencl_queue_wrap(prhs_device *device, cl_command_queue object, prhs_queue **queue) {
    prhs_status status = check(device, object, queue, "prhs_opencl_queue_wrap");
    if (status != PRHS_OK)
        return status;
    *queue = NULL;
    cl_command_queue_properties properties = 0;
    cl_int error = prhs_cl.GetCommandQueueInfo(object, CL_QUEUE_PROPERTIES, sizeof properties, &properties, NULL);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(&device->log, "clGetCommandQueueInfo", error);
    if (properties & CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE)
        return prhs_fail(&device->log, PRHS_ERR_UNSUPPORTED, "prhs_opencl_queue_wrap: the queue runs out of order; make one in order");
    prhs_cl_queue *q = calloc(1, sizeof *q);
    if (!q)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_opencl_queue_wrap: no host memory");
    if ((error = prhs_cl.RetainCommandQueue(object)) != CL_SUCCESS) {
        free(q);
        return prhs_cl_fail(&device->log, "clRetainCommandQueue", error);
    }
    q->head.dev = device;
    q->queue = object;
    prhs_device_retain(device);
    *queue = &q->head;
    return PRHS_OK;
}

prhs_status prhs_opencl_buffer_wrap(prhs_device *device, cl_mem object, prhs_buffer **buffer) {
    prhs_status status = check(device, object, buffer, "prhs_opencl_buffer_wrap");
    if (status != PRHS_OK)
        return status;
    *buffer = NULL;
    size_t size = 0;
    cl_int error = prhs_cl.GetMemObjectInfo(object, CL_MEM_SIZE, sizeof size, &size, NULL);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(&device->log, "clGetMemObjectInfo", error);
    prhs_cl_buffer *b = calloc(1, sizeof *b);
    if (!b)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_opencl_buffer_wrap: no host memory");
    if ((error = prhs_cl.RetainMemObject(object)) != CL_SUCCESS) {
        free(b);
        return prhs_cl_fail(&device->log, "clRetainMemObject", error);
    }
    b->head = (prhs_buffer){ device, size };
    b->mem = object;
    prhs_device_retain(device);
    *buffer = &b->head;
    return PRHS_OK;
}

cl_mem prhs_opencl_buffer_object(const prhs_buffer *buffer) {
    return buffer && buffer->dev->backend == &prhs_backend_opencl ? prhs_cl_mem_of(buffer) : NULL;
}

cl_context prhs_opencl_device_context(const prhs_device *device) {
    return device && device->backend == &prhs_backend_opencl ? prhs_cl_device_of(device)->context : NULL;
}
