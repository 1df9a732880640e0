/* SPDX-License-Identifier: Apache-2.0 */
#include "loader.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "../backend.h"

prhs_drv_api prhs_drv;

static char missing[256] = "libcuda.so.1 is not here";
static int usable;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void initialise(void) {
    const prhs_drv_result error = prhs_drv.Init(0);
    const char *name = NULL;
    usable = error == PRHS_DRV_SUCCESS;
    if (!usable && prhs_drv.GetErrorName(error, &name) != PRHS_DRV_SUCCESS)
        name = NULL;
    if (!usable)
        snprintf(missing, sizeof missing, "libcuda.so.1 is here, but cuInit says %s (%d)", name ? name : "?", error);
}

/* Never closed again: drivers do not survive that. */
static void load(void) {
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *found;
    if (!lib)
        return;
    missing[0] = '\0';
    /* memcpy: ISO C has no conversion from an object pointer to a function pointer. */
#define X(name, symbol, params) \
    found = dlsym(lib, #symbol); \
    memcpy(&prhs_drv.name, &found, sizeof found); \
    if (!found) \
        snprintf(missing, sizeof missing, "libcuda.so.1 lacks " #symbol ", it is older than CUDA 11.4");
    PRHS_DRV_FUNCTIONS(X)
#undef X
#define X(name, symbol, params) \
    found = dlsym(lib, #symbol); \
    memcpy(&prhs_drv.name, &found, sizeof found);
    PRHS_DRV_OPTIONAL(X)
#undef X
    if (!missing[0])
        initialise();
}

int prhs_drv_load(const prhs_log *log) {
    pthread_once(&once, load);
    if (!usable)
        prhs_logf(log, PRHS_LOG_INFO, "cuda: %s", missing);
    return usable;
}
