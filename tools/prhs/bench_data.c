/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers and data of a benchmark. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

void bench_must(prhs_status status) {
    if (status == PRHS_OK)
        return;
    fprintf(stderr, "prhs bench: %s\n", prhs_status_name(status));
    exit(TOOL_FAILED);
}

void *bench_alloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) {
        fprintf(stderr, "prhs bench: no host memory\n");
        exit(TOOL_FAILED);
    }
    return p;
}

static uint64_t draw(bench *b) {
    uint64_t z = (b->rng += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t bench_below(bench *b, uint32_t n) { return (uint32_t)((draw(b) >> 32) * n >> 32); }

static float normal(bench *b) {
    double u = ((double)(draw(b) >> 11) + 0.5) * 0x1p-53, v = (double)(draw(b) >> 11) * 0x1p-53;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

prhs_mem bench_buffer(bench *b, uint64_t size) {
    if (b->buffer_count == sizeof b->buffers / sizeof b->buffers[0])
        bench_must(PRHS_ERR_MEMORY);
    prhs_buffer **at = &b->buffers[b->buffer_count];
    bench_must(prhs_buffer_create(b->dev, size ? size : 16, at));
    b->buffer_count++;
    return (prhs_mem){ *at, 0 };
}

prhs_mem bench_filled(bench *b, const void *data, uint64_t size) {
    prhs_mem mem = bench_buffer(b, size);
    bench_must(prhs_queue_write(b->queue, mem, data, size));
    bench_must(prhs_queue_finish(b->queue));
    return mem;
}

void bench_release(bench *b, uint32_t mark) {
    bench_must(prhs_queue_finish(b->queue));
    while (b->buffer_count > mark)
        prhs_buffer_destroy(b->buffers[--b->buffer_count]);
}

/* Of normal numbers (no subnormals, no overflow at this size), rounded to nearest. */
static uint16_t to_half(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    uint32_t sign = u >> 16 & 0x8000, e = u >> 23 & 255;
    return e < 113 ? (uint16_t)sign : (uint16_t)(sign + ((u & 0x7fffffff) - (112u << 23) + 0x1000) / 0x2000);
}

static uint16_t to_bfloat(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x8000) >> 16);
}

/* A table of normals, read from a random place every 64 elements: fast, and no two rows are alike. */
enum { TABLE = 1 << 18, STRETCH = 64 };

prhs_mem bench_normals(bench *b, prhs_dtype type, uint64_t n) {
    size_t size = prhs_dtype_size(type), block = 1 << 20;
    char *table = bench_alloc(TABLE, size), *out = bench_alloc(block, size);
    for (size_t i = 0; i < TABLE; i++) {
        float x = normal(b);
        uint16_t h = type == PRHS_F16 ? to_half(x) : to_bfloat(x);
        memcpy(table + i * size, size == 4 ? (const void *)&x : (const void *)&h, size);
    }
    prhs_mem mem = bench_buffer(b, n * size);
    for (uint64_t at = 0; at < n; at += block) {
        uint64_t count = n - at < block ? n - at : block;
        for (size_t i = 0; i < block; i += STRETCH)
            memcpy(out + i * size, table + bench_below(b, TABLE - STRETCH) * size, STRETCH * size);
        bench_must(prhs_queue_write(b->queue, (prhs_mem){ mem.buffer, at * size }, out, count * size));
        bench_must(prhs_queue_finish(b->queue));
    }
    free(table);
    free(out);
    return mem;
}

static prhs_mem page_table(bench *b, uint32_t entries) {
    int32_t *ids = bench_alloc(entries, sizeof *ids);
    for (uint32_t i = 0; i < entries; i++)
        ids[i] = (int32_t)i;
    for (uint32_t i = entries; i > 1; i--) {
        uint32_t j = bench_below(b, i);
        int32_t x = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = x;
    }
    prhs_mem mem = bench_filled(b, ids, entries * sizeof *ids);
    free(ids);
    return mem;
}

void bench_cache_make(bench *b, const bench_shape *s, uint32_t extra, bench_cache *cache) {
    const bench_options *o = b->o;
    cache->page_stride = (s->n + extra + o->page_size - 1) / o->page_size;
    uint32_t pages = cache->page_stride * s->batch;
    uint64_t elements = (uint64_t)pages * o->page_size * s->kv_heads * s->dim;
    cache->bytes = 2 * elements * prhs_dtype_size(o->dtype);
    uint64_t copies = (o->rotate_bytes + cache->bytes - 1) / cache->bytes;
    cache->copies = copies < 4 ? 4 : copies > 64 ? 64 : (uint32_t)copies;
    cache->pages = page_table(b, pages);
    for (uint32_t i = 0; i < cache->copies; i++) {
        prhs_kv *kv = &cache->kv[i];
        *kv = (prhs_kv){ .dtype = o->dtype, .page_size = o->page_size, .pages = pages };
        kv->k = bench_normals(b, o->dtype, elements);
        kv->v = bench_normals(b, o->dtype, elements);
        (o->nhd ? prhs_kv_strides_nhd : prhs_kv_strides_hnd)(kv, s->kv_heads, s->dim);
    }
}
