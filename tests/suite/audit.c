/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Audits by themselves: which steps are drawn, what a sample says of all, and that asking changes nothing and costs no wait. That
 * the steps of a session are those, with the right figures, the session's cases see.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "groups.h"
#include "oracle.h"
#include "world.h"

/* --- which steps --- */

static void draws(t_ctx *t) {
    static const double rates[] = { 0x1p-32, 1e-4, 0.01, 0.3, 0.5, 0.999999, 1.0 };
    int hits = 0, n = 20000;
    for (int i = 0; i < n; i++) {
        const double rate = rates[t_below(t, sizeof rates / sizeof *rates)];
        const uint64_t seed = t_rand(t);
        const uint32_t slot = t_below(t, 65536), layer = t_below(t, 1024), unit = t_below(t, 4096),
                       position = t_below(t, 1 << 24);
        const int got = prhs_audit_drawn(rate, seed, slot, layer, unit, position);
        T_CHECK(t, got == oracle_drawn(rate, seed, (int)slot, (int)layer, (int)unit, (int)position), "draw %d at rate %g is %d",
                i, rate, got);
        hits += prhs_audit_drawn(0.25, seed, slot, layer, unit, position);
    }
    T_CHECK(t, abs(hits - n / 4) < 400, "%d of %d at a rate of 1/4", hits, n); /* over 6 standard deviations */
    T_CHECK(t,
            !prhs_audit_drawn(0, 1, 2, 3, 4, 5) && !prhs_audit_drawn(NAN, 1, 2, 3, 4, 5) &&
                !prhs_audit_drawn(-1, 1, 2, 3, 4, 5) && !prhs_audit_drawn(1.5, 1, 2, 3, 4, 5) &&
                prhs_audit_drawn(1, 1, 2, 3, 4, 5),
            "rates at the ends and outside");
}

/* --- what they say --- */

static void check_arguments(t_ctx *t) {
    double low, high;
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_mean_bound(0, 0, 0, 0, 0.95, &low, &high));
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_mean_bound(5, 6, 0.5, 0.3, 0.95, &low, &high));
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_mean_bound(5, 3, 1.5, 0.3, 0.95, &low, &high));
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_mean_bound(5, 3, 0.5, NAN, 0.95, &low, &high));
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_mean_bound(5, 3, 0.5, 0.3, 1, &low, &high));
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_mean_bound(5, 3, 0.5, 0.3, 0, &low, &high));
    T_OK(t, prhs_mean_bound(5, 0, NAN, NAN, 0.95, &low, &high));
    T_CHECK(t, low == 0 && high == 1, "no draws say %g ... %g", low, high);
    T_OK(t, prhs_mean_bound(5, 5, 0.25, 0.1, 0.95, &low, &high));
    T_CHECK(t, low == 0.25 && high == 0.25, "all numbers say %g ... %g", low, high);
    T_CHECK(t,
            prhs_information_bound(0, 100) == 0 && prhs_information_bound(-1, 100) == 0 && prhs_information_bound(0.5, 1) == 0 &&
                isnan(prhs_information_bound(NAN, 100)),
            "information of no mass, of no tokens, of NaN");
    for (int i = 0; i < 500; i++) {
        const uint32_t n = 2 + t_below(t, 9000);
        const double delta = t_below(t, 1001) / 1000.0, want = oracle_information_bound(delta, (int)n);
        T_CHECK(t, fabs(prhs_information_bound(delta, n) - want) <= 1e-12 * (1 + want), "information of %g of %u tokens", delta,
                n);
    }
}

/* Against the reference's own, and in order: more draws and less confidence, narrower limits. */
static void limits(t_ctx *t) {
    check_arguments(t);
    for (int i = 0; i < 2000; i++) {
        const uint64_t population = 1 + t_below(t, i % 2 ? 100 : 1000000), count = 1 + t_below(t, (uint32_t)population);
        const double mean = pow(t_below(t, 1001) / 1000.0, 3),
                     square = mean * mean + (mean - mean * mean) * t_below(t, 1001) / 1000.0;
        const double confidence = 0.5 + 0.499 * t_below(t, 1001) / 1000.0;
        double low, high, want_low, want_high;
        T_OK(t, prhs_mean_bound(population, count, mean, square, confidence, &low, &high));
        oracle_mean_bound((double)population, (double)count, mean, square, confidence, &want_low, &want_high);
        T_CHECK(t, fabs(low - want_low) < 1e-7 && fabs(high - want_high) < 1e-7,
                "%" PRIu64 " of %" PRIu64 ", mean %g, square %g, confidence %g: %.9g ... %.9g instead of %.9g ... %.9g", count,
                population, mean, square, confidence, low, high, want_low, want_high);
        T_CHECK(t, low <= mean && mean <= high && low >= 0 && high <= 1, "the mean %g is not in %g ... %g", mean, low, high);
    }
}

/* A number of a population: of a kind, between 0 and 1. */
static double number(t_ctx *t, int kind) {
    const double u = 1.0 - t_uniform(t);
    switch (kind) {
    case 0: return u < 0.02;                /* rare, and all or nothing */
    case 1: return fmin(1, -0.04 * log(u)); /* as dropped masses lie */
    case 2: return 0.05 + 0.02 * u;         /* nearly constant */
    default: return u < 0.9 ? 0.5 * u : 1.0;
    }
}

enum { POPULATION = 3000, RUNS = 400 };

/* How many of RUNS samples of `count` draws have limits that hold; *width: their mean width. */
static int coverage(t_ctx *t, const double *x, int count, double confidence, double *width) {
    static int order[POPULATION];
    double mean = 0;
    int held = 0;
    *width = 0;
    for (int i = 0; i < POPULATION; i++) {
        order[i] = i;
        mean += x[i] / POPULATION;
    }
    for (int run = 0; run < RUNS; run++) {
        double sum = 0, square = 0, low, high;
        for (int i = 0; i < count; i++) {
            const int j = i + (int)t_below(t, (uint32_t)(POPULATION - i)), taken = order[j];
            order[j] = order[i];
            order[i] = taken;
            sum += x[taken];
            square += x[taken] * x[taken];
        }
        T_OK(t, prhs_mean_bound(POPULATION, (uint64_t)count, sum / count, square / count, confidence, &low, &high));
        held += low <= mean && mean <= high;
        *width += (high - low) / RUNS;
    }
    return held;
}

/* At 80 %, limits that are no more than the deviation needs would fail often enough to be seen. */
static void covers(t_ctx *t) {
    static const int counts[] = { 30, 300, 1500, 2700 };
    static double x[POPULATION];
    for (int kind = 0; kind < 4; kind++) {
        double mean = 0, square = 0;
        for (int i = 0; i < POPULATION; i++) {
            x[i] = number(t, kind);
            mean += x[i] / POPULATION;
            square += x[i] * x[i] / POPULATION;
        }
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            double width;
            const int n = counts[i], held = coverage(t, x, n, 0.8, &width);
            const double normal = 2 * 1.2816 * sqrt((square - mean * mean) / n * (1 - (double)n / POPULATION));
            /* Besides the deviation: what the second moment's limit adds, and a term of 1 / n. */
            const double most = 2.2 * normal + 4 * sqrt(sqrt(square) / n) * pow(n, -0.25) + 8.0 / n;
            T_CHECK(t, held >= 0.8 * RUNS, "kind %d, %d draws: %d of %d limits hold", kind, n, held, RUNS);
            T_CHECK(t, width <= most, "kind %d, %d draws: limits are %g apart, the deviation allows %g", kind, n, width, normal);
        }
    }
}

/* --- asking --- */

static void decode(t_world *w, t_wseq *seq, int steps) {
    for (int i = 0; i < steps; i++)
        t_world_one(w, seq, 1, 0);
}

static uint64_t launches(t_ctx *t) {
    prhs_counters c = { .size = sizeof c };
    T_OK(t, prhs_device_get_counters(t->dev, &c));
    return c.launches;
}

/* Two sessions over the same rows, the second one audited: same outputs, bit for bit, same lists; without audits no launch more.
 */
static void silent(t_ctx *t) {
    enum { PROMPT = 90, STEPS = 24 };
    t_world w[2];
    t_wseq *seq[2];
    uint64_t count[2];
    for (int i = 0; i < 2; i++) {
        t_setup s = t_setup_default(t, "cis-mass", &t_shapes[S_G3_D64]);
        s.seed = 5;
        s.audit = i ? 40 : 0;
        t_world_make(t, &w[i], &s);
        seq[i] = t_world_seq(&w[i], 1, 0);
        t_world_prompt(&w[i], seq[i], PROMPT, 64);
        const uint64_t before = launches(t);
        decode(&w[i], seq[i], STEPS);
        count[i] = launches(t) - before;
        for (uint32_t l = 0; i && l < s.layers; l++)
            T_CHECK(t, !memcmp(w[0].outs[l], w[1].outs[l], s.shape->heads * s.shape->dim * sizeof(float)),
                    "layer %u: other outputs", l);
    }
    const t_setup *s = &w[0].s;
    const uint64_t audits = count[1] - count[0], layers = s->layers - s->policy.dense_layers;
    T_CHECK(t, audits == 2 * layers * STEPS, "%" PRIu64 " launches more by audits of %" PRIu64 " layers and %d steps", audits,
            layers, STEPS);
    prhs_audit_report r;
    t_world_audit(&w[0], 0, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &r);
    T_CHECK(t,
            r.audits == 0 && r.unknown > 0 && r.mean.grade == PRHS_GRADE_UNKNOWN && r.bound.grade == PRHS_GRADE_BOUND &&
                fabs(r.bound.high - r.bound.low - (double)r.unknown / (double)r.steps) < 1e-12,
            "without audits the mean lies in %g ... %g", r.bound.low, r.bound.high);
    t_world_audit(&w[1], 0, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &r);
    T_CHECK(t, r.audits > 0 && r.audits < r.unknown && r.mean.grade == PRHS_GRADE_SAMPLED,
            "%" PRIu64 " of %" PRIu64 " were audited", r.audits, r.unknown);
    t_world_audit(&w[1], 0, 0, PRHS_ALL_HEADS, &r);
    T_CHECK(t, r.steps == 0 && r.audits == 0 && isnan(r.mean.mean), "a dense layer has audits");
}

/* A request that is asked while it may still be in flight is refused or answered, and never waited for; layers and slots add up.
 */
static void asked(t_ctx *t) {
    t_world w;
    t_setup s = t_setup_default(t, "cis-mass", &t_shapes[S_G1_D32]);
    s.audit = 50;
    t_world_make(t, &w, &s);
    t_wseq *seq[2] = { t_world_seq(&w, 1, 0), t_world_seq(&w, 2, 2) };
    for (int i = 0; i < 2; i++) {
        t_world_prompt(&w, seq[i], 80, 64);
        decode(&w, seq[i], 20);
    }
    prhs_stats_request *request;
    prhs_audit_report r = { .size = sizeof r, .confidence = 0.9 }, all = r;
    T_OK(t, prhs_stats_request_create(w.session, &request));
    t_own(t, T_REQUEST, request, 0);
    prhs_counters before = { .size = sizeof before }, after = before;
    T_OK(t, prhs_device_get_counters(t->dev, &before));
    T_OK(t, prhs_stats_request_enqueue(request, t->queue));
    prhs_status status = prhs_stats_request_get_audit(request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &all);
    T_CHECK(t, status == PRHS_OK || status == PRHS_NOT_READY, "status %d", status);
    T_OK(t, prhs_device_get_counters(t->dev, &after));
    T_CHECK(t, after.waits == before.waits, "to ask waited %" PRIu64 " times", (uint64_t)(after.waits - before.waits));
    T_OK(t, prhs_queue_finish(t->queue));
    T_OK(t, prhs_stats_request_get_audit(request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &all));
    uint64_t steps = 0, unknown = 0, audits = 0;
    for (uint32_t slot = 0; slot < s.max_slots; slot++)
        for (uint32_t layer = 0; layer < s.layers; layer++) {
            T_OK(t, prhs_stats_request_get_audit(request, slot, layer, PRHS_ALL_HEADS, &r));
            T_CHECK(t, (r.steps > 0) == (layer >= s.policy.dense_layers && (slot == 0 || slot == 2)),
                    "slot %u layer %u: %" PRIu64 " steps", slot, layer, r.steps);
            steps += r.steps;
            unknown += r.unknown;
            audits += r.audits;
        }
    T_CHECK(t, steps == all.steps && unknown == all.unknown && audits == all.audits && audits > 0,
            "parts do not add up to the whole");
    T_CHECK(t, all.confidence == 0.9 && all.bound.confidence == 0.9 && all.information.confidence == 0.9, "another confidence");
    /* Shorter contexts hold less information. */
    r.kv_len = 100;
    T_OK(t, prhs_stats_request_get_audit(request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &r));
    T_CHECK(t, r.information.high < all.information.high && r.information.grade == PRHS_GRADE_BOUND, "information %g, then %g",
            all.information.high, r.information.high);
}

static const struct {
    const char *name;
    void (*run)(t_ctx *t);
} rows[] = {
    { "draws", draws }, { "limits", limits }, { "limits hold", covers }, { "silent", silent }, { "asked", asked },
};

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) { rows[row].run(t); }

const t_group t_group_audit = { "audit", sizeof rows / sizeof *rows, sizeof rows / sizeof *rows, row_name, run };
