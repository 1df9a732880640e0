/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Variants that this device and driver compile wrongly, or not at all. Known by the key of their program, which holds device,
 * driver, library and source: with another driver they get another chance. Wrong ones are remembered beside the programs.
 */
#include "host.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_REMEMBERED 512

struct prhs_cl_failure {
    prhs_cl_failure *next;
    prhs_cl_cache_key key;
    prhs_cl_verdict verdict;
};

static void add(prhs_cl_device *dev, const prhs_cl_cache_key *key, prhs_cl_verdict verdict) {
    prhs_cl_failure *f = malloc(sizeof *f);
    if (!f)
        return;
    *f = (prhs_cl_failure){ atomic_load_explicit(&dev->failures, memory_order_relaxed), *key, verdict };
    atomic_store_explicit(&dev->failures, f, memory_order_release);
}

void prhs_cl_verdicts_load(prhs_cl_device *dev) {
    prhs_cl_cache_key keys[MAX_REMEMBERED];
    const size_t n = dev->cache_dir ? prhs_cl_cache_list(dev->cache_dir, PRHS_CL_CACHE_FAILED, keys, MAX_REMEMBERED) : 0;
    for (size_t i = 0; i < n; i++) {
        size_t size = 0;
        void *words = prhs_cl_cache_load(dev->cache_dir, PRHS_CL_CACHE_FAILED, &keys[i], &dev->head.log, &size);
        if (words)
            add(dev, &keys[i], PRHS_CL_WRONG);
        free(words);
    }
}

void prhs_cl_verdicts_free(prhs_cl_device *dev) {
    prhs_cl_failure *f = atomic_load_explicit(&dev->failures, memory_order_acquire);
    while (f) {
        prhs_cl_failure *next = f->next;
        free(f);
        f = next;
    }
}

const char *prhs_cl_failed(const prhs_cl_device *dev, const prhs_op_key *key, prhs_cl_flavour flavour) {
    static const char *const words[3][2] = {
        [PRHS_CL_GENERIC] = { [PRHS_CL_WRONG] = "the generic kernel failed its self-test on this device and driver",
                              [PRHS_CL_UNBUILT] = "the generic kernel does not build on this device" },
        [PRHS_CL_WIDE] = { [PRHS_CL_WRONG] = "the wide kernel failed its self-test on this device and driver",
                           [PRHS_CL_UNBUILT] = "the wide kernel does not build on this device" },
        [PRHS_CL_GPU] = { [PRHS_CL_WRONG] = "the gpu kernel failed its self-test on this device and driver",
                          [PRHS_CL_UNBUILT] = "the gpu kernel does not build on this device" },
    };
    const prhs_cl_failure *f = atomic_load_explicit(&dev->failures, memory_order_acquire);
    const struct prhs_cl_source *source = prhs_cl_source_of(key->kind, flavour);
    if (!f || !source)
        return NULL;
    char options[PRHS_CL_OPTIONS_MAX];
    prhs_cl_options(key, flavour, options);
    const prhs_cl_cache_key program = prhs_cl_program_key(dev, source, options);
    while (f && memcmp(&f->key, &program, sizeof program) != 0)
        f = f->next;
    return f ? words[flavour][f->verdict] : NULL;
}

void prhs_cl_failed_add(prhs_cl_device *dev, const prhs_cl_variant *v, prhs_cl_verdict verdict, const char *words) {
    const prhs_cl_cache_key key = prhs_cl_program_key(dev, prhs_cl_source_of(v->key.kind, v->flavour), v->options);
    add(dev, &key, verdict);
    if (verdict == PRHS_CL_WRONG && dev->cache_dir)
        prhs_cl_cache_store(dev->cache_dir, PRHS_CL_CACHE_FAILED, &key, words, strlen(words));
}
