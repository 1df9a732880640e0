/* SPDX-License-Identifier: Apache-2.0 */
/* Objects, counted calls, injected failures, and the accounts at the end of the process. */
#define _GNU_SOURCE
#include "fake.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

result fake_dead;
int fake_retained;

static pthread_mutex_t lock;
static object *objects;
static int calls, fail_at, complaints;
static bool lost; /* objects may have been left behind: a call failed that their release needs */

/* For tests: calls so far. */
__attribute__((visibility("default"))) int prhs_fake_cuda_calls(void);
int prhs_fake_cuda_calls(void) { return calls; }

int fake_setting(const char *name, int normal) {
    const char *text = getenv(name);
    return text && text[0] ? atoi(text) : normal;
}

void fake_lock(void) { pthread_mutex_lock(&lock); }
void fake_unlock(void) { pthread_mutex_unlock(&lock); }

void fake_complain(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "fake libcuda: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    complaints++;
}

result fake_die(result error) {
    if (!fake_dead)
        fake_dead = error;
    lost = true;
    return fake_dead;
}

/* What a real driver would say if this call failed. */
static result plausible(const char *symbol) {
    static const struct {
        const char *begin;
        result error;
    } table[] = {
        { "cuInit", PRHS_DRV_NO_DEVICE },
        { "cuDeviceGet", PRHS_DRV_INVALID_DEVICE },
        { "cuDeviceTotalMem", PRHS_DRV_INVALID_DEVICE },
        { "cuDevicePrimaryCtxRelease", PRHS_DRV_INVALID_CONTEXT },
        { "cuCtx", PRHS_DRV_INVALID_CONTEXT },
        { "cuModuleLoad", PRHS_DRV_UNSUPPORTED_PTX_VERSION },
        { "cuModuleGetFunction", PRHS_DRV_NOT_FOUND },
        { "cuModuleUnload", PRHS_DRV_INVALID_HANDLE },
        { "cuFunc", PRHS_DRV_INVALID_VALUE },
        { "cuMemcpy", PRHS_DRV_ILLEGAL_ADDRESS },
        { "cuMemset", PRHS_DRV_ILLEGAL_ADDRESS },
        { "cuMemFree", PRHS_DRV_INVALID_VALUE },
        { "cuStreamSynchronize", PRHS_DRV_LAUNCH_FAILED },
        { "cuStreamDestroy", PRHS_DRV_INVALID_HANDLE },
        { "cuStreamEndCapture", PRHS_DRV_CAPTURE_FIRST + 1 },
        { "cuEventQuery", PRHS_DRV_ECC_UNCORRECTABLE },
        { "cuEventDestroy", PRHS_DRV_INVALID_HANDLE },
        { "cuEventRecord", PRHS_DRV_INVALID_HANDLE },
        { "cuGraphDestroy", PRHS_DRV_INVALID_VALUE },
        { "cuGraphExecDestroy", PRHS_DRV_INVALID_VALUE },
        { "cuLaunch", 701 }, /* out of resources */
        { "", PRHS_DRV_OUT_OF_MEMORY },
    };
    size_t i = 0;
    while (strncmp(symbol, table[i].begin, strlen(table[i].begin)) != 0)
        i++;
    return table[i].error;
}

static bool ends_context(result error) {
    return error == PRHS_DRV_ILLEGAL_ADDRESS || error == PRHS_DRV_LAUNCH_FAILED || error == PRHS_DRV_ECC_UNCORRECTABLE;
}

result fake_call(const char *symbol) {
    const bool outside = strncmp(symbol, "cuDevice", 8) == 0 || strcmp(symbol, "cuDriverGetVersion") == 0 || strcmp(symbol, "cuInit") == 0;
    const int n = ++calls;
    if (fake_setting("PRHS_FAKE_CUDA_TRACE", 0))
        fprintf(stderr, "fake libcuda: %d %s\n", n, symbol);
    if (n == fail_at) {
        const result error = plausible(symbol);
        fprintf(stderr, "fake libcuda: call %d, %s, fails with %d\n", n, symbol, error);
        if (strncmp(symbol, "cuCtx", 5) == 0)
            lost = true;
        return ends_context(error) ? fake_die(error) : error;
    }
    return outside ? PRHS_DRV_SUCCESS : fake_dead;
}

void *fake_new(kind kind, size_t size) {
    object *o = calloc(1, size);
    if (!o)
        return NULL;
    o->kind = kind;
    o->next = objects;
    objects = o;
    return o;
}

bool fake_known(const void *handle, kind kind) {
    for (const object *o = objects; o; o = o->next)
        if (o == handle)
            return o->kind == kind;
    return false;
}

void fake_delete(void *handle) {
    for (object **o = &objects; *o; o = &(*o)->next)
        if (*o == handle) {
            *o = (*o)->next;
            free(handle);
            return;
        }
}

object *fake_first(void) { return objects; }

static void at_exit(void) {
    static const char *const names[KINDS] = { "streams", "events", "device memory", "page-locked memory", "modules", "functions", "graphs",
                                              "executable graphs" };
    int left[KINDS] = { 0 };
    fflush(NULL);
    for (const object *o = objects; o; o = o->next)
        left[o->kind]++;
    left[FUNCTION] = 0; /* their modules' */
    for (int i = 0; i < KINDS; i++)
        if (left[i] && !lost)
            fake_complain("left at the end: %d %s", left[i], names[i]);
    if (fake_retained)
        fake_complain("the primary context is still retained %d times", fake_retained);
    if (complaints)
        _exit(23);
}

__attribute__((constructor)) static void begin(void) {
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_settype(&how, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &how);
    fail_at = fake_setting("PRHS_FAKE_CUDA_FAIL", 0);
    atexit(at_exit);
}
