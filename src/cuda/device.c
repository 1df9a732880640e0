/* SPDX-License-Identifier: Apache-2.0 */
/* Enumerates and opens CUDA devices; the backend's table of functions. */
#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int attribute(int what, prhs_drv_device id) {
    int value = 0;
    return prhs_drv.DeviceGetAttribute(&value, what, id) == PRHS_DRV_SUCCESS ? value : 0;
}

static int driver_version(void) {
    int version = 0;
    return prhs_drv.DriverGetVersion(&version) == PRHS_DRV_SUCCESS ? version : 0;
}

/* Launches overlap where the sm_90 code waits by itself; drivers before 12.3 cannot capture that. */
static uint32_t caps_of(int major) {
    uint32_t caps = PRHS_CAP_TENSOR;
    if (major == 9)
        caps |= PRHS_CAP_SM90;
    if (major == 9 && prhs_drv.LaunchKernelEx && driver_version() >= 12030)
        caps |= PRHS_CAP_OVERLAP;
    return caps;
}

static prhs_drv_result describe(int ordinal, prhs_drv_device *id, prhs_device_info *info) {
    size_t memory = 0;
    memset(info, 0, sizeof *info);
    prhs_drv_result error = prhs_drv.DeviceGet(id, ordinal);
    if (error != PRHS_DRV_SUCCESS)
        return error;
    if (prhs_drv.DeviceGetName(info->name, (int)sizeof info->name, *id) != PRHS_DRV_SUCCESS)
        info->name[0] = '\0';
    if (prhs_drv.DeviceTotalMem(&memory, *id) != PRHS_DRV_SUCCESS)
        memory = 0;
    const int major = attribute(PRHS_DRV_COMPUTE_MAJOR, *id), version = driver_version();
    info->backend = PRHS_BACKEND_CUDA;
    info->index = (uint32_t)ordinal;
    info->caps = caps_of(major);
    info->compute_units = (uint32_t)attribute(PRHS_DRV_MULTIPROCESSORS, *id);
    info->memory = memory;
    snprintf(info->platform, sizeof info->platform, "CUDA, compute capability %d.%d", major, attribute(PRHS_DRV_COMPUTE_MINOR, *id));
    snprintf(info->driver, sizeof info->driver, "CUDA %d.%d", version / 1000, version % 1000 / 10);
    return PRHS_DRV_SUCCESS;
}

static int device_count(void) {
    int count = 0;
    return prhs_drv.DeviceGetCount(&count) == PRHS_DRV_SUCCESS && count > 0 ? count : 0;
}

size_t prhs_nv_enumerate(prhs_device_info *infos, size_t cap, const prhs_log *log) {
    if (!prhs_drv_load(log))
        return 0;
    const int count = device_count();
    for (int i = 0; i < count && (size_t)i < cap; i++) {
        prhs_drv_device id;
        if (describe(i, &id, &infos[i]) != PRHS_DRV_SUCCESS)
            infos[i] = (prhs_device_info){ .backend = PRHS_BACKEND_CUDA, .index = (uint32_t)i };
    }
    return (size_t)count;
}

static prhs_status take_context(prhs_nv_device *dev, prhs_drv_context context) {
    if (context) {
        dev->context = context;
        return PRHS_OK;
    }
    prhs_status status =
        prhs_nv_check(&dev->head, "cuDevicePrimaryCtxRetain", prhs_drv.DevicePrimaryCtxRetain(&dev->context, dev->id));
    dev->primary = status == PRHS_OK;
    return status;
}

prhs_status prhs_nv_open_device(int ordinal, prhs_drv_context context, uint32_t caps_mask, const char *tuning, const prhs_log *log,
                                prhs_device **out) {
    prhs_device_info info;
    prhs_drv_device id = 0;
    prhs_drv_result error = describe(ordinal, &id, &info);
    if (error != PRHS_DRV_SUCCESS)
        return prhs_nv_fail(log, "cuDeviceGet", error);
    const int major = attribute(PRHS_DRV_COMPUTE_MAJOR, id);
    if (major < 8)
        return prhs_fail(log, PRHS_ERR_UNSUPPORTED, "prhs_device_open: CUDA device %d (%s) cannot be used: its compute capability is below 8.0",
                         ordinal, info.name);
    prhs_nv_device *dev = calloc(1, sizeof *dev);
    if (!dev)
        return prhs_fail(log, PRHS_ERR_MEMORY, "prhs_device_open: no host memory");
    info.caps &= caps_mask;
    prhs_device_init(&dev->head, &prhs_backend_cuda, log, &info);
    dev->id = id;
    dev->major = major;
    dev->minor = attribute(PRHS_DRV_COMPUTE_MINOR, id);
    dev->shared_most = attribute(PRHS_DRV_SHARED_OPTIN, id);
    pthread_mutex_init(&dev->prepare_lock, NULL);
    prhs_status status = prhs_tuning_open(&dev->head.tuning, tuning, PRHS_BACKEND_CUDA, dev->major * 10 + dev->minor, log);
    if (status == PRHS_OK)
        status = take_context(dev, context);
    if (status != PRHS_OK) {
        prhs_nv_close(&dev->head);
        return status;
    }
    *out = &dev->head;
    return PRHS_OK;
}

prhs_status prhs_nv_open(const prhs_device_params *params, const prhs_log *log, prhs_device **dev) {
    if (!prhs_drv_load(log))
        return prhs_fail(log, PRHS_ERR_NO_DEVICE, "prhs_device_open: there is no usable libcuda.so.1; install an NVIDIA driver of CUDA 11.4 or newer");
    const int count = device_count();
    if (params->index >= (uint32_t)count)
        return prhs_fail(log, PRHS_ERR_NO_DEVICE, "prhs_device_open: CUDA device %u does not exist, there are %d", params->index, count);
    return prhs_nv_open_device((int)params->index, NULL, params->caps_mask, params->tuning, log, dev);
}

void prhs_nv_close(prhs_device *head) {
    prhs_nv_device *dev = prhs_nv_device_of(head);
    prhs_nv_kernels_free(dev);
    if (dev->primary)
        prhs_nv_check(head, "cuDevicePrimaryCtxRelease", prhs_drv.DevicePrimaryCtxRelease(dev->id));
    pthread_mutex_destroy(&dev->prepare_lock);
    prhs_tuning_close(&head->tuning);
    free(dev);
}

const prhs_backend prhs_backend_cuda = {
    .kind = PRHS_BACKEND_CUDA,
    .name = "cuda",
    .enumerate = prhs_nv_enumerate,
    .open = prhs_nv_open,
    .close = prhs_nv_close,
    .buffer_create = prhs_nv_buffer_create,
    .buffer_destroy = prhs_nv_buffer_destroy,
    .host_alloc = prhs_nv_host_alloc,
    .host_free = prhs_nv_host_free,
    .queue_create = prhs_nv_queue_create,
    .queue_destroy = prhs_nv_queue_destroy,
    .queue_finish = prhs_nv_queue_finish,
    .write = prhs_nv_write,
    .read = prhs_nv_read,
    .copy = prhs_nv_copy,
    .fill = prhs_nv_fill,
    .event_create = prhs_nv_event_create,
    .event_destroy = prhs_nv_event_destroy,
    .event_record = prhs_nv_event_record,
    .event_query = prhs_nv_event_query,
    .event_elapsed = prhs_nv_event_elapsed,
    .chunking = prhs_nv_chunking,
    .op_supported = prhs_nv_op_supported,
    .op_prepare = prhs_nv_op_prepare,
    .ops_enqueue = prhs_nv_ops_enqueue,
};
