/* SPDX-License-Identifier: Apache-2.0 */
/* The ops, one by one. Lists are drawn uniformly, another one for every selection unit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { SINKS = 4, LOCAL = 32, PARTS = 8, PROMPT = 512 };

typedef struct op_bench {
    bench *b;
    const bench_shape *s;
    bench_cache cache;
    prhs_ops *ops;
    prhs_ops_layout layout;
    prhs_batch batch;
    prhs_rows q, k, v, out;
    prhs_mem state, ws, lse;
    prhs_select_params select;
    prhs_gate_params gate;
    prhs_merge_params merge;
    int moments, values;
} op_bench;

static const prhs_kv *copy_of(const op_bench *o, uint32_t i) { return &o->cache.kv[i % o->cache.copies]; }

static void run_append(void *arg, uint32_t i) {
    const op_bench *o = arg;
    bench_must(prhs_op_append(o->ops, o->b->queue, &o->batch, copy_of(o, i), &o->k, &o->v, o->state));
}

static void run_score(void *arg, uint32_t i) {
    const op_bench *o = arg;
    bench_must(prhs_op_score(o->ops, o->b->queue, &o->batch, copy_of(o, i), &o->q, 0, o->moments, o->ws));
}

static void run_select(void *arg, uint32_t i) {
    const op_bench *o = arg;
    (void)i;
    bench_must(prhs_op_select(o->ops, o->b->queue, &o->batch, &o->q, &o->select, o->state, o->ws));
}

static void run_moments(void *arg, uint32_t i) {
    const op_bench *o = arg;
    bench_must(prhs_op_moments(o->ops, o->b->queue, &o->batch, copy_of(o, i), o->values, o->state, o->ws));
}

static void run_attend(void *arg, uint32_t i) {
    const op_bench *o = arg;
    bench_must(prhs_op_attend(o->ops, o->b->queue, &o->batch, copy_of(o, i), &o->q, o->state, o->ws, &o->out, o->lse));
}

static void run_gate(void *arg, uint32_t i) {
    const op_bench *o = arg;
    (void)i;
    bench_must(prhs_op_gate(o->ops, o->b->queue, &o->q, &o->gate));
}

static void run_merge(void *arg, uint32_t i) {
    const op_bench *o = arg;
    (void)i;
    bench_must(prhs_op_merge(o->ops, o->b->queue, &o->merge, &o->out));
}

static void run_prefill(void *arg, uint32_t i) {
    const op_bench *o = arg;
    bench_must(prhs_op_prefill(o->ops, o->b->queue, &o->batch, copy_of(o, i), &o->q, NULL, 1, 0, &o->out, o->lse));
}

/* Times one op that touches `touched` bytes of K/V; dense: what the row is compared with, 0 for nothing. Returns its median. */
static double row_of(op_bench *o, const char *section, const char *name, void (*fn)(void *, uint32_t), double bytes, double touched,
                     double dense) {
    bench_row r = { .section = section, .name = name, .shape = *o->s, .bytes = bytes, .rotation = touched * o->cache.copies };
    uint32_t warm = o->cache.copies < 8 ? o->cache.copies : 8;
    bench_time(o->b, fn, o, o->cache.copies, warm, o->b->o->repeat, &r);
    r.dense = dense;
    bench_report_row(o->b, &r);
    return r.median;
}

static double row(op_bench *o, const char *name, void (*fn)(void *, uint32_t), double bytes, double touched, double dense) {
    return row_of(o, "ops", name, fn, bytes, touched, dense);
}

/* `count` distinct aligned runs below `limit`, ascending: a walk that takes each with the right probability. */
static void draw_runs(bench *b, int32_t *list, uint32_t count, uint32_t run, uint32_t limit) {
    uint32_t runs = limit / run, taken = 0;
    for (uint32_t i = 0; i < runs && taken < count; i++)
        if (bench_below(b, runs - i) < count - taken)
            list[taken++] = (int32_t)(i * run);
}

/* Every unit attends to `kept` tokens: listed runs and the last LOCAL ones; kept = n: to all of them. */
static void write_sets(op_bench *o, uint32_t kept, uint32_t run) {
    bench *b = o->b;
    const bench_shape *s = o->s;
    uint32_t units = o->layout.units, cap = o->select.k;
    prhs_set *sets = bench_alloc((size_t)s->batch * units, sizeof *sets);
    int32_t *lists = bench_alloc((size_t)units * cap, sizeof *lists);
    for (uint32_t seq = 0; seq < s->batch; seq++) {
        for (uint32_t u = 0; u < units; u++) {
            prhs_set *set = &sets[seq * units + u];
            *set = (prhs_set){ .mode = PRHS_MODE_DENSE, .run = 1, .end = (int32_t)s->n };
            if (kept == s->n)
                continue;
            set->mode = PRHS_MODE_RETRIEVE;
            set->run = (int32_t)run;
            set->win_begin = (int32_t)(s->n - LOCAL);
            set->count = (int32_t)((kept - LOCAL) / run);
            set->mid_end = (int32_t)(s->n - LOCAL);
            draw_runs(b, lists + (size_t)u * cap, (uint32_t)set->count, run, s->n - LOCAL);
        }
        prhs_mem at = { o->state.buffer, seq * o->layout.slot_bytes + o->layout.lists };
        bench_must(prhs_queue_write(b->queue, at, lists, (size_t)units * cap * sizeof *lists));
        bench_must(prhs_queue_finish(b->queue));
    }
    bench_must(prhs_queue_write(b->queue, (prhs_mem){ o->ws.buffer, o->layout.sets }, sets, (size_t)s->batch * units * sizeof *sets));
    bench_must(prhs_queue_finish(b->queue));
    free(sets);
    free(lists);
}

/* Sets as the scheduler makes them before a retrieval. */
static void write_retrieval(op_bench *o) {
    const bench_shape *s = o->s;
    size_t n = (size_t)s->batch * o->layout.units;
    prhs_set *sets = bench_alloc(n, sizeof *sets);
    for (size_t i = 0; i < n; i++)
        sets[i] = (prhs_set){ .mode = PRHS_MODE_RETRIEVE, .run = 1, .sink_end = SINKS, .win_begin = (int32_t)(s->n - LOCAL),
                              .end = (int32_t)s->n, .mid_begin = SINKS, .mid_end = (int32_t)(s->n - LOCAL) };
    bench_must(prhs_queue_write(o->b->queue, (prhs_mem){ o->ws.buffer, o->layout.sets }, sets, n * sizeof *sets));
    bench_must(prhs_queue_finish(o->b->queue));
    free(sets);
}

/* The batch: `rows` query rows a sequence at its end. */
static void make_batch(op_bench *o, uint32_t rows, int32_t flags) {
    bench *b = o->b;
    const bench_shape *s = o->s;
    prhs_seq *seqs = bench_alloc(s->batch, sizeof *seqs);
    for (uint32_t i = 0; i < s->batch; i++)
        seqs[i] = (prhs_seq){ .slot = (int32_t)i, .row_begin = (int32_t)(i * rows), .row_count = (int32_t)rows,
                              .kv_len = (int32_t)s->n, .flags = flags };
    o->batch = (prhs_batch){ bench_filled(b, seqs, s->batch * sizeof *seqs), o->cache.pages, s->batch, o->cache.page_stride,
                             s->batch * rows, 1, flags ? PRHS_HAS_PREFILL : PRHS_HAS_DECODE };
    free(seqs);
}

static void make(op_bench *o, uint32_t rows, int32_t flags) {
    bench *b = o->b;
    const bench_shape *s = o->s;
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    uint64_t all = (uint64_t)s->batch * rows;
    p.shape = (prhs_shape){ s->heads, s->kv_heads, s->dim, 0.0f };
    p.max_seqs = p.max_slots = s->batch;
    p.max_rows = (uint32_t)all;
    p.max_kv_len = s->n;
    p.list_cap = o->select.k;
    p.kv_dtype = b->o->dtype;
    p.q_dtype = p.out_dtype = b->row_type;
    o->layout.size = sizeof o->layout;
    bench_must(prhs_ops_get_layout(b->dev, &p, &o->layout));
    bench_must(prhs_ops_create(b->dev, &p, &o->ops));
    o->state = bench_buffer(b, o->layout.state_bytes);
    bench_must(prhs_queue_fill(b->queue, o->state, 0, o->layout.state_bytes / 4 * 4));
    o->ws = bench_buffer(b, o->layout.workspace_bytes);
    make_batch(o, rows, flags);
    o->q = bench_rows(b, all, s->heads, s->dim, true);
    o->k = bench_rows(b, all, s->kv_heads, s->dim, true);
    o->v = bench_rows(b, all, s->kv_heads, s->dim, true);
    o->out = bench_rows(b, all, s->heads, s->dim, false);
    o->lse = bench_buffer(b, all * s->heads * 4);
}

static void make_gate_and_merge(op_bench *o) {
    bench *b = o->b;
    uint64_t rows = o->s->batch, heads = rows * o->s->heads, dim = o->s->dim;
    o->gate = (prhs_gate_params){ .size = sizeof o->gate, .rows = (uint32_t)rows, .queries = bench_normals(b, PRHS_F32, heads * dim),
                                  .moments = bench_normals(b, PRHS_F32, heads * 2 * dim), .dropped = bench_normals(b, PRHS_F32, heads),
                                  .spreads = bench_normals(b, PRHS_F32, heads), .lse = bench_normals(b, PRHS_F32, heads),
                                  .cosine = bench_buffer(b, heads * 4), .delta = bench_buffer(b, heads * 4) };
    o->merge = (prhs_merge_params){ .size = sizeof o->merge, .parts = PARTS, .rows = (uint32_t)rows,
                                    .o = bench_normals(b, PRHS_F32, PARTS * heads * dim),
                                    .lse = bench_normals(b, PRHS_F32, PARTS * heads) };
}

/* Own dense attention; the best rate of the run is the ceiling where nothing else tells what the memory can do. */
static double dense_op(op_bench *o, const char *section) {
    bench *b = o->b;
    double bytes = bench_row_bytes(b, o->s, o->s->n);
    write_sets(o, o->s->n, 1);
    double seconds = row_of(o, section, "attend all (own dense)", run_attend, bytes, bytes, 0);
    if (seconds > 0 && bytes / seconds > b->dense_rate)
        b->dense_rate = bytes / seconds;
    return seconds;
}

static void decode_ops(op_bench *o) {
    const bench_shape *s = o->s;
    uint32_t kept = s->kept, listed = LOCAL + (kept - LOCAL) / 16 * 16;
    double keys = bench_row_bytes(o->b, s, s->n) / 2, one = bench_row_bytes(o->b, s, 1);
    double scores = (double)s->batch * s->heads * s->n * 4;
    double dense = dense_op(o, "ops");
    write_sets(o, kept, 1);
    row(o, "attend list, single tokens", run_attend, one * kept, one * kept, dense);
    write_sets(o, kept, 16);
    row(o, "attend list, runs of 16", run_attend, one * listed, one * listed, dense);
    write_retrieval(o);
    row(o, "score", run_score, keys + scores, keys, 0);
    o->moments = 1;
    row(o, "score with moments", run_score, keys + scores, keys, 0);
    row(o, "select", run_select, scores, 0, 0);
    row(o, "moments of the dropped keys", run_moments, one / 2 * o->select.k, one / 2 * o->select.k, 0);
    o->moments = 2;
    o->values = 1;
    row(o, "score with moments of values", run_score, 2 * keys + scores, 2 * keys, 0);
    row(o, "moments of the dropped values", run_moments, one * o->select.k, one * o->select.k, 0);
    row(o, "append", run_append, one, 0, 0);
    row(o, "gate", run_gate, 0, 0, 0);
    row(o, "merge of 8 parts", run_merge, 0, 0, 0);
}

/* The list's room also serves the lists drawn above, which have no sinks. */
static op_bench begin(bench *b, const bench_shape *s) {
    op_bench o = { .b = b, .s = s, .select = PRHS_SELECT_PARAMS_INIT };
    o.select.k = s->kept;
    return o;
}

void bench_ops(bench *b, const bench_shape *s) {
    uint32_t mark = b->buffer_count;
    op_bench o = begin(b, s);
    bench_cache_make(b, s, s->kept, 0, &o.cache);
    make(&o, 1, 0);
    make_gate_and_merge(&o);
    decode_ops(&o);
    prhs_ops_destroy(o.ops);
    if (s->n >= PROMPT) {
        bench_row r = { .section = "ops", .name = "prefill of the last 512 rows", .shape = *s };
        make(&o, PROMPT, PRHS_SEQ_PREFILL);
        bench_time(b, run_prefill, &o, 1, 1, 5, &r);
        bench_report_row(b, &r);
        prhs_ops_destroy(o.ops);
    }
    bench_release(b, mark);
}

void bench_dense(bench *b, const bench_shape *s) {
    uint32_t mark = b->buffer_count;
    op_bench o = begin(b, s);
    bench_cache_make(b, s, s->n, 0, &o.cache);
    make(&o, 1, 0);
    dense_op(&o, "ceiling");
    prhs_ops_destroy(o.ops);
    bench_release(b, mark);
}

static void select_shape(bench *b, const bench_shape *s) {
    uint32_t mark = b->buffer_count;
    op_bench o = begin(b, s);
    bench_cache_make(b, s, s->n, 0, &o.cache);
    make(&o, 1, 0);
    write_retrieval(&o);
    run_score(&o, 0);
    bench_row r = { .section = "select", .name = "select", .shape = *s, .bytes = (double)s->batch * s->heads * s->n * 4 };
    bench_time(b, run_select, &o, 1, 2, b->o->repeat, &r);
    bench_report_row(b, &r);
    prhs_ops_destroy(o.ops);
    bench_release(b, mark);
}

/* Of 4096 tokens for 512 units; of 131072 for 8, of one query head or four. The scores were written just before, as in a step. */
void bench_select(bench *b) {
    static const bench_shape shapes[] = {
        { 16, 4096, 32, 32, 128, 512 },   { 1, 131072, 8, 8, 128, 2048 },   { 1, 131072, 32, 8, 128, 2048 },
        { 1, 131072, 8, 8, 128, 16384 },  { 1, 131072, 32, 8, 128, 16384 },
    };
    if (b->o->preset)
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            select_shape(b, &shapes[i]);
    else
        for (uint32_t i = 0; i < b->o->shape_count; i++)
            select_shape(b, &b->o->shapes[i]);
}
