/* SPDX-License-Identifier: Apache-2.0 */
/* Modules and launches: the kernels are those that the emulator was linked with; of an image counts only what kind it is. */
#include "api.h"

#include <stdio.h>
#include <string.h>

#define STATIC_SHARED 8192 /* nobody knows how much a kernel has */
#define PLAIN_SHARED ((48u << 10) - STATIC_SHARED)

/* Machine code runs on its own generation, from its own capability on; PTX holds a kernel, and so does a source, which builds without
   nvcc have in its place. stub_image.py writes "no code". */
static result image_error(const char *image) {
    enum { ABI = 8, FLAGS = 48 }; /* in an ELF header */
    int sm = 0;
    if (memcmp(image, "\177ELF", 4) == 0)
        sm = (unsigned char)image[FLAGS + (image[ABI] >= 8)];
    else if (sscanf(image, "no code for %d", &sm) != 1 && !strstr(image, ".entry") && !strstr(image, "\nKERNEL(")) {
        fake_complain("an image that is neither machine code nor PTX with a kernel");
        return PRHS_DRV_INVALID_IMAGE;
    }
    return sm && (sm / 10 != fake_arch() / 10 || sm > fake_arch()) ? PRHS_DRV_NO_BINARY_FOR_GPU : 0;
}

PRHS_PUBLIC result cuModuleLoadDataEx(prhs_drv_module *module, const void *image, unsigned options, int *option, void **value) {
    CALL();
    (void)options, (void)option, (void)value;
    result error = image ? fake_unsafe() : PRHS_DRV_INVALID_IMAGE;
    if (!error)
        error = image_error(image);
    if (!error && !(*module = fake_new(MODULE, sizeof **module)))
        error = PRHS_DRV_OUT_OF_MEMORY;
    DONE(error);
}

static prhs_drv_function function_of(prhs_drv_module module, const char *name) {
    for (object *o = fake_first(); o; o = o->next) {
        prhs_drv_function f = (prhs_drv_function)o;
        if (o->kind == FUNCTION && f->module == module && (!name || strcmp(f->kernel->name, name) == 0))
            return f;
    }
    return NULL;
}

PRHS_PUBLIC result cuModuleUnload(prhs_drv_module module) {
    fake_lock();
    const result error = fake_call("cuModuleUnload");
    if (!fake_known(module, MODULE)) {
        fake_complain("cuModuleUnload: no such module");
        DONE(PRHS_DRV_INVALID_HANDLE);
    }
    fake_run_all();
    for (prhs_drv_function f; (f = function_of(module, NULL)) != NULL;)
        fake_delete(f);
    fake_delete(module);
    DONE(error);
}

PRHS_PUBLIC result cuModuleGetFunction(prhs_drv_function *function, prhs_drv_module module, const char *name) {
    CALL();
    const emu_kernel *kernel = emu_find(name);
    if (!fake_known(module, MODULE))
        DONE(PRHS_DRV_INVALID_HANDLE);
    if (!kernel) {
        fake_complain("there is no kernel %s", name);
        DONE(PRHS_DRV_NOT_FOUND);
    }
    *function = function_of(module, name);
    if (!*function && (*function = fake_new(FUNCTION, sizeof **function)) != NULL) {
        (*function)->kernel = kernel;
        (*function)->module = module;
        (*function)->dynamic = PLAIN_SHARED;
    }
    DONE(*function ? 0 : PRHS_DRV_OUT_OF_MEMORY);
}

PRHS_PUBLIC result cuFuncLoad(prhs_drv_function function) {
    CALL();
    DONE(fake_known(function, FUNCTION) ? 0 : PRHS_DRV_INVALID_HANDLE);
}

PRHS_PUBLIC result cuFuncGetAttribute(int *value, int attribute, prhs_drv_function function) {
    CALL();
    if (!fake_known(function, FUNCTION))
        DONE(PRHS_DRV_INVALID_HANDLE);
    switch (attribute) {
    case PRHS_DRV_FUNC_SHARED: *value = STATIC_SHARED; break;
    case PRHS_DRV_FUNC_REGISTERS: *value = 64; break;
    case PRHS_DRV_FUNC_MAX_DYNAMIC: *value = function->dynamic; break;
    default: fake_complain("function attribute %d is not emulated", attribute); DONE(PRHS_DRV_INVALID_VALUE);
    }
    DONE(0);
}

PRHS_PUBLIC result cuFuncSetAttribute(prhs_drv_function function, int attribute, int value) {
    CALL();
    if (!fake_known(function, FUNCTION))
        DONE(PRHS_DRV_INVALID_HANDLE);
    if (attribute != PRHS_DRV_FUNC_MAX_DYNAMIC || value < 0 || value > fake_shared_most() - STATIC_SHARED)
        DONE(PRHS_DRV_INVALID_VALUE);
    function->dynamic = value;
    DONE(0);
}

/* Blocks that fit on a multiprocessor by threads and dynamic shared memory. */
static int resident(unsigned threads, size_t shared) {
    const int by_shared = shared ? (int)((size_t)(fake_shared_most() + 1024) / (shared + 1024)) : 32, by_threads = 2048 / (int)threads;
    return by_threads < by_shared ? by_threads : by_shared;
}

PRHS_PUBLIC result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, prhs_drv_function function, int block, size_t shared) {
    CALL();
    if (!fake_known(function, FUNCTION) || block < 1)
        DONE(PRHS_DRV_INVALID_VALUE);
    const int fit = resident((unsigned)block, shared);
    *blocks = (int)function->kernel->blocks < fit ? (int)function->kernel->blocks : fit;
    DONE(0);
}

/* The library's blocks take turns, but for those of prompts: more of them than the device holds at once would only have to be started. */
static bool too_many(const emu_kernel *k, const prhs_drv_launch *how) {
    const unsigned places = (unsigned)resident(how->block_x, how->shared) * (unsigned)fake_multiprocessors();
    const unsigned fit = places > k->team ? places : k->team;
    return strncmp(k->name, "prhs_", 5) == 0 && strncmp(k->name, "prhs_prefill", 12) != 0 && how->grid_x > fit;
}

result fake_kernel_item(prhs_drv_function function, const prhs_drv_launch *how, void **params, void **extra, item *it) {
    if (!fake_current() || !fake_known(function, FUNCTION) || (how->stream && !fake_known(how->stream, STREAM))) {
        fake_complain("a launch without a context, of no function, or on no stream");
        return PRHS_DRV_INVALID_HANDLE;
    }
    const emu_kernel *k = function->kernel;
    const bool bad = how->grid_x == 0 || how->grid_x % k->team != 0 || how->grid_y != 1 || how->grid_z != 1 || how->block_y != 1 || how->block_z != 1 || !params || extra ||
                     how->block_x == 0 || how->block_x > k->threads || how->shared > (unsigned)function->dynamic;
    if (bad) {
        fake_complain("launch of %s with %u x %u x %u blocks of %u threads (at most %u), %u bytes (at most %d)", k->name, how->grid_x,
                      how->grid_y, how->grid_z, how->block_x, k->threads, how->shared, function->dynamic);
        return PRHS_DRV_INVALID_VALUE;
    }
    if (too_many(k, how))
        fake_complain("launch of %s with %u blocks of %u threads and %u bytes: they are not resident at once", k->name, how->grid_x, how->block_x,
                      how->shared);
    bool overlaps = false;
    for (unsigned i = 0; i < how->count; i++)
        overlaps |= how->attributes[i].id == PRHS_DRV_ATTRIBUTE_OVERLAP && how->attributes[i].value.overlap;
    *it = (item){ .what = KERNEL, .kernel = k, .grid = how->grid_x, .block = how->block_x, .shared = how->shared, .overlaps = overlaps,
                  .params = params[0] };
    return PRHS_DRV_SUCCESS;
}

static result launch(prhs_drv_function function, const prhs_drv_launch *how, void **params, void **extra) {
    item it;
    const result error = fake_kernel_item(function, how, params, extra, &it);
    return error ? error : fake_submit(how->stream, &it);
}

PRHS_PUBLIC result cuLaunchKernel(prhs_drv_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                  unsigned block_y, unsigned block_z, unsigned shared, prhs_drv_stream stream, void **params, void **extra) {
    CALL();
    const prhs_drv_launch how = { grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, NULL, 0 };
    DONE(launch(function, &how, params, extra));
}

PRHS_PUBLIC result cuLaunchKernelEx(const prhs_drv_launch *how, prhs_drv_function function, void **params, void **extra) {
    CALL();
    DONE(launch(function, how, params, extra));
}
