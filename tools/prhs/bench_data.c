/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers and data of a benchmark. Gigabytes of normals are copies, made on the device, of a block that the host makes once. */
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

/* The block of a type; made when it is first asked for. */
static prhs_mem block_of(bench *b, prhs_dtype type) {
    if (b->normals[type])
        return (prhs_mem){ b->normals[type], 0 };
    size_t size = prhs_dtype_size(type), n = b->normal_bytes / size;
    char *table = bench_alloc(TABLE, size), *out = bench_alloc(n, size);
    for (size_t i = 0; i < TABLE; i++) {
        float x = normal(b);
        uint16_t h = type == PRHS_F16 ? to_half(x) : to_bfloat(x);
        memcpy(table + i * size, size == 4 ? (const void *)&x : (const void *)&h, size);
    }
    for (size_t i = 0; i < n; i += STRETCH)
        memcpy(out + i * size, table + bench_below(b, TABLE - STRETCH) * size, STRETCH * size);
    bench_must(prhs_buffer_create(b->dev, n * size, &b->normals[type]));
    prhs_mem mem = { b->normals[type], 0 };
    bench_must(prhs_queue_write(b->queue, mem, out, n * size));
    bench_must(prhs_queue_finish(b->queue));
    free(table);
    free(out);
    return mem;
}

void bench_fill_normals(bench *b, prhs_dtype type, prhs_mem mem, uint64_t bytes) {
    prhs_mem from = block_of(b, type);
    for (uint64_t at = 0; at < bytes;) {
        from.offset = (uint64_t)bench_below(b, (uint32_t)(b->normal_bytes / 32)) * 16;
        uint64_t n = b->normal_bytes - from.offset < bytes - at ? b->normal_bytes - from.offset : bytes - at;
        bench_must(prhs_queue_copy(b->queue, (prhs_mem){ mem.buffer, mem.offset + at }, from, n));
        at += n;
    }
}

prhs_mem bench_normals(bench *b, prhs_dtype type, uint64_t n) {
    prhs_mem mem = bench_buffer(b, n * prhs_dtype_size(type));
    bench_fill_normals(b, type, mem, n * prhs_dtype_size(type));
    return mem;
}

void bench_normals_free(bench *b) {
    bench_must(prhs_queue_finish(b->queue));
    for (size_t i = 0; i < sizeof b->normals / sizeof b->normals[0]; i++)
        prhs_buffer_destroy(b->normals[i]);
}

prhs_rows bench_rows(bench *b, uint64_t rows, uint32_t heads, uint32_t dim, bool filled) {
    uint64_t n = rows * heads * dim;
    return (prhs_rows){ filled ? bench_normals(b, b->row_type, n) : bench_buffer(b, n * prhs_dtype_size(b->row_type)), b->row_type, 0, 0 };
}
