/* SPDX-License-Identifier: Apache-2.0 */
/* What a session's audits say of all its steps: sums over a span of the statistics, then the bounds of src/bound.c. */
#include <math.h>

#include <prhs/audit.h>

#include "stats.h"

/* Sums in units of mass. `steps` are unit-steps; sums are over heads' or over units' masses, as many as there are observations.
 */
typedef struct sums {
    uint64_t known_steps, unknown;
    uint64_t known_count, nan_count; /* head-steps */
    double known;
    uint64_t audits;
    double sum, square, worst_sum, worst_square;
    uint64_t pairs;
    double exact, estimate, off, off_square;
} sums;

static double mass_of(prhs_i64 fixed) { return (double)fixed / (double)PRHS_MASS_ONE; }

/* A unit's steps. Under PSAW a retrieval has left keys unscored. */
static void add_steps(sums *s, const prhs_unit_stat *u, bool psaw) {
    s->unknown += (uint64_t)(u->window + u->stream + u->share + u->copy + (psaw ? u->retrieve : 0));
    s->known_steps += psaw ? 0 : (uint64_t)u->retrieve;
}

static void add_sample(sums *s, const prhs_sample_stat *x) {
    s->audits += (uint64_t)x->count;
    s->sum += mass_of(x->sum);
    s->square += mass_of(x->square);
    s->worst_sum += mass_of(x->worst_sum);
    s->worst_square += mass_of(x->worst_square);
}

static void add_head(sums *s, const prhs_head_stat *h, bool psaw) {
    s->nan_count += (uint64_t)h->nan_count;
    if (!psaw) {
        s->known_count += (uint64_t)h->exact_count;
        s->known += mass_of(h->exact_sum);
    }
    s->pairs += (uint64_t)h->pair_count;
    s->exact += mass_of(h->pair_exact);
    s->estimate += mass_of(h->pair_estimate);
    s->off += mass_of(h->pair_off);
    s->off_square += mass_of(h->pair_square);
}

/* One head's observations are its own masses; all heads' are the units' means, because a unit's heads are audited together. */
static void add_layer(const prhs_stats_request *r, uint32_t slot, uint32_t layer, uint32_t head, sums *s) {
    const prhs_k_shape *shape = &r->session->limits.shape;
    const prhs_unit_stat *units = prhs_stats_units(r, slot, layer);
    const prhs_head_stat *heads = prhs_stats_heads(r, slot, layer);
    const bool psaw = r->session->factors[2 * layer] != 0;
    if (head != PRHS_ALL_HEADS) {
        add_steps(s, &units[head / (uint32_t)shape->unit_heads], psaw);
        add_sample(s, &heads[head].sample);
        add_head(s, &heads[head], psaw);
        return;
    }
    for (prhs_i32 i = 0; i < shape->units; i++) {
        add_steps(s, &units[i], psaw);
        add_sample(s, &units[i].sample);
    }
    for (prhs_i32 i = 0; i < shape->heads; i++)
        add_head(s, &heads[i], psaw);
}

/* Limits of the mean over all steps, from those of the unknown ones. */
static prhs_bound bound_of(const sums *s, double sum, double square, double confidence) {
    const double steps = (double)(s->known_steps + s->unknown), n = (double)(s->audits ? s->audits : 1);
    const double known = s->known_count ? s->known / (double)s->known_count * (double)s->known_steps : 0.0;
    prhs_bound b = { s->audits == s->unknown ? PRHS_GRADE_EXACT : PRHS_GRADE_BOUND, 0.0, 0.0, confidence };
    if (s->nan_count || steps == 0.0)
        return (prhs_bound){ PRHS_GRADE_UNKNOWN, steps > 0.0 ? 0.0 : NAN, steps > 0.0 ? 1.0 : NAN, confidence };
    if (s->unknown)
        prhs_mean_bound(s->unknown, s->audits, fmin(sum / n, 1.0), fmin(square / n, 1.0), confidence, &b.low, &b.high);
    b.low = (known + b.low * (double)s->unknown) / steps;
    b.high = (known + b.high * (double)s->unknown) / steps;
    return b;
}

/* The same of information: that of the largest mean of what may stand for a head's dropped mass. */
static prhs_bound information_of(const sums *s, double confidence, uint32_t kv_len) {
    prhs_bound b = bound_of(s, s->worst_sum, s->worst_square, confidence);
    b.grade =
        b.grade == PRHS_GRADE_EXACT ? PRHS_GRADE_BOUND : b.grade; /* the mass is exact, what it does to information is not */
    b.low = isnan(b.low) ? NAN : 0.0;
    b.high = prhs_information_bound(b.high, kv_len);
    return b;
}

static prhs_mass mean_of(const sums *s, uint64_t heads) {
    const uint64_t steps = s->known_steps + s->unknown, count = heads * steps;
    if (steps == 0 || s->nan_count || (s->unknown && !s->audits))
        return (prhs_mass){ PRHS_GRADE_UNKNOWN, NAN, count };
    const double known = s->known_count ? s->known / (double)s->known_count * (double)s->known_steps : 0.0;
    const double unknown = s->unknown ? s->sum / (double)s->audits * (double)s->unknown : 0.0;
    return (prhs_mass){ s->audits == s->unknown ? PRHS_GRADE_EXACT : PRHS_GRADE_SAMPLED, (known + unknown) / (double)steps,
                        count };
}

static prhs_estimator_error error_of(const sums *s, prhs_gate gate) {
    const double n = s->pairs ? (double)s->pairs : NAN;
    return (prhs_estimator_error){
        .grade = !s->pairs                ? PRHS_GRADE_UNKNOWN
                 : gate == PRHS_GATE_MASS ? PRHS_GRADE_ESTIMATE
                                          : PRHS_GRADE_STALE,
        .count = s->pairs,
        .exact = s->exact / n,
        .estimate = s->estimate / n,
        .mean_off = s->off / n,
        .rms_off = sqrt(s->off_square / n),
    };
}

static void fill(const prhs_session *session, const sums *s, uint32_t head, prhs_audit_report *out) {
    const double confidence = out->confidence, n = (double)s->audits;
    const uint32_t kv_len = out->kv_len;
    *out = (prhs_audit_report){
        .size = sizeof *out,
        .confidence = confidence,
        .kv_len = kv_len,
        .steps = s->known_steps + s->unknown,
        .unknown = s->unknown,
        .audits = s->audits,
        .deviation = s->audits ? sqrt(fmax(s->square / n - s->sum / n * (s->sum / n), 0.0)) : NAN,
        .known = { s->known_count ? PRHS_GRADE_EXACT : PRHS_GRADE_UNKNOWN,
                   s->known_count ? s->known / (double)s->known_count : NAN, s->known_count },
        .mean = mean_of(s, head == PRHS_ALL_HEADS ? (uint64_t)session->limits.shape.unit_heads : 1),
        .bound = bound_of(s, s->sum, s->square, confidence),
        .estimator = error_of(s, session->params.policy.gate),
        .information = information_of(s, confidence, kv_len ? kv_len : session->params.max_kv_len),
        .nan_masses = s->nan_count,
    };
}

prhs_status prhs_stats_request_get_audit(prhs_stats_request *request, uint32_t slot, uint32_t layer, uint32_t head,
                                         prhs_audit_report *report) {
    const char *call = "prhs_stats_request_get_audit";
    if (!request || !report)
        return prhs_fail(request ? &request->session->dev->log : NULL, PRHS_ERR_ARGUMENT, "%s: NULL argument", call);
    const prhs_session *session = request->session;
    const prhs_log *log = &session->dev->log;
    prhs_span x;
    prhs_status status = prhs_check_size(log, call, "report->size", report->size, sizeof *report);
    if (status == PRHS_OK && !(report->confidence > 0.0 && report->confidence < 1.0))
        status = prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: confidence must lie between 0 and 1", call);
    if (status == PRHS_OK && report->kv_len > session->params.max_kv_len)
        status = prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: kv_len is %u, must be at most %u", call, report->kv_len,
                           session->params.max_kv_len);
    if (status == PRHS_OK && head != PRHS_ALL_HEADS && head >= (uint32_t)session->limits.shape.heads)
        status = prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: head %u is out of range", call, head);
    if (status == PRHS_OK)
        status = prhs_stats_arrive(request, call, slot, layer, &x);
    if (status != PRHS_OK)
        return status;
    sums s = { 0 };
    for (uint32_t i = x.slot; i < x.slots; i++)
        for (uint32_t j = x.layer; j < x.layers; j++)
            add_layer(request, i, j, head, &s);
    fill(session, &s, head, report);
    return PRHS_OK;
}
