/* SPDX-License-Identifier: Apache-2.0 */
#include "loader.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "../backend.h"

prhs_cl_api prhs_cl;

static const char *missing = "libOpenCL.so.1 is not here";
static int usable;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Never closed again: drivers do not survive that. */
static void load(void) {
    void *lib = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL), *symbol;
    if (!lib)
        return;
    missing = NULL;
    /* memcpy: ISO C has no conversion from an object pointer to a function pointer. */
#define X(name) \
    symbol = dlsym(lib, "cl" #name); \
    memcpy(&prhs_cl.name, &symbol, sizeof symbol); \
    if (!symbol) \
        missing = "libOpenCL.so.1 lacks cl" #name ", it is older than OpenCL 1.2";
    PRHS_CL_FUNCTIONS(X)
#undef X
    usable = !missing;
}

int prhs_cl_load(const prhs_log *log) {
    pthread_once(&once, load);
    if (!usable)
        prhs_logf(log, PRHS_LOG_INFO, "opencl: %s", missing);
    return usable;
}
