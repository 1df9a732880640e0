/* SPDX-License-Identifier: Apache-2.0 */
/* From the file to the device, layer by layer: the prompts into paged caches, the decoded rows into one array of each kind. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "replay.h"

void *replay_alloc(size_t n, size_t size) {
    void *p = size && n > SIZE_MAX / size ? NULL : calloc(n ? n : 1, size);
    if (!p)
        fprintf(stderr, "prhs replay: no host memory\n");
    return p;
}

bool replay_buffer(replay *r, uint64_t size, prhs_mem *mem) {
    prhs_buffer **at = &r->buffers[r->buffer_count];
    if (prhs_buffer_create(r->dev, size ? size : 16, at) != PRHS_OK)
        return false;
    r->buffer_count++;
    *mem = (prhs_mem){ *at, 0 };
    return true;
}

static size_t row_bytes(const replay *r, trace_kind kind) { return 2 * trace_row(&r->shape, kind); }
size_t replay_step_bytes(const replay *r, trace_kind kind) { return row_bytes(r, kind) * r->shape.layer_count * r->shape.seqs; }

static bool put(replay *r, prhs_mem mem, const void *data, size_t size) {
    return prhs_queue_write(r->queue, mem, data, size) == PRHS_OK && prhs_queue_finish(r->queue) == PRHS_OK;
}

/* --- what does not depend on a layer ----------------------------------------------------------------------------------- */

static bool make_records(replay *r) {
    const uint32_t n = r->shape.seqs;
    prhs_seq *records = replay_alloc((size_t)(1 + r->steps) * n, sizeof *records);
    if (!records)
        return false;
    for (uint32_t step = 0; step <= r->steps; step++)
        for (uint32_t i = 0; i < n; i++) {
            const trace_seq *s = replay_seq(r, i);
            prhs_seq *e = &records[(size_t)step * n + i];
            *e =
                (prhs_seq){ .slot = (int32_t)i, .row_begin = (int32_t)i, .row_count = 1, .kv_len = (int32_t)(s->context + step) };
            if (step == 0)
                e->flags = PRHS_SEQ_SEED;
            else if (step > s->steps)
                *e = (prhs_seq){ .slot = -1 };
        }
    size_t size = (size_t)(1 + r->steps) * n * sizeof *records;
    bool ok = replay_buffer(r, size, &r->records) && replay_buffer(r, n * sizeof *records, &r->seqs) &&
              put(r, r->records, records, size);
    free(records);
    return ok;
}

static bool make_pages(replay *r) {
    const size_t n = (size_t)r->shape.seqs * r->page_stride;
    int32_t *table = replay_alloc(n, sizeof *table);
    if (!table)
        return false;
    for (size_t i = 0; i < n; i++)
        table[i] = (int32_t)i;
    bool ok = replay_buffer(r, n * sizeof *table, &r->pages) && put(r, r->pages, table, n * sizeof *table);
    free(table);
    return ok;
}

static bool make_cache(replay *r, uint32_t layer) {
    const size_t half = (size_t)r->shape.seqs * r->page_stride * r->o->page_size * row_bytes(r, TRACE_K);
    prhs_kv *kv = &r->kv[layer];
    if (prhs_buffer_create(r->dev, 2 * half, &r->caches[layer]) != PRHS_OK)
        return false;
    *kv = (prhs_kv){ .dtype = PRHS_F16, .page_size = r->o->page_size, .pages = r->shape.seqs * r->page_stride };
    kv->k = (prhs_mem){ r->caches[layer], 0 };
    kv->v = (prhs_mem){ r->caches[layer], half };
    prhs_kv_strides_hnd(kv, r->shape.kv_heads, r->shape.dim);
    return true;
}

/* --- layers ------------------------------------------------------------------------------------------------------------ */

/* Host memory for one layer of one sequence, and for all decoded rows. */
typedef struct staging {
    uint16_t *rows[TRACE_KINDS]; /* as in the file */
    uint16_t *pages;             /* the rows of keys or values in the cache's order */
    char *steps[TRACE_KINDS];    /* replay.rows */
} staging;

/* A sequence's prompt into its pages. */
static bool fill_cache(replay *r, uint32_t layer, uint32_t seq, trace_kind kind, const staging *s) {
    const prhs_kv *kv = &r->kv[layer];
    const uint32_t heads = r->shape.kv_heads, dim = r->shape.dim, context = replay_seq(r, seq)->context;
    const size_t page = (size_t)kv->page_size * heads * dim, size = (context + kv->page_size - 1) / kv->page_size * page * 2;
    prhs_mem to = kind == TRACE_K ? kv->k : kv->v;
    memset(s->pages, 0, size);
    for (uint32_t i = 0; i < context; i++)
        for (uint32_t h = 0; h < heads; h++)
            memcpy(s->pages + i / kv->page_size * page + ((size_t)h * kv->page_size + i % kv->page_size) * dim,
                   s->rows[kind] + ((size_t)i * heads + h) * dim, 2 * (size_t)dim);
    to.offset += (uint64_t)seq * r->page_stride * page * 2;
    return put(r, to, s->pages, size);
}

/* Its decoded rows to where the steps take them from. */
static void fill_steps(const replay *r, uint32_t layer, uint32_t seq, const staging *s) {
    const trace_seq *q = replay_seq(r, seq);
    for (int kind = 0; kind < TRACE_KINDS; kind++) {
        const size_t row = row_bytes(r, (trace_kind)kind), step = replay_step_bytes(r, (trace_kind)kind);
        const uint32_t first = kind == TRACE_Q ? 0 : q->context, count = kind == TRACE_Q ? q->steps + 1 : q->steps;
        for (uint32_t i = 0; i < count; i++)
            memcpy(s->steps[kind] + i * step + ((size_t)layer * r->shape.seqs + seq) * row,
                   (const char *)s->rows[kind] + (size_t)(first + i) * row, row);
    }
}

static bool load_rows(replay *r, uint32_t layer, uint32_t seq, const staging *s) {
    const trace_seq *q = replay_seq(r, seq);
    char error[TRACE_ERROR];
    for (int kind = 0; kind < TRACE_KINDS; kind++) {
        const uint32_t first = kind == TRACE_Q ? q->context - 1 : 0; /* earlier queries only tell a comparator something */
        if (!trace_read(r->file, r->shape.first_layer + layer, seq, (trace_kind)kind, first, q->context + q->steps - first,
                        s->rows[kind], error)) {
            fprintf(stderr, "prhs replay: %s\n", error);
            return false;
        }
    }
    fill_steps(r, layer, seq, s);
    return fill_cache(r, layer, seq, TRACE_K, s) && fill_cache(r, layer, seq, TRACE_V, s) &&
           (!r->exact || replay_exact(r, layer, seq, s->rows[TRACE_Q], s->rows[TRACE_K], s->rows[TRACE_V]));
}

static bool load_layers(replay *r, staging *s) {
    const size_t tokens = (size_t)r->page_stride * r->o->page_size;
    for (int kind = 0; kind < TRACE_KINDS; kind++) {
        const size_t size = (r->steps + 1u) * replay_step_bytes(r, (trace_kind)kind);
        s->rows[kind] = replay_alloc(tokens, row_bytes(r, (trace_kind)kind));
        s->steps[kind] = replay_alloc(size, 1);
        if (!s->rows[kind] || !s->steps[kind] || !replay_buffer(r, size, &r->rows[kind]) ||
            !replay_buffer(r, replay_step_bytes(r, (trace_kind)kind), &r->now[kind]))
            return false;
    }
    s->pages = replay_alloc(tokens, row_bytes(r, TRACE_K));
    if (!s->pages)
        return false;
    for (uint32_t layer = 0; layer < r->shape.layer_count; layer++) {
        if (!make_cache(r, layer))
            return false;
        for (uint32_t seq = 0; seq < r->shape.seqs; seq++)
            if (!load_rows(r, layer, seq, s))
                return false;
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\rlayer %u of %u%s", layer + 1, r->shape.layer_count,
                    layer + 1 == r->shape.layer_count ? "\r\033[K" : "");
    }
    for (int kind = 0; kind < TRACE_KINDS; kind++)
        if (!put(r, r->rows[kind], s->steps[kind], (r->steps + 1u) * replay_step_bytes(r, (trace_kind)kind)))
            return false;
    return true;
}

static bool open_file(replay *r) {
    char error[TRACE_ERROR];
    r->file = trace_open(r->o->file, error);
    if (!r->file) {
        fprintf(stderr, "prhs replay: %s\n", error);
        return false;
    }
    r->shape = *trace_get_shape(r->file);
    for (uint32_t i = 0; i < r->shape.seqs; i++) {
        const trace_seq *s = replay_seq(r, i);
        r->steps = s->steps > r->steps ? s->steps : r->steps;
        r->tokens = s->context + s->steps > r->tokens ? s->context + s->steps : r->tokens;
    }
    r->page_stride = (r->tokens + r->o->page_size - 1) / r->o->page_size;
    r->kv = replay_alloc(r->shape.layer_count, sizeof *r->kv);
    r->caches = replay_alloc(r->shape.layer_count, sizeof(prhs_buffer *));
    return r->kv && r->caches;
}

bool replay_load(replay *r) {
    staging s = { 0 };
    bool ok = open_file(r);
    const size_t outs = ok ? (size_t)r->shape.layer_count * r->shape.seqs * trace_row(&r->shape, TRACE_Q) : 0;
    if (ok && r->o->parts & REPLAY_ACCURACY)
        ok = (r->exact = replay_alloc(outs * r->steps, sizeof *r->exact)) != NULL;
    ok = ok && make_records(r) && make_pages(r) && replay_buffer(r, outs * sizeof(float), &r->out) && load_layers(r, &s);
    for (int kind = 0; kind < TRACE_KINDS; kind++) {
        free(s.rows[kind]);
        free(s.steps[kind]);
    }
    free(s.pages);
    return ok;
}

void replay_free(replay *r) {
    if (r->queue)
        prhs_queue_finish(r->queue);
    while (r->buffer_count > 0)
        prhs_buffer_destroy(r->buffers[--r->buffer_count]);
    for (uint32_t i = 0; r->caches && i < r->shape.layer_count; i++)
        prhs_buffer_destroy(r->caches[i]);
    free(r->caches);
    free(r->kv);
    free(r->exact);
    trace_close(r->file);
    prhs_queue_destroy(r->queue);
    r->queue = NULL;
}
