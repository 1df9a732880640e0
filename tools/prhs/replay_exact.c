/* SPDX-License-Identifier: Apache-2.0 */
/* Dense attention in double precision, on the trace's own float16 values: what outputs are held against. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "replay.h"

enum { MAX_THREADS = 64 };

/* One KV head of a sequence, as floats (which hold every float16), and the rows that read it. */
typedef struct head_work {
    const replay *r;
    const float *k, *v; /* [tokens][dim] */
    const uint16_t *q;  /* from the first decoded row on */
    double *out;        /* of the layer and sequence: step 0, head 0 */
    uint32_t kv_head, context, steps;
} head_work;

typedef struct share_work {
    const head_work *w;
    uint32_t begin, end; /* of the group's heads times the steps */
    double *scores;      /* [tokens] */
} share_work;

static double dot(const double *q, const float *k, uint32_t dim) {
    double sum[8] = { 0 };
    for (uint32_t d = 0; d < dim; d += 8)
        for (uint32_t i = 0; i < 8; i++)
            sum[i] += q[d + i] * (double)k[d + i];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

static void attend(const head_work *w, uint32_t head, uint32_t step, double *scores) {
    const trace_shape *s = &w->r->shape;
    const uint32_t n = w->context + step + 1;
    double q[256], top = -INFINITY, sum = 0.0;
    double *o = w->out + ((size_t)step * s->seqs * s->heads + head) * s->dim;
    for (uint32_t d = 0; d < s->dim; d++) {
        q[d] = (double)trace_from_f16(w->q[((size_t)step * s->heads + head) * s->dim + d]) * (double)s->scale;
        o[d] = 0.0;
    }
    for (uint32_t j = 0; j < n; j++) {
        scores[j] = dot(q, w->k + (size_t)j * s->dim, s->dim);
        top = scores[j] > top ? scores[j] : top;
    }
    for (uint32_t j = 0; j < n; j++) {
        const double weight = exp(scores[j] - top);
        const float *v = w->v + (size_t)j * s->dim;
        sum += weight;
        for (uint32_t d = 0; d < s->dim; d++)
            o[d] += weight * (double)v[d];
    }
    for (uint32_t d = 0; d < s->dim; d++)
        o[d] /= sum;
}

static void *work(void *arg) {
    const share_work *a = arg;
    const uint32_t group = a->w->r->shape.heads / a->w->r->shape.kv_heads;
    for (uint32_t i = a->begin; i < a->end; i++)
        attend(a->w, a->w->kv_head * group + i / a->w->steps, i % a->w->steps, a->scores);
    return NULL;
}

uint32_t replay_threads(const replay *r, uint32_t items) {
    long n = r->o->device.threads ? (long)r->o->device.threads : sysconf(_SC_NPROCESSORS_ONLN);
    n = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
    return items < (uint32_t)n ? items : (uint32_t)n;
}

/* Splits the rows of a KV head among threads; where none can be had, this one does the share itself. */
static bool run(const head_work *w, uint32_t tokens) {
    const uint32_t items = w->r->shape.heads / w->r->shape.kv_heads * w->steps, threads = replay_threads(w->r, items);
    double *scores = replay_alloc((size_t)threads * tokens, sizeof *scores);
    pthread_t ids[MAX_THREADS];
    share_work shares[MAX_THREADS];
    bool started[MAX_THREADS];
    if (!scores)
        return false;
    for (uint32_t i = 0; i < threads; i++) {
        shares[i] = (share_work){ w, (uint32_t)((uint64_t)items * i / threads), (uint32_t)((uint64_t)items * (i + 1) / threads),
                                  scores + (size_t)i * tokens };
        started[i] = pthread_create(&ids[i], NULL, work, &shares[i]) == 0;
        if (!started[i])
            work(&shares[i]);
    }
    for (uint32_t i = 0; i < threads; i++)
        if (started[i])
            pthread_join(ids[i], NULL);
    free(scores);
    return true;
}

bool replay_exact(replay *r, uint32_t layer, uint32_t seq, const uint16_t *q, const uint16_t *k, const uint16_t *v) {
    const trace_shape *s = &r->shape;
    const trace_seq *lengths = replay_seq(r, seq);
    const uint32_t tokens = lengths->context + lengths->steps;
    float *floats = replay_alloc((size_t)tokens * 2 * s->dim, sizeof *floats);
    bool ok = floats != NULL;
    for (uint32_t h = 0; ok && h < s->kv_heads; h++) {
        for (size_t j = 0; j < tokens; j++)
            for (size_t d = 0; d < s->dim; d++) {
                floats[j * s->dim + d] = trace_from_f16(k[(j * s->kv_heads + h) * s->dim + d]);
                floats[(tokens + j) * s->dim + d] = trace_from_f16(v[(j * s->kv_heads + h) * s->dim + d]);
            }
        head_work w = {
            r, floats, floats + (size_t)tokens * s->dim, q + trace_row(s, TRACE_Q), NULL, h, lengths->context, lengths->steps
        };
        w.out = r->exact + ((size_t)layer * r->steps * s->seqs + seq) * trace_row(s, TRACE_Q);
        ok = run(&w, tokens);
    }
    free(floats);
    return ok;
}
