/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "backend.h"

const char *prhs_status_name(prhs_status status) {
    switch (status) {
    case PRHS_OK: return "PRHS_OK";
    case PRHS_ERR_ARGUMENT: return "PRHS_ERR_ARGUMENT";
    case PRHS_ERR_UNSUPPORTED: return "PRHS_ERR_UNSUPPORTED";
    case PRHS_ERR_NO_DEVICE: return "PRHS_ERR_NO_DEVICE";
    case PRHS_ERR_MEMORY: return "PRHS_ERR_MEMORY";
    case PRHS_ERR_DRIVER: return "PRHS_ERR_DRIVER";
    case PRHS_ERR_COMPILE: return "PRHS_ERR_COMPILE";
    case PRHS_ERR_STATE: return "PRHS_ERR_STATE";
    case PRHS_ERR_DATA: return "PRHS_ERR_DATA";
    case PRHS_NOT_READY: return "PRHS_NOT_READY";
    }
    return "PRHS_?";
}

size_t prhs_dtype_size(prhs_dtype dtype) {
    switch (dtype) {
    case PRHS_F32: return 4;
    case PRHS_F16: return 2;
    case PRHS_BF16: return 2;
    }
    return 0;
}

uint32_t prhs_version(void) {
    unsigned major = 0, minor = 0, patch = 0;
    if (sscanf(PRHS_VERSION_STRING, "%u.%u.%u", &major, &minor, &patch) != 3)
        return 0;
    return major * 10000 + minor * 100 + patch;
}

const char *prhs_backend_name(prhs_backend_kind kind) {
    for (size_t i = 0; prhs_backends[i]; i++)
        if (prhs_backends[i]->kind == kind)
            return prhs_backends[i]->name;
    switch (kind) {
    case PRHS_BACKEND_ANY: return "any";
    case PRHS_BACKEND_CPU: return "cpu";
    case PRHS_BACKEND_OPENCL: return "opencl";
    case PRHS_BACKEND_CUDA: return "cuda";
    }
    return "?";
}

static void send(const prhs_log *log, prhs_log_level level, const char *format, va_list args) {
    char text[1024];
    if (!log || !log->message || level > log->level)
        return;
    vsnprintf(text, sizeof text, format, args);
    log->message(log->user, level, text);
}

void prhs_logf(const prhs_log *log, prhs_log_level level, const char *format, ...) {
    va_list args;
    va_start(args, format);
    send(log, level, format, args);
    va_end(args);
}

prhs_status prhs_fail(const prhs_log *log, prhs_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    send(log, PRHS_LOG_ERROR, format, args);
    va_end(args);
    return status;
}

prhs_status prhs_check_size(const prhs_log *log, const char *call, const char *name, size_t size, size_t known) {
    return size == known ? PRHS_OK : prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: %s is %zu, this library knows %zu", call, name, size, known);
}

void prhs_count(uint64_t *counter) { __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
