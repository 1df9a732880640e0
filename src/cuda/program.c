/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels out of the embedded images: machine code or PTX of this toolkit, else the PTX that older drivers take. */
#include "host.h"

#include <string.h>

int prhs_nv_image_of(const char *file) {
    for (int i = 0; i < PRHS_NV_IMAGES_MAX && prhs_nv_images[i].name; i++)
        if (strcmp(prhs_nv_images[i].name, file) == 0)
            return i;
    return -1;
}

/* Results that say: not this image, perhaps the older PTX. */
static bool refused(prhs_drv_result result) {
    return result == PRHS_DRV_INVALID_IMAGE || result == PRHS_DRV_NO_BINARY_FOR_GPU || result == PRHS_DRV_INVALID_PTX ||
           result == PRHS_DRV_UNSUPPORTED_PTX_VERSION;
}

static prhs_drv_result load_module(prhs_nv_device *dev, const char *file, const unsigned char *image, prhs_drv_module *module) {
    char words[512] = "";
    int option[] = { PRHS_DRV_JIT_ERROR_LOG, PRHS_DRV_JIT_ERROR_LOG_SIZE };
    void *value[] = { words, (void *)(uintptr_t)(sizeof words - 1) };
    prhs_count(&dev->head.counters.compiles);
    const prhs_drv_result result = prhs_drv.ModuleLoadData(module, image, 2, option, value);
    if (result != PRHS_DRV_SUCCESS)
        *module = NULL;
    for (char *c = words; *c; c++)
        if ((unsigned char)*c < ' ')
            *c = ' ';
    if (words[0])
        prhs_logf(&dev->head.log, PRHS_LOG_WARN, "cuda: the driver's compiler on cuda/%s.cu: %s", file, words);
    return result;
}

/* The function out of one image; *call names what failed. */
static prhs_drv_result from_image(prhs_nv_device *dev, prhs_nv_kernel *kernel, int image, int which, const char **call) {
    const prhs_nv_choice *choice = &kernel->choice;
    prhs_drv_module *module = &dev->modules[image].module[which];
    prhs_drv_result result = PRHS_DRV_SUCCESS;
    *call = "cuModuleLoadDataEx";
    if (!*module)
        result = load_module(dev, choice->file, which ? prhs_nv_images[image].ptx : prhs_nv_images[image].fatbin, module);
    if (result == PRHS_DRV_SUCCESS) {
        *call = "cuModuleGetFunction";
        result = prhs_drv.ModuleGetFunction(&kernel->function, *module, choice->name);
    }
    /* Drivers load lazily: here, and not at the first launch, which may be under a capture. */
    if (result == PRHS_DRV_SUCCESS && prhs_drv.FuncLoad) {
        *call = "cuFuncLoad";
        result = prhs_drv.FuncLoad(kernel->function);
    }
    return result;
}

static prhs_status set_up(prhs_nv_device *dev, prhs_nv_kernel *kernel) {
    const prhs_nv_choice *choice = &kernel->choice;
    int blocks = 0;
    prhs_status status = PRHS_OK;
    if (choice->shared > 48u << 10)
        status = prhs_nv_check(&dev->head, "cuFuncSetAttribute",
                                 prhs_drv.FuncSetAttribute(kernel->function, PRHS_DRV_FUNC_MAX_DYNAMIC, (int)choice->shared));
    if (status == PRHS_OK)
        status = prhs_nv_check(&dev->head, "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                                 prhs_drv.Occupancy(&blocks, kernel->function, (int)choice->threads, choice->shared));
    if (status == PRHS_OK && blocks < 1)
        status = prhs_fail(&dev->head.log, PRHS_ERR_UNSUPPORTED, "cuda: %s does not fit on a multiprocessor of this device", choice->name);
    kernel->grid = (unsigned)blocks * (dev->head.info.compute_units ? dev->head.info.compute_units : 1);
    return status;
}

prhs_status prhs_nv_kernel_load(prhs_nv_device *dev, prhs_nv_kernel *kernel) {
    const int image = prhs_nv_image_of(kernel->choice.file);
    prhs_nv_modules *modules = &dev->modules[image];
    if (dev->major == 9 && !(dev->head.info.caps & PRHS_CAP_SM90))
        modules->first = 1;
    const char *call = NULL;
    prhs_drv_result result = from_image(dev, kernel, image, modules->first, &call);
    if (modules->first == 0 && refused(result)) {
        prhs_logf(&dev->head.log, PRHS_LOG_INFO, "cuda: the driver refuses cuda/%s.cu (%d), its older PTX is tried", kernel->choice.file, result);
        modules->first = 1;
        result = from_image(dev, kernel, image, 1, &call);
    }
    prhs_status status = prhs_nv_check(&dev->head, call, result);
    if (status != PRHS_OK)
        return status;
    /* Only the sm_90 code waits for its predecessor by itself. */
    kernel->overlap = modules->first == 0 && dev->major == 9 && dev->head.info.caps & PRHS_CAP_OVERLAP;
    return set_up(dev, kernel);
}

void prhs_nv_modules_unload(prhs_nv_device *dev) {
    for (int i = 0; i < PRHS_NV_IMAGES_MAX; i++)
        for (int j = 0; j < 2; j++)
            if (dev->modules[i].module[j])
                prhs_nv_check(&dev->head, "cuModuleUnload", prhs_drv.ModuleUnload(dev->modules[i].module[j]));
}
