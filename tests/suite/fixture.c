/* SPDX-License-Identifier: Apache-2.0 */
/* Paged caches, batches and rows on host and device. */
#include <math.h>
#include <string.h>

#include "fixture.h"

const t_shape t_shapes[S_COUNT] = {
    [S_G1_D32] = { "G1 D32 f32", 2, 2, 32, PRHS_F32, PRHS_F32, PRHS_F32 },
    [S_G3_D64] = { "G3 D64 f16", 6, 2, 64, PRHS_F16, PRHS_F32, PRHS_F32 },
    [S_G4_D128] = { "G4 D128 f16 q16", 4, 1, 128, PRHS_F16, PRHS_F16, PRHS_F32 },
    [S_MQA_D80] = { "MQA G8 D80 bf16", 8, 1, 80, PRHS_BF16, PRHS_F32, PRHS_F32 },
    [S_G16_D40] = { "MQA G16 D40 f16", 16, 1, 40, PRHS_F16, PRHS_F32, PRHS_F32 },
    [S_G3_D96] = { "G3 D96 bf16 q16 o16", 3, 1, 96, PRHS_BF16, PRHS_BF16, PRHS_BF16 },
    [S_G4_D256] = { "G4 D256 f32", 4, 1, 256, PRHS_F32, PRHS_F32, PRHS_F32 },
    [S_G1_D128] = { "G1 D128 bf16", 2, 2, 128, PRHS_BF16, PRHS_F32, PRHS_F32 },
    [S_G2_D64] = { "G2 D64 f16 o16", 4, 2, 64, PRHS_F16, PRHS_F32, PRHS_F16 },
    [S_MANY_G1] = { "64 heads D64 f16", 64, 64, 64, PRHS_F16, PRHS_F16, PRHS_F32 },
    [S_MANY_G2] = { "64 heads G2 D64 bf16", 64, 32, 64, PRHS_BF16, PRHS_F32, PRHS_F32 },
    /* With seven sequences two units and three a multiprocessor of a large GPU. */
    [S_20_D80] = { "20 heads D80 f16", 20, 20, 80, PRHS_F16, PRHS_F16, PRHS_F32 },
    [S_40_D128] = { "40 heads D128 bf16", 40, 40, 128, PRHS_BF16, PRHS_F32, PRHS_F32 },
};

static size_t span(uint32_t pages, const t_layout *l, uint32_t heads, uint32_t dim, int64_t page, int64_t token, int64_t head) {
    return (size_t)((pages - 1) * page + (l->page - 1) * token + (int64_t)(heads - 1) * head + dim);
}

static void strides(const t_shape *s, const t_layout *l, int pad, int64_t *page, int64_t *token, int64_t *head) {
    int64_t gap = l->pad ? pad : 0, dim = s->dim, heads = s->kv_heads, tokens = l->page;
    if (l->hnd) {
        *token = dim + gap;
        *head = *token * tokens + gap;
        *page = *head * heads + gap;
    } else {
        *head = dim + gap;
        *token = *head * heads + gap;
        *page = *token * tokens + gap;
    }
}

static uint8_t *nan_image(t_ctx *t, prhs_dtype type, size_t elements) {
    uint8_t *image = t_alloc(t, elements * t_size(type));
    for (size_t i = 0; i < elements; i++)
        t_store(type, image, i, NAN);
    return image;
}

t_cache t_cache_new(t_ctx *t, const t_shape *s, t_layout l, uint32_t pages) {
    t_cache c = { .kv_heads = s->kv_heads, .dim = s->dim };
    prhs_kv *kv = &c.kv;
    kv->dtype = s->kv;
    kv->page_size = l.page;
    kv->pages = pages;
    strides(s, &l, 8, &kv->k_page, &kv->k_token, &kv->k_head);
    strides(s, &l, 16, &kv->v_page, &kv->v_token, &kv->v_head);
    if (l.one) {
        int64_t k = kv->k_page, v = kv->v_page;
        kv->k_page = kv->v_page = k + v;
        size_t n = (size_t)k + span(pages, &l, s->kv_heads, s->dim, kv->v_page, kv->v_token, kv->v_head);
        c.kimg = nan_image(t, s->kv, n);
        c.kbuf = c.vbuf = t_buffer(t, n * t_size(s->kv));
        c.vbuf.mem = t_at(c.kbuf.mem, (uint64_t)k * t_size(s->kv));
        c.vimg = c.kimg + (size_t)k * t_size(s->kv);
    } else {
        size_t nk = span(pages, &l, s->kv_heads, s->dim, kv->k_page, kv->k_token, kv->k_head);
        size_t nv = span(pages, &l, s->kv_heads, s->dim, kv->v_page, kv->v_token, kv->v_head);
        c.kimg = nan_image(t, s->kv, nk);
        c.vimg = nan_image(t, s->kv, nv);
        c.kbuf = t_buffer(t, nk * t_size(s->kv));
        c.vbuf = t_buffer(t, nv * t_size(s->kv));
    }
    kv->k = c.kbuf.mem;
    kv->v = c.vbuf.mem;
    t_cache_upload(t, &c);
    return c;
}

void t_cache_row(t_cache *c, int32_t page, uint32_t slot, const float *k, const float *v) {
    const prhs_kv *kv = &c->kv;
    for (uint32_t h = 0; h < c->kv_heads; h++)
        for (uint32_t d = 0; d < c->dim; d++) {
            t_store(kv->dtype, c->kimg, (size_t)(page * kv->k_page + slot * kv->k_token + h * kv->k_head + d), k[h * c->dim + d]);
            t_store(kv->dtype, c->vimg, (size_t)(page * kv->v_page + slot * kv->v_token + h * kv->v_head + d), v[h * c->dim + d]);
        }
}

void t_cache_void(t_cache *c, int32_t page, uint32_t slot) {
    const prhs_kv *kv = &c->kv;
    for (uint32_t h = 0; h < c->kv_heads; h++)
        for (uint32_t d = 0; d < c->dim; d++) {
            t_store(kv->dtype, c->kimg, (size_t)(page * kv->k_page + slot * kv->k_token + h * kv->k_head + d), NAN);
            t_store(kv->dtype, c->vimg, (size_t)(page * kv->v_page + slot * kv->v_token + h * kv->v_head + d), NAN);
        }
}

void t_cache_upload(t_ctx *t, t_cache *c) {
    t_put(t, c->kbuf.mem, c->kimg, c->kbuf.size);
    if (c->vbuf.mem.buffer != c->kbuf.mem.buffer)
        t_put(t, c->vbuf.mem, c->vimg, c->vbuf.size);
}

/* Same bits, or both NaN: a backend may write any NaN for a NaN. */
static void compare(t_ctx *t, prhs_dtype type, t_buf buf, const uint8_t *image, const char *what, const char *when) {
    uint8_t *got = t_fetch(t, buf.mem, buf.size);
    size_t size = t_size(type);
    for (size_t i = 0; i < buf.size / size; i++) {
        if (!memcmp(got + i * size, image + i * size, size))
            continue;
        float a = t_load(type, got, i), b = t_load(type, image, i);
        T_CHECK(t, isnan(a) && isnan(b), "%s: %s element %zu holds %g instead of %g", when, what, i, (double)a, (double)b);
    }
    t_drop(t, got);
}

void t_cache_check(t_ctx *t, const t_cache *c, const char *when) {
    compare(t, c->kv.dtype, c->kbuf, c->kimg, "K", when);
    if (c->vbuf.mem.buffer != c->kbuf.mem.buffer)
        compare(t, c->kv.dtype, c->vbuf, c->vimg, "V", when);
}

t_pool t_pool_new(t_ctx *t, uint32_t pages) {
    t_pool pool = { t_alloc(t, pages * sizeof(int32_t)), pages, pages };
    for (uint32_t i = 0; i < pages; i++)
        pool.free[i] = (int32_t)i;
    t_shuffle(t, pool.free, pages);
    return pool;
}

int32_t t_pool_take(t_ctx *t, t_pool *pool) {
    T_CHECK(t, pool->count, "the test's page pool of %u pages is empty", pool->total);
    return pool->free[--pool->count];
}

void t_pool_give(t_pool *pool, int32_t page) { pool->free[pool->count++] = page; }

t_batch t_batch_new(t_ctx *t, uint32_t max_seqs, uint32_t page_stride, uint32_t max_rows, uint32_t decode_rows) {
    t_batch b = { .seqs = t_alloc(t, max_seqs * sizeof(prhs_seq)) };
    b.pages = t_alloc(t, (size_t)max_seqs * page_stride * sizeof(int32_t));
    b.dseqs = t_buffer(t, max_seqs * sizeof(prhs_seq));
    b.dpages = t_buffer(t, (size_t)max_seqs * page_stride * sizeof(int32_t));
    b.b.seqs = b.dseqs.mem;
    b.b.pages = b.dpages.mem;
    b.b.max_seqs = max_seqs;
    b.b.page_stride = page_stride;
    b.b.max_rows = max_rows;
    b.b.decode_rows = decode_rows;
    b.b.kinds = PRHS_HAS_DECODE | PRHS_HAS_PREFILL | PRHS_HAS_SEED;
    t_batch_clear(&b);
    return b;
}

void t_batch_clear(t_batch *b) {
    for (uint32_t i = 0; i < b->b.max_seqs; i++)
        b->seqs[i] = (prhs_seq){ -1, 0, 0, 0, 0, 0, { 0, 0 } };
    for (size_t i = 0; i < (size_t)b->b.max_seqs * b->b.page_stride; i++)
        b->pages[i] = i % 2 ? 0x7fffff00 : -7;
}

void t_batch_set(t_batch *b, uint32_t i, int32_t slot, int32_t row_begin, int32_t rows, int32_t kv_len, int32_t flags) {
    b->seqs[i] = (prhs_seq){ slot, row_begin, rows, kv_len, flags, 0, { 0, 0 } };
}

void t_batch_upload(t_ctx *t, t_batch *b) {
    t_put(t, b->dseqs.mem, b->seqs, b->dseqs.size);
    t_put(t, b->dpages.mem, b->pages, b->dpages.size);
}

t_rows t_rows_new(t_ctx *t, prhs_dtype type, uint32_t rows, uint32_t heads, uint32_t dim, int pad) {
    t_rows r = { .rows = rows, .heads = heads, .dim = dim };
    r.r.dtype = type;
    r.r.head = pad ? dim + 8 : dim;
    r.r.row = pad ? heads * r.r.head + 16 : heads * r.r.head;
    r.buf = t_buffer(t, ((size_t)(rows - 1) * r.r.row + (size_t)(heads - 1) * r.r.head + dim) * t_size(type));
    r.r.mem = r.buf.mem;
    if (!pad)
        r.r.row = r.r.head = 0; /* the short way to say contiguous */
    return r;
}

static size_t element(const t_rows *r, uint32_t row, uint32_t head) {
    size_t hs = r->r.head ? (size_t)r->r.head : r->dim, rs = r->r.row ? (size_t)r->r.row : r->heads * hs;
    return row * rs + head * hs;
}

void t_rows_put(t_ctx *t, const t_rows *r, const float *x) {
    uint8_t *image = t_alloc(t, r->buf.size);
    memset(image, T_POISON, r->buf.size);
    for (uint32_t i = 0; i < r->rows; i++)
        for (uint32_t h = 0; h < r->heads; h++)
            for (uint32_t d = 0; d < r->dim; d++)
                t_store(r->r.dtype, image, element(r, i, h) + d, x[((size_t)i * r->heads + h) * r->dim + d]);
    t_put(t, r->buf.mem, image, r->buf.size);
    t_drop(t, image);
}

float *t_rows_get(t_ctx *t, const t_rows *r) {
    uint8_t *raw = t_fetch(t, r->buf.mem, r->buf.size);
    size_t size = t_size(r->r.dtype);
    float *x = t_alloc(t, (size_t)r->rows * r->heads * r->dim * sizeof *x);
    for (uint32_t i = 0; i < r->rows; i++)
        for (uint32_t h = 0; h < r->heads; h++) {
            size_t at = element(r, i, h);
            for (uint32_t d = 0; d < r->dim; d++)
                x[((size_t)i * r->heads + h) * r->dim + d] = t_load(r->r.dtype, raw, at + d);
            memset(raw + at * size, T_POISON, r->dim * size);
        }
    for (size_t i = 0; i < r->buf.size; i++)
        T_CHECK(t, raw[i] == T_POISON, "a gap between padded rows was written, at byte %zu", i);
    t_drop(t, raw);
    return x;
}

int t_rows_untouched(t_ctx *t, const t_rows *r, uint32_t row) {
    uint8_t *raw = t_fetch(t, r->buf.mem, r->buf.size);
    size_t size = t_size(r->r.dtype);
    int same = 1;
    for (uint32_t h = 0; h < r->heads; h++)
        for (size_t i = 0; i < r->dim * size; i++)
            same &= raw[element(r, row, h) * size + i] == T_POISON;
    t_drop(t, raw);
    return same;
}

uint64_t t_key(uint64_t seed, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t x = seed;
    uint64_t parts[3] = { a, b, c };
    for (int i = 0; i < 3; i++) {
        x = (x ^ parts[i]) * UINT64_C(0xff51afd7ed558ccd) + UINT64_C(0x9e3779b97f4a7c15);
        x ^= x >> 32;
    }
    return x;
}

/* The sum of four uniforms of 16 bits: near enough to normal, and quick. */
void t_normals(float *x, size_t n, uint64_t key) {
    for (size_t i = 0; i < n; i++) {
        uint64_t z = key + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        z ^= z >> 31;
        int sum = (int)(z & 0xffff) + (int)(z >> 16 & 0xffff) + (int)(z >> 32 & 0xffff) + (int)(z >> 48);
        x[i] = (float)(sum - 131070) * 2.6427e-5f; /* deviation 1 */
    }
}
