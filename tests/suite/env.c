/* SPDX-License-Identifier: Apache-2.0 */
/* A tiny model with everything valid. */
#include <string.h>

#include "env.h"

static const t_shape *const shape = &t_shapes[S_G1_D32];

static void make_devices(t_ctx *t, t_env *e) {
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    params.backend = t->info.backend;
    params.index = t->info.index;
    params.caps_mask = t->opt->caps_mask;
    params.threads = 1;
    params.cache_dir = t->opt->cache_dir;
    e->device_params = params;
    e->dev = t->dev;
    e->queue = t->queue;
    T_OK(t, prhs_device_open(&params, &e->log, &e->second));
    t_own(t, T_DEVICE, e->second, 0);
    T_OK(t, prhs_queue_create(e->second, &e->queue2));
    t_own(t, T_QUEUE, e->queue2, 0);
    e->size = 256;
    e->mem = t_buffer(t, 4096).mem;
    e->buf = e->mem.buffer;
    e->dst = t_at(e->mem, 1024);
    T_OK(t, prhs_buffer_create(e->second, 4096, &e->buf2));
    t_own(t, T_FOREIGN, e->buf2, 0);
    e->mem2 = (prhs_mem){ e->buf2, 0 };
}

static void make_events(t_ctx *t, t_env *e) {
    T_OK(t, prhs_event_create(e->dev, &e->event));
    t_own(t, T_EVENT, e->event, 0);
    T_OK(t, prhs_event_create(e->second, &e->event2));
    t_own(t, T_EVENT, e->event2, 0);
    T_OK(t, prhs_event_create(e->dev, &e->fresh));
    t_own(t, T_EVENT, e->fresh, 0);
    T_OK(t, prhs_event_record(e->queue, e->event));
    T_OK(t, prhs_queue_finish(e->queue));
}

static void make_arrays(t_ctx *t, t_env *e) {
    t_layout layout = { .page = ENV_PAGE };
    uint32_t pages = ENV_SEQS * ENV_KV_LEN / ENV_PAGE;
    t_cache cache = t_cache_new(t, shape, layout, pages);
    t_batch batch = t_batch_new(t, ENV_SEQS, ENV_KV_LEN / ENV_PAGE, ENV_ROWS, 1);
    float *zero = t_alloc(t, ENV_ROWS * shape->heads * shape->dim * sizeof *zero);
    float row[2 * 256];
    for (uint32_t j = 0; j < ENV_KV_LEN; j++) {
        t_normals(row, 2 * 256, j);
        t_cache_row(&cache, (int32_t)(j / ENV_PAGE), j % ENV_PAGE, row, row + 256);
    }
    t_cache_upload(t, &cache);
    for (uint32_t i = 0; i < pages; i++)
        batch.pages[i] = (int32_t)i;
    t_batch_set(&batch, 0, 0, 0, 1, 40, 0);
    t_batch_upload(t, &batch);
    t_rows rows[4];
    for (int i = 0; i < 4; i++) {
        rows[i] = t_rows_new(t, PRHS_F32, ENV_ROWS, i ? shape->kv_heads : shape->heads, shape->dim, 0);
        t_normals(zero, ENV_ROWS * shape->kv_heads * shape->dim, (uint64_t)i);
        t_rows_put(t, &rows[i], zero);
    }
    e->q = rows[0].r;
    e->k = rows[1].r;
    e->v = rows[2].r;
    e->out = t_rows_new(t, PRHS_F32, ENV_ROWS, shape->heads, shape->dim, 0).r;
    e->lse = t_buffer(t, ENV_ROWS * shape->heads * 4).mem;
    e->kv = cache.kv;
    e->batch = batch.b;
}

static void make_ops(t_ctx *t, t_env *e) {
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    p.shape = (prhs_shape){ shape->heads, shape->kv_heads, shape->dim, 0 };
    p.max_seqs = ENV_SEQS;
    p.max_rows = ENV_ROWS;
    p.max_kv_len = ENV_KV_LEN;
    p.max_slots = ENV_SLOTS;
    p.list_cap = 8;
    p.kv_dtype = p.q_dtype = p.out_dtype = PRHS_F32;
    e->ops_params = p;
    e->layout.size = sizeof e->layout;
    T_OK(t, prhs_ops_get_layout(e->dev, &p, &e->layout));
    T_OK(t, prhs_ops_create(e->dev, &p, &e->ops));
    t_own(t, T_OPS, e->ops, 0);
    e->ops_state = t_buffer(t, e->layout.state_bytes).mem;
    e->ops_ws = t_buffer(t, e->layout.workspace_bytes).mem;
    T_OK(t, prhs_queue_fill(e->queue, e->ops_state, 0, e->layout.state_bytes & ~(uint64_t)3));
    T_OK(t, prhs_queue_fill(e->queue, e->ops_ws, 0, e->layout.workspace_bytes & ~(uint64_t)3));
    uint32_t n = ENV_ROWS * shape->heads, d = shape->dim;
    prhs_mem floats = t_buffer(t, 8u * n * d * 4).mem;
    T_OK(t, prhs_queue_fill(e->queue, floats, 0, 8u * n * d * 4));
    e->select = (prhs_select_params)PRHS_SELECT_PARAMS_INIT;
    e->select.k = 8;
    e->gate = (prhs_gate_params){ sizeof e->gate,
                                  ENV_ROWS,
                                  floats,
                                  t_at(floats, 4u * n * d),
                                  t_at(floats, 12u * n * d),
                                  t_at(floats, 14u * n * d),
                                  t_at(floats, 16u * n * d),
                                  t_at(floats, 20u * n * d),
                                  t_at(floats, 24u * n * d) };
    e->merge = (prhs_merge_params){ sizeof e->merge, 2, ENV_ROWS, floats, 0, 0, 0, t_at(floats, 12u * n * d), t_at(floats, 16u * n * d) };
    e->sign = 1;
}

static void make_session(t_ctx *t, t_env *e) {
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    T_OK(t, prhs_policy_preset("cis-mass", ENV_LAYERS, &e->policy));
    e->policy.k = 8;
    e->policy.sinks = 2;
    e->policy.local = 4;
    e->policy.dense_layers = 1;
    p.policy = e->policy;
    p.shape = e->ops_params.shape;
    p.layers = e->layers = ENV_LAYERS;
    p.max_slots = ENV_SLOTS;
    p.max_seqs = ENV_SEQS;
    p.max_rows = ENV_ROWS;
    p.max_kv_len = ENV_KV_LEN;
    p.kv_dtype = p.q_dtype = p.out_dtype = PRHS_F32;
    e->session_params = p;
    e->sizes.size = sizeof e->sizes;
    T_OK(t, prhs_session_get_sizes(e->dev, &p, &e->sizes));
    prhs_mem state = t_buffer(t, e->sizes.state).mem, ws = t_buffer(t, e->sizes.workspace).mem;
    T_OK(t, prhs_session_create(e->dev, &p, e->queue, state, ws, &e->session));
    t_own(t, T_SESSION, e->session, 0);
    e->own_state = state;
    e->state = t_buffer(t, e->sizes.state).mem;
    e->ws = t_buffer(t, e->sizes.workspace).mem;
    prhs_step step = PRHS_STEP_INIT;
    e->layer = step.layer = 1;
    step.batch = e->batch;
    step.kv = e->kv;
    step.q = e->q;
    step.k = e->k;
    step.v = e->v;
    step.out = e->out;
    step.lse = e->lse;
    e->step = step;
    e->slot = 0;
    e->slot2 = 1;
}

prhs_status t_env_step(t_env *e) { return prhs_session_step(e->session, e->queue, &e->step); }

void *t_env_state(t_env *e) {
    T_OK(e->t, prhs_session_export(e->session, e->queue, 0, e->blob_mem));
    return t_fetch(e->t, e->blob_mem, e->sizes.slot);
}

void t_env_make(t_ctx *t, t_env *e) {
    memset(e, 0, sizeof *e);
    e->t = t;
    e->log = (prhs_log){ PRHS_LOG_ERROR, t, t->on_message };
    make_devices(t, e);
    make_events(t, e);
    make_arrays(t, e);
    make_ops(t, e);
    make_session(t, e);
    T_OK(t, t_env_step(e));
    e->blob_mem = t_buffer(t, e->sizes.slot).mem;
    e->blob = t_env_state(e);
    T_OK(t, prhs_stats_request_create(e->session, &e->request));
    t_own(t, T_REQUEST, e->request, 0);
    T_OK(t, prhs_stats_request_create(e->session, &e->request2));
    t_own(t, T_REQUEST, e->request2, 0);
    T_OK(t, prhs_stats_request_enqueue(e->request, e->queue));
    T_OK(t, prhs_queue_finish(e->queue));
    e->stats.size = sizeof e->stats;
    e->head_stats.size = sizeof e->head_stats;
    e->audit.size = sizeof e->audit;
    e->audit.confidence = 0.95;
    e->info.size = e->infos[0].size = sizeof e->info;
    e->counters.size = sizeof e->counters;
    e->name = "cis";
    e->count = 8;
    t_hush(t);
}
