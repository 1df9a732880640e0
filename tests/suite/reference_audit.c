/* SPDX-License-Identifier: Apache-2.0 */
/* Audits beside the reference: which steps, what is counted of them, and the report's figures. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "reference.h"

/* Whether PSAW leaves keys of the layer unscored. */
static int narrows(const t_setup *s, uint32_t layer) {
    const prhs_policy *p = &s->policy;
    return p->psaw && layer >= p->dense_layers &&
           oracle_factor((int)s->layers, (int)layer, (int)p->psaw_layer, (double)p->psaw_phi, (double)p->psaw_alpha) > 0;
}

static int is_unknown(const t_setup *s, uint32_t layer, int mode) {
    return mode == ORACLE_WINDOW || mode == ORACLE_STREAM || mode == ORACLE_SHARE || mode == ORACLE_COPY ||
           (mode == ORACLE_RETRIEVE && narrows(s, layer));
}

int r_audited(const r_pair *p, uint32_t layer, int32_t slot, uint32_t u, int32_t position, int mode) {
    const t_setup *s = &p->w.s;
    if (mode == ORACLE_DENSE || s->audit == 0)
        return 0;
    return s->audit == 1 ||
           (is_unknown(s, layer, mode) && oracle_drawn(s->audit / 100.0, s->seed, slot, (int)layer, (int)u, position));
}

static void add_step(r_sample *x, int mode, int unknown) {
    x->steps += mode != ORACLE_DENSE;
    x->unknown += (uint64_t)unknown;
}

static void add_known(r_sample *x, const oracle_head *h) {
    x->known.n++;
    x->known.sum += h->delta;
    x->known.bar += 4 * h->bar * h->delta + 1e-12;
}

static void add_mass(r_sample *x, double mass, double worst, double bar) {
    x->n++;
    x->sum += mass;
    x->square += mass * mass;
    x->worst += worst;
    x->worst_square += worst * worst;
    x->bar += bar;
}

static void add_pair(r_sample *x, double exact, double estimate, double bar) {
    const double off = fabs(exact - estimate);
    x->pairs++;
    x->exact += exact;
    x->estimate += estimate;
    x->off += off;
    x->off_square += off * off;
    x->pair_bar += bar;
}

void r_count_audit(const r_pair *p, r_counts *c, uint32_t layer, uint32_t u, int mode, int audited) {
    const t_setup *s = &p->w.s;
    const int unknown = is_unknown(s, layer, mode), estimated = mode == ORACLE_SHARE || mode == ORACLE_RETRIEVE;
    double sum = 0, worst_sum = 0, bars = 0;
    add_step(&c->sample, mode, unknown);
    for (uint32_t g = 0; g < p->unit_heads; g++) {
        const uint32_t i = u * p->unit_heads + g;
        const oracle_head *h = &p->res->head[i];
        /* The estimate as the library may have it: of the masses that were checked against it. */
        const double hat = estimated ? h->delta : 0, hat_bar = fmax(h->hat_bar, h->weight_bar) + 8 * h->bar * (1 + hat) + 4e-6 * hat;
        const double worst = s->policy.residual == PRHS_RESIDUAL_NONE ? h->delta_full : fmax(estimated ? h->weight : 0, h->delta_full);
        const double bar = 8 * h->bar + (estimated ? hat_bar : 0) + 1e-11;
        add_step(&c->head_sample[i], mode, unknown);
        if (mode == ORACLE_RETRIEVE && !unknown) {
            add_known(&c->sample, h);
            add_known(&c->head_sample[i], h);
        }
        if (audited && unknown)
            add_mass(&c->head_sample[i], h->delta_full, worst, bar);
        if (audited && mode == ORACLE_SHARE) {
            add_pair(&c->sample, h->delta_full, hat, bar);
            add_pair(&c->head_sample[i], h->delta_full, hat, bar);
        }
        sum += h->delta_full;
        worst_sum += worst;
        bars += bar;
    }
    if (audited && unknown)
        add_mass(&c->sample, sum / p->unit_heads, worst_sum / p->unit_heads, bars / p->unit_heads);
}

/* Limits as the reference has them, of the mean over all steps. */
static void limits(const r_sample *x, double sum, double square, double *low, double *high) {
    const double n = (double)x->n, unknown = (double)x->unknown, steps = (double)x->steps;
    const double of_known = x->known.n ? x->known.sum / (double)x->known.n * (steps - unknown) : 0;
    *low = 0;
    *high = unknown > 0;
    if (x->n)
        oracle_mean_bound(unknown, n, sum / n, square / n, 0.95, low, high);
    *low = (of_known + *low * unknown) / steps;
    *high = (of_known + *high * unknown) / steps;
}

static void check_bound(t_ctx *t, const char *what, const prhs_audit_report *got, const r_sample *x) {
    double low, high, bar = 1e-6 + 20 * x->bar / fmax((double)x->n, 1) + x->known.bar / fmax((double)x->known.n, 1);
    limits(x, x->sum, x->square, &low, &high);
    /* A second moment that is off by 2 bar moves the limits by its root at most. */
    const double moved = bar + sqrt(bar) * 0.01;
    T_CHECK(t, fabs(got->bound.low - low) <= moved && fabs(got->bound.high - high) <= moved,
            "%s: the mean lies in %.9g ... %.9g instead of %.9g ... %.9g", what, got->bound.low, got->bound.high, low, high);
    T_CHECK(t, got->bound.grade == (x->n == x->unknown ? PRHS_GRADE_EXACT : PRHS_GRADE_BOUND), "%s: the bound has grade %d", what,
            got->bound.grade);
}

static void check_information(t_ctx *t, const char *what, const r_pair *p, const prhs_audit_report *got, const r_sample *x) {
    double low, high;
    limits(x, x->worst, x->worst_square, &low, &high);
    const double want = oracle_information_bound(high, (int)p->w.s.max_kv_len), bar = 1e-6 + 20 * x->bar / fmax((double)x->n, 1);
    const double steep = 2 * (log((double)p->w.s.max_kv_len) + log(1 / fmax(high, 1e-9)) + 1);
    T_CHECK(t, got->information.low == 0.0 && fabs(got->information.high - want) <= steep * (bar + sqrt(bar) * 0.01),
            "%s: information changes by at most %.9g instead of %.9g nats", what, got->information.high, want);
}

static void check_estimator(t_ctx *t, const char *what, const r_pair *p, const prhs_estimator_error *got, const r_sample *x) {
    const double n = (double)x->pairs, bar = x->pair_bar / fmax(n, 1) + 1e-10;
    const prhs_grade grade = p->w.s.policy.gate == PRHS_GATE_MASS ? PRHS_GRADE_ESTIMATE : PRHS_GRADE_STALE;
    T_CHECK(t, got->count == x->pairs, "%s: %" PRIu64 " estimates were audited instead of %" PRIu64, what, got->count, x->pairs);
    if (!x->pairs) {
        T_CHECK(t, got->grade == PRHS_GRADE_UNKNOWN && isnan(got->exact) && isnan(got->rms_off), "%s: an estimator of nothing",
                what);
        return;
    }
    T_CHECK(t, got->grade == grade, "%s: the estimates have grade %d", what, got->grade);
    T_CHECK(t, fabs(got->exact - x->exact / n) <= bar && fabs(got->estimate - x->estimate / n) <= bar,
            "%s: audits say %.9g instead of %.9g, estimates %.9g instead of %.9g", what, got->exact, x->exact / n, got->estimate,
            x->estimate / n);
    T_CHECK(t, fabs(got->mean_off - x->off / n) <= 2 * bar, "%s: estimates are off by %.9g instead of %.9g", what, got->mean_off,
            x->off / n);
    T_CHECK(t, fabs(got->rms_off * got->rms_off - x->off_square / n) <= 4 * bar, "%s: the mean square is %.9g instead of %.9g",
            what, got->rms_off * got->rms_off, x->off_square / n);
}

static void check_report(t_ctx *t, const char *what, const r_pair *p, const prhs_audit_report *got, const r_sample *x, int all) {
    const r_mass *known = &x->known;
    T_CHECK(t, got->steps == x->steps && got->unknown == x->unknown && got->audits == x->n,
            "%s: %" PRIu64 " audits of %" PRIu64 " of %" PRIu64 " steps instead of %" PRIu64 ", %" PRIu64 ", %" PRIu64, what,
            got->audits, got->unknown, got->steps, x->n, x->unknown, x->steps);
    T_CHECK(t, got->mean.count == x->steps * (all ? p->unit_heads : 1), "%s: a mean of %" PRIu64 " head-steps", what,
            got->mean.count);
    check_estimator(t, what, p, &got->estimator, x);
    if (x->steps == 0) {
        T_CHECK(t, isnan(got->bound.high) && got->bound.grade == PRHS_GRADE_UNKNOWN && isnan(got->mean.mean),
                "%s: a bound on nothing", what);
        return;
    }
    check_bound(t, what, got, x);
    check_information(t, what, p, got, x);
    const prhs_grade grade = x->n == x->unknown ? PRHS_GRADE_EXACT : x->n ? PRHS_GRADE_SAMPLED : PRHS_GRADE_UNKNOWN;
    T_CHECK(t, got->mean.grade == grade, "%s: the mean has grade %d instead of %d", what, got->mean.grade, grade);
    if (grade == PRHS_GRADE_UNKNOWN)
        return;
    const double known_sum = known->n ? known->sum / (double)known->n * (double)(x->steps - x->unknown) : 0;
    const double mean = (known_sum + (x->n ? x->sum / (double)x->n * (double)x->unknown : 0)) / (double)x->steps;
    T_CHECK(t, fabs(got->mean.mean - mean) <= 1e-10 + x->bar / fmax((double)x->n, 1) + known->bar / fmax((double)known->n, 1),
            "%s: the mean is %.9g instead of %.9g", what, got->mean.mean, mean);
}

void r_check_audits(r_pair *p, const r_seq *s) {
    const r_counts *c = &s->counts;
    const uint32_t slot = (uint32_t)s->seq->slot;
    t_ctx *t = p->w.t;
    prhs_audit_report got;
    t_world_audit(&p->w, slot, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &got);
    check_report(t, "audits", p, &got, &c->sample, 1);
    for (uint32_t h = 0; h < p->w.s.shape->heads; h++) {
        char what[40];
        snprintf(what, sizeof what, "audits of head %u", h);
        t_world_audit(&p->w, slot, PRHS_ALL_LAYERS, h, &got);
        check_report(t, what, p, &got, &c->head_sample[h], 0);
    }
}
