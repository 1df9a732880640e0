/* SPDX-License-Identifier: Apache-2.0 */
/* What is decided and loaded before anything runs. */
#include "fill.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

prhs_chunking prhs_nv_chunking(const prhs_device *dev, const prhs_op_key *key) {
    /* The same for all devices; it is part of the bits and no tuning knob. */
    (void)dev, (void)key;
    return (prhs_chunking){
        .attend_min = 48, .attend_chunks = 128, .score_min = 64, .score_chunks = 128, .prefill_tile = 64, .counts = true
    };
}

const char *prhs_nv_op_supported(const prhs_device *dev, const prhs_op_key *key, const char **why) {
    prhs_nv_choice choice;
    return prhs_nv_choose(prhs_nv_device_of(dev), key, &choice, why) ? choice.path : NULL;
}

static bool same_key(const prhs_op_key *a, const prhs_op_key *b) {
    return a->kind == b->kind && a->dim == b->dim && a->unit_heads == b->unit_heads && a->group == b->group &&
           a->kv_dtype == b->kv_dtype && a->q_dtype == b->q_dtype && a->out_dtype == b->out_dtype && a->moments == b->moments;
}

const prhs_nv_variant *prhs_nv_find(prhs_nv_device *dev, const prhs_op_key *key) {
    const prhs_nv_variant *v = atomic_load_explicit(&dev->variants[key->kind], memory_order_acquire);
    while (v && !same_key(&v->key, key))
        v = v->next;
    return v;
}

static double now(void) {
    struct timespec t;
    return timespec_get(&t, TIME_UTC) ? (double)t.tv_sec + 1e-9 * (double)t.tv_nsec : 0.0;
}

/* One kernel with two sizes of shared memory counts as two: launches take the size, and the blocks that fit, from here. */
static bool serves(const prhs_nv_kernel *kernel, const prhs_nv_choice *choice) {
    return strcmp(kernel->choice.name, choice->name) == 0 && (choice->sized || kernel->choice.shared == choice->shared);
}

/* The kernel of a choice, loaded once a device; the caller holds prepare_lock. */
static prhs_status kernel_of(prhs_nv_device *dev, const prhs_nv_choice *choice, prhs_nv_kernel **out) {
    for (prhs_nv_kernel *k = dev->kernels; k; k = k->next)
        if (serves(k, choice)) {
            *out = k;
            return PRHS_OK;
        }
    const double begin = now();
    prhs_nv_kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel)
        return prhs_fail(&dev->head.log, PRHS_ERR_MEMORY, "cuda: no host memory for a kernel");
    prhs_count(&dev->head.counters.allocations);
    kernel->choice = *choice;
    prhs_status status = prhs_nv_enter(&dev->head);
    if (status == PRHS_OK) {
        status = prhs_nv_kernel_load(dev, kernel);
        prhs_nv_leave();
    }
    if (status != PRHS_OK) {
        free(kernel);
        return status;
    }
    prhs_logf(&dev->head.log, PRHS_LOG_INFO, "cuda: loaded %s in %.1f ms, %u blocks of %u a multiprocessor", choice->name,
              (now() - begin) * 1e3, kernel->resident, choice->threads);
    kernel->next = dev->kernels;
    dev->kernels = kernel;
    *out = kernel;
    return PRHS_OK;
}

static unsigned units_of(const prhs_nv_device *dev) { return dev->head.info.compute_units ? dev->head.info.compute_units : 1; }

/* Adds a variant; the caller holds prepare_lock. */
static prhs_status prepare(prhs_nv_device *dev, const prhs_op_key *key, const prhs_nv_choice *choice) {
    prhs_nv_kernel *kernel = NULL;
    prhs_status status = kernel_of(dev, choice, &kernel);
    if (status != PRHS_OK)
        return status;
    prhs_nv_variant *v = calloc(1, sizeof *v);
    if (!v)
        return prhs_fail(&dev->head.log, PRHS_ERR_MEMORY, "cuda: no host memory for a kernel");
    prhs_count(&dev->head.counters.allocations);
    v->key = *key;
    v->kernel = kernel;
    /* Blocks that take turns are all resident; of a sized kernel it is known with the size how many are. */
    const unsigned tuned = key->moments & PRHS_NV_WHOLE ? 0 : prhs_tuning_groups(&dev->head.tuning, key);
    v->grid = choice->sized ? UINT_MAX : kernel->resident * units_of(dev);
    if (tuned && tuned <= v->grid / units_of(dev))
        v->grid = tuned * units_of(dev);
    v->next = atomic_load_explicit(&dev->variants[key->kind], memory_order_relaxed);
    atomic_store_explicit(&dev->variants[key->kind], v, memory_order_release);
    return PRHS_OK;
}

/* What a key has in place of its moments for the kernel that may be launched before its own; the same: there is none. */
static prhs_i32 launched_before(const prhs_op_key *key) {
    if (key->moments >= PRHS_NV_COUNTS || (key->kind != PRHS_OP_SCORE && key->kind != PRHS_OP_ATTEND))
        return key->moments;
    return key->moments == PRHS_K_MOMENTS_VALUES ? PRHS_K_MOMENTS_KEYS : PRHS_NV_COUNTS;
}

prhs_status prhs_nv_op_prepare(prhs_device *device, const prhs_op_key *key) {
    prhs_nv_device *dev = prhs_nv_device_of(device);
    prhs_nv_choice choice;
    const char *why = NULL;
    if (!prhs_nv_choose(dev, key, &choice, &why))
        return prhs_fail(&device->log, PRHS_ERR_UNSUPPORTED, "cuda: %s: %s", prhs_op_name(key->kind), why);
    const prhs_i32 before = launched_before(key);
    if (before != key->moments) {
        prhs_op_key first = *key;
        first.moments = before;
        prhs_status status = prhs_nv_op_prepare(device, &first);
        if (status != PRHS_OK)
            return status;
    }
    if (prhs_nv_whole_exists(dev, key)) {
        prhs_op_key whole = *key;
        whole.moments |= PRHS_NV_WHOLE;
        prhs_status status = prhs_nv_op_prepare(device, &whole);
        if (status != PRHS_OK)
            return status;
    }
    pthread_mutex_lock(&dev->prepare_lock);
    prhs_status status = prhs_nv_find(dev, key) ? PRHS_OK : prepare(dev, key, &choice);
    pthread_mutex_unlock(&dev->prepare_lock);
    if (status != PRHS_OK || choice.teams || !prhs_nv_teams_exist(dev, key))
        return status;
    prhs_op_key teams = *key;
    teams.moments |= PRHS_NV_TEAM;
    return prhs_nv_op_prepare(device, &teams);
}

void prhs_nv_kernels_free(prhs_nv_device *dev) {
    for (int kind = 0; kind < PRHS_OP_COUNT; kind++)
        for (prhs_nv_variant *next, *v = atomic_load_explicit(&dev->variants[kind], memory_order_acquire); v; v = next) {
            next = v->next;
            free(v);
        }
    const bool inside = dev->context && prhs_nv_enter(&dev->head) == PRHS_OK;
    while (dev->kernels) {
        prhs_nv_kernel *next = dev->kernels->next;
        if (inside)
            prhs_nv_kernel_unload(dev, dev->kernels);
        free(dev->kernels);
        dev->kernels = next;
    }
    if (inside) {
        prhs_nv_modules_unload(dev);
        prhs_nv_leave();
    }
}
