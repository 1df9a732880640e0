/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For Mesa's OpenCL unpacked into a folder: it reads its library of functions from /usr/lib/clc, whatever folder it lies in
 * itself. Loaded before it (LD_PRELOAD), this opens the file of that name in $PRHS_LIBCLC instead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHERE "/usr/lib/clc/"

static const char *moved(const char *path, char *buffer, size_t size) {
    const char *folder = getenv("PRHS_LIBCLC");
    if (!folder || strncmp(path, WHERE, strlen(WHERE)) != 0)
        return path;
    snprintf(buffer, size, "%s/%s", folder, path + strlen(WHERE));
    return buffer;
}

#define OPEN(name)                                                                                                               \
    int name(const char *path, int flags, ...) {                                                                                 \
        int (*call)(const char *, int, ...);                                                                                     \
        void *symbol = dlsym(RTLD_NEXT, #name);                                                                                  \
        char buffer[4096];                                                                                                       \
        mode_t mode = 0;                                                                                                         \
        memcpy(&call, &symbol, sizeof call);                                                                                     \
        if (flags & O_CREAT) {                                                                                                   \
            va_list args;                                                                                                        \
            va_start(args, flags);                                                                                               \
            mode = va_arg(args, mode_t);                                                                                         \
            va_end(args);                                                                                                        \
        }                                                                                                                        \
        return call(moved(path, buffer, sizeof buffer), flags, mode);                                                            \
    }
OPEN(open)
OPEN(open64)
