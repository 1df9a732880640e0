/* SPDX-License-Identifier: Apache-2.0 */
/* CIS with the mass gate and the mean residual: long blocks, and a list is kept while it keeps its mass. */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    (void)layers;
    policy->block = 64;
    policy->gate = PRHS_GATE_MASS;
    policy->tau = 0.5f;
    policy->eps = 0.1f;
    policy->residual = PRHS_RESIDUAL_MEAN;
}

const prhs_policy_entry prhs_policy_cis_mass = {
    "cis-mass", "shares lists while their dropped mass holds; the rest is summarised", preset
};
