/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions: sizes, life, steps and slot operations. Validates; src/plan.c schedules; the backend runs. */
#include <stdlib.h>
#include <string.h>

#include "bound.h"
#include "policy/window.h"
#include "session_state.h"

/* The policy as each layer has it; *aims: the first layer with a target, or their number. */
static prhs_status check_policy(const prhs_log *log, const char *call, const prhs_session_params *p, uint32_t *aims) {
    const char *why;
    if (prhs_policy_check(&p->policy, p->layers, &why) != PRHS_OK)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: policy: %s", call, why);
    *aims = p->layers;
    for (uint32_t i = p->layers; i-- > 0;) {
        prhs_policy layer = p->policy;
        layer.target = p->targets ? p->targets[i] : p->policy.target;
        if (prhs_policy_check(&layer, p->layers, &why) != PRHS_OK)
            return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: targets of layer %u: %s", call, i, why);
        if (prhs_target_of(p, i) > 0.0f)
            *aims = i;
    }
    return PRHS_OK;
}

/* Lists of other layers: what they would have to know of their own queries must be off. */
static prhs_status check_list_layers(const prhs_log *log, const char *call, const prhs_session_params *p, bool aims) {
    const prhs_policy *policy = &p->policy;
    bool copies = false;
    for (uint32_t i = 0; p->list_layers && i < p->layers; i++) {
        const uint32_t from = p->list_layers[i];
        if (from > i || (from < i && from < policy->dense_layers) || p->list_layers[from] != from)
            return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: list_layers: layer %u must name itself, or an earlier sparse layer that names itself", call, i);
        copies = copies || from != i;
    }
    if (copies && (policy->gate != PRHS_GATE_NONE || policy->residual != PRHS_RESIDUAL_NONE || aims || policy->psaw))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: list_layers: lists of other layers need gate and residual none, no target and no PSAW", call);
    return PRHS_OK;
}

/* Whether lists are ever made: the middle may hold more tokens than what is attended without. */
static bool makes_lists(const prhs_session_params *p, bool aims) {
    const uint32_t most = aims && p->policy.k_min < p->policy.k ? p->policy.k_min : p->policy.k;
    return p->policy.k > 0 && most < p->max_kv_len && prhs_sparse_layers(p) > 0;
}

/* Fills limits, layout and flags of *s from params; the session need not live on. */
static prhs_status resolve(prhs_device *dev, const prhs_session_params *p, const char *call, prhs_session *s) {
    const prhs_log *log = &dev->log;
    prhs_status status;
    if ((status = prhs_check_size(log, call, "params->size", p->size, sizeof *p)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "layers", p->layers, 1024)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_slots", p->max_slots, 1 << 16)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_seqs", p->max_seqs, 1 << 16)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_rows", p->max_rows, 1 << 24)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "decode_rows", p->decode_rows, 64)) != PRHS_OK ||
        (status = prhs_check_capacity(log, call, "max_kv_len", p->max_kv_len, 1 << 24)) != PRHS_OK ||
        (status = prhs_check_dtypes(log, call, p->kv_dtype, p->q_dtype, p->out_dtype)) != PRHS_OK)
        return status;
    prhs_k_shape shape;
    if ((status = check_policy(log, call, p, &s->aims)) != PRHS_OK ||
        (status = prhs_check_shape(log, call, &p->shape, p->policy.join == PRHS_JOIN_PER_HEAD, &shape)) != PRHS_OK)
        return status;
    if (!(p->audit_rate >= 0.0 && p->audit_rate <= 1.0))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: audit_rate must lie in [0, 1]", call);
    s->dev = dev;
    s->params = *p;
    s->audits = p->audit || p->audit_rate > 0.0;
    s->audit_limit = p->audit ? UINT32_MAX : prhs_audit_limit(p->audit_rate);
    const bool aims = s->aims < p->layers;
    if ((status = check_list_layers(log, call, p, aims)) != PRHS_OK)
        return status;
    const uint32_t longest = p->policy.k < p->max_kv_len ? p->policy.k : p->max_kv_len;
    s->retrieves = makes_lists(p, aims);
    s->values = s->retrieves && p->policy.residual == PRHS_RESIDUAL_RETRIEVED;
    s->moments = s->values || (s->retrieves && p->policy.gate == PRHS_GATE_MASS);
    s->sums = s->retrieves && p->policy.residual == PRHS_RESIDUAL_MEAN;
    s->recalls = s->retrieves && p->policy.references > 1;
    s->limits = (prhs_limits){
        .dev = dev, .call = call, .shape = shape, .max_slots = (prhs_i32)p->max_slots, .max_seqs = (prhs_i32)p->max_seqs,
        .max_rows = (prhs_i32)p->max_rows, .decode_rows = (prhs_i32)p->decode_rows, .max_kv_len = (prhs_i32)p->max_kv_len,
        .kv_dtype = p->kv_dtype, .q_dtype = p->q_dtype, .out_dtype = p->out_dtype,
    };
    prhs_op_key key = { .kind = PRHS_OP_ATTEND, .dim = shape.dim, .unit_heads = shape.unit_heads, .group = shape.group,
                        .kv_dtype = (prhs_i32)p->kv_dtype, .q_dtype = (prhs_i32)p->q_dtype };
    prhs_extent extent = {
        .shape = shape, .layers = (prhs_i32)prhs_sparse_layers(p), .max_slots = (prhs_i32)p->max_slots,
        .max_seqs = (prhs_i32)p->max_seqs, .rows = (prhs_i32)p->decode_rows, .max_kv_len = (prhs_i32)p->max_kv_len,
        .list_cap = s->retrieves ? (prhs_i32)(longest / p->policy.granularity) : 0, .lists = s->retrieves,
        .moments = s->moments, .values = s->values, .sums = s->sums, .stats = true,
        .verdicts = s->retrieves && p->policy.gate == PRHS_GATE_MASS, .scores = s->retrieves || s->audits,
        .aims = s->retrieves && aims, .references = s->recalls ? (prhs_i32)p->policy.references : 0,
        .chunking = dev->backend->chunking(dev, &key),
    };
    if (!prhs_layout_make(&extent, &s->layout))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: the capacities together ask for more than 2^60 bytes of state", call);
    return PRHS_OK;
}

prhs_status prhs_session_get_sizes(prhs_device *device, const prhs_session_params *params, prhs_session_sizes *sizes) {
    if (!device || !params || !sizes)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_session_get_sizes: NULL argument");
    prhs_session s;
    prhs_status status = prhs_check_size(&device->log, "prhs_session_get_sizes", "sizes->size", sizes->size, sizeof *sizes);
    if (status == PRHS_OK)
        status = resolve(device, params, "prhs_session_get_sizes", &s);
    if (status != PRHS_OK)
        return status;
    sizes->state = (uint64_t)s.layout.state_bytes;
    sizes->workspace = (uint64_t)s.layout.work_bytes;
    sizes->slot = (uint64_t)s.layout.state.slot_bytes;
    return PRHS_OK;
}

/* Prepares whatever a dense and a sparse layer may enqueue, one with another's lists and one with a target, by planning them with nothing but dtypes. */
static prhs_status prepare(const prhs_session *s) {
    prhs_step_args a = { .kinds = PRHS_HAS_DECODE | PRHS_HAS_PREFILL | PRHS_HAS_SEED, .append = true };
    a.kv.dtype = (prhs_i32)s->params.kv_dtype;
    a.q.dtype = a.k.dtype = a.v.dtype = (prhs_i32)s->params.q_dtype;
    a.out.dtype = (prhs_i32)s->params.out_dtype;
    a.batch.rows = s->limits.decode_rows;
    const uint32_t first = s->params.policy.dense_layers, last = s->params.layers - 1;
    const uint32_t layers[] = { 0, first < last ? first : last, last, s->aims <= last ? s->aims : 0 };
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        prhs_op ops[3 * PRHS_PLAN_MAX];
        a.layer = layers[i];
        size_t n = prhs_plan_step(s, &a, ops);
        n += prhs_plan_truncate(s, &a, true, ops + n);
        for (size_t j = 0; j < n; j++) {
            prhs_op_key key = prhs_op_key_of(&ops[j]);
            const char *why = NULL;
            if (!s->dev->backend->op_supported(s->dev, &key, &why))
                return prhs_fail(&s->dev->log, PRHS_ERR_UNSUPPORTED, "prhs_session_create: %s: %s", prhs_op_name(key.kind), why);
            prhs_status status = s->dev->backend->op_prepare(s->dev, &key);
            if (status != PRHS_OK)
                return status;
        }
    }
    return PRHS_OK;
}

/* An empty slot: zeros, and unit states of all ones (ref_pos -1: no reference). */
static prhs_status clear_slot(const prhs_session *s, prhs_queue *queue, uint32_t slot, bool stats_only) {
    const prhs_layout *l = &s->layout;
    const prhs_backend *backend = s->dev->backend;
    size_t base = s->state.offset;
    size_t block = base + (size_t)(l->slots_off + l->state.slot_bytes * (prhs_i64)slot);
    size_t stats = base + (size_t)(l->stats_off + l->state.stat_slot_bytes * (prhs_i64)slot);
    prhs_status status = PRHS_OK;
    if (!stats_only) {
        if (l->state.slot_bytes)
            status = backend->fill(queue, s->state.buffer, block, 0, (size_t)l->state.slot_bytes);
        if (status == PRHS_OK && l->units_bytes)
            status = backend->fill(queue, s->state.buffer, block, UINT32_MAX, (size_t)l->units_bytes);
    }
    if (status == PRHS_OK && l->state.stat_slot_bytes)
        status = backend->fill(queue, s->state.buffer, stats, 0, (size_t)l->state.stat_slot_bytes);
    return status;
}

static prhs_status clear_all(const prhs_session *s, prhs_queue *queue) {
    prhs_status status = s->dev->backend->fill(queue, s->state.buffer, s->state.offset, 0, PRHS_ALIGN);
    for (uint32_t i = 0; status == PRHS_OK && i < s->params.max_slots; i++)
        status = clear_slot(s, queue, i, false);
    return status;
}

static prhs_status check_memory(const prhs_session *s, const char *name, prhs_mem mem, prhs_i64 need) {
    if (mem.buffer && mem.buffer->dev == s->dev && mem.offset % PRHS_ALIGN == 0 &&
        (mem.offset > mem.buffer->size || (uint64_t)need > mem.buffer->size - mem.offset))
        return prhs_fail(&s->dev->log, PRHS_ERR_MEMORY, "prhs_session_create: %s needs %lld bytes, its buffer has %zu past the offset",
                         name, (long long)need, mem.offset > mem.buffer->size ? 0 : mem.buffer->size - (size_t)mem.offset);
    return prhs_check_mem(&s->limits, name, mem, (uint64_t)need, PRHS_ALIGN, false);
}

static bool overlap(prhs_mem a, uint64_t a_size, prhs_mem b, uint64_t b_size) {
    return a.buffer == b.buffer && a.offset < b.offset + b_size && b.offset < a.offset + a_size;
}

static prhs_status fill_session(prhs_session *s, const prhs_session_params *params, prhs_queue *queue) {
    prhs_status status = check_memory(s, "state", s->state, s->layout.state_bytes);
    if (status == PRHS_OK)
        status = check_memory(s, "workspace", s->work, s->layout.work_bytes);
    if (status == PRHS_OK && overlap(s->state, (uint64_t)s->layout.state_bytes, s->work, (uint64_t)s->layout.work_bytes))
        status = prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "prhs_session_create: state and workspace overlap");
    if (status == PRHS_OK)
        status = prhs_check_queue(&s->limits, queue);
    if (status != PRHS_OK)
        return status;
    prhs_count(&s->dev->counters.allocations);
    s->factors = malloc(sizeof *s->factors * 2 * params->layers);
    if (!s->factors)
        return prhs_fail(&s->dev->log, PRHS_ERR_MEMORY, "prhs_session_create: no host memory");
    for (uint32_t i = 0; i < params->layers; i++) {
        s->factors[2 * i] = prhs_psaw_factor(&params->policy, params->layers, i);
        s->factors[2 * i + 1] = prhs_etf_factor(&params->policy, params->layers, i);
    }
    if (params->targets) {
        s->targets = malloc(sizeof *s->targets * params->layers);
        if (!s->targets)
            return prhs_fail(&s->dev->log, PRHS_ERR_MEMORY, "prhs_session_create: no host memory");
        memcpy(s->targets, params->targets, sizeof *s->targets * params->layers);
        s->params.targets = s->targets;
    }
    if (params->list_layers) {
        s->list_layers = malloc(sizeof *s->list_layers * params->layers);
        if (!s->list_layers)
            return prhs_fail(&s->dev->log, PRHS_ERR_MEMORY, "prhs_session_create: no host memory");
        memcpy(s->list_layers, params->list_layers, sizeof *s->list_layers * params->layers);
        s->params.list_layers = s->list_layers;
    }
    void *word = NULL;
    status = prhs_host_alloc(s->dev, "prhs_session_create", sizeof *s->fault_word, &word);
    s->fault_word = word;
    if (status == PRHS_OK)
        status = prhs_event_create(s->dev, &s->fault_event);
    if (status == PRHS_OK)
        status = prepare(s);
    if (status == PRHS_OK)
        status = clear_all(s, queue);
    return status;
}

prhs_status prhs_session_create(prhs_device *device, const prhs_session_params *params, prhs_queue *queue, prhs_mem state,
                                prhs_mem workspace, prhs_session **session) {
    if (session)
        *session = NULL;
    if (!device || !params || !queue || !session)
        return prhs_fail(device ? &device->log : NULL, PRHS_ERR_ARGUMENT, "prhs_session_create: NULL argument");
    prhs_count(&device->counters.allocations);
    prhs_session *s = calloc(1, sizeof *s);
    if (!s)
        return prhs_fail(&device->log, PRHS_ERR_MEMORY, "prhs_session_create: no host memory");
    prhs_status status = resolve(device, params, "prhs_session_create", s);
    if (status == PRHS_OK) {
        s->state = state;
        s->work = workspace;
        prhs_device_retain(device);
        status = fill_session(s, params, queue);
        if (status != PRHS_OK) {
            prhs_session_destroy(s);
            return status;
        }
        *session = s;
        return PRHS_OK;
    }
    free(s);
    return status;
}

void prhs_session_destroy(prhs_session *session) {
    if (!session)
        return;
    prhs_event_destroy(session->fault_event);
    prhs_host_free(session->dev, session->fault_word);
    free(session->factors);
    free(session->targets);
    free(session->list_layers);
    prhs_device_release(session->dev);
    free(session);
}

uint32_t prhs_session_units(const prhs_session *session) { return session ? (uint32_t)session->limits.shape.units : 0; }

static prhs_status check_layer(const prhs_session *s, const char *call, uint32_t layer) {
    if (layer >= s->params.layers)
        return prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "%s: layer %u, but the session has %u", call, layer, s->params.layers);
    return PRHS_OK;
}

/* Batch and cache: what steps, attachments and truncations share. */
static prhs_status check_common(const prhs_limits *l, const prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv,
                                prhs_step_args *a) {
    prhs_status status = prhs_check_queue(l, queue);
    if (status == PRHS_OK)
        status = prhs_check_batch(l, batch, true, &a->batch);
    if (status == PRHS_OK)
        status = prhs_check_kv(l, kv, &a->kv);
    if (status == PRHS_OK)
        prhs_limit_pages(&a->batch, &a->kv);
    a->seqs = batch->seqs.buffer;
    a->pages = batch->pages.buffer;
    a->k_mem = kv->k.buffer;
    a->v_mem = kv->v.buffer;
    a->kinds = batch->kinds;
    return status;
}

static prhs_status check_step(const prhs_limits *l, const prhs_step *step, prhs_step_args *a) {
    const uint32_t heads = (uint32_t)l->shape.heads, kv_heads = (uint32_t)l->shape.kv_heads, rows = step->batch.max_rows;
    prhs_status status = prhs_check_rows(l, "q", &step->q, rows, heads, l->q_dtype, &a->q);
    if (status == PRHS_OK)
        status = prhs_check_rows(l, "out", &step->out, rows, heads, l->out_dtype, &a->out);
    a->append = step->k.mem.buffer || step->v.mem.buffer;
    a->k.dtype = a->v.dtype = (prhs_i32)l->q_dtype;
    if (status == PRHS_OK && a->append)
        status = prhs_check_rows(l, "k", &step->k, rows, kv_heads, l->q_dtype, &a->k);
    if (status == PRHS_OK && a->append)
        status = prhs_check_rows(l, "v", &step->v, rows, kv_heads, l->q_dtype, &a->v);
    if (status == PRHS_OK)
        status = prhs_check_mem(l, "lse", step->lse, (uint64_t)rows * heads * 4, 4, true);
    a->lse_off = step->lse.buffer ? (prhs_i64)step->lse.offset : PRHS_NONE;
    a->q_mem = step->q.mem.buffer;
    a->out_mem = step->out.mem.buffer;
    a->lse_mem = step->lse.buffer;
    a->k_in = step->k.mem.buffer;
    a->v_in = step->v.mem.buffer;
    return status;
}

prhs_status prhs_session_step(prhs_session *session, prhs_queue *queue, const prhs_step *step) {
    const char *call = "prhs_session_step";
    if (!session || !queue || !step)
        return prhs_fail(session ? &session->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    prhs_limits limits = session->limits;
    limits.call = call;
    prhs_step_args a = { .layer = step->layer };
    prhs_status status = prhs_check_size(&session->dev->log, call, "step->size", step->size, sizeof *step);
    if (status == PRHS_OK)
        status = check_layer(session, call, step->layer);
    if (status == PRHS_OK)
        status = check_common(&limits, queue, &step->batch, &step->kv, &a);
    if (status == PRHS_OK)
        status = check_step(&limits, step, &a);
    if (status != PRHS_OK)
        return status;
    prhs_op ops[PRHS_PLAN_MAX];
    return session->dev->backend->ops_enqueue(queue, ops, prhs_plan_step(session, &a, ops));
}

static prhs_status resize(prhs_session *s, const char *call, prhs_queue *queue, uint32_t layer, const prhs_batch *batch,
                          const prhs_kv *kv, bool rebuild) {
    if (!s || !queue || !batch || !kv)
        return prhs_fail(s ? &s->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    prhs_limits limits = s->limits;
    limits.call = call;
    prhs_step_args a = { .layer = layer };
    prhs_status status = check_layer(s, call, layer);
    if (status == PRHS_OK)
        status = check_common(&limits, queue, batch, kv, &a);
    if (status != PRHS_OK)
        return status;
    prhs_op ops[PRHS_PLAN_MAX];
    return s->dev->backend->ops_enqueue(queue, ops, prhs_plan_truncate(s, &a, rebuild, ops));
}

prhs_status prhs_session_attach(prhs_session *session, prhs_queue *queue, uint32_t layer, const prhs_batch *batch,
                                const prhs_kv *kv) {
    return resize(session, "prhs_session_attach", queue, layer, batch, kv, true);
}

prhs_status prhs_session_truncate(prhs_session *session, prhs_queue *queue, uint32_t layer, const prhs_batch *batch,
                                  const prhs_kv *kv) {
    return resize(session, "prhs_session_truncate", queue, layer, batch, kv, false);
}

prhs_status prhs_session_commit(prhs_session *session, prhs_queue *queue, uint32_t layer, const prhs_batch *batch,
                                const prhs_kv *kv) {
    return resize(session, "prhs_session_commit", queue, layer, batch, kv, false);
}

static prhs_status check_slot_call(const prhs_session *s, const char *call, const prhs_queue *queue, uint32_t slot) {
    if (!s || !queue)
        return prhs_fail(s ? &s->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    if (slot >= s->params.max_slots)
        return prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "%s: slot %u, but the session has %u", call, slot, s->params.max_slots);
    prhs_limits limits = s->limits;
    limits.call = call;
    return prhs_check_queue(&limits, queue);
}

static size_t slot_at(const prhs_session *s, uint32_t slot) {
    return (size_t)s->state.offset + (size_t)(s->layout.slots_off + s->layout.state.slot_bytes * (prhs_i64)slot);
}

prhs_status prhs_session_reset(prhs_session *session, prhs_queue *queue, uint32_t slot) {
    prhs_status status = check_slot_call(session, "prhs_session_reset", queue, slot);
    return status == PRHS_OK ? clear_slot(session, queue, slot, false) : status;
}

static prhs_status copy_slot(const prhs_session *s, prhs_queue *queue, uint32_t dst, uint32_t src) {
    size_t size = (size_t)s->layout.state.slot_bytes;
    return size ? s->dev->backend->copy(queue, s->state.buffer, slot_at(s, dst), s->state.buffer, slot_at(s, src), size) : PRHS_OK;
}

prhs_status prhs_session_fork(prhs_session *session, prhs_queue *queue, uint32_t dst, uint32_t src) {
    prhs_status status = check_slot_call(session, "prhs_session_fork", queue, dst);
    if (status == PRHS_OK)
        status = check_slot_call(session, "prhs_session_fork", queue, src);
    if (status != PRHS_OK || dst == src)
        return status;
    status = copy_slot(session, queue, dst, src);
    return status == PRHS_OK ? clear_slot(session, queue, dst, true) : status;
}

prhs_status prhs_session_move(prhs_session *session, prhs_queue *queue, uint32_t dst, uint32_t src) {
    prhs_status status = check_slot_call(session, "prhs_session_move", queue, dst);
    if (status == PRHS_OK)
        status = check_slot_call(session, "prhs_session_move", queue, src);
    if (status != PRHS_OK || dst == src)
        return status;
    const prhs_layout *l = &session->layout;
    prhs_i64 stats = (prhs_i64)session->state.offset + l->stats_off, bytes = l->state.stat_slot_bytes;
    status = copy_slot(session, queue, dst, src);
    if (status == PRHS_OK && bytes)
        status = session->dev->backend->copy(queue, session->state.buffer, (size_t)(stats + bytes * (prhs_i64)dst), session->state.buffer,
                                             (size_t)(stats + bytes * (prhs_i64)src), (size_t)bytes);
    return status == PRHS_OK ? clear_slot(session, queue, src, false) : status;
}

/* Between a slot's block and the caller's memory. */
static prhs_status transfer(const prhs_session *s, const char *call, const char *name, prhs_queue *queue, uint32_t slot, prhs_mem mem,
                            bool out) {
    prhs_status status = check_slot_call(s, call, queue, slot);
    if (status != PRHS_OK)
        return status;
    const size_t size = (size_t)s->layout.state.slot_bytes;
    prhs_limits limits = s->limits;
    limits.call = call;
    if ((status = prhs_check_mem(&limits, name, mem, size, 16, false)) != PRHS_OK || size == 0)
        return status;
    if (overlap(s->state, (uint64_t)s->layout.state_bytes, mem, size))
        return prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "%s: %s lies in the session's own state", call, name);
    const prhs_backend *backend = s->dev->backend;
    return out ? backend->copy(queue, mem.buffer, (size_t)mem.offset, s->state.buffer, slot_at(s, slot), size)
               : backend->copy(queue, s->state.buffer, slot_at(s, slot), mem.buffer, (size_t)mem.offset, size);
}

prhs_status prhs_session_export(prhs_session *session, prhs_queue *queue, uint32_t slot, prhs_mem dst) {
    return transfer(session, "prhs_session_export", "dst", queue, slot, dst, true);
}

prhs_status prhs_session_import(prhs_session *session, prhs_queue *queue, uint32_t slot, prhs_mem src) {
    return transfer(session, "prhs_session_import", "src", queue, slot, src, false);
}
