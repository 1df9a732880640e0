/* SPDX-License-Identifier: Apache-2.0 */
/* In-order queues and the transfers on them; nothing here waits but queue_finish. */
#include "host.h"

#include <stdlib.h>

prhs_status prhs_cl_queue_create(prhs_device *dev, prhs_queue **out) {
    const prhs_cl_device *d = prhs_cl_device_of(dev);
    cl_int error = CL_SUCCESS;
    prhs_cl_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "opencl: no host memory for a queue");
    queue->queue = prhs_cl.CreateCommandQueue(d->context, d->id, CL_QUEUE_PROFILING_ENABLE, &error);
    if (!queue->queue) {
        free(queue);
        return prhs_cl_fail(&dev->log, "clCreateCommandQueue", error);
    }
    queue->head.dev = dev;
    prhs_count(&dev->counters.allocations);
    *out = &queue->head;
    return PRHS_OK;
}

void prhs_cl_queue_destroy(prhs_queue *queue) {
    prhs_cl.ReleaseCommandQueue(prhs_cl_queue_of(queue));
    free(queue);
}

static prhs_status ended(const prhs_queue *queue, const char *call, cl_int error) {
    return error == CL_SUCCESS ? PRHS_OK : prhs_cl_fail(&queue->dev->log, call, error);
}

prhs_status prhs_cl_queue_finish(prhs_queue *queue) { return ended(queue, "clFinish", prhs_cl.Finish(prhs_cl_queue_of(queue))); }

prhs_status prhs_cl_write(prhs_queue *queue, prhs_buffer *dst, size_t off, const void *src, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    return ended(queue, "clEnqueueWriteBuffer",
                 prhs_cl.EnqueueWriteBuffer(prhs_cl_queue_of(queue), prhs_cl_mem_of(dst), CL_FALSE, off, size, src, 0, NULL, NULL));
}

prhs_status prhs_cl_read(prhs_queue *queue, void *dst, const prhs_buffer *src, size_t off, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    return ended(queue, "clEnqueueReadBuffer",
                 prhs_cl.EnqueueReadBuffer(prhs_cl_queue_of(queue), prhs_cl_mem_of(src), CL_FALSE, off, size, dst, 0, NULL, NULL));
}

prhs_status prhs_cl_copy(prhs_queue *queue, prhs_buffer *dst, size_t dst_off, const prhs_buffer *src, size_t src_off, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    return ended(queue, "clEnqueueCopyBuffer",
                 prhs_cl.EnqueueCopyBuffer(prhs_cl_queue_of(queue), prhs_cl_mem_of(src), prhs_cl_mem_of(dst), src_off, dst_off, size, 0,
                                           NULL, NULL));
}

prhs_status prhs_cl_fill(prhs_queue *queue, prhs_buffer *dst, size_t off, uint32_t word, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    return ended(queue, "clEnqueueFillBuffer",
                 prhs_cl.EnqueueFillBuffer(prhs_cl_queue_of(queue), prhs_cl_mem_of(dst), &word, sizeof word, off, size, 0, NULL, NULL));
}
