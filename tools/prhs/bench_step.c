/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole decode steps of 32 layers: append, gate, retrieval, attention, merge. When a unit retrieves is scripted by its block (the gate lets
 * everything pass), staggered over layers as the sessions of a real model are; K and queries are random, so that
 * the chosen tokens lie anywhere.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { LAYERS = 32, QUERIES = 64 };

typedef struct step_bench {
    bench *b;
    const bench_shape *s;
    const bench_cache *cache;
    prhs_session *session;
    prhs_step step;
    prhs_seq *seqs;     /* [steps][batch], host: written into step.batch.seqs before each step */
    prhs_mem queries;   /* [QUERIES][batch][heads][dim] */
    uint32_t base;      /* layer steps done before this timing */
} step_bench;

typedef struct step_case {
    const char *name;
    const char *preset;
    uint32_t block, granularity, dense_layers;
} step_case;

static prhs_session_params session_params(const bench *b, const bench_shape *s, const step_case *c, uint32_t steps) {
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    bench_must(prhs_policy_preset(c->preset, LAYERS, &p.policy));
    p.policy.dense_layers = c->dense_layers;
    if (c->block) {
        p.policy.k = s->n / b->o->kept_part - p.policy.sinks - p.policy.local;
        p.policy.k -= p.policy.k % c->granularity;
        p.policy.granularity = c->granularity;
        p.policy.block = c->block;
        p.policy.dilate_m = 0;
        p.policy.tau = -1.0f;
        p.policy.eps = 1.0f;
    }
    p.shape = (prhs_shape){ s->heads, s->kv_heads, s->dim, 0.0f };
    p.layers = LAYERS;
    p.max_slots = p.max_seqs = p.max_rows = s->batch;
    p.max_kv_len = s->n + steps;
    p.kv_dtype = b->o->dtype;
    return p;
}

/* Layer i % LAYERS of step i / LAYERS. */
static void run_layer(void *arg, uint32_t i) {
    step_bench *m = arg;
    const bench_shape *s = m->s;
    i += m->base;
    uint32_t step = i / LAYERS, layer = i % LAYERS;
    if (layer == 0)
        bench_must(prhs_queue_write(m->b->queue, m->step.batch.seqs, m->seqs + (size_t)step * s->batch, s->batch * sizeof *m->seqs));
    uint64_t query = (uint64_t)s->batch * s->heads * s->dim * 4;
    m->step.layer = layer;
    m->step.kv = m->cache->kv[i % m->cache->copies];
    m->step.q.mem = (prhs_mem){ m->queries.buffer, (i * 7u + step) % QUERIES * query };
    bench_must(prhs_session_step(m->session, m->b->queue, &m->step));
}

/* Makes the session and takes the rows that are in the cache already. */
static void begin(step_bench *m, const prhs_session_params *p, uint32_t steps) {
    bench *b = m->b;
    const bench_shape *s = m->s;
    prhs_session_sizes sizes;
    bench_must(prhs_session_get_sizes(b->dev, p, &sizes));
    bench_must(prhs_session_create(b->dev, p, b->queue, bench_buffer(b, sizes.state), bench_buffer(b, sizes.workspace), &m->session));
    m->seqs = bench_alloc((size_t)steps * s->batch, sizeof *m->seqs);
    for (uint32_t t = 0; t < steps; t++)
        for (uint32_t i = 0; i < s->batch; i++)
            m->seqs[t * s->batch + i] =
                (prhs_seq){ .slot = (int32_t)i, .row_begin = (int32_t)i, .row_count = 1, .kv_len = (int32_t)(s->n + t + 1) };
    m->step = (prhs_step)PRHS_STEP_INIT;
    m->step.batch = (prhs_batch){ bench_buffer(b, s->batch * sizeof *m->seqs), m->cache->pages, s->batch, m->cache->page_stride,
                                  s->batch, 1, PRHS_HAS_DECODE };
    uint64_t rows = s->batch;
    m->queries = bench_normals(b, PRHS_F32, QUERIES * rows * s->heads * s->dim);
    m->step.k.mem = bench_normals(b, PRHS_F32, rows * s->kv_heads * s->dim);
    m->step.v.mem = bench_normals(b, PRHS_F32, rows * s->kv_heads * s->dim);
    m->step.out.mem = bench_buffer(b, rows * s->heads * s->dim * 4);
    for (uint32_t i = 0; i < s->batch; i++)
        m->seqs[i].kv_len--;
    bench_must(prhs_queue_write(b->queue, m->step.batch.seqs, m->seqs, s->batch * sizeof *m->seqs));
    bench_must(prhs_queue_finish(b->queue));
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        bench_must(prhs_session_attach(m->session, b->queue, layer, &m->step.batch, &m->cache->kv[layer % m->cache->copies]));
    for (uint32_t i = 0; i < s->batch; i++)
        m->seqs[i].kv_len++;
}

static double rho_of(step_bench *m) {
    prhs_stats stats = { .size = sizeof stats };
    prhs_stats_request *request = NULL;
    bench_must(prhs_stats_request_create(m->session, &request));
    bench_must(prhs_stats_request_enqueue(request, m->b->queue));
    bench_must(prhs_queue_finish(m->b->queue));
    bench_must(prhs_stats_request_get(request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &stats));
    prhs_stats_request_destroy(request);
    return stats.rho;
}

/* Steady steps after the first, which retrieves everywhere. Returns seconds a layer step, all time over all calls. */
static double run_case(bench *b, const bench_shape *s, const bench_cache *cache, const step_case *c, uint32_t steps, double dense) {
    uint32_t mark = b->buffer_count;
    step_bench m = { .b = b, .s = s, .cache = cache };
    prhs_session_params p = session_params(b, s, c, steps);
    char name[80];
    begin(&m, &p, steps);
    bench_row first = { .section = "decode steps, by layer" };
    bench_row r = { .section = "decode steps, by layer", .name = c->name, .shape = *s, .dense = dense };
    bench_time(b, run_layer, &m, 0, LAYERS, &first);
    m.base = LAYERS;
    bench_time(b, run_layer, &m, LAYERS, (steps - 2) * LAYERS, &r);
    r.worst_of_median = r.max / r.median;
    if (!c->block)
        r.bytes = 2.0 * s->batch * s->kv_heads * s->dim * (double)prhs_dtype_size(b->o->dtype) * s->n;
    bench_report_row(b, &r);
    if (c->block) {
        snprintf(name, sizeof name, "    its first step (rho so far %.3f)", rho_of(&m));
        first.name = name;
        first.shape = *s;
        bench_report_row(b, &first);
    }
    free(m.seqs);
    bench_must(prhs_queue_finish(b->queue));
    prhs_session_destroy(m.session);
    bench_release(b, mark);
    return r.mean;
}

void bench_steps(bench *b, const bench_shape *s) {
    static const step_case dense_case = { "dense", "dense", 0, 1, 0 };
    static const step_case cases[] = {
        { "cis, rho 1/16, single tokens", "cis", 16, 1, 0 },
        { "cis, rho 1/16, runs of 16", "cis", 16, 16, 0 },
        { "cis, rho 1/16, single tokens, layer 0 dense", "cis", 16, 1, 1 },
        { "cis-mass, rho 1/7, mean", "cis-mass", 7, 1, 0 },
    };
    const uint32_t steps = 34; /* the first, one more, and two blocks of 16 */
    uint32_t mark = b->buffer_count;
    bench_cache cache;
    bench_cache_make(b, s, steps, &cache);
    double dense = run_case(b, s, &cache, &dense_case, 4, 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        run_case(b, s, &cache, &cases[i], steps, dense);
    bench_release(b, mark);
}
