/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One valid argument for every parameter of every public call, on a tiny model: the error table and the NULL tests take one away
 * or spoil one, and expect the call to refuse.
 */
#ifndef PRHS_TEST_ENV_H
#define PRHS_TEST_ENV_H

#include "fixture.h"

#define ENV_LAYERS 2
#define ENV_SLOTS 3
#define ENV_SEQS 2
#define ENV_ROWS 4
#define ENV_KV_LEN 64
#define ENV_PAGE 16

typedef struct t_env {
    t_ctx *t;
    prhs_log log;
    /* tier 1 */
    prhs_device_params device_params;
    prhs_device *dev;
    prhs_device *second;        /* another open device of the same backend */
    prhs_queue *queue, *queue2; /* of dev and of second */
    prhs_buffer *buf, *buf2;    /* 4096 bytes each, of dev and of second */
    prhs_event *event, *event2; /* recorded on dev; not recorded on second */
    prhs_event *fresh;          /* of dev, never recorded */
    prhs_mem mem, mem2, dst;
    size_t size;
    _Alignas(16) uint64_t space[64];
    /* tier 2 */
    prhs_ops_params ops_params;
    prhs_ops_layout layout;
    prhs_ops *ops;
    prhs_mem ops_state, ops_ws;
    prhs_kv kv;
    prhs_batch batch;
    prhs_rows q, k, v, out;
    prhs_mem lse;
    prhs_select_params select;
    prhs_gate_params gate;
    prhs_merge_params merge;
    int sign, moments;
    /* tier 3 */
    prhs_policy policy;
    uint32_t layers, layer, slot, slot2, unit, head;
    prhs_session_params session_params;
    float targets[ENV_LAYERS];
    uint32_t list_layers[ENV_LAYERS]; /* both layers the first one's */
    prhs_session_sizes sizes;
    prhs_session *session;
    prhs_mem own_state; /* of the session */
    prhs_mem state, ws; /* of a second session that a case may make */
    prhs_step step;
    prhs_mem blob_mem;
    void *blob;                             /* a slot's export on the host */
    prhs_stats_request *request, *request2; /* filled; never enqueued */
    prhs_stats stats;
    prhs_head_stats head_stats;
    prhs_audit_report audit;
    /* where calls put what they make */
    prhs_device_info info;
    prhs_device_info infos[8];
    prhs_op_path paths[8];
    size_t count;
    prhs_counters counters;
    prhs_device *new_dev;
    prhs_buffer *new_buf;
    prhs_queue *new_queue;
    prhs_event *new_event;
    prhs_ops *new_ops;
    prhs_session *new_session;
    prhs_stats_request *new_request;
    prhs_unit_view view;
    const char *why, *name;
    double elapsed;
    int no_infos;
} t_env;

/* Everything valid; one decode step was run, so that slot 0 has state. */
void t_env_make(t_ctx *t, t_env *e);
/* A valid step of sequence 0 (slot 0), one row, at length `len`: writes the batch and enqueues layer 0. */
prhs_status t_env_step(t_env *e);
/* Exports slot 0 to the host: what must not change when a call is refused. */
void *t_env_state(t_env *e);

#endif
