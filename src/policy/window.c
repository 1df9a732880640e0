/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PSAW and ETF (arXiv 2602.08329): windows that narrow with depth. The factor is made once on the host, in 32-bit fixed point, so
 * that every backend gets the same integer.
 */
#include "window.h"

#include <math.h>

static uint32_t factor(double base, double exponent, uint32_t layers, uint32_t first, uint32_t layer) {
    if (layer < first || layer >= layers)
        return 0;
    double depth = (double)(layer - first) / (double)(layers - first);
    double a = round((1.0 - pow(base, exponent * depth)) * 4294967296.0);
    return a >= 4294967295.0 ? UINT32_MAX : (uint32_t)a;
}

uint32_t prhs_psaw_factor(const prhs_policy *policy, uint32_t layers, uint32_t layer) {
    if (!policy->psaw || layer < policy->dense_layers)
        return 0;
    return factor(policy->psaw_phi, policy->psaw_alpha, layers, policy->psaw_layer, layer);
}

uint32_t prhs_etf_factor(const prhs_policy *policy, uint32_t layers, uint32_t layer) {
    return policy->etf ? factor(policy->etf_psi, policy->etf_gamma, layers, policy->etf_layer, layer) : 0;
}

uint32_t prhs_psaw_start(const prhs_policy *policy, uint32_t layers, uint32_t layer, uint32_t t) {
    return policy ? (uint32_t)((uint64_t)prhs_psaw_factor(policy, layers, layer) * t >> 32) : 0;
}

uint32_t prhs_etf_frozen(const prhs_policy *policy, uint32_t layers, uint32_t layer, uint32_t n) {
    return policy && n ? (uint32_t)((uint64_t)prhs_etf_factor(policy, layers, layer) * (n - 1) >> 32) : 0;
}
