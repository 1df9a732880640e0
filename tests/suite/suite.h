/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conformance and session suite, shared by `meson test` and `prhs verify`. It uses the public headers and the oracle only.
 */
#ifndef PRHS_SUITE_H
#define PRHS_SUITE_H

#include <prhs/prhs.h>

typedef struct prhs_suite_options {
    prhs_backend_kind backend;
    uint32_t index;        /* of the device within its backend */
    uint32_t caps_mask;    /* capabilities that may be used */
    uint32_t threads;      /* cpu: host threads, 0: one a core */
    const char *cache_dir; /* as prhs_device_params */
    const char *filter;    /* run cases whose "group/row" contains this; NULL: all */
    uint64_t seed;
    int quick;   /* the short half of every table */
    int verbose; /* a line for every case, with its time */
    int kernels; /* a line for every kernel and op launched for the first time (cuda), compiled or loaded (opencl) */
    void (*log)(void *user, const char *line);
    void *user;
} prhs_suite_options;

typedef struct prhs_suite_result {
    unsigned passed, failed, skipped;
    double worst;         /* largest error of an output row as a share of its bar; 0: none was compared */
    char worst_case[160]; /* where */
} prhs_suite_result;

#define PRHS_SUITE_PASS 0
#define PRHS_SUITE_FAIL 1
#define PRHS_SUITE_NO_DEVICE 77

/* Runs the suite on one device. Returns PRHS_SUITE_*. */
int prhs_suite_run(const prhs_suite_options *options, prhs_suite_result *result);

/* Calls `line` for every case name ("group/row"). */
void prhs_suite_list(void (*line)(void *user, const char *name), void *user);

#endif
