/* SPDX-License-Identifier: Apache-2.0 */
#include "record.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

/* "3-7", or "3" for one layer. */
static bool parse_layers(const char *text, record_options *o) {
    char low[16];
    const char *dash = strchr(text, '-');
    size_t n = dash ? (size_t)(dash - text) : strlen(text);
    if (n >= sizeof low)
        return false;
    memcpy(low, text, n);
    low[n] = 0;
    o->some = parse_u32(low, &o->first) && parse_u32(dash ? dash + 1 : low, &o->last) && o->first <= o->last;
    return o->some;
}

bool record_option(int option, const char *text, record_options *o) {
    switch (option) {
    case 'R': o->file = text; return *text != 0;
    case 'L': return parse_layers(text, o);
    case 'M': return parse_u32(text, &o->limit) && o->limit > 0;
    case 'Q': return o->prompts = true;
    default: return false;
    }
}

bool record_begin(record *r, const record_options *o, const model *m, const uint32_t *contexts, uint32_t seqs, uint32_t steps) {
    char error[TRACE_ERROR];
    if (!o->file)
        return true;
    trace_shape shape = { .layers = m->layers, .layer_count = m->layers, .heads = m->heads, .kv_heads = m->kv_heads,
                          .dim = m->head_dim, .scale = (float)(1.0 / sqrt((double)m->head_dim)), .seqs = seqs,
                          .prompts = o->prompts };
    if (o->some) {
        shape.first_layer = o->first;
        shape.layer_count = o->last - o->first + 1;
    }
    r->seqs = seqs;
    r->context = malloc(seqs * sizeof *contexts);
    if (!r->context)
        return false;
    memcpy(r->context, contexts, seqs * sizeof *contexts);
    r->writer = trace_create(o->file, &shape, contexts, steps, (uint64_t)o->limit << 20, error);
    if (!r->writer)
        fprintf(stderr, "prhs-llama: %s\n", error);
    return r->writer != NULL;
}

bool record_end(record *r, bool keep) {
    char error[TRACE_ERROR];
    bool ok = trace_finish(r->writer, keep, error);
    if (!ok)
        fprintf(stderr, "prhs-llama: %s\n", error);
    free(r->context);
    free(r->rows);
    *r = (record){ 0 };
    return ok;
}

/* The engine's rows as `out` wants them: q, k and v one after the other in r->rows. */
static bool fetch_all(record *r, engine *e, size_t rows, trace_rows *out) {
    const size_t q = (size_t)e->m->heads * e->m->head_dim, kv = (size_t)e->m->kv_heads * e->m->head_dim;
    const size_t room = rows * (q + 2 * kv);
    if (room > r->room) {
        free(r->rows);
        r->rows = malloc(room * sizeof *r->rows);
        r->room = r->rows ? room : 0;
        if (!r->rows)
            return false;
    }
    float *k = r->rows + rows * q, *v = k + rows * kv;
    out->q = r->rows;
    out->k = k;
    out->v = v;
    return engine_read_rows(e, &e->q, rows, q, r->rows) && engine_read_rows(e, &e->k, rows, kv, k) && engine_read_rows(e, &e->v, rows, kv, v);
}

bool record_prompt(record *r, engine *e, uint32_t layer, uint32_t seq, uint32_t first, uint32_t rows) {
    trace_rows t = { .layer = layer, .seq = seq, .seqs = 1, .first = first, .rows = rows };
    return !r->writer || (fetch_all(r, e, rows, &t) && trace_add(r->writer, &t));
}

bool record_decoded(record *r, engine *e, uint32_t layer, uint32_t steps) {
    const size_t q = (size_t)e->m->heads * e->m->head_dim, kv = (size_t)e->m->kv_heads * e->m->head_dim;
    trace_rows all = { 0 };
    if (!r->writer)
        return true;
    if (!fetch_all(r, e, (size_t)steps * r->seqs, &all))
        return false;
    for (uint32_t step = 0; step < steps; step++)
        for (uint32_t s = 0; s < r->seqs; s++) {
            const size_t row = (size_t)step * r->seqs + s;
            if (!trace_add(r->writer, &(trace_rows){ layer, s, 1, r->context[s] + r->made + step, 1, all.q + row * q, all.k + row * kv,
                                                     all.v + row * kv }))
                return false;
        }
    if (layer + 1 == e->m->layers)
        r->made += steps;
    return true;
}
