/* SPDX-License-Identifier: Apache-2.0 */
/* The ops tier: each public call checks, fills one op (attend: two) and enqueues it. */
#include <stdlib.h>

#include <prhs/ops.h>

#include "check.h"
#include "layout.h"
#include "policy/window.h"

struct prhs_ops {
    prhs_device *dev;
    prhs_limits limits;
    prhs_layout layout;
    prhs_chunking chunking;
};

static prhs_status resolve(prhs_device *dev, const prhs_ops_params *p, const char *call, prhs_ops *o) {
    const prhs_log *log = &dev->log;
    prhs_status status;
    if ((status = prhs_check_size(log, call, "params->size", p->size, sizeof *p)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_slots", p->max_slots, 1 << 16)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_seqs", p->max_seqs, 1 << 16)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_rows", p->max_rows, 1 << 24)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "decode_rows", p->decode_rows, 64)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_kv_len", p->max_kv_len, 1 << 24)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "list_cap", p->list_cap, p->max_kv_len)) != PRHS_OK ||
        (status = prhs_check_dtypes(log, call, p->kv_dtype, p->q_dtype, p->out_dtype)) != PRHS_OK)
        return status;
    prhs_k_shape shape;
    if ((status = prhs_check_shape(log, call, &p->shape, p->per_head != 0, &shape)) != PRHS_OK)
        return status;
    prhs_op_key key = { .kind = PRHS_OP_ATTEND, .dim = shape.dim, .unit_heads = shape.unit_heads, .group = shape.group,
                        .kv_dtype = (prhs_i32)p->kv_dtype, .q_dtype = (prhs_i32)p->q_dtype };
    o->dev = dev;
    o->limits = (prhs_limits){
        .dev = dev, .call = call, .shape = shape, .max_slots = (prhs_i32)p->max_slots, .max_seqs = (prhs_i32)p->max_seqs,
        .max_rows = (prhs_i32)p->max_rows, .decode_rows = (prhs_i32)p->decode_rows, .max_kv_len = (prhs_i32)p->max_kv_len,
        .kv_dtype = p->kv_dtype, .q_dtype = p->q_dtype, .out_dtype = p->out_dtype,
    };
    o->chunking = dev->backend->chunking(dev, &key);
    prhs_extent extent = {
        .shape = shape, .layers = 1, .max_slots = o->limits.max_slots, .max_seqs = o->limits.max_seqs,
        .rows = o->limits.decode_rows, .max_kv_len = o->limits.max_kv_len, .list_cap = (prhs_i32)p->list_cap, .lists = true,
        .moments = true, .values = true, .sums = true, .stats = false, .scores = true, .chunking = o->chunking,
    };
    if (!prhs_layout_make(&extent, &o->layout))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: the capacities together ask for more than 2^60 bytes of state", call);
    return PRHS_OK;
}

prhs_status prhs_ops_get_layout(prhs_device *device, const prhs_ops_params *params, prhs_ops_layout *layout) {
    if (!device || !params || !layout)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_ops_get_layout: NULL argument");
    prhs_ops o;
    prhs_status status = prhs_check_size(&device->log, "prhs_ops_get_layout", "layout->size", layout->size, sizeof *layout);
    if (status == PRHS_OK)
        status = resolve(device, params, "prhs_ops_get_layout", &o);
    if (status != PRHS_OK)
        return status;
    const prhs_k_state *k = &o.layout.state;
    const prhs_k_work *w = &o.layout.work;
    *layout = (prhs_ops_layout){
        .size = sizeof *layout,
        .state_bytes = (uint64_t)o.layout.state_bytes, .slot_bytes = (uint64_t)k->slot_bytes, .lists = (uint64_t)k->list_off,
        .queries = (uint64_t)k->qref_off, .masses = (uint64_t)k->head_off, .moments = (uint64_t)k->moment_off,
        .spreads = (uint64_t)k->spread_off,
        .values = (uint64_t)k->vhat_off, .sums = (uint64_t)k->vsum_off, .counts = (uint64_t)k->vcount_off,
        .workspace_bytes = (uint64_t)o.layout.work_bytes,
        .sets = (uint64_t)w->set_off, .scores = (uint64_t)w->score_off, .score_stride = (uint64_t)w->score_stride,
        .units = (uint32_t)o.limits.shape.units,
    };
    return PRHS_OK;
}

/* Every op that a call below may enqueue, with just the members that its key reads. */
enum { VARIANTS = 12 };

static void variants(const prhs_ops *o, prhs_op_key keys[VARIANTS]) {
    const prhs_k_shape shape = o->limits.shape;
    const prhs_k_kv kv = { .dtype = (prhs_i32)o->limits.kv_dtype };
    const prhs_k_rows q = { .dtype = (prhs_i32)o->limits.q_dtype }, out = { .dtype = (prhs_i32)o->limits.out_dtype };
    const prhs_op ops[VARIANTS] = {
        { .kind = PRHS_OP_APPEND, .args.append = { .shape = shape, .kv = kv, .k = q, .v = q } },
        { .kind = PRHS_OP_RANGE_SUM, .args.range_sum = { .shape = shape, .kv = kv } },
        { .kind = PRHS_OP_SCORE, .args.score = { .shape = shape, .kv = kv, .q = q, .moments = 0 } },
        { .kind = PRHS_OP_SCORE, .args.score = { .shape = shape, .kv = kv, .q = q, .moments = PRHS_K_MOMENTS_KEYS } },
        { .kind = PRHS_OP_SCORE, .args.score = { .shape = shape, .kv = kv, .q = q, .moments = PRHS_K_MOMENTS_VALUES } },
        { .kind = PRHS_OP_SELECT, .args.select = { .shape = shape, .q = q } },
        { .kind = PRHS_OP_MOMENTS, .args.moments = { .shape = shape, .kv = kv } },
        { .kind = PRHS_OP_GATE, .args.gate = { .shape = shape, .q = q } },
        { .kind = PRHS_OP_ATTEND, .args.attend = { .shape = shape, .kv = kv, .q = q } },
        { .kind = PRHS_OP_COMBINE, .args.combine = { .shape = shape, .out = out } },
        { .kind = PRHS_OP_PREFILL, .args.prefill = { .shape = shape, .kv = kv, .q = q, .out = out } },
        { .kind = PRHS_OP_MERGE, .args.merge = { .shape = shape, .out = out } },
    };
    for (int i = 0; i < VARIANTS; i++)
        keys[i] = prhs_op_key_of(&ops[i]);
}

prhs_status prhs_ops_get_paths(prhs_device *device, const prhs_ops_params *params, prhs_op_path *paths, size_t *count) {
    if (!device || !params || !count || (!paths && *count > 0))
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_ops_get_paths: NULL argument");
    prhs_ops o;
    prhs_status status = resolve(device, params, "prhs_ops_get_paths", &o);
    if (status != PRHS_OK)
        return status;
    prhs_op_key keys[VARIANTS];
    variants(&o, keys);
    for (size_t i = 0; i < VARIANTS && i < *count; i++) {
        paths[i].op = prhs_op_name(keys[i].kind);
        if (keys[i].moments)
            paths[i].op = keys[i].moments == PRHS_K_MOMENTS_VALUES ? "score+values" : "score+moments";
        paths[i].path = device->backend->op_supported(device, &keys[i], &paths[i].why);
    }
    *count = VARIANTS;
    return PRHS_OK;
}

static prhs_status prepare(const prhs_ops *o) {
    prhs_op_key keys[VARIANTS];
    variants(o, keys);
    for (int i = 0; i < VARIANTS; i++) {
        const char *why = NULL;
        if (!o->dev->backend->op_supported(o->dev, &keys[i], &why))
            return prhs_fail(&o->dev->log, PRHS_ERR_UNSUPPORTED, "prhs_ops_create: %s: %s", prhs_op_name(keys[i].kind), why);
        prhs_status status = o->dev->backend->op_prepare(o->dev, &keys[i]);
        if (status != PRHS_OK)
            return status;
    }
    return PRHS_OK;
}

prhs_status prhs_ops_create(prhs_device *device, const prhs_ops_params *params, prhs_ops **ops) {
    if (ops)
        *ops = NULL;
    if (!device || !params || !ops)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_ops_create: NULL argument");
    prhs_count(&device->counters.allocations);
    prhs_ops *o = calloc(1, sizeof *o);
    if (!o)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_ops_create: no host memory");
    prhs_status status = resolve(device, params, "prhs_ops_create", o);
    if (status == PRHS_OK)
        status = prepare(o);
    if (status != PRHS_OK) {
        free(o);
        return status;
    }
    prhs_device_retain(device);
    *ops = o;
    return PRHS_OK;
}

void prhs_ops_destroy(prhs_ops *ops) {
    if (!ops)
        return;
    prhs_device_release(ops->dev);
    free(ops);
}

/* A call in the making: what was checked so far, and the first status that was not OK. */
typedef struct call {
    prhs_limits limits;
    prhs_status status;
    prhs_k_batch batch;
    prhs_k_kv kv;
} call;

static prhs_status null_argument(const prhs_ops *ops, const char *name) {
    return prhs_fail(ops ? &ops->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", name);
}

static call start(const prhs_ops *ops, const char *name, const prhs_queue *queue) {
    call c = { .limits = ops->limits };
    c.limits.call = name;
    c.status = prhs_check_queue(&c.limits, queue);
    return c;
}

static void check_batch(call *c, const prhs_batch *batch, bool pages) {
    if (c->status == PRHS_OK)
        c->status = prhs_check_batch(&c->limits, batch, pages, &c->batch);
}

static void check_kv(call *c, const prhs_kv *kv) {
    if (c->status == PRHS_OK)
        c->status = prhs_check_kv(&c->limits, kv, &c->kv);
    if (c->status == PRHS_OK)
        prhs_limit_pages(&c->batch, &c->kv);
}

static prhs_k_rows check_rows(call *c, const char *name, const prhs_rows *rows, uint32_t count, prhs_i32 heads, prhs_dtype dtype) {
    prhs_k_rows out = { .dtype = (prhs_i32)dtype };
    if (c->status == PRHS_OK)
        c->status = prhs_check_rows(&c->limits, name, rows, count, (uint32_t)heads, dtype, &out);
    return out;
}

static void check_size(call *c, size_t size, size_t known) {
    if (c->status == PRHS_OK)
        c->status = prhs_check_size(&c->limits.dev->log, c->limits.call, "params->size", size, known);
}

/* float32 arrays; returns the offset or PRHS_NONE. */
static prhs_i64 check_floats(call *c, const char *name, prhs_mem mem, uint64_t count, bool optional) {
    if (c->status == PRHS_OK)
        c->status = prhs_check_mem(&c->limits, name, mem, prhs_reach(count, 4, 0), 4, optional);
    return mem.buffer ? (prhs_i64)mem.offset : PRHS_NONE;
}

static prhs_k_state check_state(const prhs_ops *ops, call *c, prhs_mem state, bool optional) {
    if (c->status == PRHS_OK)
        c->status = prhs_check_mem(&c->limits, "state", state, (uint64_t)ops->layout.state_bytes, PRHS_ALIGN, optional);
    prhs_k_state k = prhs_layout_state(&ops->layout, 0, state.offset);
    /* Engines keep their own books: no unit states, statistics or error word in this tier. */
    k.unit_off = k.unit_stat_off = k.head_stat_off = k.fault_off = PRHS_NONE;
    if (!state.buffer)
        k.vsum_off = k.vcount_off = PRHS_NONE;
    return k;
}

static prhs_k_work check_work(const prhs_ops *ops, call *c, prhs_mem ws) {
    if (c->status == PRHS_OK)
        c->status = prhs_check_mem(&c->limits, "ws", ws, (uint64_t)ops->layout.work_bytes, PRHS_ALIGN, false);
    prhs_k_work w = prhs_layout_work(&ops->layout, ws.offset);
    w.work_off = w.attend_count_off = w.score_count_off = w.judge_off = w.fresh_off = w.active_off = PRHS_NONE;
    return w;
}

/* Room for the counts of a backend that keeps them, and that has to count itself here. */
static void keep_counts(const prhs_ops *ops, prhs_mem ws, prhs_k_work *w) {
    const prhs_k_work all = prhs_layout_work(&ops->layout, ws.offset);
    w->attend_count_off = all.attend_count_off;
    w->score_count_off = all.score_count_off;
    w->active_off = all.active_off;
}

static prhs_status enqueue(const call *c, prhs_queue *queue, const prhs_op *op) {
    return c->status == PRHS_OK ? c->limits.dev->backend->ops_enqueue(queue, op, 1) : c->status;
}

prhs_status prhs_op_append(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *k,
                           const prhs_rows *v, prhs_mem state) {
    if (!ops || !queue || !batch || !kv || !k != !v)
        return null_argument(ops, "prhs_op_append");
    call c = start(ops, "prhs_op_append", queue);
    check_batch(&c, batch, true);
    check_kv(&c, kv);
    prhs_op op = { .kind = PRHS_OP_APPEND,
                   .mem = { batch->seqs.buffer, batch->pages.buffer, k ? k->mem.buffer : NULL, v ? v->mem.buffer : NULL, kv->k.buffer,
                            kv->v.buffer, state.buffer } };
    prhs_k_append *a = &op.args.append;
    *a = (prhs_k_append){ .kv = c.kv, .batch = c.batch, .shape = c.limits.shape, .write = k != NULL };
    a->k.dtype = a->v.dtype = (prhs_i32)c.limits.q_dtype;
    if (k) {
        a->k = check_rows(&c, "k", k, batch->max_rows, c.limits.shape.kv_heads, c.limits.q_dtype);
        a->v = check_rows(&c, "v", v, batch->max_rows, c.limits.shape.kv_heads, c.limits.q_dtype);
    }
    a->state = check_state(ops, &c, state, true);
    return enqueue(&c, queue, &op);
}

prhs_status prhs_op_range_sum(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, int sign,
                              prhs_mem state) {
    if (!ops || !queue || !batch || !kv)
        return null_argument(ops, "prhs_op_range_sum");
    call c = start(ops, "prhs_op_range_sum", queue);
    if (c.status == PRHS_OK && sign != 1 && sign != -1)
        c.status = prhs_fail(&ops->dev->log, PRHS_ERR_ARGUMENT, "prhs_op_range_sum: sign is %d, must be 1 or -1", sign);
    check_batch(&c, batch, true);
    check_kv(&c, kv);
    prhs_op op = { .kind = PRHS_OP_RANGE_SUM, .mem = { batch->seqs.buffer, batch->pages.buffer, kv->v.buffer, state.buffer } };
    op.args.range_sum = (prhs_k_range_sum){
        .kv = c.kv, .batch = c.batch, .shape = c.limits.shape, .state = check_state(ops, &c, state, false), .sign = sign,
    };
    return enqueue(&c, queue, &op);
}

prhs_status prhs_op_score(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *q, int full,
                          int moments, prhs_mem ws) {
    if (!ops || !queue || !batch || !kv || !q)
        return null_argument(ops, "prhs_op_score");
    call c = start(ops, "prhs_op_score", queue);
    if (c.status == PRHS_OK && (moments < 0 || moments > PRHS_K_MOMENTS_VALUES))
        c.status = prhs_fail(&ops->dev->log, PRHS_ERR_ARGUMENT, "prhs_op_score: moments is %d, must be 0, 1 or 2", moments);
    check_batch(&c, batch, true);
    check_kv(&c, kv);
    prhs_op op = { .kind = PRHS_OP_SCORE,
                   .mem = { batch->seqs.buffer, batch->pages.buffer, q->mem.buffer, kv->k.buffer, kv->v.buffer, ws.buffer } };
    op.args.score = (prhs_k_score){
        .kv = c.kv, .batch = c.batch, .shape = c.limits.shape,
        .q = check_rows(&c, "q", q, batch->max_rows, c.limits.shape.heads, c.limits.q_dtype), .work = check_work(ops, &c, ws),
        .modes = 1 << PRHS_MODE_RETRIEVE, .full = full != 0, .moments = moments, .sample.limit = UINT32_MAX,
    };
    keep_counts(ops, ws, &op.args.score.work);
    if (!moments)
        op.args.score.work.mom_off = PRHS_NONE;
    if (moments != PRHS_K_MOMENTS_VALUES)
        op.args.score.work.vmid_off = PRHS_NONE;
    return enqueue(&c, queue, &op);
}

static void check_select(const prhs_ops *ops, call *c, const prhs_select_params *p) {
    const uint64_t cap = (uint64_t)ops->layout.state.list_cap;
    const char *why = NULL;
    uint64_t reach = (uint64_t)p->dilate_m * ((uint64_t)p->dilate_back + p->dilate_ahead);
    if (p->granularity == 0 || p->granularity > 1024)
        why = "granularity must be 1 to 1024";
    else if (p->k < p->granularity || p->k / p->granularity > cap)
        why = "k must be one run at least and fit into list_cap runs";
    else if (p->dilate_m && (p->k / p->granularity < reach || p->k / p->granularity - reach < p->dilate_m))
        why = "dilation does not fit into k";
    else if (p->join != PRHS_JOIN_SUM && p->join != PRHS_JOIN_MAX)
        why = "join must be SUM or MAX (one list a head is chosen at creation)";
    if (why && c->status == PRHS_OK)
        c->status = prhs_fail(&ops->dev->log, PRHS_ERR_ARGUMENT, "prhs_op_select: %s", why);
}

prhs_status prhs_op_select(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_rows *q,
                           const prhs_select_params *params, prhs_mem state, prhs_mem ws) {
    if (!ops || !queue || !batch || !q || !params)
        return null_argument(ops, "prhs_op_select");
    call c = start(ops, "prhs_op_select", queue);
    check_size(&c, params->size, sizeof *params);
    check_batch(&c, batch, false);
    check_select(ops, &c, params);
    prhs_op op = { .kind = PRHS_OP_SELECT, .mem = { batch->seqs.buffer, q->mem.buffer, state.buffer, ws.buffer } };
    op.args.select = (prhs_k_select){
        .batch = c.batch, .shape = c.limits.shape,
        .q = check_rows(&c, "q", q, batch->max_rows, c.limits.shape.heads, c.limits.q_dtype),
        .state = check_state(ops, &c, state, false), .work = check_work(ops, &c, ws),
        .policy = { .k = (prhs_i32)params->k, .block = 1, .dilate_m = (prhs_i32)params->dilate_m,
                    .dilate_back = (prhs_i32)params->dilate_back, .dilate_ahead = (prhs_i32)params->dilate_ahead,
                    .run = (prhs_i32)params->granularity,
                    .join = params->join == PRHS_JOIN_MAX ? PRHS_K_JOIN_MAX : PRHS_K_JOIN_SUM },
    };
    return enqueue(&c, queue, &op);
}

prhs_status prhs_op_moments(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, int values, prhs_mem state,
                            prhs_mem ws) {
    if (!ops || !queue || !batch || !kv)
        return null_argument(ops, "prhs_op_moments");
    call c = start(ops, "prhs_op_moments", queue);
    check_batch(&c, batch, true);
    check_kv(&c, kv);
    prhs_op op = { .kind = PRHS_OP_MOMENTS,
                   .mem = { batch->seqs.buffer, batch->pages.buffer, kv->k.buffer, kv->v.buffer, state.buffer, ws.buffer } };
    op.args.moments = (prhs_k_moments){
        .kv = c.kv, .batch = c.batch, .shape = c.limits.shape, .state = check_state(ops, &c, state, false),
        .work = check_work(ops, &c, ws),
    };
    if (!values)
        op.args.moments.state.vhat_off = PRHS_NONE;
    return enqueue(&c, queue, &op);
}

prhs_status prhs_op_gate(prhs_ops *ops, prhs_queue *queue, const prhs_rows *q, const prhs_gate_params *params) {
    if (!ops || !queue || !q || !params)
        return null_argument(ops, "prhs_op_gate");
    call c = start(ops, "prhs_op_gate", queue);
    check_size(&c, params->size, sizeof *params);
    const prhs_k_shape s = c.limits.shape;
    if (c.status == PRHS_OK)
        c.status = prhs_check_capacity(&ops->dev->log, "prhs_op_gate", "rows", params->rows, (uint32_t)c.limits.max_rows);
    const uint64_t heads = (uint64_t)params->rows * (uint64_t)s.heads, dim = (uint64_t)s.dim;
    prhs_op op = { .kind = PRHS_OP_GATE,
                   .mem = { q->mem.buffer, params->queries.buffer, params->moments.buffer, params->dropped.buffer,
                            params->spreads.buffer, params->lse.buffer, params->cosine.buffer, params->delta.buffer } };
    op.args.gate = (prhs_k_gate){
        .shape = s, .q = check_rows(&c, "q", q, params->rows, s.heads, c.limits.q_dtype),
        .qref_off = check_floats(&c, "queries", params->queries, heads * dim, false),
        .moment_off = check_floats(&c, "moments", params->moments, heads * dim * 2, false),
        .dropped_off = check_floats(&c, "dropped", params->dropped, heads, false),
        .spread_off = check_floats(&c, "spreads", params->spreads, heads, true),
        .lse_off = check_floats(&c, "lse", params->lse, heads, false),
        .cosine_off = check_floats(&c, "cosine", params->cosine, heads, false),
        .delta_off = check_floats(&c, "delta", params->delta, heads, false), .rows = (prhs_i32)params->rows,
    };
    return enqueue(&c, queue, &op);
}

prhs_status prhs_op_attend(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *q,
                           prhs_mem state, prhs_mem ws, const prhs_rows *out, prhs_mem lse) {
    if (!ops || !queue || !batch || !kv || !q || !out)
        return null_argument(ops, "prhs_op_attend");
    call c = start(ops, "prhs_op_attend", queue);
    check_batch(&c, batch, true);
    check_kv(&c, kv);
    const prhs_k_shape s = c.limits.shape;
    prhs_op op = { .kind = PRHS_OP_ATTEND,
                   .mem = { batch->seqs.buffer, batch->pages.buffer, q->mem.buffer, kv->k.buffer, kv->v.buffer, state.buffer,
                            ws.buffer } };
    prhs_k_work work = check_work(ops, &c, ws);
    op.args.attend = (prhs_k_attend){
        .kv = c.kv, .batch = c.batch, .shape = s, .q = check_rows(&c, "q", q, batch->max_rows, s.heads, c.limits.q_dtype),
        .state = check_state(ops, &c, state, false), .work = work,
    };
    keep_counts(ops, ws, &op.args.attend.work);
    prhs_op merge = { .kind = PRHS_OP_COMBINE, .mem = { batch->seqs.buffer, ws.buffer, out->mem.buffer, lse.buffer } };
    merge.args.combine = (prhs_k_combine){
        .batch = c.batch, .shape = s, .out = check_rows(&c, "out", out, batch->max_rows, s.heads, c.limits.out_dtype),
        .lse_off = check_floats(&c, "lse", lse, (uint64_t)batch->max_rows * (uint64_t)s.heads, true), .work = work,
    };
    prhs_status status = enqueue(&c, queue, &op);
    return status == PRHS_OK ? enqueue(&c, queue, &merge) : status;
}

prhs_status prhs_op_prefill(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *q,
                            const prhs_policy *policy, uint32_t layers, uint32_t layer, const prhs_rows *out, prhs_mem lse) {
    if (!ops || !queue || !batch || !kv || !q || !out)
        return null_argument(ops, "prhs_op_prefill");
    call c = start(ops, "prhs_op_prefill", queue);
    const char *why = NULL;
    if (c.status == PRHS_OK && policy && prhs_policy_check(policy, layers, &why) != PRHS_OK)
        c.status = prhs_fail(&ops->dev->log, PRHS_ERR_ARGUMENT, "prhs_op_prefill: policy: %s", why);
    if (c.status == PRHS_OK && policy && layer >= layers)
        c.status = prhs_fail(&ops->dev->log, PRHS_ERR_ARGUMENT, "prhs_op_prefill: layer %u of %u", layer, layers);
    check_batch(&c, batch, true);
    check_kv(&c, kv);
    const prhs_k_shape s = c.limits.shape;
    prhs_op op = { .kind = PRHS_OP_PREFILL,
                   .mem = { batch->seqs.buffer, batch->pages.buffer, q->mem.buffer, kv->k.buffer, kv->v.buffer, NULL, out->mem.buffer,
                            lse.buffer } };
    op.args.prefill = (prhs_k_prefill){
        .kv = c.kv, .batch = c.batch, .shape = s, .q = check_rows(&c, "q", q, batch->max_rows, s.heads, c.limits.q_dtype),
        .out = check_rows(&c, "out", out, batch->max_rows, s.heads, c.limits.out_dtype),
        .lse_off = check_floats(&c, "lse", lse, (uint64_t)batch->max_rows * (uint64_t)s.heads, true), .fault_off = PRHS_NONE,
        .tile = ops->chunking.prefill_tile,
    };
    if (policy && c.status == PRHS_OK) {
        op.args.prefill.sinks = policy->sinks < (uint32_t)c.limits.max_kv_len ? (prhs_i32)policy->sinks : c.limits.max_kv_len;
        op.args.prefill.psaw = prhs_psaw_factor(policy, layers, layer);
        op.args.prefill.etf = prhs_etf_factor(policy, layers, layer);
    }
    return enqueue(&c, queue, &op);
}

prhs_status prhs_op_merge(prhs_ops *ops, prhs_queue *queue, const prhs_merge_params *p, const prhs_rows *out) {
    if (!ops || !queue || !p || !out)
        return null_argument(ops, "prhs_op_merge");
    call c = start(ops, "prhs_op_merge", queue);
    check_size(&c, p->size, sizeof *p);
    const prhs_log *log = &ops->dev->log;
    const prhs_k_shape s = c.limits.shape;
    if (c.status == PRHS_OK)
        c.status = prhs_check_capacity(log, "prhs_op_merge", "parts", p->parts, 1 << 16);
    if (c.status == PRHS_OK)
        c.status = prhs_check_capacity(log, "prhs_op_merge", "rows", p->rows, (uint32_t)c.limits.max_rows);
    const int64_t most = INT64_C(1) << 40, head = p->head ? p->head : s.dim, row = p->row ? p->row : head * s.heads,
                  part = p->part ? p->part : row * (int64_t)p->rows;
    if (c.status == PRHS_OK && (head < 0 || row < 0 || part < 0 || head > most || row > most || part > most))
        c.status = prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_op_merge: a stride of o is negative or above 2^40");
    if (c.status != PRHS_OK)
        return c.status;
    uint64_t reach = prhs_reach((uint64_t)head, (uint64_t)s.heads - 1, (uint64_t)s.dim);
    reach = prhs_reach((uint64_t)part, p->parts - 1, prhs_reach((uint64_t)row, p->rows - 1, reach));
    const uint64_t heads = (uint64_t)p->rows * (uint64_t)s.heads;
    prhs_op op = { .kind = PRHS_OP_MERGE, .mem = { p->o.buffer, p->lse.buffer, out->mem.buffer, p->out_lse.buffer } };
    op.args.merge = (prhs_k_merge){
        .shape = s, .out = check_rows(&c, "out", out, p->rows, s.heads, c.limits.out_dtype),
        .o_off = check_floats(&c, "o", p->o, reach, false), .lse_off = check_floats(&c, "lse", p->lse, heads * p->parts, false),
        .out_lse_off = check_floats(&c, "out_lse", p->out_lse, heads, true), .o_part = part, .o_row = row, .o_head = head,
        .parts = (prhs_i32)p->parts, .rows = (prhs_i32)p->rows,
    };
    return enqueue(&c, queue, &op);
}
