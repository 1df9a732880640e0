/* SPDX-License-Identifier: Apache-2.0 */
/* What a random sample of dropped masses says of all of them, and what a dropped mass says of information. */
#include "bound.h"

#include <math.h>
#include <stdbool.h>

#include <prhs/audit.h>

#include "draw.h"

uint32_t prhs_audit_limit(double rate) {
    const double words = ceil(rate * 4294967296.0);
    return words < 1.0 ? 0 : (uint32_t)(words - 1.0);
}

int prhs_audit_drawn(double rate, uint64_t seed, uint32_t slot, uint32_t layer, uint32_t unit, uint32_t position) {
    if (!(rate > 0.0 && rate <= 1.0))
        return 0;
    const prhs_k_sample s = { .seed = { (prhs_u32)seed, (prhs_u32)(seed >> 32) },
                              .limit = prhs_audit_limit(rate),
                              .layer = (prhs_i32)layer };
    return prhs_is_drawn(s, (prhs_i32)slot, (prhs_i32)unit, (prhs_i32)position);
}

/* Relative entropy of two coins. */
static double coin_distance(double p, double q) {
    const double a = p > 0.0 ? p * log(p / q) : 0.0, b = p < 1.0 ? (1.0 - p) * log((1.0 - p) / (1.0 - q)) : 0.0;
    return a + b;
}

enum { HALVINGS = 60 };

/* Largest mean of numbers in [0, 1] of which `count` drawn ones may have the mean p, but for a probability of e^-cost
 * (Hoeffding). */
static double chernoff_limit(double p, double count, double cost) {
    double low = p, high = 1.0;
    for (int i = 0; i < HALVINGS; i++) {
        const double mid = 0.5 * (low + high);
        if (count * coin_distance(p, mid) <= cost)
            low = mid;
        else
            high = mid;
    }
    return high;
}

typedef struct sample {
    double population, count, mean, cost; /* cost: - log of the probability that may be lost */
} sample;

/*
 * Bennett: -log of a bound on the probability that the mean of `count` draws is off by t, in the direction in which a number is
 * at most b away from the mean; without replacement, too (Hoeffding 1963, theorem 4).
 */
static double bennett(double count, double t, double variance, double b) {
    const double u = b * t / variance;
    if (u < 1e-4)
        return count * t * t / (2.0 * variance) * (1.0 - u / 3.0);
    return count * variance / (b * b) * ((1.0 + u) * log1p(u) - u);
}

/*
 * Whether the sample refutes a mean of all. What was not drawn is a random sample, too: where it is the smaller one its mean,
 * which follows from the two others, is the better judge.
 */
static bool refutes(const sample *s, double variance, double mean) {
    const double off = s->mean - mean, rest = s->population - s->count;
    if (rest < s->count)
        return bennett(rest, fabs(off) * s->count / rest, variance, off < 0.0 ? 1.0 - mean : mean) > s->cost;
    return bennett(s->count, fabs(off), variance, off < 0.0 ? mean : 1.0 - mean) > s->cost;
}

/* The mean farthest from the sample's, towards `end`, that is not refuted. Farther means are. */
static double limit(const sample *s, double variance, double end) {
    double in = s->mean, out = end;
    if (!refutes(s, variance, end))
        return end;
    for (int i = 0; i < HALVINGS; i++) {
        const double mid = 0.5 * (in + out);
        if (refutes(s, variance, mid))
            out = mid;
        else
            in = mid;
    }
    return out;
}

prhs_status prhs_mean_bound(uint64_t population, uint64_t count, double mean, double square, double confidence, double *low,
                            double *high) {
    if (!low || !high || population == 0 || count > population || !(confidence > 0.0 && confidence < 1.0))
        return PRHS_ERR_ARGUMENT;
    if (count > 0 && !(mean >= 0.0 && mean <= 1.0 && square >= 0.0 && square <= 1.0))
        return PRHS_ERR_ARGUMENT;
    *low = 0.0;
    *high = 1.0;
    if (count == 0)
        return PRHS_OK;
    const sample s = { (double)population, (double)count, mean, log(3.0 / (1.0 - confidence)) };
    /* What is certain: numbers that were not drawn lie between 0 and 1. */
    const double drawn = s.count / s.population, least = drawn * mean, most = least + (1.0 - drawn);
    *low = *high = mean;
    if (count == population)
        return PRHS_OK;
    const double second = fmin(chernoff_limit(square, s.count, s.cost), drawn * square + (1.0 - drawn));
    /* With the second moment for a variance, a lower limit; with its square taken off, which leaves a variance still, both. */
    const double first = limit(&s, fmax(second, 1e-18), least), variance = fmax(second - first * first, 1e-18);
    *low = limit(&s, variance, least);
    *high = limit(&s, variance, most);
    return PRHS_OK;
}

double prhs_information_bound(double delta, uint32_t n) {
    if (isnan(delta) || n < 2 || delta <= 0.0)
        return isnan(delta) ? NAN : 0.0;
    if (delta >= 1.0 - 1.0 / n)
        return 2.0 * log(n);
    return 2.0 * (-delta * log(delta) - (1.0 - delta) * log1p(-delta) + delta * log(n - 1.0));
}
