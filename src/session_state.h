/* SPDX-License-Identifier: Apache-2.0 */
/* The session object and what its files share. */
#ifndef PRHS_SESSION_STATE_H
#define PRHS_SESSION_STATE_H

#include <prhs/session.h>

#include "check.h"
#include "layout.h"

struct prhs_session {
    prhs_device *dev;
    prhs_session_params params;
    prhs_limits limits;
    prhs_layout layout;
    prhs_mem state, work;
    float *targets;          /* copy of the caller's, or NULL: params.targets */
    uint32_t *list_layers;   /* the same of params.list_layers */
    uint32_t aims;           /* the first layer with a target; layers: none has */
    bool retrieves;          /* the policy selects tokens at all */
    bool moments, values;    /* of the dropped keys: mass gate; of their values, too: retrieved residual */
    bool sums;               /* mean residual */
    bool recalls;            /* units choose among several references */
    bool audits;             /* some steps are audited, or all */
    uint32_t audit_limit;    /* prhs_k_sample.limit */
    uint32_t *factors;       /* [layers][2]: PSAW's and ETF's */
    prhs_event *fault_event; /* of the look at the error word that is in flight or was last seen */
    uint32_t *fault_word;    /* where it arrives: prhs_host_alloc() */
    uint32_t fault_bits;     /* what the last look saw */
    bool fault_in_flight, fault_seen;
};

/* A step's arguments, checked and translated. */
typedef struct prhs_step_args {
    uint32_t layer, kinds;
    bool append;
    prhs_k_batch batch;
    prhs_k_kv kv;
    prhs_k_rows q, k, v, out;
    prhs_i64 lse_off;
    prhs_buffer *seqs, *pages, *q_mem, *k_in, *v_in, *k_mem, *v_mem, *out_mem, *lse_mem;
} prhs_step_args;

#define PRHS_PLAN_MAX 16

/* The scheduler: the ops of one layer of one step, in order; returns how many. Depends on host data only (src/plan.c). */
size_t prhs_plan_step(const prhs_session *session, const prhs_step_args *step, prhs_op *ops);
/* The ops of attach (rebuild true) or truncation. */
size_t prhs_plan_truncate(const prhs_session *session, const prhs_step_args *step, bool rebuild, prhs_op *ops);

/* Layers that are sparse, and the index among them; -1: a dense layer. */
static inline uint32_t prhs_sparse_layers(const prhs_session_params *p) {
    return p->policy.dense_layers < p->layers ? p->layers - p->policy.dense_layers : 0;
}
/* The dropped mass that a layer's lists are made for; 0: none, in dense layers, too. */
static inline float prhs_target_of(const prhs_session_params *p, uint32_t layer) {
    return layer < p->policy.dense_layers ? 0.0f : p->targets ? p->targets[layer] : p->policy.target;
}
static inline prhs_i32 prhs_sparse_index(const prhs_session *s, uint32_t layer) {
    return layer < s->params.policy.dense_layers ? -1 : (prhs_i32)(layer - s->params.policy.dense_layers);
}

#endif
