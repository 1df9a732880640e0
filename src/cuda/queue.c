/* SPDX-License-Identifier: Apache-2.0 */
/* Streams and the transfers on them; nothing here waits but queue_finish. */
#include "host.h"

#include <stdlib.h>

prhs_status prhs_nv_queue_create(prhs_device *dev, prhs_queue **out) {
    prhs_nv_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "cuda: no host memory for a queue");
    prhs_status status = prhs_nv_enter(dev);
    if (status == PRHS_OK) {
        status = prhs_nv_check(dev, "cuStreamCreate", prhs_drv.StreamCreate(&queue->stream, PRHS_DRV_STREAM_NON_BLOCKING));
        prhs_nv_leave();
    }
    if (status != PRHS_OK) {
        free(queue);
        return status;
    }
    queue->head.dev = dev;
    queue->owned = true;
    if ((status = prhs_nv_chains_create(queue)) != PRHS_OK) {
        prhs_nv_queue_destroy(&queue->head);
        return status;
    }
    prhs_count(&dev->counters.allocations);
    *out = &queue->head;
    return PRHS_OK;
}

void prhs_nv_queue_destroy(prhs_queue *head) {
    prhs_nv_queue *queue = (prhs_nv_queue *)head;
    if (prhs_nv_enter(head->dev) == PRHS_OK) {
        prhs_nv_chains_destroy(queue);
        if (queue->owned)
            prhs_nv_check(head->dev, "cuStreamDestroy", prhs_drv.StreamDestroy(queue->stream));
        prhs_nv_leave();
    }
    free(queue);
}

/* One call on a queue, inside its context. */
#define ON_QUEUE(queue, call, expression)                            \
    do {                                                             \
        prhs_status status = prhs_nv_enter((queue)->dev);          \
        if (status == PRHS_OK) {                                     \
            status = prhs_nv_check((queue)->dev, call, expression);\
            prhs_nv_leave();                                       \
        }                                                            \
        return status;                                               \
    } while (0)

prhs_status prhs_nv_queue_finish(prhs_queue *queue) {
    ON_QUEUE(queue, "cuStreamSynchronize", prhs_drv.StreamSynchronize(prhs_nv_stream_of(queue)));
}

prhs_status prhs_nv_write(prhs_queue *queue, prhs_buffer *dst, size_t off, const void *src, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    ON_QUEUE(queue, "cuMemcpyHtoDAsync",
             prhs_drv.MemcpyHtoDAsync(prhs_nv_pointer_of(dst) + off, src, size, prhs_nv_stream_of(queue)));
}

prhs_status prhs_nv_read(prhs_queue *queue, void *dst, const prhs_buffer *src, size_t off, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    ON_QUEUE(queue, "cuMemcpyDtoHAsync",
             prhs_drv.MemcpyDtoHAsync(dst, prhs_nv_pointer_of(src) + off, size, prhs_nv_stream_of(queue)));
}

prhs_status prhs_nv_copy(prhs_queue *queue, prhs_buffer *dst, size_t dst_off, const prhs_buffer *src, size_t src_off, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    ON_QUEUE(queue, "cuMemcpyDtoDAsync",
             prhs_drv.MemcpyDtoDAsync(prhs_nv_pointer_of(dst) + dst_off, prhs_nv_pointer_of(src) + src_off, size,
                                      prhs_nv_stream_of(queue)));
}

prhs_status prhs_nv_fill(prhs_queue *queue, prhs_buffer *dst, size_t off, uint32_t word, size_t size) {
    if (size == 0)
        return PRHS_OK;
    prhs_count(&queue->dev->counters.copies);
    ON_QUEUE(queue, "cuMemsetD32Async",
             prhs_drv.MemsetD32Async(prhs_nv_pointer_of(dst) + off, word, size / 4, prhs_nv_stream_of(queue)));
}
