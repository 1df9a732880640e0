/* SPDX-License-Identifier: Apache-2.0 */
/* The public calls of opencl.h: the only ones that a backend validates itself. */
#include "host.h"

#include <stdlib.h>

#include <prhs/opencl.h>

/* Whether a context contains a device; false also where the driver does not say. */
static bool contains(cl_context context, cl_device_id id) {
    cl_device_id ids[64];
    size_t size = 0;
    if (prhs_cl.GetContextInfo(context, CL_CONTEXT_DEVICES, sizeof ids, ids, &size) != CL_SUCCESS)
        return false;
    for (size_t i = 0; i < size / sizeof ids[0]; i++)
        if (ids[i] == id)
            return true;
    return false;
}

prhs_status prhs_opencl_device_open(const prhs_opencl_params *params, const prhs_log *log, prhs_device **device) {
    if (device)
        *device = NULL;
    if (!params || !device)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_device_open: %s is NULL", params ? "device" : "params");
    if (params->size != sizeof *params)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_device_open: params->size is %zu, this library knows %zu", params->size,
                         sizeof *params);
    if (!params->device)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_device_open: params->device is NULL");
    if (!prhs_cl_load(log))
        return prhs_fail(log, PRHS_ERR_NO_DEVICE, "prhs_opencl_device_open: there is no usable libOpenCL.so.1 on this machine");
    cl_platform_id platform = NULL;
    cl_int error = prhs_cl.GetDeviceInfo(params->device, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(log, "clGetDeviceInfo", error);
    if (params->platform && params->platform != platform)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_device_open: the device is not of this platform");
    if (params->context && !contains(params->context, params->device))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_device_open: the context does not contain the device");
    prhs_device_params p = PRHS_DEVICE_PARAMS_INIT;
    p.backend = PRHS_BACKEND_OPENCL;
    p.index = prhs_cl_find(params->device);
    p.caps_mask = prhs_caps_mask(params->caps_mask);
    p.cache_dir = params->cache_dir;
    p.tuning = params->tuning;
    return prhs_cl_open_device(platform, params->device, p.index, params->context, &p, log, device);
}

static prhs_status check_device(const prhs_device *device, const char *call) {
    if (!device)
        return PRHS_ERR_ARGUMENT;
    if (device->backend != &prhs_backend_opencl)
        return prhs_fail(&device->log, PRHS_ERR_ARGUMENT, "%s: the device is of the %s backend", call, device->backend->name);
    return PRHS_OK;
}

static prhs_status check_queue(const prhs_cl_device *dev, cl_command_queue queue) {
    const prhs_log *log = &dev->head.log;
    cl_context context = NULL;
    cl_device_id id = NULL;
    cl_command_queue_properties properties = 0;
    cl_int error = prhs_cl.GetCommandQueueInfo(queue, CL_QUEUE_CONTEXT, sizeof context, &context, NULL);
    if (error == CL_SUCCESS)
        error = prhs_cl.GetCommandQueueInfo(queue, CL_QUEUE_DEVICE, sizeof id, &id, NULL);
    if (error == CL_SUCCESS)
        error = prhs_cl.GetCommandQueueInfo(queue, CL_QUEUE_PROPERTIES, sizeof properties, &properties, NULL);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(log, "clGetCommandQueueInfo", error);
    if (context != dev->context || id != dev->id)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_queue_wrap: the queue is of another %s",
                         context != dev->context ? "context" : "device");
    if (properties & CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE)
        return prhs_fail(log, PRHS_ERR_UNSUPPORTED, "prhs_opencl_queue_wrap: the queue runs out of order");
    return PRHS_OK;
}

prhs_status prhs_opencl_queue_wrap(prhs_device *device, cl_command_queue cl_queue, prhs_queue **out) {
    if (out)
        *out = NULL;
    prhs_status status = check_device(device, "prhs_opencl_queue_wrap");
    if (status != PRHS_OK)
        return status;
    if (!cl_queue || !out)
        return prhs_fail(&device->log, PRHS_ERR_ARGUMENT, "prhs_opencl_queue_wrap: NULL argument");
    if ((status = check_queue(prhs_cl_device_of(device), cl_queue)) != PRHS_OK)
        return status;
    prhs_cl_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_opencl_queue_wrap: no host memory");
    cl_int error = prhs_cl.RetainCommandQueue(cl_queue);
    if (error != CL_SUCCESS) {
        free(queue);
        return prhs_cl_fail(&device->log, "clRetainCommandQueue", error);
    }
    queue->head.dev = device;
    queue->queue = cl_queue;
    prhs_count(&device->counters.allocations);
    prhs_device_retain(device);
    *out = &queue->head;
    return PRHS_OK;
}

static prhs_status check_buffer(const prhs_cl_device *dev, cl_mem mem, size_t *size) {
    const prhs_log *log = &dev->head.log;
    cl_context context = NULL;
    cl_mem_object_type type = 0;
    cl_int error = prhs_cl.GetMemObjectInfo(mem, CL_MEM_CONTEXT, sizeof context, &context, NULL);
    if (error == CL_SUCCESS)
        error = prhs_cl.GetMemObjectInfo(mem, CL_MEM_TYPE, sizeof type, &type, NULL);
    if (error == CL_SUCCESS)
        error = prhs_cl.GetMemObjectInfo(mem, CL_MEM_SIZE, sizeof *size, size, NULL);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(log, "clGetMemObjectInfo", error);
    if (type != CL_MEM_OBJECT_BUFFER)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_buffer_wrap: the memory object is no buffer");
    if (context != dev->context)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_opencl_buffer_wrap: the buffer is of another context");
    return PRHS_OK;
}

prhs_status prhs_opencl_buffer_wrap(prhs_device *device, cl_mem cl_buffer, prhs_buffer **out) {
    if (out)
        *out = NULL;
    prhs_status status = check_device(device, "prhs_opencl_buffer_wrap");
    size_t size = 0;
    if (status != PRHS_OK)
        return status;
    if (!cl_buffer || !out)
        return prhs_fail(&device->log, PRHS_ERR_ARGUMENT, "prhs_opencl_buffer_wrap: NULL argument");
    if ((status = check_buffer(prhs_cl_device_of(device), cl_buffer, &size)) != PRHS_OK)
        return status;
    prhs_cl_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_opencl_buffer_wrap: no host memory");
    cl_int error = prhs_cl.RetainMemObject(cl_buffer);
    if (error != CL_SUCCESS) {
        free(buffer);
        return prhs_cl_fail(&device->log, "clRetainMemObject", error);
    }
    buffer->head = (prhs_buffer){ device, size };
    buffer->mem = cl_buffer;
    prhs_count(&device->counters.allocations);
    prhs_device_retain(device);
    *out = &buffer->head;
    return PRHS_OK;
}

static const prhs_cl_device *ours(const prhs_device *device) {
    return device && device->backend == &prhs_backend_opencl ? prhs_cl_device_of(device) : NULL;
}

cl_platform_id prhs_opencl_platform(const prhs_device *device) { return ours(device) ? ours(device)->platform : NULL; }
cl_device_id prhs_opencl_device(const prhs_device *device) { return ours(device) ? ours(device)->id : NULL; }
cl_context prhs_opencl_context(const prhs_device *device) { return ours(device) ? ours(device)->context : NULL; }
cl_command_queue prhs_opencl_queue(const prhs_queue *queue) { return queue && ours(queue->dev) ? prhs_cl_queue_of(queue) : NULL; }
cl_mem prhs_opencl_buffer(const prhs_buffer *buffer) { return buffer && ours(buffer->dev) ? prhs_cl_mem_of(buffer) : NULL; }
