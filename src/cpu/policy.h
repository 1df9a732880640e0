/* SPDX-License-Identifier: Apache-2.0 */
/* What plan and finish both know of the policy: the bounds of a step and the set that a retrieval starts from. */
#ifndef PRHS_CPU_POLICY_H
#define PRHS_CPU_POLICY_H

#include "rows.h"

typedef struct prhs_cpu_bounds {
    int win, start, low; /* w, P and the middle's begin */
} prhs_cpu_bounds;

static inline prhs_cpu_bounds prhs_cpu_bounds_at(const prhs_k_policy *p, int t) {
    prhs_cpu_bounds x;
    x.win = prhs_cpu_max(0, t + 1 - p->local_tokens);
    x.start = prhs_cpu_psaw(p->psaw, t);
    x.low = prhs_cpu_max(p->sinks, x.start);
    return x;
}

static inline prhs_set prhs_cpu_fresh(const prhs_k_policy *p, int t, int kv_len) {
    prhs_cpu_bounds x = prhs_cpu_bounds_at(p, t);
    return (prhs_set){ .mode = PRHS_MODE_RETRIEVE,
                       .sink_end = p->sinks,
                       .run = p->run,
                       .win_begin = x.win,
                       .end = kv_len,
                       .mid_begin = x.low,
                       .mid_end = x.win };
}

#endif
