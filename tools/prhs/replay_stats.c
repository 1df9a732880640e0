/* SPDX-License-Identifier: Apache-2.0 */
/* From samples to figures. */
#include <math.h>
#include <stdlib.h>

#include "replay.h"

static size_t sample_count(const replay *r) { return (size_t)r->steps * r->shape.seqs * r->shape.layer_count * r->shape.heads; }

bool replay_samples_make(const replay *r, replay_samples *s) {
    const size_t n = sample_count(r);
    *s = (replay_samples){
        .delta = replay_alloc(n, sizeof *s->delta),
        .hat = replay_alloc(n, sizeof *s->hat),
        .mode = replay_alloc(n, sizeof *s->mode),
        .error = replay_alloc(n, sizeof *s->error),
        .retrieved = replay_alloc(r->steps, sizeof *s->retrieved),
        .units = replay_alloc(r->steps, sizeof *s->units),
    };
    if (!s->delta || !s->hat || !s->mode || !s->error || !s->retrieved || !s->units)
        return false;
    for (size_t i = 0; i < n; i++) {
        s->delta[i] = s->hat[i] = NAN;
        s->error[i] = NAN;
    }
    return true;
}

void replay_samples_free(replay_samples *s) {
    free(s->delta);
    free(s->hat);
    free(s->mode);
    free(s->error);
    free(s->retrieved);
    free(s->units);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts. The 99th percentile is the smallest value that 99 % do not exceed. */
static replay_summary summary(double *x, size_t n) {
    replay_summary s = { n, NAN, NAN, NAN };
    if (n == 0)
        return s;
    double sum = 0.0;
    qsort(x, n, sizeof *x, by_value);
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    s.mean = sum / (double)n;
    s.p99 = x[(99 * n + 99) / 100 - 1];
    s.max = x[n - 1];
    return s;
}

static double median(const double *sorted, size_t n) {
    return n == 0 ? NAN : n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

/* Values of layers [layer, end), heads [head, stop). */
typedef enum what { DELTA, ERROR } what;

static size_t gather(const replay *r, const replay_samples *s, what w, uint32_t layer, uint32_t end, uint32_t head, uint32_t stop,
                     double *x) {
    size_t n = 0;
    for (size_t step = 0; step < (size_t)r->steps * r->shape.seqs; step++)
        for (uint32_t l = layer; l < end; l++)
            for (uint32_t h = head; h < stop; h++) {
                const size_t i = (step * r->shape.layer_count + l) * r->shape.heads + h;
                const double value = w == DELTA ? (double)s->delta[i] : s->error[i];
                if (!isnan(value))
                    x[n++] = value;
            }
    return n;
}

/* Of shared steps in layers [layer, end) of sequences [seq, stop). */
static replay_estimate estimate(const replay *r, const replay_samples *s, uint32_t layer, uint32_t end, uint32_t seq,
                                uint32_t stop, double *x) {
    replay_estimate e = { 0, NAN, NAN, NAN, NAN };
    double hat = 0.0, exact = 0.0;
    size_t n = 0, within = 0;
    for (uint32_t step = 0; step < r->steps; step++)
        for (uint32_t q = seq; q < stop; q++)
            for (size_t i = replay_sample_at(r, step, q, layer); i < replay_sample_at(r, step, q, end); i++) {
                if (isnan(s->hat[i]) || isnan(s->delta[i]))
                    continue;
                hat += (double)s->hat[i];
                exact += (double)s->delta[i];
                x[n++] = ((double)s->hat[i] + 1e-4) / ((double)s->delta[i] + 1e-4);
            }
    if (n == 0)
        return e;
    qsort(x, n, sizeof *x, by_value);
    for (size_t i = 0; i < n; i++)
        within += x[i] >= 1 / 1.25 && x[i] <= 1.25;
    return (replay_estimate){ n, median(x, n), (double)within / (double)n, hat / (double)n, exact / (double)n };
}

/* K and V rows that a step must read. The library's dense layers keep no books: they read all. */
static void count_bytes(const replay *r, double scored, replay_result *result) {
    const prhs_policy *p = &result->policy;
    const double row = 2.0 * r->shape.dim;
    double rows = p->residual == PRHS_RESIDUAL_RETRIEVED ? 2 * scored : scored, all = 0.0, steps = 0.0;
    for (uint32_t i = 0; i < r->shape.seqs; i++) {
        const trace_seq *s = replay_seq(r, i);
        all += s->steps * (s->context + (s->steps + 1) / 2.0);
        steps += s->steps;
    }
    for (uint32_t layer = 0; layer < r->shape.layer_count; layer++) {
        const prhs_stats *st = &result->layers[layer].stats;
        if (r->shape.first_layer + layer < p->dense_layers)
            rows += 2 * all * r->shape.kv_heads;
        else
            rows += 2 * st->attended * (double)st->steps + (st->mass_failed ? 2 * st->kept * (double)st->mass_failed : 0.0) +
                    (p->residual == PRHS_RESIDUAL_RETRIEVED ? 2 : 1) * all / steps * (double)st->missed; /* scored in vain */
    }
    result->bytes = rows * row / steps;
    result->dense_bytes = 2 * all * r->shape.layer_count * r->shape.kv_heads * row / steps;
}

bool replay_summarise(const replay *r, const replay_samples *s, replay_result *result) {
    const uint32_t layers = r->shape.layer_count, heads = r->shape.heads;
    double *x = replay_alloc(sample_count(r), sizeof *x);
    if (!x)
        return false;
    result->delta = summary(x, gather(r, s, DELTA, 0, layers, 0, heads, x));
    result->error = summary(x, gather(r, s, ERROR, 0, layers, 0, heads, x));
    result->estimate = estimate(r, s, 0, layers, 0, r->shape.seqs, x);
    for (uint32_t seq = 0; seq < r->shape.seqs; seq++)
        result->sequences[seq] = estimate(r, s, 0, layers, seq, seq + 1, x);
    for (uint32_t l = 0; l < layers; l++) {
        replay_layer *layer = &result->layers[l];
        layer->delta = summary(x, gather(r, s, DELTA, l, l + 1, 0, heads, x));
        layer->error = summary(x, gather(r, s, ERROR, l, l + 1, 0, heads, x));
        layer->estimate = estimate(r, s, l, l + 1, 0, r->shape.seqs, x);
        for (uint32_t h = 0; h < heads; h++) {
            layer->head_delta[h] = summary(x, gather(r, s, DELTA, l, l + 1, h, h + 1, x));
            layer->head_error[h] = summary(x, gather(r, s, ERROR, l, l + 1, h, h + 1, x));
        }
    }
    size_t n = 0; /* no more steps than samples */
    for (uint32_t step = 0; step < r->steps; step++)
        if (s->units[step])
            x[n++] = (double)s->retrieved[step] / s->units[step];
    result->retrieving = summary(x, n);
    result->retrieving_median = median(x, n);
    if (result->rival.kind == COMPARATOR_NONE)
        count_bytes(r, s->scored, result);
    free(x);
    return true;
}

/* Each step's median over the repeats: what disturbed one of them is not the step's. */
bool replay_times(const replay *r, const double *seconds, replay_result *result) {
    const uint32_t n = r->steps - 1, repeat = r->o->repeat;
    double *one = replay_alloc(repeat, sizeof *one), *steps = replay_alloc(r->steps + 1, sizeof *steps);
    bool ok = one && steps;
    for (uint32_t step = 0; ok && step <= r->steps; step++) {
        for (uint32_t i = 0; i < repeat; i++)
            one[i] = seconds[(size_t)i * (r->steps + 1) + step];
        qsort(one, repeat, sizeof *one, by_value);
        steps[step] = median(one, repeat);
    }
    if (ok) {
        result->first = steps[0];
        result->seed = steps[r->steps];
        replay_summary s = summary(steps + 1, n);
        result->median = median(steps + 1, n);
        result->p99 = s.p99;
        result->worst = s.max;
        result->mean = s.mean;
    }
    free(one);
    free(steps);
    return ok;
}
