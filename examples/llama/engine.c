/* SPDX-License-Identifier: Apache-2.0 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

static prhs_mem at(prhs_buffer *buffer, uint64_t offset) { return (prhs_mem){ buffer, offset }; }

static size_t q_floats(const engine *e) { return (size_t)e->m->heads * e->m->head_dim; }
static size_t kv_floats(const engine *e) { return (size_t)e->m->kv_heads * e->m->head_dim; }

/* Room for so many arrays of `size` bytes: buffers of as many as one may hold. */
static bool make_caches(engine *e, size_t size, uint32_t arrays, uint64_t largest, uint32_t *each) {
    const uint64_t fit = largest ? largest / size : arrays;
    *each = fit < 1 ? 1 : fit < arrays ? (uint32_t)fit : arrays; /* not even one fits: the device says so */
    e->caches = calloc((arrays + *each - 1) / *each, sizeof *e->caches);
    for (uint32_t made = 0; e->caches && made < arrays; made += *each) {
        const uint32_t more = arrays - made < *each ? arrays - made : *each;
        if (prhs_buffer_create(e->dev, more * size, &e->caches[e->cache_count]) != PRHS_OK)
            return false;
        e->cache_count++;
    }
    return e->caches != NULL;
}

/*
 * All layers' K and V, page by page; sequence i owns pages [i * pages_per_seq, ...). On devices whose buffers may be but a part of their memory
 * layers lie in several.
 */
static bool make_cache(engine *e, uint64_t largest) {
    const model *m = e->m;
    uint32_t pages = e->seqs * e->pages_per_seq, each = 0;
    const size_t half = (size_t)pages * ENGINE_PAGE * kv_floats(e) * prhs_dtype_size(e->kv_dtype);
    e->kv = calloc(m->layers, sizeof *e->kv);
    if (!e->kv || !make_caches(e, half, 2 * m->layers, largest, &each))
        return false;
    for (uint32_t i = 0; i < m->layers; i++) {
        e->kv[i] = (prhs_kv){ .dtype = e->kv_dtype, .page_size = ENGINE_PAGE, .pages = pages };
        e->kv[i].k = at(e->caches[2 * i / each], 2 * i % each * half);
        e->kv[i].v = at(e->caches[(2 * i + 1) / each], (2 * i + 1) % each * half);
        prhs_kv_strides_nhd(&e->kv[i], m->kv_heads, m->head_dim);
    }
    int32_t *table = malloc((size_t)pages * sizeof *table);
    bool ok = table && prhs_buffer_create(e->dev, (size_t)pages * sizeof *table, &e->pages) == PRHS_OK;
    for (uint32_t i = 0; ok && i < pages; i++)
        table[i] = (int32_t)i;
    ok = ok && prhs_queue_write(e->queue, at(e->pages, 0), table, (size_t)pages * sizeof *table) == PRHS_OK &&
         prhs_queue_finish(e->queue) == PRHS_OK;
    free(table);
    return ok;
}

bool engine_open(engine *e, const model *m, const engine_params *p, const prhs_log *log) {
    *e = (engine){ .m = m, .kv_dtype = p->kv_dtype, .seqs = p->seqs, .tokens = p->tokens, .rows = p->rows, .plans = p->plans,
                   .pages_per_seq = (p->tokens + ENGINE_PAGE - 1) / ENGINE_PAGE };
    prhs_device_params dp = PRHS_DEVICE_PARAMS_INIT;
    dp.backend = p->backend;
    dp.index = p->index;
    prhs_device_info info = { .size = sizeof info };
    return prhs_device_open(&dp, log, &e->dev) == PRHS_OK && prhs_device_get_info(e->dev, &info) == PRHS_OK &&
           prhs_queue_create(e->dev, &e->queue) == PRHS_OK && make_cache(e, p->cache_buffer ? p->cache_buffer : info.max_buffer) &&
           prhs_buffer_create(e->dev, (size_t)p->plans * p->seqs * sizeof(prhs_seq), &e->seq) == PRHS_OK;
}

bool engine_make_rows(engine *e, bool joined) {
    const size_t q = q_floats(e), kv = kv_floats(e), row = q + 2 * kv;
    prhs_buffer_destroy(e->heads);
    prhs_buffer_destroy(e->result);
    e->heads = e->result = NULL;
    if (prhs_buffer_create(e->dev, e->rows * row * 4, &e->heads) != PRHS_OK ||
        prhs_buffer_create(e->dev, e->rows * q * 4, &e->result) != PRHS_OK)
        return false;
    const size_t k_at = joined ? q : e->rows * q, v_at = joined ? q + kv : e->rows * (q + kv);
    e->q = (prhs_rows){ at(e->heads, 0), PRHS_F32, (int64_t)(joined ? row : q), e->m->head_dim };
    e->k = (prhs_rows){ at(e->heads, k_at * 4), PRHS_F32, (int64_t)(joined ? row : kv), e->m->head_dim };
    e->v = (prhs_rows){ at(e->heads, v_at * 4), PRHS_F32, (int64_t)(joined ? row : kv), e->m->head_dim };
    e->out = (prhs_rows){ at(e->result, 0), PRHS_F32, (int64_t)q, e->m->head_dim };
    return true;
}

prhs_mem engine_row(const prhs_rows *rows, size_t row) {
    return at(rows->mem.buffer, rows->mem.offset + (uint64_t)row * (uint64_t)rows->row * 4);
}

/* A row may be a part of a longer one: then the rest is read with it. */
bool engine_read_rows(engine *e, const prhs_rows *from, size_t rows, size_t width, float *to) {
    const size_t stride = (size_t)from->row;
    if (stride == width)
        return prhs_queue_read(e->queue, to, from->mem, rows * width * sizeof *to) == PRHS_OK && prhs_queue_finish(e->queue) == PRHS_OK;
    const size_t floats = (rows - 1) * stride + width;
    float *wide = malloc(sizeof *wide * floats);
    bool ok = wide && prhs_queue_read(e->queue, wide, from->mem, floats * sizeof *wide) == PRHS_OK && prhs_queue_finish(e->queue) == PRHS_OK;
    for (size_t i = 0; ok && i < rows; i++)
        memcpy(to + i * width, wide + i * stride, width * sizeof *to);
    free(wide);
    return ok;
}

void engine_close(engine *e) {
    prhs_buffer *buffers[] = { e->pages, e->seq, e->heads, e->result };
    prhs_queue_destroy(e->queue);
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        prhs_buffer_destroy(buffers[i]);
    for (uint32_t i = 0; i < e->cache_count; i++)
        prhs_buffer_destroy(e->caches[i]);
    prhs_device_close(e->dev);
    free(e->caches);
    free(e->kv);
    *e = (engine){ 0 };
}

bool engine_session_open(engine *e, const prhs_policy *policy, const uint32_t *list_layers, const engine_audits *audits, engine_session *s) {
    const model *m = e->m;
    *s = (engine_session){ .policy = *policy };
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    p.policy = *policy;
    p.shape = (prhs_shape){ m->heads, m->kv_heads, m->head_dim, 0.0f };
    p.layers = m->layers;
    p.max_slots = p.max_seqs = e->seqs;
    p.max_rows = (uint32_t)e->rows;
    p.max_kv_len = e->tokens;
    p.kv_dtype = e->kv_dtype;
    p.audit = audits->every;
    p.audit_rate = audits->rate;
    p.audit_seed = audits->seed;
    p.list_layers = list_layers;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    return prhs_session_get_sizes(e->dev, &p, &sizes) == PRHS_OK && prhs_buffer_create(e->dev, sizes.state, &s->state) == PRHS_OK &&
           prhs_buffer_create(e->dev, sizes.workspace, &s->work) == PRHS_OK &&
           prhs_session_create(e->dev, &p, e->queue, at(s->state, 0), at(s->work, 0), &s->s) == PRHS_OK;
}

void engine_session_close(engine_session *s) {
    prhs_session_destroy(s->s);
    prhs_buffer_destroy(s->state);
    prhs_buffer_destroy(s->work);
    *s = (engine_session){ 0 };
}

bool engine_plan(engine *e, uint32_t first, uint32_t count, const prhs_seq *seqs) {
    size_t one = e->seqs * sizeof *seqs;
    return prhs_queue_write(e->queue, at(e->seq, first * one), seqs, count * one) == PRHS_OK && prhs_queue_finish(e->queue) == PRHS_OK;
}

prhs_batch engine_batch(const engine *e, uint32_t plan, uint32_t seq, uint32_t seqs, size_t rows, uint32_t kinds) {
    return (prhs_batch){
        .seqs = at(e->seq, ((uint64_t)plan * e->seqs + seq) * sizeof(prhs_seq)),
        .pages = at(e->pages, (uint64_t)seq * e->pages_per_seq * 4),
        .max_seqs = seqs, .page_stride = e->pages_per_seq, .max_rows = (uint32_t)rows, .decode_rows = 1, .kinds = kinds,
    };
}

bool engine_step(engine *e, engine_session *s, const engine_call *c) {
    prhs_step step = PRHS_STEP_INIT;
    step.layer = c->layer;
    step.batch = engine_batch(e, c->plan, c->seq, c->seqs, c->count, c->kinds);
    step.kv = e->kv[c->layer];
    step.q = c->q ? *c->q : e->q;
    step.q.mem = engine_row(&step.q, c->row);
    step.out = e->out;
    step.out.mem = engine_row(&e->out, c->row);
    if (c->append) {
        step.k = e->k;
        step.v = e->v;
        step.k.mem = engine_row(&e->k, c->row);
        step.v.mem = engine_row(&e->v, c->row);
    }
    return prhs_session_step(s->s, e->queue, &step) == PRHS_OK;
}

bool engine_attach(engine *e, engine_session *s, uint32_t layer, uint32_t plan) {
    prhs_batch batch = engine_batch(e, plan, 0, e->seqs, 1, 0);
    return prhs_session_attach(s->s, e->queue, layer, &batch, &e->kv[layer]) == PRHS_OK;
}

bool engine_stats(engine *e, engine_session *s, uint32_t slot, prhs_stats *stats) {
    prhs_stats_request *r = NULL;
    *stats = (prhs_stats){ .size = sizeof *stats };
    bool ok = prhs_stats_request_create(s->s, &r) == PRHS_OK && prhs_stats_request_enqueue(r, e->queue) == PRHS_OK &&
              prhs_queue_finish(e->queue) == PRHS_OK && prhs_stats_request_get(r, slot, PRHS_ALL_LAYERS, stats) == PRHS_OK;
    prhs_stats_request_destroy(r);
    return ok;
}
