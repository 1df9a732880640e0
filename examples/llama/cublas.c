/* SPDX-License-Identifier: Apache-2.0 */
#include "cublas.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* A handle of one library; false after a sentence in `why`. */
static bool open_one(cublas *b, const char *file, char *why, size_t cap) {
    void *lib = dlopen(file, RTLD_NOW | RTLD_LOCAL), *found;
    *b = (cublas){ 0 };
    if (!lib) {
        snprintf(why, cap, "%s cannot be opened (%s)", file, dlerror());
        return false;
    }
    /* memcpy: ISO C has no conversion from an object pointer to a function pointer. */
#define X(name, symbol, params) \
    found = dlsym(lib, #symbol); \
    memcpy(&b->name, &found, sizeof found); \
    if (!found) { \
        snprintf(why, cap, "%s lacks " #symbol, file); \
        return false; \
    }
    CUBLAS_FUNCTIONS(X)
#undef X
    const int status = b->create(&b->handle);
    if (status == 0)
        return true;
    b->handle = NULL;
    snprintf(why, cap, "%s is here, but cublasCreate returns %d", file, status);
    return false;
}

bool cublas_open(cublas *b, const char *file, char *why, size_t cap) {
    static const char *const names[] = { "libcublas.so.13", "libcublas.so.12", "libcublas.so.11" };
    char last[384];
    if (file)
        return open_one(b, file, why, cap);
    snprintf(why, cap, "neither libcublas.so.13 nor .12 nor .11 is on this machine's library path");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (open_one(b, names[i], last, sizeof last))
            return true;
        /* What is there and does not work says more than what is missing. */
        if (!strstr(last, "cannot be opened"))
            snprintf(why, cap, "%s", last);
    }
    return false;
}

void cublas_close(cublas *b) {
    if (b->handle)
        b->destroy(b->handle);
    *b = (cublas){ 0 };
}
