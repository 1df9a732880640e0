/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's functions: devices, contexts, memory, streams, events. Exactly those of src/cuda/loader.h. */
#include "api.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 16
static struct prhs_drv_context_ {
    int nothing;
} primary;

/* A thread's contexts. No _Thread_local: the emulator overwrites all of that, as the kernels' shared memory. */
typedef struct contexts {
    prhs_drv_context stack[DEPTH];
    int depth;
} contexts;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_key(void) { pthread_key_create(&key, free); }

static contexts *mine(void) {
    pthread_once(&once, make_key);
    contexts *c = pthread_getspecific(key);
    if (!c && (c = calloc(1, sizeof *c)))
        pthread_setspecific(key, c);
    return c;
}

static int sms(void) { return fake_setting("PRHS_FAKE_CUDA_SMS", 3); }
int fake_arch(void) { return fake_setting("PRHS_FAKE_CUDA_ARCH", 90); }
int fake_shared_most(void) { return fake_arch() >= 90 ? 232448 : 166912; }
int fake_multiprocessors(void) { return sms(); }
bool fake_current(void) { return mine()->depth > 0; }
static int devices(void) { return fake_setting("PRHS_FAKE_CUDA_DEVICES", 1); }

PRHS_PUBLIC result cuInit(unsigned flags) {
    CALL();
    DONE(flags == 0 ? devices() > 0 ? 0 : PRHS_DRV_NO_DEVICE : PRHS_DRV_INVALID_VALUE);
}

PRHS_PUBLIC result cuDriverGetVersion(int *version) {
    CALL();
    *version = fake_setting("PRHS_FAKE_CUDA_VERSION", 12080);
    DONE(0);
}

static const struct {
    result error;
    const char *name, *text;
} errors[] = {
    { 0, "CUDA_SUCCESS", "no error" },
    { 1, "CUDA_ERROR_INVALID_VALUE", "invalid argument" },
    { 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory" },
    { 100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected" },
    { 101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal" },
    { 201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context" },
    { 214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered" },
    { 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain." },
    { 400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle" },
    { 500, "CUDA_ERROR_NOT_FOUND", "named symbol not found" },
    { 600, "CUDA_ERROR_NOT_READY", "device not ready" },
    { 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered" },
    { 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch" },
    { 719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure" },
    { 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing" },
    { 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture" },
};

/* These two are not counted: they cannot fail for an error that the driver itself returned. */
PRHS_PUBLIC result cuGetErrorName(result error, const char **name) {
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].error == error)
            return *name = errors[i].name, 0;
    return *name = NULL, PRHS_DRV_INVALID_VALUE;
}

PRHS_PUBLIC result cuGetErrorString(result error, const char **text) {
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].error == error)
            return *text = errors[i].text, 0;
    return *text = NULL, PRHS_DRV_INVALID_VALUE;
}

PRHS_PUBLIC result cuDeviceGet(prhs_drv_device * device, int ordinal) {
    CALL();
    *device = ordinal;
    DONE(ordinal >= 0 && ordinal < devices() ? 0 : PRHS_DRV_INVALID_DEVICE);
}

PRHS_PUBLIC result cuDeviceGetCount(int *count) {
    CALL();
    *count = devices();
    DONE(0);
}

PRHS_PUBLIC result cuDeviceGetName(char *name, int size, prhs_drv_device device) {
    CALL();
    snprintf(name, (size_t)size, "emulated device %d", device);
    DONE(0);
}

PRHS_PUBLIC result cuDeviceGetAttribute(int *value, int attribute, prhs_drv_device device) {
    CALL();
    switch (attribute) {
    case PRHS_DRV_MULTIPROCESSORS: *value = sms(); break;
    case PRHS_DRV_COMPUTE_MAJOR: *value = fake_arch() / 10; break;
    case PRHS_DRV_COMPUTE_MINOR: *value = fake_arch() % 10; break;
    case PRHS_DRV_SHARED_OPTIN: *value = fake_shared_most(); break;
    default: fake_complain("device attribute %d is not emulated", attribute); DONE(PRHS_DRV_INVALID_VALUE);
    }
    DONE(device >= 0 && device < devices() ? 0 : PRHS_DRV_INVALID_DEVICE);
}

PRHS_PUBLIC result cuDeviceTotalMem_v2(size_t * bytes, prhs_drv_device device) {
    CALL();
    *bytes = (size_t)fake_setting("PRHS_FAKE_CUDA_MEMORY_MB", 16384) << 20;
    DONE(device >= 0 && device < devices() ? 0 : PRHS_DRV_INVALID_DEVICE);
}

PRHS_PUBLIC result cuDevicePrimaryCtxRetain(prhs_drv_context * context, prhs_drv_device device) {
    CALL();
    if (device < 0 || device >= devices())
        DONE(PRHS_DRV_INVALID_DEVICE);
    fake_retained++;
    *context = &primary;
    DONE(0);
}

/* Released even if the call is told to fail: what it returns then is of no use to anybody. */
PRHS_PUBLIC result cuDevicePrimaryCtxRelease_v2(prhs_drv_device device) {
    fake_lock();
    result error = fake_call("cuDevicePrimaryCtxRelease_v2");
    if (device < 0 || device >= devices() || fake_retained == 0) {
        fake_complain("the primary context is released more often than retained");
        error = PRHS_DRV_INVALID_CONTEXT;
    } else if (--fake_retained == 0)
        fake_run_all();
    DONE(error);
}

PRHS_PUBLIC result cuCtxPushCurrent_v2(prhs_drv_context context) {
    CALL();
    if (context != &primary || fake_retained == 0 || mine()->depth == DEPTH)
        DONE(PRHS_DRV_INVALID_CONTEXT);
    mine()->stack[mine()->depth++] = context;
    DONE(0);
}

/* Pops even if the call is told to fail. */
PRHS_PUBLIC result cuCtxPopCurrent_v2(prhs_drv_context *context) {
    fake_lock();
    const result error = fake_call("cuCtxPopCurrent_v2");
    contexts *c = mine();
    if (c->depth == 0) {
        fake_complain("cuCtxPopCurrent without a context");
        DONE(PRHS_DRV_INVALID_CONTEXT);
    }
    *context = c->stack[--c->depth];
    DONE(error);
}

PRHS_PUBLIC result cuCtxGetDevice(prhs_drv_device * device) {
    CALL();
    *device = 0;
    DONE(fake_current() ? 0 : PRHS_DRV_INVALID_CONTEXT);
}

/* --- memory --- */

PRHS_PUBLIC result cuMemAlloc_v2(prhs_drv_ptr * pointer, size_t size) {
    CALL();
    CURRENT();
    result error = fake_unsafe();
    memory *m = error ? NULL : fake_memory_new(MEMORY, size, &error);
    if (m)
        *pointer = (prhs_drv_ptr)(uintptr_t)m->at;
    DONE(error);
}

PRHS_PUBLIC result cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    CALL();
    CURRENT();
    (void)flags;
    result error = fake_unsafe();
    memory *m = error ? NULL : fake_memory_new(HOST_MEMORY, size, &error);
    if (m)
        *pointer = m->at;
    DONE(error);
}

static result free_memory(kind kind, void *at) {
    memory *m = fake_memory_of(at, 1);
    result error = fake_unsafe();
    if (error)
        return error;
    error = fake_run_all(); /* waits for the device */
    if (!m || m->at != at || m->head.kind != kind) {
        fake_complain("memory at %p is freed, which is none", at);
        return PRHS_DRV_INVALID_VALUE;
    }
    fake_memory_delete(m);
    return error;
}

/* Calls that destroy do so even if they are told to fail: a caller has nothing better to do with what is left. */
PRHS_PUBLIC result cuMemFree_v2(prhs_drv_ptr pointer) {
    fake_lock();
    const result error = fake_call("cuMemFree_v2"), own = free_memory(MEMORY, (void *)(uintptr_t)pointer);
    DONE(error ? error : own);
}

PRHS_PUBLIC result cuMemFreeHost(void *pointer) {
    fake_lock();
    const result error = fake_call("cuMemFreeHost"), own = free_memory(HOST_MEMORY, pointer);
    DONE(error ? error : own);
}

static void *at(prhs_drv_ptr pointer, size_t size, const char *call) {
    const memory *m = fake_memory_of((void *)(uintptr_t)pointer, size);
    if (m)
        return (void *)(uintptr_t)pointer;
    fake_complain("%s: %zu bytes at %#llx are not in one allocation", call, size, (unsigned long long)pointer);
    return NULL;
}

static result copy(void *to, const void *from, size_t size, prhs_drv_stream stream) {
    const item it = { .what = COPY, .to = to, .from = from, .size = size };
    return to && from ? fake_submit(stream, &it) : PRHS_DRV_INVALID_VALUE;
}

PRHS_PUBLIC result cuMemcpyHtoDAsync_v2(prhs_drv_ptr dst, const void *src, size_t size, prhs_drv_stream stream) {
    CALL();
    STREAM_OF(stream);
    DONE(copy(at(dst, size, __func__), src, size, stream));
}

PRHS_PUBLIC result cuMemcpyDtoHAsync_v2(void *dst, prhs_drv_ptr src, size_t size, prhs_drv_stream stream) {
    CALL();
    STREAM_OF(stream);
    DONE(copy(dst, at(src, size, __func__), size, stream));
}

PRHS_PUBLIC result cuMemcpyDtoDAsync_v2(prhs_drv_ptr dst, prhs_drv_ptr src, size_t size, prhs_drv_stream stream) {
    CALL();
    STREAM_OF(stream);
    DONE(copy(at(dst, size, __func__), at(src, size, __func__), size, stream));
}

PRHS_PUBLIC result cuMemsetD32Async(prhs_drv_ptr dst, unsigned word, size_t words, prhs_drv_stream stream) {
    CALL();
    STREAM_OF(stream);
    const item it = { .what = FILL, .to = at(dst, words * 4, __func__), .size = words, .word = word };
    DONE(it.to && dst % 4 == 0 ? fake_submit(stream, &it) : PRHS_DRV_INVALID_VALUE);
}

PRHS_PUBLIC result cuPointerGetAttribute(void *value, int attribute, prhs_drv_ptr pointer) {
    CALL();
    const memory *m = fake_memory_of((void *)(uintptr_t)pointer, 1);
    if (!m)
        DONE(PRHS_DRV_INVALID_VALUE);
    if (attribute == PRHS_DRV_POINTER_CONTEXT)
        *(prhs_drv_context *)value = &primary;
    else
        *(int *)value = 0;
    DONE(0);
}

/* --- streams and events --- */

PRHS_PUBLIC result cuStreamCreate(prhs_drv_stream * stream, unsigned flags) {
    CALL();
    CURRENT();
    (void)flags;
    *stream = fake_new(STREAM, sizeof **stream);
    DONE(*stream ? 0 : PRHS_DRV_OUT_OF_MEMORY);
}

PRHS_PUBLIC result cuStreamDestroy_v2(prhs_drv_stream stream) {
    fake_lock();
    const result error = fake_call("cuStreamDestroy_v2");
    STREAM_OF(stream);
    fake_run(stream, INT32_MAX);
    fake_items_free(&stream->captured);
    for (object *o = fake_first(); o; o = o->next)
        if (o->kind == EVENT && ((prhs_drv_event)o)->on == stream)
            ((prhs_drv_event)o)->on = NULL;
    fake_delete(stream);
    DONE(error);
}

PRHS_PUBLIC result cuStreamSynchronize(prhs_drv_stream stream) {
    CALL();
    STREAM_OF(stream);
    if (stream && stream->capture) {
        stream->capture = PRHS_DRV_CAPTURE_INVALIDATED;
        DONE(PRHS_DRV_CAPTURE_FIRST);
    }
    DONE(stream ? fake_run(stream, INT32_MAX) : fake_run_all());
}

PRHS_PUBLIC result cuStreamGetCtx(prhs_drv_stream stream, prhs_drv_context *context) {
    CALL();
    STREAM_OF(stream);
    *context = &primary;
    DONE(0);
}

PRHS_PUBLIC result cuStreamIsCapturing(prhs_drv_stream stream, int *status) {
    CALL();
    STREAM_OF(stream);
    *status = stream ? stream->capture : PRHS_DRV_CAPTURE_NONE;
    DONE(0);
}

PRHS_PUBLIC result cuEventCreate(prhs_drv_event * event, unsigned flags) {
    CALL();
    CURRENT();
    (void)flags;
    *event = fake_new(EVENT, sizeof **event);
    DONE(*event ? 0 : PRHS_DRV_OUT_OF_MEMORY);
}

static bool bad_event(prhs_drv_event event, const char *call) {
    if (event && fake_known(event, EVENT))
        return false;
    fake_complain("%s: no such event", call);
    return true;
}

PRHS_PUBLIC result cuEventDestroy_v2(prhs_drv_event event) {
    fake_lock();
    const result error = fake_call("cuEventDestroy_v2");
    if (bad_event(event, __func__))
        DONE(PRHS_DRV_INVALID_HANDLE);
    if (event->pending && event->on)
        fake_run(event->on, INT32_MAX);
    fake_delete(event);
    DONE(error);
}

PRHS_PUBLIC result cuEventRecord(prhs_drv_event event, prhs_drv_stream stream) {
    CALL();
    STREAM_OF(stream);
    if (bad_event(event, __func__))
        DONE(PRHS_DRV_INVALID_HANDLE);
    const item it = { .what = RECORD, .event = event };
    DONE(fake_submit(stream, &it));
}

/* Each question lets the stream go on a little. */
PRHS_PUBLIC result cuEventQuery(prhs_drv_event event) {
    CALL();
    CURRENT();
    if (bad_event(event, __func__))
        DONE(PRHS_DRV_INVALID_HANDLE);
    if (event->captured)
        DONE(PRHS_DRV_CAPTURE_FIRST + 7);
    result error = fake_unsafe();
    if (!error && event->pending && event->on)
        error = fake_run(event->on, 3);
    DONE(error ? error : event->pending ? PRHS_DRV_NOT_READY : 0);
}

PRHS_PUBLIC result cuEventElapsedTime(float *milliseconds, prhs_drv_event begin, prhs_drv_event end) {
    CALL();
    CURRENT();
    if (bad_event(begin, __func__) || bad_event(end, __func__) || !begin->recorded || !end->recorded)
        DONE(PRHS_DRV_INVALID_HANDLE);
    if (begin->pending || end->pending)
        DONE(PRHS_DRV_NOT_READY);
    *milliseconds = (float)((end->time - begin->time) * 1e3);
    DONE(0);
}
