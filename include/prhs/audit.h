/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file audit.h
 * Tier 3: what audits say of all steps. A session that audits takes the exact dropped mass of steps drawn at random, and nothing else
 * changes: these are a simple random sample of the steps whose mass is not known, and bound the mean of all. docs/method.md derives it.
 */
#ifndef PRHS_AUDIT_H
#define PRHS_AUDIT_H

#include <prhs/session.h>

PRHS_EXTERN_C_BEGIN

/** Limits of a mean. */
typedef struct prhs_bound {
    prhs_grade grade;   /**< BOUND; EXACT: low = high is the mean itself; UNKNOWN: the limits are those of any mass, or NaN */
    double low, high;
    double confidence;  /**< probability, over the draws, that the limits hold */
} prhs_bound;

/** How far estimates are off, on audited shared steps; in units of mass. All NaN where count is 0. */
typedef struct prhs_estimator_error {
    prhs_grade grade;   /**< of the estimates: ESTIMATE or STALE */
    uint64_t count;     /**< head-steps */
    double exact;       /**< mean exact mass of these steps */
    double estimate;    /**< mean estimate of the same */
    double mean_off;    /**< mean of |estimate - exact| */
    double rms_off;     /**< root of the mean of (estimate - exact)^2 */
} prhs_estimator_error;

/** What is known of the dropped mass of a span: the sparse steps, since the slots were reset, of a session, a slot, a layer or a head. */
typedef struct prhs_audit_report {
    size_t size;                     /**< sizeof(prhs_audit_report), set by the caller */
    double confidence;               /**< set by the caller: of each bound by itself, in (0, 1), e.g. 0.95 */
    uint32_t kv_len;                 /**< set by the caller, for `information`: most tokens any of these steps saw; 0: max_kv_len */
    uint64_t steps;                  /**< sparse unit-steps (for one head: its steps) */
    uint64_t unknown;                /**< of these, how many have a mass that nobody scored: lists that were shared, streaming, PSAW */
    uint64_t audits;                 /**< of these, how many were audited */
    double deviation;                /**< standard deviation of the audited masses (of the means over a unit's heads); NaN without */
    prhs_mass known;                 /**< mass of the other steps: EXACT */
    prhs_mass mean;                  /**< of all steps: SAMPLED; EXACT where every step is known or audited; UNKNOWN: no audits yet */
    prhs_bound bound;                /**< of that mean, over all steps and heads of the span */
    prhs_estimator_error estimator;
    prhs_bound information;          /**< nats: the mean, over the same, of |I(Z;J) - I(Z;J~)| is at most `high`; low is 0. J is the token
                                          that exact attention draws, J~ the one that this attention draws */
    uint64_t nan_masses;             /**< masses that were NaN: where there are any, nothing is bounded */
} prhs_audit_report;

#define PRHS_ALL_HEADS 0xffffffffu

/**
 * What audits say of a span, from a request that has arrived (prhs_stats_request_enqueue()); never waits: PRHS_NOT_READY until the copy
 * is there. slot, layer and head may each be PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, PRHS_ALL_HEADS. The bounds hold for a span that was chosen
 * without a look at its audits, and asked about once: of many reports at confidence c some are expected to fail.
 * PRHS_ERR_ARGUMENT: NULL, slot, layer or head out of range, report->size unknown, confidence not in (0, 1), kv_len above max_kv_len.
 * PRHS_ERR_STATE: nothing was enqueued. PRHS_ERR_DRIVER: the device failed on the way.
 */
PRHS_API prhs_status prhs_stats_request_get_audit(prhs_stats_request *request, uint32_t slot, uint32_t layer, uint32_t head,
                                                  prhs_audit_report *report);

/**
 * Whether a session with this audit_rate and audit_seed audits the step of a slot, layer and selection unit whose first row is at
 * `position`, if its mass is not known without: 1 or 0. The same on every backend, whatever else is in the batch. Philox4x32-10 with the
 * seed as key and (position, layer, unit, slot) as counter. Pure; a rate below 0, above 1 or NaN: 0.
 */
PRHS_API int prhs_audit_drawn(double rate, uint64_t seed, uint32_t slot, uint32_t layer, uint32_t unit, uint32_t position);

/**
 * Limits of the mean of `population` numbers in [0, 1], of which `count` were drawn, each subset of that size as likely as any other:
 * from the drawn ones' mean and mean square. Empirical Bernstein: the second moment's upper limit, then Bennett's inequality with the
 * variance that follows, each of the three events with a third of 1 - confidence. count 0: [0, 1]; count = population: the mean.
 * Pure. PRHS_ERR_ARGUMENT: NULL, population 0, count > population, mean or square not in [0, 1], confidence not in (0, 1).
 */
PRHS_API prhs_status prhs_mean_bound(uint64_t population, uint64_t count, double mean, double square, double confidence, double *low,
                                     double *high);

/**
 * 2 (h(delta) + delta ln(n - 1)) nats, h in nats: by how much the mutual information of anything and the attended token may change where
 * a mass of delta is dropped from n tokens and the kept weights are renormalised; 2 ln n from delta = 1 - 1/n on. With a residual delta
 * is the larger of the dropped mass and the residual's weight. Concave in delta: a mean mass bounds the mean. Source: Fannes and Audenaert's
 * continuity of entropy. Pure. delta < 0 counts as 0, NaN: NaN; n < 2: 0.
 */
PRHS_API double prhs_information_bound(double delta, uint32_t n);

PRHS_EXTERN_C_END

#endif
