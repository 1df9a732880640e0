/* SPDX-License-Identifier: Apache-2.0 */
/* Linear algebra on the host, by its BLAS (model.c), for every backend: rows go up and down for each layer's attention. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compute.h"

typedef struct host_compute {
    compute head;
    float *x, *q, *k, *v, *out, *tmp;            /* [rows] */
    int32_t *position;                           /* [rows] */
    float *logits;                               /* [LOGIT_ROWS][vocab] */
    prhs_seq *seqs;                              /* PLAN_DECODE */
    int32_t *next;                               /* [seqs] */
    uint32_t *made;                              /* [seqs], tokens */
} host_compute;

static host_compute *of(compute *c) { return (host_compute *)c; }

static void host_close(compute *c) {
    host_compute *h = of(c);
    void *blocks[] = { h->x, h->q, h->k, h->v, h->out, h->tmp, h->position, h->logits, h->seqs, h->next, h->made, c->tokens, h };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
}

static bool host_embed(compute *c, const int32_t *ids, const int32_t *positions, size_t rows) {
    model_embed(c->m, ids, rows, of(c)->x);
    memcpy(of(c)->position, positions, rows * sizeof *positions);
    return true;
}

static bool write_rows(engine *e, const prhs_rows *to, const float *from, size_t rows) {
    return prhs_queue_write(e->queue, to->mem, from, rows * (size_t)to->row * sizeof *from) == PRHS_OK;
}

static bool host_qkv(compute *c, uint32_t layer, size_t rows) {
    host_compute *h = of(c);
    engine *e = c->e;
    model_qkv(c->m, layer, h->x, rows, h->position, h->q, h->k, h->v, h->tmp);
    return write_rows(e, &e->q, h->q, rows) && write_rows(e, &e->k, h->k, rows) && write_rows(e, &e->v, h->v, rows) &&
           prhs_queue_finish(e->queue) == PRHS_OK;
}

static bool host_rest(compute *c, uint32_t layer, size_t first, size_t rows) {
    host_compute *h = of(c);
    const size_t dim = c->m->dim, bytes = (rows - first) * dim * sizeof *h->out;
    if (prhs_queue_read(c->e->queue, h->out, engine_row(&c->e->out, first), bytes) != PRHS_OK || prhs_queue_finish(c->e->queue) != PRHS_OK)
        return false;
    model_rest(c->m, layer, h->x + first * dim, h->out, rows - first, h->tmp);
    return true;
}

static bool host_logits(compute *c, size_t row, float *logits) {
    model_logits(c->m, of(c)->x + row * c->m->dim, 1, logits, of(c)->tmp);
    return true;
}

static int32_t best_of(const float *logits, uint32_t vocab) {
    uint32_t top = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[top])
            top = i;
    return (int32_t)top;
}

static double nll_of(const float *logits, uint32_t vocab, int32_t target, int32_t best) {
    double sum = 0.0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - (double)logits[best]);
    return log(sum) + (double)logits[best] - (double)logits[target];
}

static bool host_score(compute *c, size_t rows, const int32_t *target, double *nll, int32_t *best) {
    host_compute *h = of(c);
    const uint32_t vocab = c->m->vocab;
    for (size_t at = 0; at < rows; at += LOGIT_ROWS) {
        const size_t n = rows - at < LOGIT_ROWS ? rows - at : LOGIT_ROWS;
        model_logits(c->m, h->x + at * c->m->dim, n, h->logits, h->tmp);
        for (size_t i = 0; i < n; i++) {
            const float *logits = h->logits + i * vocab;
            best[at + i] = best_of(logits, vocab);
            nll[at + i] = nll_of(logits, vocab, target[at + i], best[at + i]);
        }
    }
    return true;
}

static bool host_begin(compute *c, const prhs_seq *seqs) {
    memcpy(of(c)->seqs, seqs, c->e->seqs * sizeof *seqs);
    memset(of(c)->made, 0, c->e->seqs * sizeof *of(c)->made);
    return engine_plan(c->e, PLAN_DECODE, 1, seqs);
}

/* Sequence s gets one more token. */
static void give(compute *c, size_t s, int32_t id) {
    host_compute *h = of(c);
    h->next[s] = id;
    c->tokens[(size_t)h->made[s]++ * c->e->seqs + s] = id;
    h->seqs[s].kv_len++;
}

static bool host_choose(compute *c, size_t row, size_t seq, size_t count, const int32_t *ids) {
    host_compute *h = of(c);
    for (size_t at = 0; at < count; at += LOGIT_ROWS) {
        const size_t n = count - at < LOGIT_ROWS ? count - at : LOGIT_ROWS;
        if (!ids)
            model_logits(c->m, h->x + (row + at) * c->m->dim, n, h->logits, h->tmp);
        for (size_t i = 0; i < n; i++)
            give(c, seq + at + i, ids ? ids[at + i] : best_of(h->logits + i * c->m->vocab, c->m->vocab));
    }
    return engine_plan(c->e, PLAN_DECODE, 1, h->seqs);
}

static bool host_feed(compute *c) {
    host_compute *h = of(c);
    for (uint32_t s = 0; s < c->e->seqs; s++)
        h->position[s] = h->seqs[s].kv_len - 1;
    model_embed(c->m, h->next, c->e->seqs, h->x);
    return true;
}

static bool host_fetch(compute *c, uint32_t first, uint32_t count) {
    (void)c, (void)first, (void)count;
    return true;
}

static const compute_ops host_ops = {
    .name = "host", .burst = 1, .close = host_close, .embed = host_embed, .qkv = host_qkv, .rest = host_rest, .logits = host_logits,
    .score = host_score, .begin = host_begin, .choose = host_choose, .feed = host_feed, .fetch = host_fetch,
};

compute *compute_host_open(engine *e) {
    const model *m = e->m;
    const size_t rows = e->rows, q = (size_t)m->heads * m->head_dim, kv = (size_t)m->kv_heads * m->head_dim;
    host_compute *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->head = (compute){ &host_ops, e, m, calloc((size_t)e->tokens * e->seqs, sizeof(int32_t)), false };
    h->x = malloc(sizeof(float) * rows * m->dim);
    h->q = malloc(sizeof(float) * rows * q);
    h->k = malloc(sizeof(float) * rows * kv);
    h->v = malloc(sizeof(float) * rows * kv);
    h->out = malloc(sizeof(float) * rows * q);
    h->tmp = malloc(sizeof(float) * rows * (m->dim + 2 * (size_t)m->ffn));
    h->position = malloc(sizeof(int32_t) * rows);
    h->logits = malloc(sizeof(float) * LOGIT_ROWS * m->vocab);
    h->seqs = calloc(e->seqs, sizeof *h->seqs);
    h->next = calloc(e->seqs, sizeof *h->next);
    h->made = calloc(e->seqs, sizeof *h->made);
    if (h->head.tokens && h->x && h->q && h->k && h->v && h->out && h->tmp && h->position && h->logits && h->seqs && h->next && h->made &&
        engine_make_rows(e, false))
        return &h->head;
    host_close(&h->head);
    return NULL;
}
