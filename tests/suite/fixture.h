/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an engine would own: paged caches in any layout, page tables, batches, rows of queries and outputs. Beside each device
 * array the host keeps the truth: the values as the cache holds them, after rounding. Cache bytes that hold no row are NaN.
 */
#ifndef PRHS_TEST_FIXTURE_H
#define PRHS_TEST_FIXTURE_H

#include "harness.h"

/* A model's attention: the pool of shapes that cases name, so that few kernel variants are compiled. */
typedef struct t_shape {
    const char *name;
    uint32_t heads, kv_heads, dim;
    prhs_dtype kv, q, out;
} t_shape;

enum { S_G1_D32, S_G3_D64, S_G4_D128, S_MQA_D80, S_G16_D40, S_G3_D96, S_G4_D256, S_G1_D128, S_G2_D64, S_MANY_G1, S_MANY_G2, S_20_D80, S_40_D128, S_COUNT };
extern const t_shape t_shapes[S_COUNT];

typedef struct t_layout {
    uint32_t page; /* tokens a page */
    uint8_t hnd;   /* head stride above the token stride */
    uint8_t pad;   /* padded strides, V's unlike K's */
    uint8_t one;   /* K and V pages alternate in one buffer */
} t_layout;

/* One layer's cache. */
typedef struct t_cache {
    prhs_kv kv;
    t_buf kbuf, vbuf;
    uint8_t *kimg, *vimg; /* what the device buffers should hold; equal pointers where there is one buffer */
    uint32_t kv_heads, dim;
} t_cache;

t_cache t_cache_new(t_ctx *t, const t_shape *s, t_layout layout, uint32_t pages);
/* Writes one row (all KV heads; floats are rounded to the cache's dtype) into the image. */
void t_cache_row(t_cache *c, int32_t page, uint32_t slot, const float *k, const float *v);
/* Makes one row NaN in the image again. */
void t_cache_void(t_cache *c, int32_t page, uint32_t slot);
void t_cache_upload(t_ctx *t, t_cache *c);
/* The device's bytes are the image's, padding included. */
void t_cache_check(t_ctx *t, const t_cache *c, const char *when);

/* Free pages in random order. */
typedef struct t_pool {
    int32_t *free;
    uint32_t count, total;
} t_pool;

t_pool t_pool_new(t_ctx *t, uint32_t pages);
int32_t t_pool_take(t_ctx *t, t_pool *pool);
void t_pool_give(t_pool *pool, int32_t page);

/* A batch on the host and on the device. */
typedef struct t_batch {
    prhs_batch b;
    prhs_seq *seqs;
    int32_t *pages; /* [max_seqs][page_stride] */
    t_buf dseqs, dpages;
} t_batch;

t_batch t_batch_new(t_ctx *t, uint32_t max_seqs, uint32_t page_stride, uint32_t max_rows, uint32_t decode_rows);
/* All entries idle, all page ids far outside the cache. */
void t_batch_clear(t_batch *b);
void t_batch_set(t_batch *b, uint32_t i, int32_t slot, int32_t row_begin, int32_t rows, int32_t kv_len, int32_t flags);
void t_batch_upload(t_ctx *t, t_batch *b);

/* Rows [rows][heads][dim] of a dtype with padded or contiguous strides, on the device. */
typedef struct t_rows {
    prhs_rows r;
    t_buf buf;
    uint32_t rows, heads, dim;
} t_rows;

t_rows t_rows_new(t_ctx *t, prhs_dtype type, uint32_t rows, uint32_t heads, uint32_t dim, int pad);
void t_rows_put(t_ctx *t, const t_rows *r, const float *x); /* [rows][heads][dim]; gaps are poison */
float *t_rows_get(t_ctx *t, const t_rows *r);               /* the same, after a check that gaps are untouched */
int t_rows_untouched(t_ctx *t, const t_rows *r, uint32_t row);

/* Fills with a normal distribution that depends on the key alone. */
void t_normals(float *x, size_t n, uint64_t key);
uint64_t t_key(uint64_t seed, uint64_t a, uint64_t b, uint64_t c);

#endif
