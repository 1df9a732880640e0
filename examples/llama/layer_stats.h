/* SPDX-License-Identifier: Apache-2.0 */
/* What a policy's session counted, by layer and query head, and the bytes of K and V that this took. */
#ifndef LAYER_STATS_H
#define LAYER_STATS_H

#include "engine.h"

typedef struct layer_stats {
    prhs_stats all;
    prhs_head_stats *heads; /* [heads] */
} layer_stats;

/* The estimate of shared steps beside the exact mass of the very same steps; n 0 and NaN where either is not known. */
typedef struct estimate_check {
    uint64_t n;
    double mean, exact_mean;
} estimate_check;

/* Of `layers` layers, all zeros. NULL: no memory. */
layer_stats *layer_stats_make(uint32_t layers, uint32_t heads);
/* All slots' statistics, and what audits say of all steps. NULL: no memory, or the device failed. */
layer_stats *layer_stats_take(engine *e, engine_session *s, prhs_stats *all, prhs_audit_report *audit);
void layer_stats_free(layer_stats *layers);

/* From masses of the same steps and heads, if every step was audited and either shared or retrieved. */
estimate_check check_estimate(const prhs_mass *retrieved, const prhs_mass *shared, const prhs_mass *audited);

/*
 * Bytes of K and V that a decode step of one sequence must read, all layers, at a mean length of n: the rows attended to, the keys that
 * retrievals score, the rows once more of shared steps whose mass gate failed. Counted by selection unit. *dense: what dense steps would read.
 */
double bytes_per_step(const engine *e, const engine_session *s, const layer_stats *layers, double n, double *dense);

#endif
