/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole decode steps of 32 layers: append, gate, retrieval, attention, merge. When a unit retrieves is scripted by its block (the gate lets
 * everything pass), staggered over layers as the sessions of a real model are; K and queries are random, so that
 * the chosen tokens lie anywhere. Between two steps, outside the timed stretch, the records of the batch and fresh queries are copied
 * on the device to where the layers read them: a graph of the 32 layers that was captured once is replayed for every step.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

const step_case step_dense = { "dense", "dense", 0, 1, 0, 0, 0, 0, false, 0 };
const step_case step_cis = { "cis, rho 1/16, single tokens", "cis", 16, 1, 0, 0, 0, 0, false, 0 };
const step_case step_mass = { "cis-mass, rho 1/7, mean", "cis-mass", 7, 1, 0, 0, 0, 0, false, 0 };

static prhs_session_params session_params(const step_bench *m) {
    const bench *b = m->b;
    const bench_shape *s = m->s;
    const step_case *c = m->c;
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    bench_must(prhs_policy_preset(c->preset, BENCH_LAYERS, &p.policy));
    p.policy.dense_layers = c->dense_layers;
    p.policy.min_sparse_n = c->min_sparse_n;
    if (c->block) {
        p.policy.k = (c->kept ? c->kept : s->kept) - p.policy.sinks - p.policy.local;
        p.policy.k -= p.policy.k % c->granularity;
        p.policy.granularity = c->granularity;
        p.policy.block = c->block;
        p.policy.dilate_m = 0;
        p.policy.tau = -1.0f;
        p.policy.eps = 1.0f;
    }
    if (c->residual)
        p.policy.residual = c->residual;
    if (c->ungated)
        p.policy.gate = PRHS_GATE_NONE;
    p.audit_rate = c->audit_rate;
    p.shape = (prhs_shape){ s->heads, s->kv_heads, s->dim, 0.0f };
    p.layers = BENCH_LAYERS;
    p.max_slots = p.max_seqs = p.max_rows = m->seqs;
    p.max_kv_len = m->max_kv_len;
    p.kv_dtype = b->o->dtype;
    p.q_dtype = p.out_dtype = b->row_type;
    return p;
}

void step_layer(void *arg, uint32_t i) {
    step_bench *m = arg;
    prhs_step step = m->step;
    step.layer = i % BENCH_LAYERS;
    step.kv = m->cache->kv[step.layer % m->cache->copies];
    step.q.mem.offset += step.layer * m->query_bytes;
    bench_must(prhs_session_step(m->session, m->b->queue, &step));
}

/* The cached rows of a step. The warm steps end a whole block before the first one: its block number is another one in every layer. */
static uint32_t kv_len(const step_bench *m, uint32_t at) {
    return at < m->warm ? m->s->n - m->c->block - m->warm + at + 1 : m->s->n + at - m->warm + 1;
}

static void make_records(step_bench *m) {
    prhs_seq *seqs = bench_alloc((size_t)m->steps * m->seqs, sizeof *seqs);
    for (uint32_t at = 0; at < m->steps; at++)
        for (uint32_t i = 0; i < m->seqs; i++)
            seqs[at * m->seqs + i] = i >= m->s->batch ? (prhs_seq){ .slot = -1 }
                                                      : (prhs_seq){ .slot = (int32_t)i, .row_begin = (int32_t)i, .row_count = 1,
                                                                    .kv_len = (int32_t)kv_len(m, at) };
    m->records = bench_filled(m->b, seqs, (uint64_t)m->steps * m->seqs * sizeof *seqs);
    /* What is there before the first step. */
    for (uint32_t i = 0; i < m->s->batch; i++)
        seqs[i].kv_len--;
    m->step.batch.seqs = bench_filled(m->b, seqs, m->seqs * sizeof *seqs);
    free(seqs);
}

void step_begin(step_bench *m, uint32_t timed) {
    bench *b = m->b;
    const bench_shape *s = m->s;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    m->mark = b->buffer_count;
    m->warm = b->graphs ? 2 : 0;
    m->steps = m->warm + 2 + timed;
    m->seqs = m->seqs ? m->seqs : s->batch;
    m->max_kv_len = m->max_kv_len ? m->max_kv_len : s->n + timed + 2;
    prhs_session_params p = session_params(m);
    bench_must(prhs_session_get_sizes(b->dev, &p, &sizes));
    bench_must(prhs_session_create(b->dev, &p, b->queue, bench_buffer(b, sizes.state), bench_buffer(b, sizes.workspace), &m->session));
    m->step = (prhs_step)PRHS_STEP_INIT;
    m->step.batch = (prhs_batch){ { NULL, 0 }, m->cache->pages, m->seqs, m->cache->page_stride, m->seqs, 1, PRHS_HAS_DECODE };
    make_records(m);
    m->query_bytes = (uint64_t)m->seqs * s->heads * s->dim * prhs_dtype_size(b->row_type);
    m->step.q = bench_rows(b, (uint64_t)BENCH_LAYERS * m->seqs, s->heads, s->dim, true);
    m->step.k = bench_rows(b, m->seqs, s->kv_heads, s->dim, true);
    m->step.v = bench_rows(b, m->seqs, s->kv_heads, s->dim, true);
    m->step.out = bench_rows(b, m->seqs, s->heads, s->dim, false);
    for (uint32_t layer = 0; layer < BENCH_LAYERS; layer++)
        bench_must(prhs_session_attach(m->session, b->queue, layer, &m->step.batch, &m->cache->kv[layer % m->cache->copies]));
}

void step_end(step_bench *m) {
    bench_must(prhs_queue_finish(m->b->queue));
    prhs_session_destroy(m->session);
    bench_release(m->b, m->mark);
}

void step_records(step_bench *m, uint32_t at) {
    bench *b = m->b;
    uint64_t bytes = m->seqs * sizeof(prhs_seq);
    bench_must(prhs_queue_copy(b->queue, m->step.batch.seqs, (prhs_mem){ m->records.buffer, at * bytes }, bytes));
    bench_fill_normals(b, b->row_type, m->step.q.mem, BENCH_LAYERS * m->query_bytes);
}

uint32_t step_count(const step_case *c, uint32_t least) {
    uint32_t blocks = c->block ? (least + c->block - 1) / c->block : 0;
    return c->block ? (blocks < 2 ? 2 : blocks) * c->block : least;
}

/* --- timing ----------------------------------------------------------------------------------------------------------- */

static prhs_stats_request *ask(step_bench *m) {
    prhs_stats_request *request = NULL;
    bench_must(prhs_stats_request_create(m->session, &request));
    bench_must(prhs_stats_request_enqueue(request, m->b->queue));
    return request;
}

static prhs_stats answer(prhs_stats_request *request) {
    prhs_stats stats = { .size = sizeof stats };
    bench_must(prhs_stats_request_get(request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &stats));
    prhs_stats_request_destroy(request);
    return stats;
}

/* Retrievals per sparse unit-step between two looks; 0: there was none. */
static double rho_between(prhs_stats_request *from, prhs_stats_request *to) {
    prhs_stats a = answer(from), b = answer(to);
    double retrieved = (double)(b.retrieve - a.retrieve), shared = (double)(b.share - a.share);
    return retrieved > 0 ? retrieved / (retrieved + shared) : 0;
}

void step_time(step_bench *m, uint32_t timed, bench_row *first, bench_row *row) {
    bench *b = m->b;
    bench_loop loop;
    prhs_stats_request *before = NULL;
    uint32_t n = m->steps;
    prhs_event **events = bench_alloc(2 * n, sizeof *events);
    double *seconds = bench_alloc(n, sizeof *seconds);
    for (uint32_t i = 0; i < 2 * n; i++)
        bench_must(prhs_event_create(b->dev, &events[i]));
    bench_loop_make(b, step_layer, m, BENCH_LAYERS, &loop);
    for (uint32_t at = 0; at < n; at++) {
        if (at == m->warm + 2)
            before = ask(m);
        step_records(m, at);
        bench_must(prhs_event_record(b->queue, events[2 * at]));
        bench_loop_run(&loop);
        bench_must(prhs_event_record(b->queue, events[2 * at + 1]));
    }
    prhs_stats_request *after = ask(m);
    bench_must(prhs_queue_finish(b->queue));
    for (uint32_t at = 0; at < n; at++) {
        bench_must(prhs_event_elapsed(events[2 * at], events[2 * at + 1], &seconds[at]));
        seconds[at] /= BENCH_LAYERS;
    }
    for (uint32_t i = 0; i < 2 * n; i++)
        prhs_event_destroy(events[i]);
    bench_loop_free(&loop);
    bench_summary(seconds + m->warm, 1, first);
    bench_summary(seconds + m->warm + 2, timed, row);
    row->worst_of_median = row->max / row->median;
    row->rho = rho_between(before, after);
    free(events);
    free(seconds);
}

/* What must move in a layer step, on average: K and V of what is kept, of the tokens since a retrieval, and all K (and V, if that
   is what stands in) at retrievals. */
static double bytes_of(const bench *b, const bench_shape *s, const step_case *c) {
    if (!c->block)
        return bench_row_bytes(b, s, s->n);
    double all = bench_row_bytes(b, s, s->n), part = (double)c->dense_layers / BENCH_LAYERS;
    double scored = c->residual == PRHS_RESIDUAL_RETRIEVED ? all : all / 2;
    double sparse = bench_row_bytes(b, s, (c->kept ? c->kept : s->kept) + (c->block - 1) / 2.0) + scored / c->block;
    return (1 - part) * sparse + part * all;
}

static const char *const in_steps = "decode steps, by layer";

/* Returns seconds a layer step, all time over all calls. */
static double run_case(bench *b, const char *section, const bench_shape *s, const bench_cache *cache, const step_case *c, double dense) {
    step_bench m = { .b = b, .s = s, .cache = cache, .c = c };
    uint32_t timed = step_count(c, c->block || b->graphs ? b->o->repeat : 2);
    char name[80];
    bench_row first = { .section = section, .shape = *s, .name = name };
    bench_row r = { .section = first.section, .name = c->name, .shape = *s, .dense = dense, .bytes = bytes_of(b, s, c) };
    step_begin(&m, timed);
    step_time(&m, timed, &first, &r);
    step_end(&m);
    double touched = bench_row_bytes(b, s, c->block ? s->kept : s->n);
    r.rotation = touched * (cache->copies < BENCH_LAYERS ? cache->copies : BENCH_LAYERS);
    bench_report_row(b, &r);
    if (c->block && !strcmp(section, in_steps)) {
        snprintf(name, sizeof name, "    its first step");
        bench_report_row(b, &first);
    }
    return r.mean;
}

void bench_steps(bench *b, const bench_shape *s) {
    static const step_case cases[] = {
        { "cis, rho 1/16, runs of 16", "cis", 16, 16, 0, 0, 0, 0, false, 0 },
        { "cis, rho 1/16, single tokens, layer 0 dense", "cis", 16, 1, 1, 0, 0, 0, false, 0 },
        { "cis-mass, rho 1/6, mean", "cis-mass", 6, 1, 0, 0, 0, 0, false, 0 },
        { "cis-mass, rho 1/7, retrieved", "cis-mass", 7, 1, 0, 0, 0, PRHS_RESIDUAL_RETRIEVED, false, 0 },
    };
    bench_cache cache;
    uint32_t mark = b->buffer_count;
    bench_cache_make(b, s, s->kept, step_count(&step_cis, b->o->repeat) + 32, &cache);
    double dense = run_case(b, in_steps, s, &cache, &step_dense, 0);
    run_case(b, in_steps, s, &cache, &step_cis, dense);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        run_case(b, in_steps, s, &cache, &cases[i], dense);
    run_case(b, in_steps, s, &cache, &step_mass, dense);
    bench_release(b, mark);
}

/* What it costs to be told more: gates that could ask for a retrieval (and here never do), and audits; the residual is the preset's. */
void bench_sure(bench *b, const bench_shape *s) {
    static const step_case cases[] = {
        { "no gate", "cis", 16, 1, 0, 0, 0, 0, true, 0 },
        { "cosine gate", "cis", 16, 1, 0, 0, 0, 0, false, 0 },
        { "cosine gate, audits at 1 %", "cis", 16, 1, 0, 0, 0, 0, false, 0.01 },
        { "mass gate", "cis-mass", 16, 1, 0, 0, 0, 0, false, 0 },
        { "mass gate, audits at 1 %", "cis-mass", 16, 1, 0, 0, 0, 0, false, 0.01 },
    };
    static const char *const section = "the cost of being sure, by layer";
    bench_cache cache;
    uint32_t mark = b->buffer_count;
    bench_cache_make(b, s, s->kept, step_count(&step_cis, b->o->repeat) + 32, &cache);
    double dense = run_case(b, section, s, &cache, &step_dense, 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        run_case(b, section, s, &cache, &cases[i], dense);
    bench_release(b, mark);
}
