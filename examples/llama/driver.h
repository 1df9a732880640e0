/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's calls that the example makes itself, on libprhs's context and streams: its kernels, and page-locked memory. */
#ifndef DRIVER_H
#define DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DRIVER_FUNCTIONS(X)                                                                                                \
    X(push, cuCtxPushCurrent_v2, (void *context))                                                                          \
    X(pop, cuCtxPopCurrent_v2, (void **context))                                                                           \
    X(load, cuModuleLoadDataEx, (void **module, const void *image, unsigned options, int *option, void **value))           \
    X(unload, cuModuleUnload, (void *module))                                                                              \
    X(function, cuModuleGetFunction, (void **function, void *module, const char *name))                                    \
    X(launch, cuLaunchKernel,                                                                                              \
      (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,              \
       unsigned block_z, unsigned shared, void *stream, void **params, void **extra))                                      \
    X(host_alloc, cuMemHostAlloc, (void **pointer, size_t size, unsigned flags))                                           \
    X(host_free, cuMemFreeHost, (void *pointer))

typedef struct driver {
#define X(name, symbol, params) int(*name) params;
    DRIVER_FUNCTIONS(X)
#undef X
} driver;

/* libprhs has opened and initialised libcuda.so.1 already. false: it lacks a call. */
bool driver_open(driver *d);

#endif
