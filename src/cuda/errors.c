/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's results as status codes and sentences; the context that calls run in. */
#include "host.h"

static prhs_status status_of(prhs_drv_result result) {
    switch (result) {
    case PRHS_DRV_OUT_OF_MEMORY: return PRHS_ERR_MEMORY;
    case PRHS_DRV_NO_DEVICE:
    case PRHS_DRV_INVALID_DEVICE: return PRHS_ERR_NO_DEVICE;
    case PRHS_DRV_INVALID_IMAGE:
    case PRHS_DRV_INVALID_PTX:
    case PRHS_DRV_NO_BINARY_FOR_GPU:
    case PRHS_DRV_UNSUPPORTED_PTX_VERSION: return PRHS_ERR_COMPILE;
    default: break;
    }
    if (result >= PRHS_DRV_CAPTURE_FIRST && result <= PRHS_DRV_CAPTURE_LAST)
        return PRHS_ERR_STATE;
    return PRHS_ERR_DRIVER;
}

/* Results after which every call in the context fails. */
static bool ends_context(prhs_drv_result result) {
    switch (result) {
    case PRHS_DRV_DEINITIALIZED:
    case PRHS_DRV_ECC_UNCORRECTABLE:
    case PRHS_DRV_NVLINK_UNCORRECTABLE:
    case PRHS_DRV_ILLEGAL_ADDRESS:
    case PRHS_DRV_LAUNCH_TIMEOUT:
    case PRHS_DRV_CONTEXT_IS_DESTROYED:
    case PRHS_DRV_ASSERT:
    case PRHS_DRV_HARDWARE_STACK_ERROR:
    case PRHS_DRV_ILLEGAL_INSTRUCTION:
    case PRHS_DRV_MISALIGNED_ADDRESS:
    case PRHS_DRV_INVALID_ADDRESS_SPACE:
    case PRHS_DRV_INVALID_PC:
    case PRHS_DRV_LAUNCH_FAILED: return true;
    default: return false;
    }
}

static const char *words(prhs_drv_result (*ask)(prhs_drv_result, const char **), prhs_drv_result result) {
    const char *text = NULL;
    return ask(result, &text) == PRHS_DRV_SUCCESS && text ? text : "unknown error";
}

prhs_status prhs_nv_fail(const prhs_log *log, const char *call, prhs_drv_result result) {
    return prhs_fail(log, status_of(result), "cuda: %s: %s (%d): %s", call, words(prhs_drv.GetErrorName, result), result,
                     words(prhs_drv.GetErrorString, result));
}

prhs_status prhs_nv_check(prhs_device *dev, const char *call, prhs_drv_result result) {
    if (result == PRHS_DRV_SUCCESS)
        return PRHS_OK;
    if (ends_context(result)) {
        int none = 0;
        atomic_compare_exchange_strong(&prhs_nv_device_of(dev)->broken, &none, result);
    }
    return prhs_nv_fail(&dev->log, call, result);
}

prhs_status prhs_nv_enter(prhs_device *dev) {
    prhs_nv_device *d = prhs_nv_device_of(dev);
    const prhs_drv_result broken = atomic_load_explicit(&d->broken, memory_order_relaxed);
    if (broken)
        return prhs_fail(&dev->log, PRHS_ERR_DRIVER, "cuda: the device's context ended with %s (%d): %s", words(prhs_drv.GetErrorName, broken),
                         broken, words(prhs_drv.GetErrorString, broken));
    return prhs_nv_check(dev, "cuCtxPushCurrent", prhs_drv.CtxPushCurrent(d->context));
}

void prhs_nv_leave(void) {
    prhs_drv_context mine;
    prhs_drv.CtxPopCurrent(&mine);
}
