/* SPDX-License-Identifier: Apache-2.0 */
/* Append: rows into any layout, nothing else touched; value sums as exact integers; range-sum rebuilds and subtracts the same
 * bits. */
#include <math.h>
#include <string.h>

#include "cases.h"
#include "groups.h"

typedef struct sums {
    int64_t sum[16][256];
    int32_t rows, bad[16];
} sums;

/* method.md's integer: sum of rint(clamp(v, +-2^16) * 2^24); a row with a non-finite channel adds nothing and is counted. */
static void add_rows(sums *s, const t_bench *b, int seq, int32_t from, int32_t to, int sign) {
    for (int32_t j = from; j < to; j++)
        for (uint32_t h = 0; h < b->sh->kv_heads; h++) {
            const float *v = b->V[seq] + ((size_t)j * b->sh->kv_heads + h) * b->sh->dim;
            int bad = 0;
            for (uint32_t d = 0; d < b->sh->dim; d++)
                bad |= !isfinite(v[d]);
            s->bad[h] += sign * bad;
            for (uint32_t d = 0; !bad && d < b->sh->dim; d++)
                s->sum[h][d] += sign * (int64_t)rint(fmin(fmax((double)v[d], -65536.0), 65536.0) * 16777216.0);
        }
}

static void check_sums(t_bench *b, int seq, const sums *want, const char *when) {
    t_ctx *t = b->t;
    const prhs_ops_layout *l = &b->layout;
    uint64_t slot = (uint64_t)b->batch.seqs[seq].slot * l->slot_bytes;
    int64_t *sum = t_fetch(t, t_at(b->state.mem, slot + l->sums), (size_t)b->sh->kv_heads * b->sh->dim * 8);
    int32_t *count = t_fetch(t, t_at(b->state.mem, slot + l->counts), (size_t)b->sh->kv_heads * 8);
    for (uint32_t h = 0; h < b->sh->kv_heads; h++) {
        T_CHECK(t, count[2 * h] == want->rows && count[2 * h + 1] == want->bad[h],
                "%s: sequence %d head %u counts %d rows, %d not finite, instead of %d, %d", when, seq, h, count[2 * h],
                count[2 * h + 1], want->rows, want->bad[h]);
        for (uint32_t d = 0; d < b->sh->dim; d++)
            T_CHECK(t, sum[h * b->sh->dim + d] == want->sum[h][d],
                    "%s: sequence %d head %u channel %u sums to %lld instead of %lld", when, seq, h, d,
                    (long long)sum[h * b->sh->dim + d], (long long)want->sum[h][d]);
    }
}

static float special(uint32_t i) {
    static const float values[] = { 65536.0f, -65536.0f,     70000.0f, -1e30f,   65535.5f,       -65535.5f,
                                    1e-8f,    5.9604645e-8f, -0.0f,    INFINITY, -INFINITY,      NAN,
                                    65504.0f, 65519.9f,      65520.0f, 3.0e-5f,  1.00048828125f, 1.0014648f,
                                    /* half-way between two bf16: above an even and an odd one, and beyond the largest */
                                    1.00390625f, 1.01171875f, 3.3961775e38f };
    return values[i % (sizeof values / sizeof *values)];
}

/* New rows for every sequence: its last `rows`. Values that round in every way, now and then. */
static void make_rows(t_ctx *t, t_bench *b, float *k, float *v) {
    size_t n = b->sh->kv_heads * b->sh->dim;
    t_normals(k, b->max_rows * n, t_rand(t));
    t_normals(v, b->max_rows * n, t_rand(t));
    for (uint32_t i = 0; i < b->max_rows * n; i += 1 + t_below(t, 100)) {
        k[i] = special(t_below(t, 21));
        v[i] = special(t_below(t, b->c->data == D_NAN ? 21 : 9));
    }
    for (size_t i = 0; i < b->max_rows * n; i++) {
        k[i] = t_round(b->sh->q, k[i]);
        v[i] = t_round(b->sh->q, v[i]);
    }
}

/* What the cache holds afterwards, in the image and in b->V. */
static void expect_rows(t_bench *b, const float *k, const float *v) {
    size_t n = b->sh->kv_heads * b->sh->dim;
    int32_t ps = (int32_t)b->c->layout.page;
    for (int i = 0; i < C_SEQS; i++)
        for (int32_t r = 0; r < t_bench_rows(b, i); r++) {
            int32_t j = b->c->len[i] - t_bench_rows(b, i) + r;
            size_t row = (size_t)(b->batch.seqs[i].row_begin + r) * n;
            t_cache_row(&b->cache, b->batch.pages[(size_t)i * b->batch.b.page_stride + (size_t)(j / ps)], (uint32_t)(j % ps),
                        k + row, v + row);
            for (size_t d = 0; d < n; d++)
                b->V[i][(size_t)j * n + d] = t_round(b->sh->kv, v[row + d]);
        }
}

static void run(t_ctx *t, int row) {
    t_bench *b = t_alloc(t, sizeof *b);
    t_bench_make(t, b, &t_cases[row], 0);
    size_t n = (size_t)b->max_rows * b->sh->kv_heads * b->sh->dim;
    float *k = t_alloc(t, n * sizeof *k), *v = t_alloc(t, n * sizeof *v);
    t_rows dk = t_rows_new(t, b->sh->q, b->max_rows, b->sh->kv_heads, b->sh->dim, b->c->layout.pad);
    t_rows dv = t_rows_new(t, b->sh->q, b->max_rows, b->sh->kv_heads, b->sh->dim, b->c->layout.pad);
    make_rows(t, b, k, v);
    t_rows_put(t, &dk, k);
    t_rows_put(t, &dv, v);
    expect_rows(b, k, v);
    T_OK(t, prhs_queue_fill(t->queue, b->state.mem, 0, b->state.size & ~(size_t)3));
    T_OK(t, prhs_op_append(b->ops, t->queue, &b->batch.b, &b->cache.kv, &dk.r, &dv.r, t_none()));
    t_cache_check(t, &b->cache, "append without sums");
    T_OK(t, prhs_op_append(b->ops, t->queue, &b->batch.b, &b->cache.kv, &dk.r, &dv.r, b->state.mem));
    t_cache_check(t, &b->cache, "append");
    sums *want = t_alloc(t, C_SEQS * sizeof *want);
    for (int i = 0; i < C_SEQS; i++) {
        if (!t_bench_rows(b, i))
            continue;
        want[i].rows = b->c->len[i] - t_bench_rows(b, i) + 1; /* up to the first row: the others are provisional */
        add_rows(&want[i], b, i, 0, want[i].rows, 1);
        check_sums(b, i, &want[i], "append");
    }
    T_OK(t, prhs_op_range_sum(b->ops, t->queue, &b->batch.b, &b->cache.kv, 1, b->state.mem));
    for (int i = 0; i < C_SEQS; i++) {
        if (!t_bench_rows(b, i))
            continue;
        add_rows(&want[i], b, i, want[i].rows, b->c->len[i], 1);
        want[i].rows = b->c->len[i];
        check_sums(b, i, &want[i], "range sum");
        b->batch.seqs[i].kv_len = i % 2 ? b->c->len[i] / 3 : b->c->len[i] - 1;
        b->batch.seqs[i].row_count = 0;
    }
    t_batch_upload(t, &b->batch);
    T_OK(t, prhs_op_range_sum(b->ops, t->queue, &b->batch.b, &b->cache.kv, -1, b->state.mem));
    for (int i = 0; i < C_SEQS; i++) {
        if (!b->c->len[i])
            continue;
        add_rows(&want[i], b, i, b->batch.seqs[i].kv_len, want[i].rows, -1);
        want[i].rows = b->batch.seqs[i].kv_len;
        check_sums(b, i, &want[i], "rows taken back");
    }
    t_cache_check(t, &b->cache, "value sums");
}

const t_group t_group_append = { "append", 27, 10, t_case_name, run };
