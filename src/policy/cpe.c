/* SPDX-License-Identifier: Apache-2.0 */
/* CPE = CIS + PSAW + ETF (arXiv 2602.08329): the window over depth and the frozen prompt prefix on top of CIS. */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    prhs_policy_cis.preset(layers, policy);
    policy->psaw = 1;
    policy->psaw_layer = layers / 2;
    policy->psaw_phi = 0.5f;
    policy->psaw_alpha = 1.0f;
    policy->etf = 1;
    policy->etf_layer = layers / 2;
    policy->etf_psi = 0.7f;
    policy->etf_gamma = 1.0f;
}

const prhs_policy_entry prhs_policy_cpe = { "cpe", "cis inside PSAW's window, with ETF in prefill (CPE)", preset };
