/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

prhs_status prhs_nv_buffer_create(prhs_device *dev, size_t size, prhs_buffer **buf) {
    prhs_nv_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "cuda: no host memory for a buffer");
    prhs_status status = prhs_nv_enter(dev);
    if (status == PRHS_OK) {
        char call[64];
        snprintf(call, sizeof call, "cuMemAlloc of %zu bytes", size);
        status = prhs_nv_check(dev, call, prhs_drv.MemAlloc(&buffer->pointer, size));
        prhs_nv_leave();
    }
    if (status != PRHS_OK) {
        free(buffer);
        return status;
    }
    buffer->head = (prhs_buffer){ dev, size };
    buffer->owned = true;
    prhs_count(&dev->counters.allocations);
    *buf = &buffer->head;
    return PRHS_OK;
}

void prhs_nv_buffer_destroy(prhs_buffer *buf) {
    prhs_nv_buffer *buffer = (prhs_nv_buffer *)buf;
    if (buffer->owned && prhs_nv_enter(buf->dev) == PRHS_OK) {
        prhs_nv_check(buf->dev, "cuMemFree", prhs_drv.MemFree(buffer->pointer));
        prhs_nv_leave();
    }
    free(buffer);
}

/* Page-locked: a read into other memory would hold the caller up until the queue has come to it. */
prhs_status prhs_nv_host_alloc(prhs_device *dev, size_t size, void **host) {
    prhs_status status = prhs_nv_enter(dev);
    if (status != PRHS_OK)
        return status;
    status = prhs_nv_check(dev, "cuMemHostAlloc", prhs_drv.MemHostAlloc(host, size, 0));
    prhs_nv_leave();
    if (status == PRHS_OK)
        memset(*host, 0, size);
    return status;
}

void prhs_nv_host_free(prhs_device *dev, void *host) {
    if (prhs_nv_enter(dev) != PRHS_OK)
        return;
    prhs_nv_check(dev, "cuMemFreeHost", prhs_drv.MemFreeHost(host));
    prhs_nv_leave();
}
