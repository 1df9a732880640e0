/* SPDX-License-Identifier: Apache-2.0 */
/* The public calls of cuda.h: the only ones that a backend validates itself. */
#include "host.h"

#include <stdlib.h>

#include <prhs/cuda.h>

/* The ordinal of the device that a context belongs to. */
static prhs_status ordinal_of(prhs_drv_context context, const prhs_log *log, int *ordinal) {
    prhs_drv_result error = prhs_drv.CtxPushCurrent(context);
    if (error != PRHS_DRV_SUCCESS)
        return prhs_nv_fail(log, "cuCtxPushCurrent", error);
    error = prhs_drv.CtxGetDevice(ordinal);
    prhs_nv_leave();
    return error == PRHS_DRV_SUCCESS ? PRHS_OK : prhs_nv_fail(log, "cuCtxGetDevice", error);
}

prhs_status prhs_cuda_device_open(const prhs_cuda_params *params, const prhs_log *log, prhs_device **device) {
    if (device)
        *device = NULL;
    if (!params || !device)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_cuda_device_open: %s is NULL", params ? "device" : "params");
    if (params->size != sizeof *params)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_cuda_device_open: params->size is %zu, this library knows %zu", params->size,
                         sizeof *params);
    if (!prhs_drv_load(log))
        return prhs_fail(log, PRHS_ERR_NO_DEVICE, "prhs_cuda_device_open: there is no usable libcuda.so.1 on this machine");
    int ordinal = params->device;
    if (params->context) {
        prhs_status status = ordinal_of(params->context, log, &ordinal);
        if (status != PRHS_OK)
            return status;
    }
    return prhs_nv_open_device(ordinal, params->context, prhs_caps_mask(params->caps_mask), params->tuning, log, device);
}

static prhs_status check_device(const prhs_device *device, const char *call) {
    if (!device)
        return PRHS_ERR_ARGUMENT;
    if (device->backend != &prhs_backend_cuda)
        return prhs_fail(&device->log, PRHS_ERR_ARGUMENT, "%s: the device is of the %s backend", call, device->backend->name);
    return PRHS_OK;
}

/* CUDA's special handles: 0 and 1 the legacy default stream, 2 the thread's own. */
static bool special(prhs_drv_stream stream) { return (uintptr_t)stream <= 2; }

static prhs_status check_stream(prhs_device *dev, prhs_drv_stream stream) {
    prhs_drv_context context = NULL;
    if (special(stream))
        return PRHS_OK;
    prhs_status status = prhs_nv_enter(dev);
    if (status != PRHS_OK)
        return status;
    status = prhs_nv_check(dev, "cuStreamGetCtx", prhs_drv.StreamGetCtx(stream, &context));
    prhs_nv_leave();
    if (status == PRHS_OK && context != prhs_nv_device_of(dev)->context)
        status = prhs_fail(&dev->log, PRHS_ERR_ARGUMENT, "prhs_cuda_queue_wrap: the stream is of another context");
    return status;
}

prhs_status prhs_cuda_queue_wrap(prhs_device *device, void *stream, prhs_queue **out) {
    if (out)
        *out = NULL;
    prhs_status status = check_device(device, "prhs_cuda_queue_wrap");
    if (status != PRHS_OK)
        return status;
    if (!out)
        return prhs_fail(&device->log, PRHS_ERR_ARGUMENT, "prhs_cuda_queue_wrap: queue is NULL");
    if ((status = check_stream(device, stream)) != PRHS_OK)
        return status;
    prhs_nv_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_cuda_queue_wrap: no host memory");
    queue->head.dev = device;
    queue->stream = stream;
    if ((status = prhs_nv_chains_create(queue)) != PRHS_OK) {
        free(queue);
        return status;
    }
    prhs_count(&device->counters.allocations);
    prhs_device_retain(device);
    *out = &queue->head;
    return PRHS_OK;
}

/* Memory of pools and of virtual memory management has no context, or none that the driver tells. */
static prhs_status check_pointer(prhs_device *dev, uint64_t pointer) {
    const prhs_nv_device *d = prhs_nv_device_of(dev);
    prhs_drv_context context = NULL;
    int ordinal = -1;
    prhs_status status = prhs_nv_enter(dev);
    if (status != PRHS_OK)
        return status;
    const prhs_drv_result known = prhs_drv.PointerGetAttribute(&ordinal, PRHS_DRV_POINTER_ORDINAL, pointer);
    if (prhs_drv.PointerGetAttribute(&context, PRHS_DRV_POINTER_CONTEXT, pointer) != PRHS_DRV_SUCCESS)
        context = NULL;
    prhs_nv_leave();
    if (known == PRHS_DRV_INVALID_VALUE)
        return prhs_fail(&dev->log, PRHS_ERR_ARGUMENT, "prhs_cuda_buffer_wrap: the driver does not know this memory");
    if (known != PRHS_DRV_SUCCESS)
        return prhs_nv_check(dev, "cuPointerGetAttribute", known);
    if (ordinal != d->id || (context && context != d->context))
        return prhs_fail(&dev->log, PRHS_ERR_ARGUMENT, "prhs_cuda_buffer_wrap: the memory is of another %s",
                         ordinal != d->id ? "device" : "context");
    return PRHS_OK;
}

prhs_status prhs_cuda_buffer_wrap(prhs_device *device, uint64_t pointer, size_t size, prhs_buffer **out) {
    if (out)
        *out = NULL;
    prhs_status status = check_device(device, "prhs_cuda_buffer_wrap");
    if (status != PRHS_OK)
        return status;
    if (!pointer || !out || size == 0 || pointer % 16)
        return prhs_fail(&device->log, PRHS_ERR_ARGUMENT, "prhs_cuda_buffer_wrap: %s",
                         !pointer || !out ? "NULL argument" : size == 0 ? "size is 0" : "the pointer is not 16-byte aligned");
    if ((status = check_pointer(device, pointer)) != PRHS_OK)
        return status;
    prhs_nv_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_cuda_buffer_wrap: no host memory");
    buffer->head = (prhs_buffer){ device, size };
    buffer->pointer = pointer;
    prhs_count(&device->counters.allocations);
    prhs_device_retain(device);
    *out = &buffer->head;
    return PRHS_OK;
}

static const prhs_nv_device *ours(const prhs_device *device) {
    return device && device->backend == &prhs_backend_cuda ? prhs_nv_device_of(device) : NULL;
}

int prhs_cuda_device(const prhs_device *device) { return ours(device) ? ours(device)->id : -1; }
void *prhs_cuda_context(const prhs_device *device) { return ours(device) ? ours(device)->context : NULL; }
void *prhs_cuda_stream(const prhs_queue *queue) { return queue && ours(queue->dev) ? prhs_nv_stream_of(queue) : NULL; }
uint64_t prhs_cuda_pointer(const prhs_buffer *buffer) { return buffer && ours(buffer->dev) ? prhs_nv_pointer_of(buffer) : 0; }

/* --- graphs --- */

struct prhs_cuda_graph {
    prhs_device *dev;
    prhs_drv_exec exec;
};

prhs_status prhs_cuda_graph_begin(prhs_queue *queue) {
    prhs_status status = check_device(queue ? queue->dev : NULL, "prhs_cuda_graph_begin");
    if (status != PRHS_OK || (status = prhs_nv_enter(queue->dev)) != PRHS_OK)
        return status;
    int state = PRHS_DRV_CAPTURE_NONE;
    status = prhs_nv_check(queue->dev, "cuStreamIsCapturing", prhs_drv.StreamIsCapturing(prhs_nv_stream_of(queue), &state));
    if (status == PRHS_OK && state != PRHS_DRV_CAPTURE_NONE)
        status = prhs_fail(&queue->dev->log, PRHS_ERR_STATE, "prhs_cuda_graph_begin: the stream is being captured already");
    if (status == PRHS_OK)
        status = prhs_nv_check(queue->dev, "cuStreamBeginCapture",
                               prhs_drv.StreamBeginCapture(prhs_nv_stream_of(queue), PRHS_DRV_CAPTURE_THREAD_LOCAL));
    prhs_nv_leave();
    return status;
}

/* Ends the capture; what was captured, ready to be launched. */
static prhs_status instantiate(prhs_queue *queue, prhs_drv_exec *exec) {
    prhs_device *dev = queue->dev;
    prhs_drv_stream stream = prhs_nv_stream_of(queue);
    prhs_drv_graph captured = NULL;
    int state = PRHS_DRV_CAPTURE_NONE;
    prhs_status status = prhs_nv_check(dev, "cuStreamIsCapturing", prhs_drv.StreamIsCapturing(stream, &state));
    if (status == PRHS_OK && state == PRHS_DRV_CAPTURE_NONE)
        return prhs_fail(&dev->log, PRHS_ERR_STATE, "prhs_cuda_graph_end: nothing is being recorded");
    /* Also where the question failed: the recording shall be over. */
    const prhs_drv_result ended = prhs_drv.StreamEndCapture(stream, &captured);
    if (status == PRHS_OK)
        status = prhs_nv_check(dev, "cuStreamEndCapture", ended);
    if (status == PRHS_OK)
        status = prhs_nv_check(dev, "cuGraphInstantiate", prhs_drv.GraphInstantiate(exec, captured, 0));
    if (captured) {
        const prhs_drv_result destroyed = prhs_drv.GraphDestroy(captured);
        if (destroyed != PRHS_DRV_SUCCESS)
            prhs_nv_check(dev, "cuGraphDestroy", destroyed);
    }
    return status;
}

prhs_status prhs_cuda_graph_end(prhs_queue *queue, prhs_cuda_graph **out) {
    if (out)
        *out = NULL;
    prhs_status status = check_device(queue ? queue->dev : NULL, "prhs_cuda_graph_end");
    if (status != PRHS_OK)
        return status;
    prhs_device *dev = queue->dev;
    if (!out)
        return prhs_fail(&dev->log, PRHS_ERR_ARGUMENT, "prhs_cuda_graph_end: graph is NULL");
    if ((status = prhs_nv_enter(dev)) != PRHS_OK)
        return status;
    prhs_cuda_graph *graph = calloc(1, sizeof *graph);
    prhs_drv_exec exec = NULL;
    status = instantiate(queue, &exec);
    if (status == PRHS_OK && !graph) {
        prhs_nv_check(dev, "cuGraphExecDestroy", prhs_drv.GraphExecDestroy(exec));
        status = prhs_fail(&dev->log, PRHS_ERR_MEMORY, "prhs_cuda_graph_end: no host memory");
    }
    prhs_nv_leave();
    if (status != PRHS_OK) {
        free(graph);
        return status;
    }
    graph->dev = dev;
    graph->exec = exec;
    prhs_count(&dev->counters.allocations);
    prhs_device_retain(dev);
    *out = graph;
    return PRHS_OK;
}

prhs_status prhs_cuda_graph_launch(prhs_cuda_graph *graph, prhs_queue *queue) {
    if (!graph || !queue)
        return prhs_fail(graph ? &graph->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_cuda_graph_launch: NULL argument");
    if (queue->dev != graph->dev)
        return prhs_fail(&graph->dev->log, PRHS_ERR_ARGUMENT, "prhs_cuda_graph_launch: the queue belongs to another device");
    prhs_status status = prhs_nv_enter(graph->dev);
    if (status != PRHS_OK)
        return status;
    status = prhs_nv_check(graph->dev, "cuGraphLaunch", prhs_drv.GraphLaunch(graph->exec, prhs_nv_stream_of(queue)));
    prhs_nv_leave();
    return status;
}

void prhs_cuda_graph_destroy(prhs_cuda_graph *graph) {
    if (!graph)
        return;
    prhs_device *dev = graph->dev;
    if (prhs_nv_enter(dev) == PRHS_OK) {
        prhs_nv_check(dev, "cuGraphExecDestroy", prhs_drv.GraphExecDestroy(graph->exec));
        prhs_nv_leave();
    }
    free(graph);
    prhs_device_release(dev);
}
