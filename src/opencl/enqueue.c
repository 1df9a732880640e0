/* SPDX-License-Identifier: Apache-2.0 */
/* Ops: choosing, preparing and launching their kernels. */
#include "host.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

prhs_chunking prhs_cl_chunking(const prhs_device *dev, const prhs_op_key *key) {
    /* The same for both flavours; it is part of the bits and no tuning knob. */
    (void)dev, (void)key;
    return (prhs_chunking){ .attend_min = 256, .attend_chunks = 64, .score_min = 512, .score_chunks = 32, .prefill_tile = 16 };
}

const char *prhs_cl_op_supported(const prhs_device *dev, const prhs_op_key *key, const char **why) {
    prhs_cl_flavour flavour;
    return prhs_cl_choose(prhs_cl_device_of(dev), key, &flavour, why) ? prhs_cl_flavour_name(flavour) : NULL;
}

static bool same_key(const prhs_op_key *a, const prhs_op_key *b) {
    return a->kind == b->kind && a->dim == b->dim && a->unit_heads == b->unit_heads && a->group == b->group &&
           a->kv_dtype == b->kv_dtype && a->q_dtype == b->q_dtype && a->out_dtype == b->out_dtype && a->moments == b->moments;
}

static prhs_cl_variant *find(prhs_cl_device *dev, const prhs_op_key *key) {
    prhs_cl_variant *v = atomic_load_explicit(&dev->variants, memory_order_acquire);
    while (v && !same_key(&v->key, key))
        v = v->next;
    return v;
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

/* Sets the arguments and launches; the caller holds the variant's lock. */
static prhs_status launch(prhs_cl_device *dev, prhs_cl_variant *v, cl_command_queue queue, const prhs_op *op, size_t groups) {
    const prhs_log *log = &dev->head.log;
    const int mems = prhs_op_mems(op->kind);
    size_t size = 0;
    const void *args = prhs_op_args(op, &size);
    cl_int error = CL_SUCCESS;
    for (int i = 0; i < mems && error == CL_SUCCESS; i++) {
        /* Never NULL: drivers differ in what a NULL buffer does to a kernel that does not touch it. */
        cl_mem mem = op->mem[i] ? prhs_cl_mem_of(op->mem[i]) : dev->dummy;
        error = prhs_cl.SetKernelArg(v->kernel, (cl_uint)i, sizeof mem, &mem);
    }
    if (error == CL_SUCCESS)
        error = prhs_cl.SetKernelArg(v->kernel, (cl_uint)mems, size, args);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(log, "clSetKernelArg", error);
    const size_t local = prhs_cl_local(v->flavour), global = groups * local;
    error = prhs_cl.EnqueueNDRangeKernel(queue, v->kernel, 1, NULL, &global, &local, 0, NULL, NULL);
    return error == CL_SUCCESS ? PRHS_OK : prhs_cl_fail(log, "clEnqueueNDRangeKernel", error);
}

static prhs_status enqueue(prhs_queue *queue, const prhs_op *op) {
    prhs_cl_device *dev = prhs_cl_device_of(queue->dev);
    const prhs_op_key key = prhs_op_key_of(op);
    prhs_cl_variant *v = find(dev, &key);
    if (!v)
        return prhs_fail(&dev->head.log, PRHS_ERR_STATE, "opencl: %s was never prepared for this head size and these dtypes",
                         prhs_op_name(op->kind));
    const size_t groups = prhs_cl_groups(v->grid, op);
    pthread_mutex_lock(&v->lock);
    prhs_status status = launch(dev, v, prhs_cl_queue_of(queue), op, groups);
    pthread_mutex_unlock(&v->lock);
    if (status == PRHS_OK)
        prhs_count(&dev->head.counters.launches);
    if (status == PRHS_OK && v->flavour == PRHS_CL_GENERIC)
        prhs_count(&dev->head.counters.generic);
    return status;
}

prhs_status prhs_cl_ops_enqueue(prhs_queue *queue, const prhs_op *ops, size_t n) {
    prhs_status status = PRHS_OK;
    for (size_t i = 0; i < n && status == PRHS_OK; i++)
        status = enqueue(queue, &ops[i]);
    return status;
}

/* One launch with all-zero arguments, hence no items: drivers that compile at the first launch (PoCL) do it here. */
static prhs_status first_launch(prhs_cl_device *dev, prhs_cl_variant *v) {
    prhs_op op;
    memset(&op, 0, sizeof op);
    op.kind = v->key.kind;
    prhs_status status = launch(dev, v, dev->prepare_queue, &op, 1);
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
    if (most < prhs_cl_local(v->flavour))
        return prhs_fail(&dev->head.log, PRHS_ERR_UNSUPPORTED, "opencl: %s runs in work-groups of at most %zu on this device", name, most);
    return PRHS_OK;
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

static prhs_status make(prhs_cl_device *dev, prhs_cl_variant *v) {
    const struct prhs_cl_source *source = prhs_cl_source_of(v->key.kind);
    const double begin = now();
    bool cached = true;
    prhs_status status = PRHS_OK;
    v->program = shared_program(dev, v);
    if (!v->program)
        status = prhs_cl_program_create(dev, source, v->options, &v->program, &cached);
    if (status == PRHS_OK)
        status = create_kernel(dev, v);
    if (status == PRHS_OK)
        status = first_launch(dev, v);
    /* Saved after the launch, so that PoCL's binary holds the finished machine code. */
    if (status == PRHS_OK && !cached)
        prhs_cl_program_save(dev, source, v->options, v->program);
    if (status == PRHS_OK)
        prhs_logf(&dev->head.log, PRHS_LOG_INFO, "opencl: %s %s in %.1f ms (%s)", cached ? "loaded" : "compiled",
                  prhs_op_name(v->key.kind), (now() - begin) * 1e3, v->options);
    return status;
}

prhs_status prhs_cl_op_prepare(prhs_device *device, const prhs_op_key *key) {
    prhs_cl_device *dev = prhs_cl_device_of(device);
    const char *why = NULL;
    prhs_cl_flavour flavour;
    if (!prhs_cl_choose(dev, key, &flavour, &why))
        return prhs_fail(&device->log, PRHS_ERR_UNSUPPORTED, "opencl: %s: %s", prhs_op_name(key->kind), why);
    pthread_mutex_lock(&dev->prepare_lock);
    prhs_status status = PRHS_OK;
    if (!find(dev, key)) {
        prhs_cl_variant *v = calloc(1, sizeof *v);
        if (v) {
            v->key = *key;
            v->flavour = flavour;
            v->grid = (uint64_t)device->info.compute_units * prhs_tuning_groups(&device->tuning, key);
            pthread_mutex_init(&v->lock, NULL);
            prhs_cl_options(key, flavour, v->options);
            prhs_count(&device->counters.allocations);
            status = make(dev, v);
        } else {
            status = prhs_fail(&device->log, PRHS_ERR_MEMORY, "opencl: no host memory for a kernel");
        }
        if (status == PRHS_OK) {
            v->next = atomic_load_explicit(&dev->variants, memory_order_relaxed);
            atomic_store_explicit(&dev->variants, v, memory_order_release);
        } else if (v) {
            variant_free(v);
        }
    }
    pthread_mutex_unlock(&dev->prepare_lock);
    return status;
}
