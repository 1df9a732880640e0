/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A comparator over the trace: lists of the host's from the trace's own rows, attention by the library's ops on the device. Layer
 * by layer, each with lists for all of its steps.
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"

enum { MOST_THREADS = 64 };

typedef struct contest {
    replay *r;
    const comparator *c;
    prhs_ops *ops;
    prhs_ops_layout layout;
    prhs_buffer *state, *work;
    uint32_t units, cap;
    uint16_t *halves; /* rows as the file has them */
    float *q, *k;     /* of a layer and sequence: [tokens][heads][dim]; [kv_heads][tokens][dim] */
    float *given;     /* H2O: [kv_heads][tokens] */
    int32_t *list;    /* of a layer: [steps][seqs][units][cap] */
    prhs_set *set;    /* [steps][seqs][units] */
    double *dropped;  /* of a layer and sequence: [steps][heads] */
    double *attended; /* [layer_count]: tokens, summed over steps and lists */
    float *outs;      /* [seqs][heads * dim] */
} contest;

static void close_contest(contest *x) {
    void *blocks[] = { x->halves, x->q, x->k, x->given, x->list, x->set, x->dropped, x->attended, x->outs };
    prhs_queue_finish(x->r->queue);
    prhs_ops_destroy(x->ops);
    prhs_buffer_destroy(x->state);
    prhs_buffer_destroy(x->work);
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
}

static bool open_ops(contest *x) {
    const replay *r = x->r;
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    p.shape = (prhs_shape){ r->shape.heads, r->shape.kv_heads, r->shape.dim, r->shape.scale };
    p.max_seqs = p.max_rows = p.max_slots = r->shape.seqs;
    p.max_kv_len = r->tokens;
    p.list_cap = x->cap;
    p.per_head = comparator_per_head(x->c);
    p.kv_dtype = p.q_dtype = PRHS_F16;
    x->layout.size = sizeof x->layout;
    if (prhs_ops_get_layout(r->dev, &p, &x->layout) != PRHS_OK || prhs_ops_create(r->dev, &p, &x->ops) != PRHS_OK)
        return false;
    x->units = x->layout.units;
    return prhs_buffer_create(r->dev, x->layout.state_bytes, &x->state) == PRHS_OK &&
           prhs_buffer_create(r->dev, x->layout.workspace_bytes, &x->work) == PRHS_OK;
}

static bool open_contest(replay *r, const comparator *c, contest *x) {
    const size_t steps = r->steps, q = trace_row(&r->shape, TRACE_Q), kv = trace_row(&r->shape, TRACE_K);
    *x = (contest){ .r = r, .c = c, .cap = comparator_list_cap(c) };
    if (!open_ops(x))
        return false;
    const size_t lists = steps * r->shape.seqs * x->units;
    return (x->halves = replay_alloc((size_t)r->tokens * (q > kv ? q : kv), sizeof *x->halves)) &&
           (x->q = replay_alloc((size_t)r->tokens * q, sizeof *x->q)) &&
           (x->k = replay_alloc((size_t)r->tokens * kv, sizeof *x->k)) &&
           (x->given = replay_alloc((size_t)r->tokens * r->shape.kv_heads, sizeof *x->given)) &&
           (x->list = replay_alloc(lists, sizeof *x->list * x->cap)) && (x->set = replay_alloc(lists, sizeof *x->set)) &&
           (x->dropped = replay_alloc(steps * r->shape.heads, sizeof *x->dropped)) &&
           (x->attended = replay_alloc(r->shape.layer_count, sizeof *x->attended)) &&
           (x->outs = replay_alloc(r->shape.seqs * q, sizeof *x->outs));
}

/* --- lists ------------------------------------------------------------------------------------------------------------- */

/* Queries from trace_begin() on, each at its position, and keys head by head. */
static bool load(contest *x, uint32_t layer, uint32_t seq) {
    replay *r = x->r;
    const trace_seq *s = replay_seq(r, seq);
    const uint32_t tokens = s->context + s->steps, first = trace_begin(s, TRACE_Q), model_layer = r->shape.first_layer + layer;
    const size_t q = trace_row(&r->shape, TRACE_Q), kv = trace_row(&r->shape, TRACE_K), dim = r->shape.dim;
    char error[TRACE_ERROR];
    bool ok = trace_read(r->file, model_layer, seq, TRACE_Q, first, tokens - first, x->halves, error);
    for (size_t i = 0; ok && i < (tokens - first) * q; i++)
        x->q[first * q + i] = trace_from_f16(x->halves[i]);
    ok = ok && trace_read(r->file, model_layer, seq, TRACE_K, 0, tokens, x->halves, error);
    for (size_t i = 0; ok && i < tokens * kv; i++)
        x->k[(i % kv / dim * tokens + i / kv) * dim + i % dim] = trace_from_f16(x->halves[i]);
    if (!ok)
        fprintf(stderr, "prhs replay: %s\n", error);
    return ok;
}

/* KV heads first, first + stride, ... of a layer and sequence. */
typedef struct share {
    contest *x;
    uint32_t layer, seq, first, stride;
    double attended;
    bool good;
} share;

static bool choose(share *w, uint32_t hk) {
    contest *x = w->x;
    const trace_shape *s = &x->r->shape;
    const trace_seq *seq = replay_seq(x->r, w->seq);
    const uint32_t group = s->heads / s->kv_heads, tokens = seq->context + seq->steps;
    const size_t q = trace_row(s, TRACE_Q), lists = (size_t)s->seqs * x->units;
    const size_t first = (size_t)w->seq * x->units + (comparator_per_head(x->c) ? hk * group : hk);
    const float *k = x->k + (size_t)hk * tokens * s->dim;
    comparator_task t = { .context = seq->context,
                          .steps = seq->steps,
                          .group = group,
                          .dim = s->dim,
                          .scale = s->scale,
                          .k = k,
                          .q = x->q + seq->context * q + (size_t)hk * group * s->dim,
                          .q_step = q,
                          .given = x->given + (size_t)hk * x->r->tokens,
                          .dense = s->first_layer + w->layer < x->c->dense,
                          .list = x->list + first * x->cap,
                          .set = x->set + first,
                          .list_step = lists * x->cap,
                          .set_step = lists,
                          .dropped = x->dropped + (size_t)hk * group,
                          .dropped_step = s->heads };
    memset(t.given, 0, tokens * sizeof *t.given);
    bool ok = true;
    for (uint32_t g = 0; ok && x->c->kind == COMPARATOR_H2O && !t.dense && g < group; g++)
        ok = comparator_give(x->q + ((size_t)hk * group + g) * s->dim, q, k, s->dim, seq->context, s->dim, s->scale, t.given,
                             comparator_product_plain);
    ok = ok && comparator_lists(x->c, &t, comparator_product_plain);
    w->attended += t.attended;
    return ok;
}

static void *choose_share(void *user) {
    share *w = user;
    w->good = true;
    for (uint32_t hk = w->first; w->good && hk < w->x->r->shape.kv_heads; hk += w->stride)
        w->good = choose(w, hk);
    return NULL;
}

/* Lists of all steps; where a thread cannot be had, this one does its share. */
static bool choose_all(contest *x, uint32_t layer, uint32_t seq) {
    const uint32_t threads = replay_threads(x->r, x->r->shape.kv_heads);
    share shares[MOST_THREADS];
    pthread_t ids[MOST_THREADS];
    bool started[MOST_THREADS], ok = true;
    memset(x->dropped, 0, (size_t)x->r->steps * x->r->shape.heads * sizeof *x->dropped);
    for (uint32_t i = 0; i < threads; i++) {
        shares[i] = (share){ x, layer, seq, i, threads, 0.0, false };
        started[i] = i + 1 < threads && pthread_create(&ids[i], NULL, choose_share, &shares[i]) == 0;
        if (!started[i])
            choose_share(&shares[i]);
    }
    for (uint32_t i = 0; i < threads; i++) {
        if (started[i])
            pthread_join(ids[i], NULL);
        x->attended[layer] += shares[i].attended;
        ok = ok && shares[i].good;
    }
    if (!ok)
        fprintf(stderr, "prhs replay: no host memory\n");
    return ok;
}

/* --- steps ------------------------------------------------------------------------------------------------------------- */

static void take_masses(const contest *x, uint32_t layer, uint32_t seq, replay_samples *s) {
    const replay *r = x->r;
    for (uint32_t step = 0; r->shape.first_layer + layer >= x->c->dense && step < replay_seq(r, seq)->steps; step++)
        for (uint32_t h = 0; h < r->shape.heads; h++)
            s->delta[replay_sample_at(r, step, seq, layer) + h] = (float)x->dropped[(size_t)step * r->shape.heads + h];
}

/* The rows of a step into the cache, and attention with its lists; outputs to the host. */
static bool attend(contest *x, uint32_t layer, uint32_t step) {
    replay *r = x->r;
    const size_t seqs = r->shape.seqs, q = trace_row(&r->shape, TRACE_Q) * seqs, kv = trace_row(&r->shape, TRACE_K) * seqs;
    const size_t lists = seqs * x->units, own = (size_t)x->units * x->cap;
    const prhs_mem state = { x->state, 0 }, work = { x->work, 0 }, none = { NULL, 0 };
    const prhs_batch batch = replay_batch(r, PRHS_HAS_DECODE);
    const prhs_rows query = { { r->now[TRACE_Q].buffer, 2 * q * layer }, PRHS_F16, 0, 0 };
    const prhs_rows key = { { r->now[TRACE_K].buffer, 2 * kv * layer }, PRHS_F16, 0, 0 };
    const prhs_rows value = { { r->now[TRACE_V].buffer, 2 * kv * layer }, PRHS_F16, 0, 0 };
    const prhs_rows out = { r->out, PRHS_F32, 0, 0 };
    bool ok = replay_take(r, step + 1) &&
              prhs_op_append(x->ops, r->queue, &batch, &r->kv[layer], &key, &value, none) == PRHS_OK &&
              prhs_queue_write(r->queue, (prhs_mem){ x->work, x->layout.sets }, x->set + step * lists, lists * sizeof *x->set) ==
                  PRHS_OK;
    for (size_t i = 0; ok && i < seqs; i++)
        ok = prhs_queue_write(r->queue, (prhs_mem){ x->state, i * x->layout.slot_bytes + x->layout.lists },
                              x->list + (step * lists + i * x->units) * x->cap, own * sizeof *x->list) == PRHS_OK;
    return ok && prhs_op_attend(x->ops, r->queue, &batch, &r->kv[layer], &query, state, work, &out, none) == PRHS_OK &&
           prhs_queue_read(r->queue, x->outs, r->out, q * sizeof *x->outs) == PRHS_OK && prhs_queue_finish(r->queue) == PRHS_OK;
}

static bool run_layer(contest *x, uint32_t layer, replay_samples *s) {
    const replay *r = x->r;
    bool ok = true;
    memset(x->set, 0, (size_t)r->steps * r->shape.seqs * x->units * sizeof *x->set);
    for (uint32_t seq = 0; ok && seq < r->shape.seqs; seq++) {
        ok = load(x, layer, seq) && choose_all(x, layer, seq);
        take_masses(x, layer, seq, s);
    }
    for (uint32_t step = 0; ok && step < r->steps; step++) {
        ok = attend(x, layer, step);
        for (uint32_t seq = 0; ok && seq < r->shape.seqs; seq++)
            if (step < replay_seq(r, seq)->steps)
                replay_errors(r, x->outs + seq * trace_row(&r->shape, TRACE_Q), layer, step, seq, s);
    }
    return ok;
}

/* --- what was counted, in the form of a session's ---------------------------------------------------------------------- */

static void take_counts(const contest *x, replay_result *result) {
    const replay *r = x->r;
    const double row = 2.0 * r->shape.dim;
    double cached = 0.0, steps = 0.0, rows = 0.0, attended = 0.0;
    uint32_t sparse = 0;
    for (uint32_t i = 0; i < r->shape.seqs; i++) {
        const trace_seq *s = replay_seq(r, i);
        cached += s->steps * (s->context + (s->steps + 1) / 2.0);
        steps += s->steps;
    }
    for (uint32_t l = 0; l < r->shape.layer_count; l++) {
        const bool dense = r->shape.first_layer + l < x->c->dense;
        prhs_stats *st = &result->layers[l].stats;
        *st = (prhs_stats){ .size = sizeof *st, .rho = NAN, .kept = NAN, .attended = NAN };
        rows += dense ? 2 * cached * r->shape.kv_heads : 2 * x->attended[l] + comparator_reads(x->c, cached) * r->shape.kv_heads;
        if (dense)
            continue;
        sparse++;
        attended += x->attended[l];
        st->steps = (uint64_t)steps * x->units;
        st->rho = comparator_reads(x->c, 1.0);
        st->kept = st->attended = x->attended[l] / (double)st->steps;
    }
    prhs_stats *all = &result->stats;
    *all = (prhs_stats){ .size = sizeof *all, .rho = NAN, .kept = NAN, .attended = NAN };
    if (sparse) {
        all->steps = (uint64_t)steps * x->units * sparse;
        all->rho = comparator_reads(x->c, 1.0);
        all->kept = all->attended = attended / (double)all->steps;
    }
    result->bytes = rows * row / steps;
    result->dense_bytes = 2 * cached * r->shape.layer_count * r->shape.kv_heads * row / steps;
}

bool replay_compare(replay *r, replay_result *result) {
    contest x;
    replay_samples s = { 0 };
    if (result->rival.kind == COMPARATOR_H2O && !r->shape.prompts) {
        fprintf(stderr,
                "prhs replay: --policy %s: the trace lacks the queries of the prompts' rows, by which h2o goes (prhs-llama "
                "--record-prompts)\n",
                result->name);
        return false;
    }
    bool ok = open_contest(r, &result->rival, &x) && replay_samples_make(r, &s);
    for (uint32_t layer = 0; ok && layer < r->shape.layer_count; layer++)
        ok = run_layer(&x, layer, &s);
    ok = ok && replay_summarise(r, &s, result);
    if (ok)
        take_counts(&x, result);
    replay_samples_free(&s);
    close_contest(&x);
    return ok;
}
