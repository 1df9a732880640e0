/* SPDX-License-Identifier: Apache-2.0 */
/* The table of op cases and their data. */
#include <math.h>
#include <string.h>

#include "cases.h"

#define NHD                                                                                                                      \
    { 16, 0, 0, 0 }
#define HND                                                                                                                      \
    { 16, 1, 1, 0 }
#define ONE                                                                                                                      \
    { 16, 0, 1, 1 }
#define P1                                                                                                                       \
    { 1, 0, 1, 0 }
#define P256                                                                                                                     \
    { 256, 1, 0, 0 }
#define SUM PRHS_JOIN_SUM
#define MAX PRHS_JOIN_MAX
#define EACH PRHS_JOIN_PER_HEAD

/* name, shape, join, data, layout, decode_rows, granularity, k, sinks, local, dilation, lengths */
const t_case t_cases[] = {
    { "D32 f32", S_G1_D32, SUM, D_NORMAL, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 1, 37, 36, 0, 129, 64 } },
    { "G3 D64 HND", S_G3_D64, SUM, D_NORMAL, HND, 3, 1, 24, 4, 8, 0, 0, 0, { 517, 2, 37, 0, 35, 48, 1000 } },
    { "G4 D128 runs 16", S_G4_D128, SUM, D_NORMAL, ONE, 2, 16, 64, 3, 9, 0, 0, 0, { 300, 77, 76, 90, 0, 31, 257 } },
    { "MQA D80 dilated", S_MQA_D80, SUM, D_NORMAL, NHD, 1, 1, 24, 2, 6, 4, 1, 1, { 200, 33, 32, 31, 0, 1, 511 } },
    { "G16 D40 page 1", S_G16_D40, MAX, D_NORMAL, P1, 1, 1, 17, 4, 8, 3, 0, 3, { 150, 29, 30, 28, 0, 16, 97 } },
    { "D96 bf16 runs 4", S_G3_D96, MAX, D_NORMAL, P256, 2, 4, 40, 2, 7, 2, 1, 2, { 400, 49, 50, 53, 0, 256, 257 } },
    { "ties", S_G1_D32, SUM, D_TIES, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "huge logits", S_G1_D32, SUM, D_HUGE, HND, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "infinite scores", S_G1_D32, SUM, D_INF, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "NaN scores", S_G3_D64, SUM, D_NAN, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "tiny logits", S_G3_D64, SUM, D_TINY, P1, 2, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "peaked", S_G4_D128, SUM, D_PEAKED, HND, 1, 1, 64, 4, 32, 0, 0, 0, { 2100, 101, 100, 99, 0, 513, 1 } },
    { "D256", S_G4_D256, SUM, D_NORMAL, ONE, 2, 1, 24, 4, 8, 8, 1, 0, { 300, 40, 37, 36, 0, 65, 64 } },
    { "D128 bf16", S_G1_D128, SUM, D_PEAKED, P256, 4, 4, 32, 4, 8, 0, 0, 0, { 3000, 45, 44, 43, 0, 256, 255 } },
    { "per head", S_G2_D64, EACH, D_NORMAL, NHD, 2, 1, 24, 4, 8, 3, 2, 1, { 300, 40, 37, 36, 0, 129, 64 } },
    { "per head runs 4", S_G2_D64, EACH, D_PEAKED, HND, 1, 4, 26, 1, 3, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "no sinks, one local", S_G1_D32, SUM, D_PEAKED, P1, 1, 1, 8, 0, 1, 2, 3, 0, { 300, 10, 9, 8, 1, 129, 64 } },
    { "long", S_G3_D64, SUM, D_PEAKED, NHD, 1, 1, 476, 4, 32, 16, 1, 1, { 6000, 513, 512, 511, 0, 4096, 1 } },
    { "ties in runs", S_G1_D32, SUM, D_TIES, HND, 1, 16, 64, 5, 8, 0, 0, 0, { 300, 80, 97, 96, 0, 129, 64 } },
    { "huge logits G4", S_G4_D128, MAX, D_HUGE, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "NaN scores in runs", S_G1_D32, SUM, D_NAN, HND, 1, 4, 24, 4, 8, 0, 0, 0, { 300, 44, 43, 36, 0, 129, 64 } },
    { "infinite G16", S_G16_D40, SUM, D_INF, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "local beyond the sequence", S_G1_D32, SUM, D_NORMAL, NHD, 1, 1, 24, 4, 4000, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "zeros of both signs", S_G1_D32, SUM, D_ZERO, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "runs of 24", S_G1_D32, SUM, D_NORMAL, ONE, 1, 24, 72, 4, 8, 0, 0, 0, { 300, 60, 59, 58, 0, 129, 64 } },
    { "more than the smallest chunks", S_G1_D32, SUM, D_NORMAL, P256, 1, 1, 500, 4, 8, 0, 0, 0, { 20001, 37, 0, 16400, 0, 16385, 16384 } },
    { "a head of -inf alone", S_G3_D64, SUM, D_DEAD, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    /* More chunks than a GPU has warps, so that some take several, one after the other. */
    { "many chunks", S_MANY_G1, SUM, D_NORMAL, HND, 1, 1, 300, 4, 8, 0, 0, 0, { 2000, 1999, 700, 0, 2100, 1500, 513 } },
    { "many chunks G2", S_MANY_G2, SUM, D_NORMAL, NHD, 1, 1, 300, 4, 8, 0, 0, 0, { 2000, 3001, 1937, 0, 2100, 3500, 513 } },
    /* Middles that a GPU's select cuts into slices, at multiples of 8192; lengths around one and two of them. */
    { "slices", S_G3_D64, SUM, D_NORMAL, P256, 1, 1, 500, 4, 8, 0, 0, 0, { 20001, 8200, 8201, 0, 16392, 16393, 37 } },
    { "slices, ties", S_G1_D32, SUM, D_TIES, P256, 1, 1, 500, 4, 8, 0, 0, 0, { 20001, 8200, 8201, 0, 16392, 16393, 37 } },
    { "slices, equal keys", S_G1_D32, SUM, D_EQUAL, P256, 1, 1, 500, 4, 8, 3, 1, 1, { 33100, 8201, 0, 16393, 0, 513, 514 } },
    { "slices, infinite scores", S_G1_D32, SUM, D_INF, P256, 1, 1, 300, 4, 8, 0, 0, 0, { 20001, 8201, 0, 16393, 0, 313, 312 } },
    { "slices, infinite and dilated", S_G1_D32, SUM, D_INF, P256, 1, 1, 600, 4, 8, 9, 2, 1, { 20001, 8201, 0, 16393, 0, 313, 312 } },
    { "slices, nothing but -inf", S_G1_D32, SUM, D_DEAD, P256, 1, 1, 300, 4, 8, 0, 0, 0, { 20001, 8201, 0, 16393, 0, 313, 312 } },
    { "slices, NaN in runs", S_G3_D64, SUM, D_NAN, P256, 1, 16, 1600, 5, 9, 4, 1, 2, { 20001, 8201, 0, 16400, 0, 8300, 312 } },
    { "slices, peaks at the cuts", S_G3_D64, SUM, D_CUTS, P256, 1, 1, 300, 4, 8, 40, 2, 3, { 20001, 8201, 8202, 16393, 0, 16400, 312 } },
    { "slices, peaks per head", S_G2_D64, EACH, D_CUTS, P256, 1, 1, 300, 4, 8, 40, 3, 1, { 20001, 8201, 8202, 16393, 0, 16400, 312 } },
    { "slices, runs of 24", S_G3_D64, MAX, D_PEAKED, P256, 1, 24, 1200, 4, 8, 0, 0, 0, { 20001, 8300, 8201, 16500, 0, 1300, 1200 } },
    { "largest of four heads", S_G4_D128, MAX, D_NORMAL, NHD, 1, 1, 24, 4, 8, 0, 0, 0, { 300, 40, 37, 36, 0, 129, 64 } },
    { "slices, nearly all", S_G1_D32, MAX, D_NORMAL, P256, 1, 1, 8100, 4, 8, 0, 0, 0, { 9001, 8201, 8113, 8112, 0, 8202, 1 } },
};
const int t_case_count = sizeof t_cases / sizeof *t_cases, t_case_quick = 10;

const char *t_case_name(int row) { return t_cases[row].name; }

int32_t t_bench_rows(const t_bench *b, int seq) {
    int32_t len = b->c->len[seq], rows = (int32_t)b->rows;
    return len < rows ? len : rows;
}

const float *t_bench_q(const t_bench *b, int seq, int32_t row) {
    return b->Q + (size_t)(b->batch.seqs[seq].row_begin + row) * b->sh->heads * b->sh->dim;
}

/* One row of K: what the case is about. Channel 0 carries the planted scores. */
static void plant(const t_case *c, const t_shape *sh, int32_t j, int32_t len, float *k, float *v) {
    for (uint32_t h = 0; h < sh->kv_heads; h++, k += sh->dim) {
        if (c->data == D_TIES)
            t_normals(k, sh->dim, (uint64_t)(j / 3 % 5)); /* five different keys, again and again */
        if (c->data == D_EQUAL)
            t_normals(k, sh->dim, 1);
        if (c->data == D_CUTS && (j + 2) % 8192 < 4)
            k[0] = 8.0f;
        if (c->data == D_INF && j % 23 == 11)
            k[0] = j % 2 ? INFINITY : -INFINITY;
        if (c->data == D_NAN && len > 100 && (j == 57 || j == 90))
            k[3] = NAN;
        if (c->data == D_ZERO && j % 7) /* with positive queries: products that underflow to zeros of one sign */
            for (uint32_t d = 0; d < sh->dim; d++)
                k[d] = copysignf(1e-30f * k[d], j % 2 ? 1.0f : -1.0f);
        if ((c->data == D_NAN && (j == 4 || j == 33)) || (c->data == D_HUGE && j == 33)) /* huge: often with a weight of 0 */
            v[h * sh->dim + 1] = NAN;
        if (c->data == D_DEAD)
            k[0] = fabsf(k[0]) + 0.25f;
        if (c->data == D_TINY)
            for (uint32_t d = 0; d < sh->dim; d++)
                k[d] *= 1e-3f;
    }
}

static float sharpness(const t_case *c) {
    switch (c->data) {
    case D_PEAKED: return 3.0f;
    case D_HUGE: return 3000.0f;
    case D_TINY: return 1e-3f;
    case D_INF: return 0.5f;
    case D_ZERO: return 1e-30f;
    default: return 1.0f;
    }
}

static void fill_cache(t_ctx *t, t_bench *b, t_pool *pool) {
    const t_case *c = b->c;
    size_t n = b->sh->kv_heads * b->sh->dim;
    int32_t ps = (int32_t)c->layout.page;
    float k[16 * 256], v[16 * 256];
    for (int i = 0; i < C_SEQS; i++) {
        int32_t *pages = b->batch.pages + (size_t)i * b->batch.b.page_stride;
        b->K[i] = t_alloc(t, (size_t)c->len[i] * n * sizeof(float));
        b->V[i] = t_alloc(t, (size_t)c->len[i] * n * sizeof(float));
        for (int32_t j = 0; j < c->len[i]; j++) {
            if (j % ps == 0)
                pages[j / ps] = t_pool_take(t, pool);
            t_normals(k, n, t_rand(t));
            t_normals(v, n, t_rand(t));
            plant(c, b->sh, j, c->len[i], k, v);
            t_cache_row(&b->cache, pages[j / ps], (uint32_t)(j % ps), k, v);
            for (size_t d = 0; d < n; d++) {
                b->K[i][(size_t)j * n + d] = t_round(b->sh->kv, k[d]);
                b->V[i][(size_t)j * n + d] = t_round(b->sh->kv, v[d]);
            }
        }
    }
    t_cache_upload(t, &b->cache);
}

static void fill_queries(t_ctx *t, t_bench *b) {
    size_t n = (size_t)b->max_rows * b->sh->heads * b->sh->dim;
    float sharp = sharpness(b->c);
    b->Q = t_alloc(t, n * sizeof *b->Q);
    t_normals(b->Q, n, t_rand(t));
    for (size_t i = 0; i < n; i++)
        b->Q[i] = t_round(b->sh->q, sharp * b->Q[i]);
    if (b->c->data == D_INF) /* -inf or +inf scores: heads of one sign each */
        for (size_t i = 0; i < n; i += b->sh->dim)
            b->Q[i] = fabsf(b->Q[i]) + 0.5f;
    for (size_t i = 0; b->c->data == D_CUTS && i < n; i += b->sh->dim)
        b->Q[i] = 2.0f;
    for (size_t i = 0; b->c->data == D_DEAD && i < n; i += (size_t)b->group * b->sh->dim)
        b->Q[i] = -INFINITY; /* the first head of each group scores -inf against every key */
    for (size_t i = 0; b->c->data == D_ZERO && i < n; i++)
        b->Q[i] = fabsf(b->Q[i]);
    b->q = t_rows_new(t, b->sh->q, b->max_rows, b->sh->heads, b->sh->dim, b->c->layout.pad);
    t_rows_put(t, &b->q, b->Q);
}

static void fill_batch(t_ctx *t, t_bench *b) {
    const t_case *c = b->c;
    int32_t row = 1; /* a row that belongs to nobody comes first */
    for (int i = 0; i < C_SEQS; i++) {
        int32_t rows = t_bench_rows(b, i);
        t_batch_set(&b->batch, (uint32_t)i, rows ? (C_SEQS - 1 - i + 3) % C_SEQS : -1, row, rows, c->len[i], 0);
        row += rows;
    }
    t_batch_upload(t, &b->batch);
}

static void make_ops(t_ctx *t, t_bench *b, uint32_t decode_rows) {
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    p.shape = (prhs_shape){ b->sh->heads, b->sh->kv_heads, b->sh->dim, 0 };
    p.max_seqs = C_SEQS;
    p.max_rows = b->max_rows;
    p.decode_rows = decode_rows;
    p.max_kv_len = b->max_len;
    p.max_slots = C_SEQS;
    p.list_cap = b->c->k / b->c->granularity;
    p.per_head = b->c->join == PRHS_JOIN_PER_HEAD;
    p.kv_dtype = b->sh->kv;
    p.q_dtype = b->sh->q;
    p.out_dtype = b->sh->out;
    b->params = p;
    b->layout.size = sizeof b->layout;
    T_OK(t, prhs_ops_get_layout(t->dev, &p, &b->layout));
    T_CHECK(t, b->layout.units == b->units, "the layout has %u units", b->layout.units);
    T_OK(t, prhs_ops_create(t->dev, &p, &b->ops));
    t_own(t, T_OPS, b->ops, 0);
    b->state = t_buffer(t, b->layout.state_bytes);
    b->ws = t_buffer(t, b->layout.workspace_bytes);
}

void t_bench_make(t_ctx *t, t_bench *b, const t_case *c, uint32_t rows) {
    uint32_t pages = 3;
    memset(b, 0, sizeof *b);
    b->t = t;
    b->c = c;
    b->sh = &t_shapes[c->shape];
    b->group = b->sh->heads / b->sh->kv_heads;
    b->units = c->join == PRHS_JOIN_PER_HEAD ? b->sh->heads : b->sh->kv_heads;
    b->unit_heads = b->sh->heads / b->units;
    b->scale = (float)(1.0 / sqrt((double)b->sh->dim));
    for (int i = 0; i < C_SEQS; i++) {
        b->max_len = (uint32_t)c->len[i] > b->max_len ? (uint32_t)c->len[i] : b->max_len;
        pages += ((uint32_t)c->len[i] + c->layout.page - 1) / c->layout.page;
    }
    b->rows = rows ? rows : c->decode_rows;
    b->max_rows = C_SEQS * b->rows + 2;
    b->cache = t_cache_new(t, b->sh, c->layout, pages);
    t_pool pool = t_pool_new(t, pages);
    b->batch = t_batch_new(t, C_SEQS, (b->max_len + c->layout.page - 1) / c->layout.page, b->max_rows, rows ? 1 : c->decode_rows);
    fill_cache(t, b, &pool);
    fill_queries(t, b);
    fill_batch(t, b);
    b->out = t_rows_new(t, b->sh->out, b->max_rows, b->sh->heads, b->sh->dim, c->layout.pad);
    b->lse = t_buffer(t, (size_t)b->max_rows * b->sh->heads * sizeof(float));
    make_ops(t, b, rows ? 1 : c->decode_rows);
}

void t_bench_set_sets(t_bench *b, const prhs_set *sets) {
    t_put(b->t, t_at(b->ws.mem, b->layout.sets), sets, (size_t)C_SEQS * b->units * sizeof *sets);
}

prhs_set *t_bench_get_sets(t_bench *b) {
    return t_fetch(b->t, t_at(b->ws.mem, b->layout.sets), (size_t)C_SEQS * b->units * sizeof(prhs_set));
}
