/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where sparse decoding starts to pay: layer steps of cis (rho 1/16, single tokens) against own dense ones, by N and by tokens kept; and
 * the price of a session that falls back to dense on the device, because a sequence is shorter than its min_sparse_n.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { LENGTHS = 7, BUDGETS = 5, FIXED = 36 /* sinks and local tokens of the presets */ };
static const uint32_t lengths[LENGTHS] = { 256, 512, 1024, 2048, 4096, 8192, 16384 };
static const uint32_t budgets[BUDGETS] = { 64, 128, 256, 512, 1024 };

typedef struct crossing {
    bench *b;
    bench_shape s;
    bench_cache cache;
    double dense[LENGTHS], fallback[LENGTHS], sparse[LENGTHS][BUDGETS]; /* seconds; 0: not measured */
} crossing;

static double one(crossing *x, const step_case *c, const char *name, double dense) {
    bench *b = x->b;
    step_bench m = { .b = b, .s = &x->s, .cache = &x->cache, .c = c };
    uint32_t timed = step_count(c, b->graphs ? b->o->repeat : 2);
    bench_row first = { 0 }, r = { .section = "crossover", .name = name, .shape = x->s, .dense = dense };
    r.shape.kept = c->block ? c->kept : x->s.n;
    step_begin(&m, timed);
    step_time(&m, timed, &first, &r);
    step_end(&m);
    bench_report_add(b, &r);
    return r.mean;
}

static void one_length(crossing *x, uint32_t i) {
    uint32_t mark = x->b->buffer_count;
    step_case fallback = step_cis;
    x->s.n = lengths[i];
    x->s.kept = budgets[0] + FIXED;
    bench_cache_make(x->b, &x->s, x->s.kept, step_count(&step_cis, x->b->o->repeat) + 32, &x->cache);
    x->dense[i] = one(x, &step_dense, "dense", 0);
    fallback.kept = x->s.kept;
    fallback.min_sparse_n = INT32_MAX;
    x->fallback[i] = one(x, &fallback, "fallback", x->dense[i]);
    for (uint32_t j = 0; j < BUDGETS; j++) {
        step_case c = step_cis;
        char name[40];
        c.kept = budgets[j] + FIXED;
        snprintf(name, sizeof name, "k %u", budgets[j]);
        if (c.kept + c.block + 2 < x->s.n)
            x->sparse[i][j] = one(x, &c, name, x->dense[i]);
    }
    bench_release(x->b, mark);
}

/* From which measured length on sparse is never slower than dense; 0: from none. */
static uint32_t n_star(const crossing *x, uint32_t j, uint32_t count) {
    uint32_t n = 0;
    for (uint32_t i = count; i-- > 0;) {
        if (x->sparse[i][j] > 0 && x->sparse[i][j] > x->dense[i])
            break;
        if (x->sparse[i][j] > 0)
            n = lengths[i];
    }
    return n;
}

static void table(crossing *x, uint32_t count) {
    char text[200], key[80];
    size_t at;
    snprintf(text, sizeof text, "\ncrossover: %u sequences, %u query heads, %u KV heads of %u; us a layer step, and sparse over dense",
             x->s.batch, x->s.heads, x->s.kv_heads, x->s.dim);
    bench_report_note(x->b, NULL, 0, text);
    at = (size_t)snprintf(text, sizeof text, "%8s %9s %9s", "N", "dense", "fallback");
    for (uint32_t j = 0; j < BUDGETS; j++)
        at += (size_t)snprintf(text + at, sizeof text - at, "      k %5u", budgets[j]);
    bench_report_note(x->b, NULL, 0, text);
    for (uint32_t i = 0; i < count; i++) {
        at = (size_t)snprintf(text, sizeof text, "%8u %9.2f %9.2f", lengths[i], x->dense[i] * 1e6, x->fallback[i] * 1e6);
        for (uint32_t j = 0; j < BUDGETS; j++) {
            if (x->sparse[i][j] > 0)
                at += (size_t)snprintf(text + at, sizeof text - at, " %7.2f %4.2f", x->sparse[i][j] * 1e6, x->sparse[i][j] / x->dense[i]);
            else
                at += (size_t)snprintf(text + at, sizeof text - at, " %12s", "-");
        }
        bench_report_note(x->b, NULL, 0, text);
    }
    at = (size_t)snprintf(text, sizeof text, "%8s %19s", "N*", "");
    for (uint32_t j = 0; j < BUDGETS; j++) {
        uint32_t n = n_star(x, j, count);
        at += n ? (size_t)snprintf(text + at, sizeof text - at, " %12u", n) : (size_t)snprintf(text + at, sizeof text - at, " %12s", "-");
        snprintf(key, sizeof key, "n_star_%u_%u_%u_%u_k%u", x->s.batch, x->s.heads, x->s.kv_heads, x->s.dim, budgets[j]);
        bench_report_number(x->b, key, n);
    }
    bench_report_note(x->b, NULL, 0, text);
}

static void cross(bench *b, bench_shape s) {
    crossing *x = bench_alloc(1, sizeof *x);
    uint32_t most = s.n, count = 0;
    x->b = b;
    x->s = s;
    for (; count < LENGTHS && lengths[count] <= most; count++)
        one_length(x, count);
    table(x, count);
    free(x);
}

void bench_cross(bench *b, const bench_shape *s) {
    static const bench_shape shapes[] = { { 8, 16384, 32, 32, 128, 0 }, { 8, 16384, 32, 8, 128, 0 }, { 1, 16384, 32, 8, 128, 0 } };
    if (!b->o->preset)
        cross(b, *s);
    else
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            cross(b, shapes[i]);
}
