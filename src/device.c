/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, buffers, queues and events: validation, then the backend. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "cpu/cpu.h"

const prhs_backend *const prhs_backends[] = {
#ifdef PRHS_HAVE_CUDA
    &prhs_backend_cuda,
#endif
#ifdef PRHS_HAVE_OPENCL
    &prhs_backend_opencl,
#endif
    &prhs_backend_cpu,
    NULL,
};

void prhs_device_init(prhs_device *dev, const prhs_backend *backend, const prhs_log *log, const prhs_device_info *info) {
    dev->backend = backend;
    dev->log = log ? *log : (prhs_log){ PRHS_LOG_ERROR, NULL, NULL };
    dev->info = *info;
    memset(&dev->counters, 0, sizeof dev->counters);
    dev->refs = 0;
    dev->tuning = (prhs_tuning){ 0 };
}

void prhs_device_retain(prhs_device *dev) { __atomic_fetch_add(&dev->refs, 1, __ATOMIC_RELAXED); }
void prhs_device_release(prhs_device *dev) { __atomic_fetch_sub(&dev->refs, 1, __ATOMIC_RELEASE); }

prhs_status prhs_enumerate(prhs_device_info *infos, size_t *count, const prhs_log *log) {
    prhs_status status;
    if (!count)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_enumerate: count is NULL");
    if (!infos && *count > 0)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_enumerate: infos is NULL but *count is %zu", *count);
    if (*count > 0 && (status = prhs_check_size(log, "prhs_enumerate", "infos->size", infos->size, sizeof *infos)) != PRHS_OK)
        return status;
    size_t cap = *count, total = 0;
    for (size_t i = 0; prhs_backends[i]; i++) {
        size_t left = total < cap ? cap - total : 0;
        total += prhs_backends[i]->enumerate(left ? infos + total : NULL, left, log);
    }
    for (size_t i = 0; i < total && i < cap; i++)
        infos[i].size = sizeof *infos;
    *count = total;
    return PRHS_OK;
}

uint32_t prhs_caps_mask(uint32_t wanted) {
    const char *text = getenv("PRHS_CAPS");
    if (!text || !*text)
        return wanted;
    return wanted & (uint32_t)strtoul(text, NULL, 16);
}

prhs_status prhs_device_open(const prhs_device_params *params, const prhs_log *log, prhs_device **device) {
    if (!params || !device)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_device_open: %s is NULL", params ? "device" : "params");
    *device = NULL;
    prhs_status status = prhs_check_size(log, "prhs_device_open", "params->size", params->size, sizeof *params);
    if (status != PRHS_OK)
        return status;
    if ((unsigned)params->backend > PRHS_BACKEND_CUDA)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_device_open: backend %d does not exist", (int)params->backend);
    prhs_device_params p = *params;
    p.caps_mask = prhs_caps_mask(p.caps_mask);
    for (size_t i = 0; prhs_backends[i]; i++) {
        const prhs_backend *backend = prhs_backends[i];
        if (params->backend == PRHS_BACKEND_ANY ? backend->enumerate(NULL, 0, NULL) <= params->index
                                                : params->backend != backend->kind)
            continue;
        prhs_device *dev = NULL;
        status = backend->open(&p, log, &dev);
        if (status == PRHS_OK)
            *device = dev;
        return status;
    }
    return prhs_fail(log, PRHS_ERR_NO_DEVICE, "prhs_device_open: backend %s is not part of this build or has no device %u",
                     prhs_backend_name(params->backend), params->index);
}

prhs_status prhs_device_close(prhs_device *device) {
    if (!device)
        return PRHS_OK;
    int refs = __atomic_load_n(&device->refs, __ATOMIC_ACQUIRE);
    if (refs != 0)
        return prhs_fail(&device->log, PRHS_ERR_STATE, "prhs_device_close: %d buffers, queues, events or sessions still live", refs);
    device->backend->close(device);
    return PRHS_OK;
}

prhs_status prhs_device_get_info(const prhs_device *device, prhs_device_info *info) {
    if (!device || !info)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_device_get_info: NULL argument");
    prhs_status status = prhs_check_size(&device->log, "prhs_device_get_info", "info->size", info->size, sizeof *info);
    if (status != PRHS_OK)
        return status;
    *info = device->info;
    info->size = sizeof *info;
    return PRHS_OK;
}

prhs_status prhs_device_get_counters(const prhs_device *device, prhs_counters *counters) {
    if (!device || !counters)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_device_get_counters: NULL argument");
    prhs_status status =
        prhs_check_size(&device->log, "prhs_device_get_counters", "counters->size", counters->size, sizeof *counters);
    if (status != PRHS_OK)
        return status;
    counters->launches = __atomic_load_n(&device->counters.launches, __ATOMIC_RELAXED);
    counters->allocations = __atomic_load_n(&device->counters.allocations, __ATOMIC_RELAXED);
    counters->waits = __atomic_load_n(&device->counters.waits, __ATOMIC_RELAXED);
    counters->compiles = __atomic_load_n(&device->counters.compiles, __ATOMIC_RELAXED);
    counters->copies = __atomic_load_n(&device->counters.copies, __ATOMIC_RELAXED);
    counters->generic = __atomic_load_n(&device->counters.generic, __ATOMIC_RELAXED);
    return PRHS_OK;
}

prhs_status prhs_buffer_create(prhs_device *device, size_t size, prhs_buffer **buffer) {
    if (!device || !buffer || size == 0)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_buffer_create: %s",
                         !device ? "device is NULL" : !buffer ? "buffer is NULL" : "size is 0");
    *buffer = NULL;
    if (device->info.max_buffer && size > device->info.max_buffer)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_buffer_create: %zu bytes, but the device's largest buffer has %llu", size,
                         (unsigned long long)device->info.max_buffer);
    prhs_status status = device->backend->buffer_create(device, size, buffer);
    if (status == PRHS_OK)
        prhs_device_retain(device);
    return status;
}

prhs_status prhs_buffer_wrap_host(prhs_device *device, void *host, size_t size, prhs_buffer **buffer) {
    if (!device || !host || !buffer || size == 0 || (uintptr_t)host % 16)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_buffer_wrap_host: %s",
                         !device || !host || !buffer ? "NULL argument" : size == 0 ? "size is 0" : "host is not 16-byte aligned");
    *buffer = NULL;
    if (device->backend != &prhs_backend_cpu)
        return prhs_fail(&device->log, PRHS_ERR_UNSUPPORTED, "prhs_buffer_wrap_host: the %s backend cannot use host memory in place",
                         device->backend->name);
    prhs_status status = prhs_cpu_buffer_wrap(device, host, size, buffer);
    if (status == PRHS_OK)
        prhs_device_retain(device);
    return status;
}

prhs_status prhs_host_alloc(prhs_device *dev, const char *call, size_t size, void **host) {
    prhs_count(&dev->counters.allocations);
    if (dev->backend->host_alloc)
        return dev->backend->host_alloc(dev, size, host);
    *host = calloc(1, size);
    return *host ? PRHS_OK : prhs_fail(&dev->log, PRHS_ERR_MEMORY, "%s: no host memory", call);
}

void prhs_host_free(prhs_device *dev, void *host) {
    if (host && dev->backend->host_free)
        dev->backend->host_free(dev, host);
    else
        free(host);
}

void prhs_buffer_destroy(prhs_buffer *buffer) {
    if (!buffer)
        return;
    prhs_device *dev = buffer->dev;
    dev->backend->buffer_destroy(buffer);
    prhs_device_release(dev);
}

size_t prhs_buffer_size(const prhs_buffer *buffer) { return buffer ? buffer->size : 0; }

void *prhs_buffer_host(prhs_buffer *buffer) {
    bool host = buffer && buffer->dev->backend == &prhs_backend_cpu && buffer->dev->info.caps & PRHS_CAP_HOST_MEM;
    return host ? prhs_cpu_buffer_host(buffer) : NULL;
}

prhs_status prhs_queue_create(prhs_device *device, prhs_queue **queue) {
    if (!device || !queue)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_queue_create: NULL argument");
    *queue = NULL;
    prhs_status status = device->backend->queue_create(device, queue);
    if (status == PRHS_OK)
        prhs_device_retain(device);
    return status;
}

void prhs_queue_destroy(prhs_queue *queue) {
    if (!queue)
        return;
    prhs_device *dev = queue->dev;
    prhs_count(&dev->counters.waits);
    dev->backend->queue_finish(queue);
    dev->backend->queue_destroy(queue);
    prhs_device_release(dev);
}

prhs_status prhs_queue_finish(prhs_queue *queue) {
    if (!queue)
        return PRHS_ERR_ARGUMENT;
    prhs_count(&queue->dev->counters.waits);
    return queue->dev->backend->queue_finish(queue);
}

static prhs_status check_range(const prhs_queue *queue, const char *call, prhs_mem mem, size_t size) {
    const prhs_log *log = &queue->dev->log;
    if (!mem.buffer)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: buffer is NULL", call);
    if (mem.buffer->dev != queue->dev)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: the buffer belongs to another device", call);
    if (mem.offset > mem.buffer->size || size > mem.buffer->size - mem.offset)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: bytes %llu to %llu leave a buffer of %zu", call, (unsigned long long)mem.offset,
                         (unsigned long long)(mem.offset + size), mem.buffer->size);
    return PRHS_OK;
}

prhs_status prhs_queue_write(prhs_queue *queue, prhs_mem dst, const void *src, size_t size) {
    if (!queue || !src)
        return prhs_fail(queue ? &queue->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_queue_write: NULL argument");
    prhs_status status = check_range(queue, "prhs_queue_write", dst, size);
    return status != PRHS_OK || size == 0 ? status : queue->dev->backend->write(queue, dst.buffer, dst.offset, src, size);
}

prhs_status prhs_queue_read(prhs_queue *queue, void *dst, prhs_mem src, size_t size) {
    if (!queue || !dst)
        return prhs_fail(queue ? &queue->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_queue_read: NULL argument");
    prhs_status status = check_range(queue, "prhs_queue_read", src, size);
    return status != PRHS_OK || size == 0 ? status : queue->dev->backend->read(queue, dst, src.buffer, src.offset, size);
}

prhs_status prhs_queue_copy(prhs_queue *queue, prhs_mem dst, prhs_mem src, size_t size) {
    if (!queue)
        return PRHS_ERR_ARGUMENT;
    prhs_status status = check_range(queue, "prhs_queue_copy", dst, size);
    if (status == PRHS_OK)
        status = check_range(queue, "prhs_queue_copy", src, size);
    if (status == PRHS_OK && dst.buffer == src.buffer && dst.offset < src.offset + size && src.offset < dst.offset + size && size)
        status = prhs_fail(&queue->dev->log, PRHS_ERR_ARGUMENT, "prhs_queue_copy: the two ranges overlap");
    return status != PRHS_OK || size == 0
               ? status
               : queue->dev->backend->copy(queue, dst.buffer, dst.offset, src.buffer, src.offset, size);
}

prhs_status prhs_queue_fill(prhs_queue *queue, prhs_mem dst, uint32_t word, size_t size) {
    if (!queue)
        return PRHS_ERR_ARGUMENT;
    prhs_status status = check_range(queue, "prhs_queue_fill", dst, size);
    if (status == PRHS_OK && (size % 4 || dst.offset % 4))
        status = prhs_fail(&queue->dev->log, PRHS_ERR_ARGUMENT, "prhs_queue_fill: offset and size must be multiples of 4");
    return status != PRHS_OK || size == 0 ? status : queue->dev->backend->fill(queue, dst.buffer, dst.offset, word, size);
}

prhs_status prhs_event_create(prhs_device *device, prhs_event **event) {
    if (!device || !event)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_event_create: NULL argument");
    *event = NULL;
    prhs_status status = device->backend->event_create(device, event);
    if (status == PRHS_OK)
        prhs_device_retain(device);
    return status;
}

void prhs_event_destroy(prhs_event *event) {
    if (!event)
        return;
    prhs_device *dev = event->dev;
    dev->backend->event_destroy(event);
    prhs_device_release(dev);
}

prhs_status prhs_event_record(prhs_queue *queue, prhs_event *event) {
    if (!queue || !event)
        return prhs_fail(queue ? &queue->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_event_record: NULL argument");
    if (queue->dev != event->dev)
        return prhs_fail(&queue->dev->log, PRHS_ERR_ARGUMENT, "prhs_event_record: the event belongs to another device");
    return queue->dev->backend->event_record(queue, event);
}

prhs_status prhs_event_query(prhs_event *event) {
    return event ? event->dev->backend->event_query(event) : PRHS_ERR_ARGUMENT;
}

prhs_status prhs_event_elapsed(prhs_event *begin, prhs_event *end, double *seconds) {
    if (!begin || !end || !seconds)
        return prhs_fail(begin ? &begin->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_event_elapsed: NULL argument");
    if (begin->dev != end->dev)
        return prhs_fail(&begin->dev->log, PRHS_ERR_ARGUMENT, "prhs_event_elapsed: the events belong to different devices");
    return begin->dev->backend->event_elapsed(begin, end, seconds);
}
