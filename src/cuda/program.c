/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels out of the embedded images: machine code where the driver takes it, else PTX. */
#include "host.h"

#include <stdlib.h>
#include <string.h>

#include "lzma.h"
#include "ptx.h"

int prhs_nv_image_of(const char *file) {
    for (int i = 0; i < PRHS_NV_IMAGES_MAX && prhs_nv_images[i].name; i++)
        if (strcmp(prhs_nv_images[i].name, file) == 0)
            return i;
    return -1;
}

/* The bytes of an image, malloc()ed and with a zero behind them, or NULL. */
static char *unpack(const struct prhs_nv_packed *packed) {
    enum { SIZE_AT = 5 };
    uint64_t size = 0;
    for (int i = 7; i >= 0; i--)
        size = size << 8 | packed->data[SIZE_AT + i];
    char *bytes = malloc((size_t)size + 1);
    if (!bytes)
        return NULL;
    bytes[size] = '\0';
    if (prhs_nv_lzma(packed->data, packed->size, (unsigned char *)bytes, (size_t)size))
        return bytes;
    free(bytes);
    return NULL;
}

/* Of PTX the kernel alone. malloc()ed, or NULL. */
static char *image_of(const prhs_nv_kernel *kernel, prhs_nv_form form) {
    char *bytes = unpack(&prhs_nv_images[prhs_nv_image_of(kernel->choice.file)].forms[form]);
    if (!bytes || form != PRHS_NV_PTX)
        return bytes;
    char *text = prhs_nv_ptx(bytes, kernel->choice.name);
    free(bytes);
    return text;
}

/* --- modules --- */

/* What the driver said last, and to which call. */
typedef struct answer {
    prhs_drv_result result;
    const char *call;
} answer;

/* Hands a kernel's image to the driver, which keeps a copy of its own. */
static prhs_status load_module(prhs_nv_device *dev, const prhs_nv_kernel *kernel, prhs_nv_form form, prhs_drv_module *module, answer *said) {
    char words[512] = "";
    int option[] = { PRHS_DRV_JIT_ERROR_LOG, PRHS_DRV_JIT_ERROR_LOG_SIZE };
    void *value[] = { words, (void *)(uintptr_t)(sizeof words - 1) };
    const char *name = kernel->choice.name;
    char *bytes = image_of(kernel, form);
    if (!bytes)
        return prhs_fail(&dev->head.log, PRHS_ERR_MEMORY, "cuda: no host memory for the code of %s", name);
    prhs_count(&dev->head.counters.compiles);
    *said = (answer){ prhs_drv.ModuleLoadData(module, bytes, 2, option, value), "cuModuleLoadDataEx" };
    free(bytes);
    if (said->result != PRHS_DRV_SUCCESS)
        *module = NULL;
    for (char *c = words; *c; c++)
        if ((unsigned char)*c < ' ')
            *c = ' ';
    if (words[0])
        prhs_logf(&dev->head.log, PRHS_LOG_WARN, "cuda: the driver's compiler on %s: %s", name, words);
    return PRHS_OK;
}

/* The function out of a module. */
static answer get_function(prhs_nv_kernel *kernel, prhs_drv_module module) {
    const answer got = { prhs_drv.ModuleGetFunction(&kernel->function, module, kernel->choice.name), "cuModuleGetFunction" };
    /* Drivers load lazily: here, and not at the first launch, which may be under a capture. */
    return got.result == PRHS_DRV_SUCCESS && prhs_drv.FuncLoad ? (answer){ prhs_drv.FuncLoad(kernel->function), "cuFuncLoad" } : got;
}

/* A kernel in one form: a file's machine code is loaded once, PTX a kernel at a time. */
static prhs_status take(prhs_nv_device *dev, prhs_nv_kernel *kernel, prhs_nv_form form, answer *said) {
    prhs_drv_module *module = form == PRHS_NV_PTX ? &kernel->module : &dev->modules[prhs_nv_image_of(kernel->choice.file)];
    const prhs_status status = *module ? PRHS_OK : load_module(dev, kernel, form, module, said);
    if (status == PRHS_OK && *module)
        *said = get_function(kernel, *module);
    return status;
}

/* Results that say: not this code; the PTX may do. */
static bool refused(prhs_drv_result result) {
    return result == PRHS_DRV_INVALID_IMAGE || result == PRHS_DRV_NO_BINARY_FOR_GPU || result == PRHS_DRV_INVALID_PTX ||
           result == PRHS_DRV_UNSUPPORTED_PTX_VERSION;
}

static prhs_status load_function(prhs_nv_device *dev, prhs_nv_kernel *kernel) {
    bool *no_code = &dev->refused[prhs_nv_image_of(kernel->choice.file)];
    const bool masked = dev->major == 9 && !(dev->head.info.caps & PRHS_CAP_SM90);
    answer said = { PRHS_DRV_NO_BINARY_FOR_GPU, NULL }; /* a device that is newer than all of the code */
    prhs_status status = PRHS_OK;
    if (!masked && !*no_code) {
        if (dev->major <= 9)
            status = take(dev, kernel, dev->major == 9 ? PRHS_NV_SM90 : PRHS_NV_SM80, &said);
        /* Only the sm_90 code waits for its predecessor by itself. */
        kernel->overlap = dev->major == 9 && dev->head.info.caps & PRHS_CAP_OVERLAP;
        if (status != PRHS_OK || !refused(said.result))
            return status != PRHS_OK ? status : prhs_nv_check(&dev->head, said.call, said.result);
        prhs_logf(&dev->head.log, PRHS_LOG_INFO, "cuda: the driver does not take the machine code of cuda/%s.cu (%d), it compiles the PTX",
                  kernel->choice.file, said.result);
        *no_code = true;
    }
    kernel->overlap = false;
    status = take(dev, kernel, PRHS_NV_PTX, &said);
    return status != PRHS_OK ? status : prhs_nv_check(&dev->head, said.call, said.result);
}

/* More than 48 KiB, the kernel's own arrays included, have to be asked for. What was asked for already, with another choice of the same
   function, is not taken back. */
static prhs_status allow_shared(prhs_nv_device *dev, prhs_drv_function function, int shared) {
    int allowed = 0;
    prhs_status status = prhs_nv_check(&dev->head, "cuFuncGetAttribute",
                                       prhs_drv.FuncGetAttribute(&allowed, PRHS_DRV_FUNC_MAX_DYNAMIC, function));
    return status != PRHS_OK || shared <= allowed
               ? status
               : prhs_nv_check(&dev->head, "cuFuncSetAttribute", prhs_drv.FuncSetAttribute(function, PRHS_DRV_FUNC_MAX_DYNAMIC, shared));
}

static prhs_status set_up(prhs_nv_device *dev, prhs_nv_kernel *kernel) {
    prhs_nv_choice *choice = &kernel->choice;
    int blocks = 0, fixed = 0;
    prhs_status status = PRHS_OK;
    if (choice->sized) {
        /* All that a block may have besides its own arrays. */
        status = prhs_nv_check(&dev->head, "cuFuncGetAttribute",
                               prhs_drv.FuncGetAttribute(&fixed, PRHS_DRV_FUNC_SHARED, kernel->function));
        choice->shared = fixed < dev->shared_most ? (unsigned)(dev->shared_most - fixed) : 0;
        int registers = 0;
        if (status == PRHS_OK)
            status = prhs_nv_check(&dev->head, "cuFuncGetAttribute",
                                   prhs_drv.FuncGetAttribute(&registers, PRHS_DRV_FUNC_REGISTERS, kernel->function));
        kernel->registers = registers > 0 ? (unsigned)registers : 1;
    }
    if (status == PRHS_OK && choice->shared)
        status = allow_shared(dev, kernel->function, (int)choice->shared);
    if (status == PRHS_OK)
        status = prhs_nv_check(&dev->head, "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                               prhs_drv.Occupancy(&blocks, kernel->function, (int)choice->threads, choice->shared));
    if (status == PRHS_OK && blocks < 1)
        status = prhs_fail(&dev->head.log, PRHS_ERR_UNSUPPORTED, "cuda: %s does not fit on a multiprocessor of this device", choice->name);
    kernel->resident = (unsigned)blocks;
    return status;
}

/*
 * A multiprocessor's shared memory is what one block may have and the KiB that the driver keeps for each; it has 64 Ki registers, given out
 * in eights. Blocks past those that fit would take turns with them, at the price of being started one after the other even where there is
 * nothing to do.
 */
unsigned prhs_nv_resident(const prhs_nv_device *dev, const prhs_nv_kernel *kernel, unsigned threads, unsigned shared) {
    enum { THREADS = 2048, REGISTERS = 65536, BLOCKS = 8, KEPT = 1024 };
    const unsigned most = (unsigned)dev->shared_most, fixed = most - kernel->choice.shared;
    const unsigned by_shared = (most + KEPT) / (shared + fixed + KEPT), by_threads = THREADS / threads;
    const unsigned by_registers = REGISTERS / ((kernel->registers + 7) / 8 * 8 * threads);
    unsigned blocks = by_shared < by_threads ? by_shared : by_threads;
    blocks = blocks < by_registers ? blocks : by_registers;
    blocks = blocks < BLOCKS ? blocks : BLOCKS;
    return (blocks ? blocks : 1) * (dev->head.info.compute_units ? dev->head.info.compute_units : 1);
}

prhs_status prhs_nv_kernel_load(prhs_nv_device *dev, prhs_nv_kernel *kernel) {
    prhs_status status = load_function(dev, kernel);
    if (status == PRHS_OK)
        status = set_up(dev, kernel);
    if (status != PRHS_OK)
        prhs_nv_kernel_unload(dev, kernel);
    return status;
}

void prhs_nv_kernel_unload(prhs_nv_device *dev, prhs_nv_kernel *kernel) {
    if (kernel->module)
        prhs_nv_check(&dev->head, "cuModuleUnload", prhs_drv.ModuleUnload(kernel->module));
    kernel->module = NULL;
}

void prhs_nv_modules_unload(prhs_nv_device *dev) {
    for (int i = 0; i < PRHS_NV_IMAGES_MAX; i++)
        if (dev->modules[i])
            prhs_nv_check(&dev->head, "cuModuleUnload", prhs_drv.ModuleUnload(dev->modules[i]));
}
