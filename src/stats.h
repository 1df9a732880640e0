/* SPDX-License-Identifier: Apache-2.0 */
/* A statistics request, for those who add up what arrived: src/stats.c, src/audits.c. */
#ifndef PRHS_STATS_H
#define PRHS_STATS_H

#include "session_state.h"

struct prhs_stats_request {
    prhs_session *session;
    prhs_event *event;
    bool enqueued, arrived;
    size_t size;
    prhs_i64 *data; /* the statistics of all slots, as they lie on the device: prhs_host_alloc() */
};

/* What is asked for: [slot, slots) and [layer, layers); the dense layers keep no books. */
typedef struct prhs_span {
    uint32_t slot, slots, layer, layers;
} prhs_span;

/* PRHS_OK, and the span, once the copy is there. Never waits. */
prhs_status prhs_stats_arrive(prhs_stats_request *request, const char *call, uint32_t slot, uint32_t layer, prhs_span *span);

/* The statistics of a slot and a layer of the span. */
const prhs_unit_stat *prhs_stats_units(const prhs_stats_request *request, uint32_t slot, uint32_t layer);
const prhs_head_stat *prhs_stats_heads(const prhs_stats_request *request, uint32_t slot, uint32_t layer);

#endif
