/* SPDX-License-Identifier: Apache-2.0 */
/* Enumerates and opens OpenCL devices; the backend's table of functions. */
#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PLATFORMS 16
#define MAX_DEVICES 32

static void text_of(cl_device_id id, cl_device_info what, char *out, size_t cap) {
    char text[1024] = "";
    if (prhs_cl.GetDeviceInfo(id, what, sizeof text - 1, text, NULL) != CL_SUCCESS)
        text[0] = 0;
    snprintf(out, cap, "%.*s", (int)cap - 1, text);
}

static void describe(cl_platform_id platform, cl_device_id id, uint32_t index, prhs_device_info *info) {
    cl_device_type type = 0;
    cl_uint units = 0;
    cl_ulong memory = 0, largest = 0, local = 0;
    size_t group = 0;
    char name[1024] = "";
    memset(info, 0, sizeof *info);
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_TYPE, sizeof type, &type, NULL);
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof units, &units, NULL);
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof memory, &memory, NULL);
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof largest, &largest, NULL);
    prhs_cl.GetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof name - 1, name, NULL);
    info->backend = PRHS_BACKEND_OPENCL;
    info->index = index;
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_LOCAL_MEM_SIZE, sizeof local, &local, NULL);
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof group, &group, NULL);
    info->caps = type & CL_DEVICE_TYPE_CPU ? PRHS_CAP_WIDE : 0;
    info->caps |= local >= PRHS_CL_LOCAL_BYTES && group >= PRHS_CL_GROUP ? PRHS_CAP_GPU : 0;
    info->compute_units = units;
    info->memory = memory;
    info->max_buffer = largest;
    snprintf(info->platform, sizeof info->platform, "%.*s", (int)sizeof info->platform - 1, name);
    text_of(id, CL_DEVICE_NAME, info->name, sizeof info->name);
    text_of(id, CL_DRIVER_VERSION, info->driver, sizeof info->driver);
}

typedef bool visitor(void *user, cl_platform_id platform, cl_device_id id, uint32_t index);

/* Visits every device in clinfo's order until `visit` returns true; returns how many were visited. */
static uint32_t walk(visitor *visit, void *user) {
    cl_platform_id platforms[MAX_PLATFORMS];
    cl_uint np = 0;
    uint32_t index = 0;
    if (prhs_cl.GetPlatformIDs(MAX_PLATFORMS, platforms, &np) != CL_SUCCESS)
        return 0;
    for (cl_uint p = 0; p < np && p < MAX_PLATFORMS; p++) {
        cl_device_id ids[MAX_DEVICES];
        cl_uint nd = 0;
        if (prhs_cl.GetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, MAX_DEVICES, ids, &nd) != CL_SUCCESS)
            continue;
        for (cl_uint d = 0; d < nd && d < MAX_DEVICES; d++, index++)
            if (visit(user, platforms[p], ids[d], index))
                return index + 1;
    }
    return index;
}

typedef struct listing {
    prhs_device_info *infos;
    size_t cap;
} listing;

static bool list_one(void *user, cl_platform_id platform, cl_device_id id, uint32_t index) {
    listing *l = user;
    if (index < l->cap)
        describe(platform, id, index, &l->infos[index]);
    return false;
}

size_t prhs_cl_enumerate(prhs_device_info *infos, size_t cap, const prhs_log *log) {
    listing l = { infos, cap };
    return prhs_cl_load(log) ? walk(list_one, &l) : 0;
}

typedef struct search {
    uint32_t index;   /* wanted, where id is NULL; found */
    cl_device_id id;
    cl_platform_id platform;
    bool found;
} search;

static bool match(void *user, cl_platform_id platform, cl_device_id id, uint32_t index) {
    search *s = user;
    if (s->id ? s->id != id : s->index != index)
        return false;
    *s = (search){ index, id, platform, true };
    return true;
}

uint32_t prhs_cl_find(cl_device_id id) {
    search s = { .id = id };
    walk(match, &s);
    return s.found ? s.index : UINT32_MAX;
}

/* libprhs reads 16-bit and 64-bit data as the host writes it, and its kernels are OpenCL C 1.2. */
static const char *unfit(cl_device_id id) {
    char version[256] = "";
    cl_bool little = CL_FALSE, compiler = CL_FALSE;
    unsigned major = 0, minor = 0;
    text_of(id, CL_DEVICE_VERSION, version, sizeof version);
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_ENDIAN_LITTLE, sizeof little, &little, NULL);
    prhs_cl.GetDeviceInfo(id, CL_DEVICE_COMPILER_AVAILABLE, sizeof compiler, &compiler, NULL);
    if (sscanf(version, "OpenCL %u.%u", &major, &minor) != 2 || major * 10 + minor < 12)
        return "it is older than OpenCL 1.2";
    if (!little)
        return "it is big-endian";
    return compiler ? NULL : "it has no compiler";
}

static char *identity_of(const prhs_device_info *info, cl_platform_id platform, cl_device_id id, bool untested) {
    char version[256], whole[256] = "";
    const size_t cap = 1280;
    char *identity = malloc(cap);
    text_of(id, CL_DEVICE_VERSION, version, sizeof version);
    prhs_cl.GetPlatformInfo(platform, CL_PLATFORM_VERSION, sizeof whole - 1, whole, NULL);
    if (identity)
        snprintf(identity, cap, "%s|%s|%s|%s|%s|%s%s", PRHS_VERSION_STRING, info->platform, whole, info->name, info->driver,
                 version, untested ? "|untested" : "");
    return identity;
}

/* Context, queue and dummy buffer; what was made is released by prhs_cl_close(). */
static prhs_status make_objects(prhs_cl_device *dev, cl_context context, const prhs_log *log) {
    cl_int error = CL_SUCCESS;
    if (context) {
        if ((error = prhs_cl.RetainContext(context)) != CL_SUCCESS)
            return prhs_cl_fail(log, "clRetainContext", error);
        dev->context = context;
    } else if (!(dev->context = prhs_cl.CreateContext(NULL, 1, &dev->id, NULL, NULL, &error))) {
        return prhs_cl_fail(log, "clCreateContext", error);
    }
    if (!(dev->prepare_queue = prhs_cl.CreateCommandQueue(dev->context, dev->id, 0, &error)))
        return prhs_cl_fail(log, "clCreateCommandQueue", error);
    dev->dummy = prhs_cl.CreateBuffer(dev->context, CL_MEM_READ_WRITE, 4096, NULL, &error);
    return dev->dummy ? PRHS_OK : prhs_cl_fail(log, "clCreateBuffer", error);
}

prhs_status prhs_cl_open_device(cl_platform_id platform, cl_device_id id, uint32_t index, cl_context context,
                                const prhs_device_params *params, const prhs_log *log, prhs_device **out) {
    prhs_device_info info;
    describe(platform, id, index, &info);
    const char *why = unfit(id);
    if (why)
        return prhs_fail(log, PRHS_ERR_UNSUPPORTED, "prhs_device_open: OpenCL device %u (%s) cannot be used: %s", index, info.name, why);
    prhs_cl_device *dev = calloc(1, sizeof *dev);
    if (!dev)
        return prhs_fail(log, PRHS_ERR_MEMORY, "prhs_device_open: no host memory");
    const prhs_i32 class = info.caps & PRHS_CAP_WIDE ? PRHS_CLASS_CPU : PRHS_CLASS_GPU;
    info.caps &= params->caps_mask;
    prhs_device_init(&dev->head, &prhs_backend_opencl, log, &info);
    dev->platform = platform;
    dev->id = id;
    prhs_cl_prepare_init(dev);
    dev->cache_dir = prhs_cl_cache_dir(params->cache_dir);
    const char *selftest = getenv("PRHS_SELFTEST");
    dev->untested = selftest && strcmp(selftest, "0") == 0;
    dev->identity = identity_of(&info, platform, id, dev->untested);
    prhs_status status = dev->identity ? PRHS_OK : prhs_fail(log, PRHS_ERR_MEMORY, "prhs_device_open: no host memory");
    if (status == PRHS_OK)
        status = prhs_tuning_open(&dev->head.tuning, params->tuning, PRHS_BACKEND_OPENCL, class, log);
    if (status == PRHS_OK)
        status = make_objects(dev, context, log);
    if (status != PRHS_OK) {
        prhs_cl_close(&dev->head);
        return status;
    }
    prhs_cl_verdicts_load(dev);
    *out = &dev->head;
    return PRHS_OK;
}

prhs_status prhs_cl_open(const prhs_device_params *params, const prhs_log *log, prhs_device **dev) {
    if (!prhs_cl_load(log))
        return prhs_fail(log, PRHS_ERR_NO_DEVICE,
                         "prhs_device_open: there is no usable libOpenCL.so.1; install an OpenCL loader and driver");
    search s = { .index = params->index };
    uint32_t count = walk(match, &s);
    if (count == 0)
        return prhs_fail(
            log, PRHS_ERR_NO_DEVICE,
            "prhs_device_open: there is no OpenCL device: no driver is installed for libOpenCL.so.1, or none has a device here");
    if (!s.found)
        return prhs_fail(log, PRHS_ERR_NO_DEVICE, "prhs_device_open: OpenCL device %u does not exist, there are %u", params->index, count);
    return prhs_cl_open_device(s.platform, s.id, params->index, NULL, params, log, dev);
}

void prhs_cl_close(prhs_device *head) {
    prhs_cl_device *dev = prhs_cl_device_of(head);
    prhs_cl_variants_free(dev);
    prhs_cl_verdicts_free(dev);
    if (dev->dummy)
        prhs_cl.ReleaseMemObject(dev->dummy);
    if (dev->prepare_queue)
        prhs_cl.ReleaseCommandQueue(dev->prepare_queue);
    if (dev->context)
        prhs_cl.ReleaseContext(dev->context);
    pthread_mutex_destroy(&dev->prepare_lock);
    free(dev->cache_dir);
    free(dev->identity);
    prhs_tuning_close(&head->tuning);
    free(dev);
}

const prhs_backend prhs_backend_opencl = {
    .kind = PRHS_BACKEND_OPENCL,
    .name = "opencl",
    .enumerate = prhs_cl_enumerate,
    .open = prhs_cl_open,
    .close = prhs_cl_close,
    .buffer_create = prhs_cl_buffer_create,
    .buffer_destroy = prhs_cl_buffer_destroy,
    .queue_create = prhs_cl_queue_create,
    .queue_destroy = prhs_cl_queue_destroy,
    .queue_finish = prhs_cl_queue_finish,
    .write = prhs_cl_write,
    .read = prhs_cl_read,
    .copy = prhs_cl_copy,
    .fill = prhs_cl_fill,
    .event_create = prhs_cl_event_create,
    .event_destroy = prhs_cl_event_destroy,
    .event_record = prhs_cl_event_record,
    .event_query = prhs_cl_event_query,
    .event_elapsed = prhs_cl_event_elapsed,
    .chunking = prhs_cl_chunking,
    .op_supported = prhs_cl_op_supported,
    .op_prepare = prhs_cl_op_prepare,
    .ops_enqueue = prhs_cl_ops_enqueue,
};
