/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preparing variants: built or loaded, launched once, tested. One that does not build, or whose self-test fails, gives way to the
 * flavour below it. While there is one, that is no failure of the call: what unfit_log is told as an error comes out as a
 * warning.
 */
#include "host.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void forward(void *user, prhs_log_level level, const char *text) {
    const prhs_cl_device *dev = user;
    const prhs_log *log = &dev->head.log;
    if (level == PRHS_LOG_ERROR && dev->replaceable)
        level = PRHS_LOG_WARN;
    if (level <= log->level)
        log->message(log->user, level, text);
}

void prhs_cl_prepare_init(prhs_cl_device *dev) {
    pthread_mutex_init(&dev->prepare_lock, NULL);
    dev->unfit_log = (prhs_log){ dev->head.log.level, dev, dev->head.log.message ? forward : NULL };
}

const char *prhs_cl_op_supported(const prhs_device *dev, const prhs_op_key *key, const char **why) {
    prhs_cl_flavour flavour;
    return prhs_cl_choose(prhs_cl_device_of(dev), key, &flavour, why) ? prhs_cl_flavour_name(flavour) : NULL;
}

static void variant_free(prhs_cl_variant *v) {
    if (v->kernel)
        prhs_cl.ReleaseKernel(v->kernel);
    if (v->program)
        prhs_cl.ReleaseProgram(v->program);
    pthread_mutex_destroy(&v->lock);
    free(v);
}

void prhs_cl_variants_free(prhs_cl_device *dev) {
    prhs_cl_variant *v = atomic_load_explicit(&dev->variants, memory_order_acquire);
    while (v) {
        prhs_cl_variant *next = v->next;
        variant_free(v);
        v = next;
    }
}

/* One launch with all-zero arguments, hence no items: drivers that compile at the first launch (PoCL) do it here. */
static prhs_status first_launch(prhs_cl_device *dev, prhs_cl_variant *v) {
    prhs_op op;
    memset(&op, 0, sizeof op);
    op.kind = v->key.kind;
    prhs_status status = prhs_cl_launch(dev, v, dev->prepare_queue, &op, NULL);
    if (status != PRHS_OK)
        return status;
    prhs_count(&dev->head.counters.waits);
    cl_int error = prhs_cl.Finish(dev->prepare_queue);
    return error == CL_SUCCESS ? PRHS_OK : prhs_cl_fail(&dev->head.log, "clFinish", error);
}

static prhs_status create_kernel(prhs_cl_device *dev, prhs_cl_variant *v) {
    char name[48];
    cl_int error = CL_SUCCESS;
    size_t most = 0;
    snprintf(name, sizeof name, "prhs_%s", prhs_op_name(v->key.kind));
    v->kernel = prhs_cl.CreateKernel(v->program, name, &error);
    if (!v->kernel)
        return prhs_cl_fail(&dev->head.log, "clCreateKernel", error);
    error = prhs_cl.GetKernelWorkGroupInfo(v->kernel, dev->id, CL_KERNEL_WORK_GROUP_SIZE, sizeof most, &most, NULL);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(&dev->head.log, "clGetKernelWorkGroupInfo", error);
    v->local = prhs_cl_local(v->key.kind, v->flavour, most);
    if (v->local)
        return PRHS_OK;
    return prhs_fail(&dev->unfit_log, PRHS_ERR_UNSUPPORTED, "opencl: the %s %s kernel needs more than the %u work-items of a group",
                     prhs_cl_flavour_name(v->flavour), prhs_op_name(v->key.kind), (unsigned)most);
}

/* Keys that differ only in what the kernel does not use share a program. */
static cl_program shared_program(prhs_cl_device *dev, const prhs_cl_variant *v) {
    for (prhs_cl_variant *o = atomic_load_explicit(&dev->variants, memory_order_acquire); o; o = o->next)
        if (o->key.kind == v->key.kind && strcmp(o->options, v->options) == 0 && prhs_cl.RetainProgram(o->program) == CL_SUCCESS)
            return o->program;
    return NULL;
}

static double now(void) {
    struct timespec t;
    return timespec_get(&t, TIME_UTC) ? (double)t.tv_sec + 1e-9 * (double)t.tv_nsec : 0.0;
}

/* Whether the kernel computes what the cpu backend does; PRHS_ERR_UNSUPPORTED: it does not, and that is remembered. */
static prhs_status test(prhs_cl_device *dev, prhs_cl_variant *v) {
    char words[PRHS_CL_WORDS];
    prhs_status status = prhs_cl_selftest(dev, v, words);
    if (status != PRHS_OK || !words[0])
        return status;
    prhs_cl_failed_add(dev, v, PRHS_CL_WRONG, words);
    return prhs_fail(&dev->unfit_log, PRHS_ERR_UNSUPPORTED,
                     "opencl: self-test: the %s %s kernel is wrong on this device and driver: %s",
                     prhs_cl_flavour_name(v->flavour), prhs_op_name(v->key.kind), words);
}

static prhs_status make(prhs_cl_device *dev, prhs_cl_variant *v) {
    const struct prhs_cl_source *source = prhs_cl_source_of(v->key.kind, v->flavour);
    const double begin = now();
    double tested = 0.0;
    bool cached = true;
    prhs_status status = PRHS_OK;
    v->program = shared_program(dev, v);
    if (!v->program)
        status = prhs_cl_program_create(dev, source, v->options, &v->program, &cached);
    if (status == PRHS_OK)
        status = create_kernel(dev, v);
    if (status == PRHS_OK)
        status = first_launch(dev, v);
    /* What is shared, or comes from the cache, has passed. */
    if (status == PRHS_OK && !cached && !dev->untested) {
        tested = now();
        status = test(dev, v);
        tested = now() - tested;
    }
    /* Saved after the launches, so that PoCL's binary holds the finished machine code. */
    if (status == PRHS_OK && !cached)
        prhs_cl_program_save(dev, source, v->options, v->program);
    if (status == PRHS_OK)
        prhs_logf(&dev->head.log, PRHS_LOG_INFO, "opencl: %s %s in %.1f ms, self-test %.1f ms (%s)",
                  cached ? "loaded" : "compiled", prhs_op_name(v->key.kind), (now() - begin - tested) * 1e3, tested * 1e3,
                  v->options);
    return status;
}

/* Adds the variant of a key in a flavour; *unfit: the device cannot use it, another one may do. */
static prhs_status add(prhs_cl_device *dev, const prhs_op_key *key, prhs_cl_flavour flavour, bool *unfit) {
    prhs_cl_variant *v = calloc(1, sizeof *v);
    if (!v)
        return prhs_fail(&dev->head.log, PRHS_ERR_MEMORY, "opencl: no host memory for a kernel");
    v->key = *key;
    v->flavour = flavour;
    v->grid = (uint64_t)dev->head.info.compute_units * prhs_tuning_groups(&dev->head.tuning, key);
    pthread_mutex_init(&v->lock, NULL);
    prhs_cl_options(key, flavour, v->options);
    prhs_count(&dev->head.counters.allocations);
    dev->replaceable = flavour != PRHS_CL_GENERIC;
    prhs_status status = make(dev, v);
    if (status == PRHS_OK) {
        v->next = atomic_load_explicit(&dev->variants, memory_order_relaxed);
        atomic_store_explicit(&dev->variants, v, memory_order_release);
        return PRHS_OK;
    }
    *unfit = dev->replaceable && (status == PRHS_ERR_COMPILE || status == PRHS_ERR_UNSUPPORTED);
    /* For as long as the device is open: a compiler may have had a bad day. */
    if (*unfit && !prhs_cl_failed(dev, key, flavour))
        prhs_cl_failed_add(dev, v, PRHS_CL_UNBUILT, "");
    variant_free(v);
    return status;
}

prhs_status prhs_cl_op_prepare(prhs_device *device, const prhs_op_key *key) {
    prhs_cl_device *dev = prhs_cl_device_of(device);
    const char *why = NULL;
    prhs_cl_flavour flavour;
    prhs_status status = PRHS_OK;
    bool again = true;
    pthread_mutex_lock(&dev->prepare_lock);
    while (again && !prhs_cl_find_variant(dev, key)) {
        again = false;
        if (!prhs_cl_choose(dev, key, &flavour, &why)) {
            status = prhs_fail(&device->log, PRHS_ERR_UNSUPPORTED, "opencl: %s: %s", prhs_op_name(key->kind), why);
            break;
        }
        if (flavour == PRHS_CL_GENERIC && (prhs_cl_failed(dev, key, PRHS_CL_WIDE) || prhs_cl_failed(dev, key, PRHS_CL_GPU)))
            prhs_logf(&device->log, PRHS_LOG_WARN, "opencl: %s: %s, the generic one takes its place", prhs_op_name(key->kind),
                      why);
        status = add(dev, key, flavour, &again);
    }
    pthread_mutex_unlock(&dev->prepare_lock);
    return status;
}
