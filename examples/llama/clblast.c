/* SPDX-License-Identifier: Apache-2.0 */
#include "clblast.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static void *library(const char *file, char *why, size_t cap) {
    void *lib = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        snprintf(why, cap, "%s cannot be opened (%s)", file, dlerror());
    return lib;
}

/* To the function pointer at `to`; by bytes, as ISO C has no conversion from an object pointer to a function pointer. */
static bool find(void *lib, const char *file, const char *symbol, void *to, char *why, size_t cap) {
    void *const found = dlsym(lib, symbol);
    memcpy(to, &found, sizeof found);
    if (!found)
        snprintf(why, cap, "%s lacks %s", file, symbol);
    return found != NULL;
}

bool clblast_open_cl(clblast *b, char *why, size_t cap) {
    static const char file[] = "libOpenCL.so.1";
    void *const lib = library(file, why, cap);
#define X(name) \
    if (!lib || !find(lib, file, "cl" #name, &b->name, why, cap)) \
        return false;
    CLBLAST_CL_FUNCTIONS(X)
#undef X
    return true;
}

bool clblast_open(clblast *b, const char *file, char *why, size_t cap) {
    file = file ? file : "libclblast.so.1";
    void *const lib = library(file, why, cap);
#define X(name, symbol, params) \
    if (!lib || !find(lib, file, #symbol, &b->name, why, cap)) \
        return false;
    CLBLAST_FUNCTIONS(X)
#undef X
    return true;
}
