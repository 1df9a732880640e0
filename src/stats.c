/* SPDX-License-Identifier: Apache-2.0 */
/* What a session tells about itself: statistics, faults, and the view into an exported slot. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "stats.h"

prhs_status prhs_stats_request_create(prhs_session *session, prhs_stats_request **request) {
    if (!session || !request)
        return prhs_fail(session ? &session->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_stats_request_create: NULL argument");
    *request = NULL;
    prhs_count(&session->dev->counters.allocations);
    prhs_stats_request *r = calloc(1, sizeof *r);
    if (!r)
        return prhs_fail(&session->dev->log, PRHS_ERR_MEMORY, "prhs_stats_request_create: no host memory");
    r->session = session;
    r->size = (size_t)session->layout.state.stat_slot_bytes * session->params.max_slots;
    void *data = NULL;
    prhs_status status = prhs_host_alloc(session->dev, "prhs_stats_request_create", r->size ? r->size : 1, &data);
    r->data = data;
    if (status == PRHS_OK)
        status = prhs_event_create(session->dev, &r->event);
    if (status != PRHS_OK) {
        prhs_stats_request_destroy(r);
        return status;
    }
    *request = r;
    return PRHS_OK;
}

void prhs_stats_request_destroy(prhs_stats_request *request) {
    if (!request)
        return;
    prhs_event_destroy(request->event);
    prhs_host_free(request->session->dev, request->data);
    free(request);
}

prhs_status prhs_stats_request_enqueue(prhs_stats_request *request, prhs_queue *queue) {
    if (!request || !queue)
        return prhs_fail(request ? &request->session->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_stats_request_enqueue: NULL argument");
    const prhs_session *s = request->session;
    if (queue->dev != s->dev)
        return prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "prhs_stats_request_enqueue: the queue belongs to another device");
    prhs_status status = request->enqueued && !request->arrived ? prhs_event_query(request->event) : PRHS_OK;
    if (status == PRHS_NOT_READY)
        return prhs_fail(&s->dev->log, PRHS_ERR_STATE, "prhs_stats_request_enqueue: the request is still in flight");
    if (status != PRHS_OK)
        return status;
    if (request->size)
        status = s->dev->backend->read(queue, request->data, s->state.buffer, (size_t)(s->state.offset + (uint64_t)s->layout.stats_off),
                                       request->size);
    if (status == PRHS_OK)
        status = prhs_event_record(queue, request->event);
    request->enqueued = status == PRHS_OK;
    request->arrived = false;
    return status;
}

/* Sums of one kind of mass while they are added up. */
typedef struct mass_sum {
    double sum;
    uint64_t count;
} mass_sum;

static void add_mass(mass_sum *m, prhs_i64 sum, prhs_i64 count) {
    m->sum += (double)sum / (double)PRHS_MASS_ONE;
    m->count += (uint64_t)count;
}

static prhs_mass mass(const mass_sum *m, prhs_grade grade) {
    return (prhs_mass){ m->count ? grade : PRHS_GRADE_UNKNOWN, m->count ? m->sum / (double)m->count : NAN, m->count };
}

typedef struct masses {
    mass_sum exact, estimate, audit;
    uint64_t within, nan_count;
} masses;

static void add_head(masses *m, const prhs_head_stat *h) {
    add_mass(&m->exact, h->exact_sum, h->exact_count);
    add_mass(&m->estimate, h->estimate_sum, h->estimate_count);
    add_mass(&m->audit, h->audit_sum, h->audit_count);
    m->within += (uint64_t)h->within;
    m->nan_count += (uint64_t)h->nan_count;
}

/* PSAW leaves keys unscored, so that even a retrieval knows only an estimate of the whole dropped mass. */
static void grade_masses(const prhs_session *s, const masses *m, prhs_mass *retrieved, prhs_mass *shared, prhs_mass *audited) {
    const prhs_policy *p = &s->params.policy;
    *retrieved = mass(&m->exact, p->psaw ? PRHS_GRADE_ESTIMATE : PRHS_GRADE_EXACT);
    *shared = mass(&m->estimate, p->gate == PRHS_GATE_MASS ? PRHS_GRADE_ESTIMATE : PRHS_GRADE_STALE);
    *audited = mass(&m->audit, PRHS_GRADE_EXACT);
}

typedef struct totals {
    double kept, attended;
    masses masses;
} totals;

static void add_unit(prhs_stats *out, totals *t, const prhs_unit_stat *u) {
    out->steps += (uint64_t)u->steps;
    out->dense += (uint64_t)u->dense;
    out->window += (uint64_t)u->window;
    out->stream += (uint64_t)u->stream;
    out->share += (uint64_t)u->share;
    out->retrieve += (uint64_t)u->retrieve;
    out->copy += (uint64_t)u->copy;
    out->seed += (uint64_t)u->seed;
    out->cosine_failed += (uint64_t)u->cosine_failed;
    out->mass_failed += (uint64_t)u->mass_failed;
    out->rows_dense += (uint64_t)u->rows_dense;
    out->missed += (uint64_t)u->missed;
    t->kept += (double)u->kept;
    t->attended += (double)u->attended;
}

/* The statistics of a slot and layer that lie at `offset` of the state for the first ones. */
static const void *stats_at(const prhs_stats_request *r, uint32_t slot, uint32_t layer, prhs_i64 offset) {
    const prhs_layout *l = &r->session->layout;
    const prhs_i64 skipped = l->state.stat_slot_bytes * (prhs_i64)slot + l->unit_stat_layer * prhs_sparse_index(r->session, layer);
    return (const char *)r->data + (skipped + offset - l->stats_off);
}

const prhs_unit_stat *prhs_stats_units(const prhs_stats_request *request, uint32_t slot, uint32_t layer) {
    return stats_at(request, slot, layer, request->session->layout.state.unit_stat_off);
}

const prhs_head_stat *prhs_stats_heads(const prhs_stats_request *request, uint32_t slot, uint32_t layer) {
    return stats_at(request, slot, layer, request->session->layout.state.head_stat_off);
}

static void add_layer(const prhs_stats_request *r, uint32_t slot, uint32_t layer, prhs_stats *out, totals *t) {
    const prhs_k_shape *shape = &r->session->limits.shape;
    for (prhs_i32 i = 0; i < shape->units; i++)
        add_unit(out, t, &prhs_stats_units(r, slot, layer)[i]);
    for (prhs_i32 i = 0; i < shape->heads; i++)
        add_head(&t->masses, &prhs_stats_heads(r, slot, layer)[i]);
}

static void grade(const prhs_session *s, const totals *t, prhs_stats *out) {
    uint64_t shared = out->share + out->copy + out->retrieve, sparse = shared + out->window + out->stream;
    out->rho = shared ? (double)out->retrieve / (double)shared : NAN;
    out->kept = sparse ? t->kept / (double)sparse : NAN;
    out->attended = out->steps ? t->attended / (double)out->steps : NAN;
    out->nan_masses = t->masses.nan_count;
    out->within = t->masses.within;
    grade_masses(s, &t->masses, &out->retrieved, &out->shared, &out->audited);
}

/* What a slot and layer are looked for in: [*begin, *end) of `all`. */
static void range(uint32_t wanted, uint32_t none, uint32_t first, uint32_t all, uint32_t *begin, uint32_t *end) {
    *begin = wanted == none || wanted < first ? first : wanted;
    *end = wanted == none ? all : wanted < first ? first : wanted + 1;
}

prhs_status prhs_stats_arrive(prhs_stats_request *request, const char *call, uint32_t slot, uint32_t layer, prhs_span *span) {
    const prhs_session *s = request->session;
    if ((slot != PRHS_ALL_SLOTS && slot >= s->params.max_slots) || (layer != PRHS_ALL_LAYERS && layer >= s->params.layers))
        return prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "%s: slot or layer is out of range", call);
    if (!request->enqueued)
        return prhs_fail(&s->dev->log, PRHS_ERR_STATE, "%s: nothing was enqueued", call);
    prhs_status status = request->arrived ? PRHS_OK : prhs_event_query(request->event);
    request->arrived = status == PRHS_OK;
    range(slot, PRHS_ALL_SLOTS, 0, s->params.max_slots, &span->slot, &span->slots);
    range(layer, PRHS_ALL_LAYERS, s->params.policy.dense_layers, s->params.layers, &span->layer, &span->layers);
    return status;
}

prhs_status prhs_stats_request_get(prhs_stats_request *request, uint32_t slot, uint32_t layer, prhs_stats *stats) {
    const char *call = "prhs_stats_request_get";
    if (!request || !stats)
        return prhs_fail(request ? &request->session->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    const prhs_session *s = request->session;
    prhs_span x;
    prhs_status status = prhs_check_size(&s->dev->log, call, "stats->size", stats->size, sizeof *stats);
    if (status == PRHS_OK)
        status = prhs_stats_arrive(request, call, slot, layer, &x);
    if (status != PRHS_OK)
        return status;
    *stats = (prhs_stats){ .size = sizeof *stats };
    totals t = { 0 };
    for (uint32_t i = x.slot; i < x.slots; i++)
        for (uint32_t j = x.layer; j < x.layers; j++)
            add_layer(request, i, j, stats, &t);
    grade(s, &t, stats);
    return PRHS_OK;
}

prhs_status prhs_stats_request_get_head(prhs_stats_request *request, uint32_t slot, uint32_t layer, uint32_t head,
                                        prhs_head_stats *stats) {
    const char *call = "prhs_stats_request_get_head";
    if (!request || !stats)
        return prhs_fail(request ? &request->session->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    const prhs_session *s = request->session;
    prhs_span x;
    prhs_status status = prhs_check_size(&s->dev->log, call, "stats->size", stats->size, sizeof *stats);
    if (status == PRHS_OK && head >= (uint32_t)s->limits.shape.heads)
        status = prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "%s: head %u is out of range", call, head);
    if (status == PRHS_OK)
        status = prhs_stats_arrive(request, call, slot, layer, &x);
    if (status != PRHS_OK)
        return status;
    masses m = { 0 };
    for (uint32_t i = x.slot; i < x.slots; i++)
        for (uint32_t j = x.layer; j < x.layers; j++)
            add_head(&m, &prhs_stats_heads(request, i, j)[head]);
    *stats = (prhs_head_stats){ .size = sizeof *stats, .within = m.within, .nan_masses = m.nan_count };
    grade_masses(s, &m, &stats->retrieved, &stats->shared, &stats->audited);
    return PRHS_OK;
}

_Static_assert(sizeof(prhs_head_view) == sizeof(prhs_head_ref), "the public view is the state's record");

prhs_status prhs_session_view(const prhs_session *session, const void *blob, uint32_t layer, uint32_t unit, prhs_unit_view *view) {
    const char *call = "prhs_session_view";
    if (!session || !blob || !view)
        return prhs_fail(session ? &session->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    const prhs_k_shape *shape = &session->limits.shape;
    if (layer >= session->params.layers || unit >= (uint32_t)shape->units)
        return prhs_fail(&session->dev->log, PRHS_ERR_ARGUMENT, "%s: layer %u or unit %u is out of range", call, layer, unit);
    prhs_i32 index = prhs_sparse_index(session, layer);
    if (index < 0)
        return prhs_fail(&session->dev->log, PRHS_ERR_ARGUMENT, "%s: layer %u attends densely and has no state", call, layer);
    const prhs_layout *l = &session->layout;
    prhs_k_state k = prhs_layout_state(l, index, 0);
    const char *base = (const char *)blob - l->slots_off;
    const prhs_unit_state *state = (const prhs_unit_state *)(const void *)(base + k.unit_off) + unit;
    *view = (prhs_unit_view){
        .set = state->set,
        .ref_pos = state->ref_pos,
        .list = k.list_off == PRHS_NONE ? NULL : (const int32_t *)(const void *)(base + k.list_off) + (prhs_i64)unit * k.list_cap,
        .heads = (const prhs_head_view *)(const void *)(base + k.head_off) + (prhs_i64)unit * shape->unit_heads,
        .head_count = (uint32_t)shape->unit_heads,
    };
    if (state->ref_pos < 0)
        view->set.count = 0;
    return PRHS_OK;
}

static prhs_status fault_status(const prhs_session *s) {
    static const struct {
        uint32_t bit;
        const char *what;
    } faults[] = {
        { PRHS_FAULT_SLOT, "a sequence names a slot that the session does not have" },
        { PRHS_FAULT_LENGTH, "a sequence's kv_len is below its row_count, negative, above max_kv_len or past its page table" },
        { PRHS_FAULT_ROWS, "a sequence has more query rows than the step's capacity" },
        { PRHS_FAULT_PAGE, "a page table names a page outside the cache" },
        { PRHS_FAULT_PROMPT, "ETF needs prompt_len, the prompt's final length, in every prompt row's prhs_seq" },
    };
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        if (s->fault_bits & faults[i].bit)
            return prhs_fail(&s->dev->log, PRHS_ERR_DATA, "prhs_session_poll: %s", faults[i].what);
    return PRHS_OK;
}

prhs_status prhs_session_poll(prhs_session *session, prhs_queue *queue) {
    if (!session || !queue)
        return prhs_fail(session ? &session->dev->log : NULL, PRHS_ERR_ARGUMENT, "prhs_session_poll: NULL argument");
    prhs_session *s = session;
    if (queue->dev != s->dev)
        return prhs_fail(&s->dev->log, PRHS_ERR_ARGUMENT, "prhs_session_poll: the queue belongs to another device");
    prhs_status last = s->fault_seen ? fault_status(s) : PRHS_NOT_READY;
    if (s->fault_in_flight) {
        const prhs_status arrived = prhs_event_query(s->fault_event);
        if (arrived != PRHS_OK)
            return arrived == PRHS_NOT_READY ? last : arrived;
        s->fault_in_flight = false;
        s->fault_seen = true;
        s->fault_bits = *s->fault_word;
        last = fault_status(s);
    }
    if (last == PRHS_ERR_DATA)
        return last;
    prhs_status status = s->dev->backend->read(queue, s->fault_word, s->state.buffer, (size_t)s->state.offset, sizeof *s->fault_word);
    if (status == PRHS_OK)
        status = prhs_event_record(queue, s->fault_event);
    if (status != PRHS_OK)
        return status;
    s->fault_in_flight = true;
    return last;
}
