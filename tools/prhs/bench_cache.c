/* SPDX-License-Identifier: Apache-2.0 */
/* K/V of a benchmark: copies that calls rotate over, cut from one pool that all shapes use in turn. */
#include <stdlib.h>

#include "bench.h"

double bench_row_bytes(const bench *b, const bench_shape *s, double kept) {
    return 2.0 * s->batch * s->kv_heads * s->dim * (double)prhs_dtype_size(b->o->dtype) * kept;
}

prhs_mem bench_pages(bench *b, uint32_t seqs, uint32_t used, uint32_t stride) {
    uint32_t n = seqs * used;
    int32_t *ids = bench_alloc(n, sizeof *ids), *table = bench_alloc((size_t)seqs * stride, sizeof *table);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = bench_below(b, i);
        int32_t x = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = x;
    }
    for (uint32_t i = 0; i < n; i++)
        table[(size_t)(i / used) * stride + i % used] = ids[i];
    prhs_mem mem = bench_filled(b, table, (uint64_t)seqs * stride * sizeof *table);
    free(ids);
    free(table);
    return mem;
}

/* One more slab for regions of `size` bytes; false: the budget does not allow it. */
static bool grow(bench *b, uint64_t size) {
    bench_pool *p = &b->pool;
    uint64_t bytes = size > p->slab_bytes ? size : p->slab_bytes;
    if (p->count && p->bytes + bytes > p->budget)
        bytes = size;
    if (p->count == BENCH_SLABS || (p->count && p->bytes + bytes > p->budget))
        return false;
    bench_must(prhs_buffer_create(b->dev, bytes, &p->slabs[p->count]));
    bench_fill_normals(b, b->o->dtype, (prhs_mem){ p->slabs[p->count], 0 }, bytes);
    p->used[p->count++] = 0;
    p->bytes += bytes;
    return true;
}

/* A region of the pool; buffer NULL: there is no more room. */
static prhs_mem cut(bench *b, uint64_t size) {
    bench_pool *p = &b->pool;
    size = (size + 255) / 256 * 256;
    for (uint32_t i = 0;; i++) {
        if (i == p->count && !grow(b, size))
            return (prhs_mem){ NULL, 0 };
        if (prhs_buffer_size(p->slabs[i]) - p->used[i] >= size) {
            prhs_mem mem = { p->slabs[i], p->used[i] };
            p->used[i] += size;
            return mem;
        }
    }
}

void bench_pool_free(bench *b) {
    bench_must(prhs_queue_finish(b->queue));
    while (b->pool.count)
        prhs_buffer_destroy(b->pool.slabs[--b->pool.count]);
}

/* Where calls leave most rows alone, a GPU's rotation counts what they touch; in host memory it counts all of K/V. */
static uint32_t copies_for(const bench *b, const bench_shape *s, uint32_t kept, uint64_t bytes) {
    double touched = b->host_reads ? (double)bytes : bench_row_bytes(b, s, kept);
    double copies = (double)b->o->rotate_bytes / touched;
    uint32_t least = b->host_reads ? 4 : 2;
    return copies <= least ? least : copies >= BENCH_COPIES ? BENCH_COPIES : (uint32_t)copies + 1;
}

void bench_cache_make(bench *b, const bench_shape *s, uint32_t kept, uint32_t extra, bench_cache *cache) {
    const bench_options *o = b->o;
    bench_must(prhs_queue_finish(b->queue));
    for (uint32_t i = 0; i < b->pool.count; i++)
        b->pool.used[i] = 0;
    cache->page_stride = (s->n + extra + o->page_size - 1) / o->page_size;
    uint32_t pages = cache->page_stride * s->batch;
    uint64_t bytes = (uint64_t)pages * o->page_size * s->kv_heads * s->dim * prhs_dtype_size(o->dtype);
    cache->bytes = 2 * bytes;
    cache->pages = bench_pages(b, s->batch, cache->page_stride, cache->page_stride);
    uint32_t wanted = copies_for(b, s, kept, cache->bytes);
    for (cache->copies = 0; cache->copies < wanted; cache->copies++) {
        prhs_kv *kv = &cache->kv[cache->copies];
        *kv = (prhs_kv){ .dtype = o->dtype, .page_size = o->page_size, .pages = pages, .k = cut(b, bytes) };
        if (kv->k.buffer)
            kv->v = cut(b, bytes);
        if (!kv->v.buffer)
            break;
        (o->nhd ? prhs_kv_strides_nhd : prhs_kv_strides_hnd)(kv, s->kv_heads, s->dim);
    }
    if (!cache->copies)
        bench_must(PRHS_ERR_MEMORY);
    bench_must(prhs_queue_finish(b->queue));
}
