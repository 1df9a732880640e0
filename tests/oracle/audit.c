// SPDX-License-Identifier: Apache-2.0
/* Which steps are audited, and what the audited ones say of all. */
#include <math.h>

#include "oracle.h"

void oracle_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t x[4] = { counter[0], counter[1], counter[2], counter[3] };
    for (uint32_t round = 0; round < 10; round++) {
        const uint64_t even = x[0] * (uint64_t)3528531795u, odd = x[2] * (uint64_t)3449720151u;
        const uint32_t k0 = key[0] + round * 2654435769u, k1 = key[1] + round * 3144134277u;
        const uint32_t next[4] = { (uint32_t)(odd >> 32) ^ x[1] ^ k0, (uint32_t)odd, (uint32_t)(even >> 32) ^ x[3] ^ k1,
                                   (uint32_t)even };
        for (int i = 0; i < 4; i++)
            x[i] = next[i];
    }
    for (int i = 0; i < 4; i++)
        out[i] = x[i];
}

int oracle_drawn(double rate, uint64_t seed, int slot, int layer, int unit, int position) {
    const uint32_t counter[4] = { (uint32_t)position, (uint32_t)layer, (uint32_t)unit, (uint32_t)slot };
    const uint32_t key[2] = { (uint32_t)(seed & 0xffffffffu), (uint32_t)(seed >> 32) };
    uint32_t word[4];
    oracle_philox(counter, key, word);
    return (double)word[0] < ceil(rate * 4294967296.0);
}

/* -log P(mean of n draws is off by t), by Chernoff: the largest n (l t - v / b^2 (e^(l b) - 1 - l b)) over l >= 0; concave in l.
 */
static double bernstein_cost(double n, double t, double v, double b) {
    double low = 0, high = 1;
    const double every = 1e-9; /* b = 0: no number lies on that side */
    b = fmax(b, every);
    while (v / b * expm1(high * b) < t)
        high *= 2;
    for (int i = 0; i < 200; i++) {
        const double mid = (low + high) / 2;
        if (v / b * expm1(mid * b) < t) /* where the slope is still upwards */
            low = mid;
        else
            high = mid;
    }
    const double x = low * b, excess = x < 1e-3 ? x * x / 2 + x * x * x / 6 : expm1(x) - x;
    return n * (low * t - v / (b * b) * excess);
}

/* The same for numbers in [0, 1] with mean q, whose sample has mean p < q: the largest n (-l p - log E e^(-l x)), E of a coin. */
static double coin_cost(double n, double p, double q) {
    double low = 0, high = 60;
    for (int i = 0; i < 200; i++) {
        const double mid = (low + high) / 2, at = q * exp(-mid) / (1 - q + q * exp(-mid));
        if (at > p)
            low = mid;
        else
            high = mid;
    }
    return n * (-low * p - log(1 - q + q * exp(-low)));
}

/* Walks from `from` towards `to` as far as `cost` allows. */
typedef struct walk {
    double N, n, mean, cost, variance;
} walk;

static double mean_cost(const walk *w, double m) {
    const double t = fabs(m - w->mean), rest = w->N - w->n;
    const int above = m > w->mean; /* the sample fell short of m */
    if (rest < w->n)               /* and the rest exceeds it */
        return bernstein_cost(rest, t * w->n / rest, w->variance, above ? 1 - m : m);
    return bernstein_cost(w->n, t, w->variance, above ? m : 1 - m);
}

static double walk_to(const walk *w, double to) {
    double in = w->mean, out = to;
    if (mean_cost(w, to) <= w->cost)
        return to;
    for (int i = 0; i < 100; i++) {
        const double mid = (in + out) / 2;
        if (mean_cost(w, mid) <= w->cost)
            in = mid;
        else
            out = mid;
    }
    return in;
}

void oracle_mean_bound(double N, double n, double mean, double square, double confidence, double *low, double *high) {
    const double least = n * mean / N, most = (n * mean + (N - n)) / N, cost = -log((1 - confidence) / 3);
    double in = square, out = 1;
    *low = n > 0 ? mean : 0;
    *high = n > 0 ? mean : 1;
    if (!(n > 0) || n >= N)
        return;
    for (int i = 0; i < 100; i++) {
        const double mid = (in + out) / 2;
        if (mid < 1 && coin_cost(n, square, mid) <= cost)
            in = mid;
        else
            out = mid;
    }
    walk w = { N, n, mean, cost, fmin(in, (n * square + (N - n)) / N) };
    const double second = w.variance, first = walk_to(&w, least);
    w.variance = fmax(second - first * first, 1e-18);
    *low = walk_to(&w, least);
    *high = walk_to(&w, most);
}
