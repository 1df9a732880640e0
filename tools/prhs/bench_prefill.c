/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole prompts, causally: all rows at once, in every layer; then with PSAW and ETF from half of the layers on (phi = psi = 0.5), where the
 * time is the mean over the layers. How much of the arithmetic that these two leave out becomes time that is saved?
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

typedef struct prefill_bench {
    bench *b;
    const bench_shape *s;
    bench_cache cache;
    prhs_ops *ops;
    prhs_batch batch;
    prhs_rows q, out;
    prhs_mem lse;
    prhs_policy policy;
} prefill_bench;

static void run(const prefill_bench *p, uint32_t i, const prhs_policy *policy) {
    bench_must(prhs_op_prefill(p->ops, p->b->queue, &p->batch, &p->cache.kv[i % p->cache.copies], &p->q, policy, BENCH_LAYERS,
                               i % BENCH_LAYERS, &p->out, p->lse));
}

static void run_all(void *arg, uint32_t i) { run(arg, i, NULL); }

static void run_layer(void *arg, uint32_t i) {
    const prefill_bench *p = arg;
    run(p, i, &p->policy);
}

/* Multiply-adds count twice; of one layer, the mean over the layers. */
static double flops_of(const prefill_bench *p, const prhs_policy *policy) {
    const bench_shape *s = p->s;
    double pairs = 0;
    for (uint32_t layer = 0; layer < BENCH_LAYERS; layer++)
        for (uint32_t t = policy ? prhs_etf_frozen(policy, BENCH_LAYERS, layer, s->n) : 0; t < s->n; t++) {
            uint32_t start = policy ? prhs_psaw_start(policy, BENCH_LAYERS, layer, t) : 0, sinks = policy ? policy->sinks : 0;
            pairs += start > sinks ? t + 1 - start + sinks : t + 1;
        }
    return 4.0 * pairs / BENCH_LAYERS * s->batch * s->heads * s->dim;
}

static void make(prefill_bench *p) {
    bench *b = p->b;
    const bench_shape *s = p->s;
    prhs_ops_params o = PRHS_OPS_PARAMS_INIT;
    prhs_ops_layout layout = { .size = sizeof layout };
    prhs_seq *seqs = bench_alloc(s->batch, sizeof *seqs);
    uint32_t rows = s->batch * s->n;
    for (uint32_t i = 0; i < s->batch; i++)
        seqs[i] = (prhs_seq){ .slot = (int32_t)i, .row_begin = (int32_t)(i * s->n), .row_count = (int32_t)s->n, .kv_len = (int32_t)s->n,
                              .flags = PRHS_SEQ_PREFILL, .prompt_len = (int32_t)s->n };
    p->batch = (prhs_batch){ bench_filled(b, seqs, s->batch * sizeof *seqs), p->cache.pages, s->batch, p->cache.page_stride, rows, 1,
                             PRHS_HAS_PREFILL };
    free(seqs);
    o.shape = (prhs_shape){ s->heads, s->kv_heads, s->dim, 0.0f };
    o.max_seqs = o.max_slots = s->batch;
    o.max_rows = rows;
    o.max_kv_len = s->n;
    o.list_cap = 64;
    o.kv_dtype = b->o->dtype;
    o.q_dtype = o.out_dtype = b->row_type;
    bench_must(prhs_ops_get_layout(b->dev, &o, &layout));
    bench_must(prhs_ops_create(b->dev, &o, &p->ops));
    p->q = bench_rows(b, rows, s->heads, s->dim, true);
    p->out = bench_rows(b, rows, s->heads, s->dim, false);
    p->lse = bench_buffer(b, (uint64_t)rows * s->heads * 4);
    bench_must(prhs_policy_preset("cpe", BENCH_LAYERS, &p->policy));
    p->policy.psaw_layer = p->policy.etf_layer = BENCH_LAYERS / 2;
    p->policy.psaw_phi = p->policy.etf_psi = 0.5f;
    p->policy.dense_layers = 0;
}

static void note(bench *b, const bench_row *all, const bench_row *less) {
    char text[160], key[64];
    double flops = 1 - less->flops / all->flops, time = 1 - less->mean / all->mean;
    snprintf(text, sizeof text, "    %.1f and %.1f TFLOP/s; %.3f of the arithmetic is left out, %.3f of the time: %.3f of it",
             all->flops / all->mean * 1e-12, less->flops / less->mean * 1e-12, flops, time, time / flops);
    snprintf(key, sizeof key, "prefill_saved_share_%u_%u_%u", all->shape.batch, all->shape.n, all->shape.kv_heads);
    bench_report_note(b, key, time / flops, text);
}

static void one(bench *b, const bench_shape *s) {
    uint32_t mark = b->buffer_count;
    prefill_bench p = { .b = b, .s = s };
    bench_row all = { .section = "prefill", .name = "all rows of a prompt", .shape = *s };
    bench_row less = { .section = "prefill", .name = "with PSAW and ETF, mean of 32 layers", .shape = *s };
    bench_cache_make(b, s, s->n, 0, &p.cache);
    make(&p);
    all.flops = flops_of(&p, NULL);
    less.flops = flops_of(&p, &p.policy);
    bench_time(b, run_all, &p, 1, 1, b->graphs ? b->o->repeat : 2, &all);
    bench_report_row(b, &all);
    less.dense = all.mean;
    bench_time(b, run_layer, &p, BENCH_LAYERS, 0, b->graphs ? b->o->repeat : BENCH_LAYERS, &less);
    bench_report_row(b, &less);
    note(b, &all, &less);
    prhs_ops_destroy(p.ops);
    bench_release(b, mark);
}

void bench_prefill(bench *b) {
    static const bench_shape shapes[] = { { 1, 4096, 32, 32, 128, 0 }, { 1, 8192, 32, 32, 128, 0 }, { 1, 16384, 32, 32, 128, 0 } };
    if (b->o->preset)
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            one(b, &shapes[i]);
    else
        for (uint32_t i = 0; i < b->o->shape_count; i++)
            one(b, &b->o->shapes[i]);
}
