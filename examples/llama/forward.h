/* SPDX-License-Identifier: Apache-2.0 */
/* Prompts and decode steps through all layers: a compute's parts around libprhs's attention. */
#ifndef FORWARD_H
#define FORWARD_H

#include "compute.h"
#include "record.h"

#define CHUNK 256        /* prompt rows at once */
#define PLAN_PROMPT 1    /* the plan of a prompt's chunk; PLAN_DECODE is 0 */
#define FORWARD_PLANS 2

typedef struct forward {
    engine e;
    engine_session s;
    compute *c;
    record record;       /* of all that is computed from here on, if there is one; goes without graphs */
    bool graphs;         /* decode steps are recorded once and replayed, where the compute can */
    bool recorded;
    prhs_event *event[2];
} forward;

typedef struct forward_params {
    engine_params engine;  /* rows and plans are set here */
    const char *linear;    /* of compute_open */
    bool half, graphs;
} forward_params;

/* Device, caches, weights; then a session with one policy at a time. */
bool forward_open(forward *f, const model *m, const forward_params *params, const prhs_log *log);
void forward_close(forward *f);
bool forward_session(forward *f, const prhs_policy *policy, const uint32_t *list_layers);

/* Before the prompts: every sequence is empty and its prompt will have lengths[sequence] tokens. */
bool forward_begin(forward *f, const uint32_t *lengths);
/* A sequence's whole prompt; its last row is row *last then. */
bool forward_prompt(forward *f, uint32_t seq, const int32_t *ids, uint32_t count, uint32_t *last);
/* The tokens that were chosen last, through all layers: row s belongs to sequence s. */
bool forward_layers(forward *f);

/* `count` steps: layers, then the likeliest tokens. Enqueued only. */
bool forward_steps(forward *f, uint32_t count);

/* `tokens`, [token][sequence], are there up to first + count; false: no more are wanted. */
typedef bool forward_sink(void *user, const int32_t *tokens, uint32_t first, uint32_t count);
/* Greedy tokens [1, count) of all sequences, the first ones being chosen already; they go to `sink` while later ones are on their way. */
bool forward_greedy(forward *f, uint32_t count, forward_sink *sink, void *user);

#endif
