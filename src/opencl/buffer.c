/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"

#include <stdio.h>
#include <stdlib.h>

prhs_status prhs_cl_buffer_create(prhs_device *dev, size_t size, prhs_buffer **buf) {
    cl_int error = CL_SUCCESS;
    prhs_cl_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "opencl: no host memory for a buffer");
    buffer->mem = prhs_cl.CreateBuffer(prhs_cl_device_of(dev)->context, CL_MEM_READ_WRITE, size, NULL, &error);
    if (!buffer->mem) {
        char call[64];
        free(buffer);
        snprintf(call, sizeof call, "clCreateBuffer of %zu bytes", size);
        return prhs_cl_fail(&dev->log, call, error);
    }
    buffer->head = (prhs_buffer){ dev, size };
    prhs_count(&dev->counters.allocations);
    *buf = &buffer->head;
    return PRHS_OK;
}

void prhs_cl_buffer_destroy(prhs_buffer *buf) {
    prhs_cl.ReleaseMemObject(prhs_cl_mem_of(buf));
    free(buf);
}
