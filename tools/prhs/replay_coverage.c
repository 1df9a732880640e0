/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Do the bounds hold? The exact masses of all steps are known here; audits are drawn from them as a session with that seed would
 * draw them, and the bound that it would report is held against the mean of all.
 */
#include <math.h>
#include <stdlib.h>

#include "replay.h"

/* A sparse unit-step whose mass only an audit knows, with what the draw depends on. */
typedef struct unknown {
    uint32_t slot, layer, unit, position;
    double mass; /* mean over the unit's heads */
} unknown;

typedef struct population {
    unknown *steps;
    uint64_t n;
    double known, sum; /* sums of masses: of the other sparse unit-steps, of all */
    uint64_t all;
} population;

static bool is_unknown(const replay *r, const prhs_policy *p, uint32_t layer, int mode) {
    return mode != PRHS_MODE_RETRIEVE || prhs_psaw_start(p, r->shape.layers, layer, UINT32_MAX) > 0;
}

/* Unit u of a layer, sequence and step, whose heads' samples begin at `at`; what has a NaN is left out. */
static void add(const replay *r, const replay_samples *s, const prhs_policy *policy, size_t at, uint32_t heads, unknown x,
                population *p) {
    for (uint32_t h = 0; h < heads; h++)
        x.mass += (double)s->delta[at + h] / heads;
    if (s->mode[at] == PRHS_MODE_IDLE || isnan(x.mass))
        return;
    p->all++;
    p->sum += x.mass;
    if (is_unknown(r, policy, x.layer, s->mode[at]))
        p->steps[p->n++] = x;
    else
        p->known += x.mass;
}

static void gather(const replay *r, const replay_samples *s, const prhs_policy *policy, population *p) {
    const uint32_t units = policy->join == PRHS_JOIN_PER_HEAD ? r->shape.heads : r->shape.kv_heads,
                   heads = r->shape.heads / units;
    for (uint32_t step = 0; step < r->steps; step++)
        for (uint32_t seq = 0; seq < r->shape.seqs; seq++)
            for (uint32_t layer = 0; layer < r->shape.layer_count; layer++)
                for (uint32_t u = 0; u < units; u++) {
                    const size_t at = (((size_t)step * r->shape.seqs + seq) * r->shape.layer_count + layer) * r->shape.heads +
                                      (size_t)u * heads;
                    add(r, s, policy, at, heads,
                        (unknown){ seq, r->shape.first_layer + layer, u, replay_seq(r, seq)->context + step, 0.0 }, p);
                }
}

/* One seed: its limits of the mean over all steps; how many audits there were. */
static uint64_t draw(const population *p, double rate, double confidence, uint64_t seed, double *low, double *high) {
    uint64_t n = 0;
    double sum = 0.0, square = 0.0;
    for (uint64_t i = 0; i < p->n; i++) {
        const unknown *x = &p->steps[i];
        if (!prhs_audit_drawn(rate, seed, x->slot, x->layer, x->unit, x->position))
            continue;
        n++;
        sum += x->mass;
        square += x->mass * x->mass;
    }
    const double count = n ? (double)n : 1.0, all = (double)p->all;
    prhs_mean_bound(p->n, n, fmin(sum / count, 1.0), fmin(square / count, 1.0), confidence, low, high);
    *low = (p->known + *low * (double)p->n) / all;
    *high = (p->known + *high * (double)p->n) / all;
    return n;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(const replay *r, const population *p, double *widths, replay_coverage *c) {
    const uint32_t runs = r->o->coverage;
    *c = (replay_coverage){ .runs = runs, .steps = p->all, .unknown = p->n, .exact = p->sum / (double)p->all };
    c->rate = fmin((double)r->o->audits / (double)p->n, 1.0);
    const double mean = (p->sum - p->known) / (double)p->n;
    for (uint64_t i = 0; i < p->n; i++)
        c->deviation += (p->steps[i].mass - mean) * (p->steps[i].mass - mean);
    c->deviation = sqrt(c->deviation / (double)p->n);
    for (uint32_t i = 0; i < runs; i++) {
        double low, high;
        c->audits += (double)draw(p, c->rate, r->o->confidence, i + 1, &low, &high) / runs;
        /* Where all is audited limits and mean are sums of the same, in another order. */
        const double miss = fmax(low - c->exact, c->exact - high);
        c->held += miss <= 1e-12;
        c->miss_most = fmax(c->miss_most, miss);
        widths[i] = high - low;
    }
    qsort(widths, runs, sizeof *widths, by_value);
    c->width_median = (widths[(runs - 1) / 2] + widths[runs / 2]) / 2;
    c->width_most = widths[runs - 1];
}

bool replay_cover(const replay *r, const replay_samples *s, replay_result *result) {
    if (!r->o->coverage)
        return true;
    const size_t most = (size_t)r->steps * r->shape.seqs * r->shape.layer_count * r->shape.heads;
    population p = { .steps = replay_alloc(most, sizeof *p.steps) };
    double *widths = replay_alloc(r->o->coverage, sizeof *widths);
    const bool ok = p.steps && widths;
    if (ok)
        gather(r, s, &result->policy, &p);
    if (ok && p.n)
        run(r, &p, widths, &result->coverage);
    free(p.steps);
    free(widths);
    return ok;
}
