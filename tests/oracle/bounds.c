// SPDX-License-Identifier: Apache-2.0
/* Fixed-point starts over depth, and bounds on what a dropped mass may do. */
#include <math.h>

#include "oracle.h"

/* The power is taken in double, once; rounding is to the nearest integer, halves away from zero (method.md says "round"). */
uint64_t oracle_factor(int L, int layer, int l_s, double base, double exponent) {
    if (layer < l_s || L <= l_s)
        return 0;
    double power = pow(base, exponent * (double)(layer - l_s) / (double)(L - l_s));
    double a = round((1 - power) * 4294967296.0);
    if (!(a > 0))
        return 0;
    return a >= 4294967295.0 ? 4294967295u : (uint64_t)a;
}

int oracle_start(uint64_t a, int t) { return t < 0 ? 0 : (int)((a * (uint64_t)t) >> 32); }

double oracle_output_bound(double delta, const double *V, int N, int D) {
    double longest = 0;
    for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int d = 0; d < D; d++)
            sum += V[(size_t)j * (size_t)D + (size_t)d] * V[(size_t)j * (size_t)D + (size_t)d];
        if (isnan(sum))
            return NAN;
        longest = fmax(longest, sqrt(sum));
    }
    return 2 * delta * longest;
}

/* Rule taken: past delta = 1 - 1/N the entropies can differ by all of ln N, which is what the formula gives at that point. */
double oracle_information_bound(double delta, int N) {
    if (isnan(delta) || N < 1)
        return NAN;
    if (N == 1 || delta <= 0)
        return 0;
    if (delta > 1 - 1.0 / N)
        return 2 * log((double)N);
    double h = -delta * log(delta) - (1 - delta) * log1p(-delta);
    return 2 * (h + delta * log((double)N - 1));
}

double oracle_sharing_bound(double K_max, int D, double tau) { return 2 * K_max / sqrt((double)D) * sqrt(fmax(0, 2 - 2 * tau)); }
