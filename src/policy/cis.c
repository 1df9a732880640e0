/* SPDX-License-Identifier: Apache-2.0 */
/* CIS, clustered indices sharing (arXiv 2602.08329): blocks of s steps, a cosine gate, dilation of the best tokens. */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    (void)layers;
    policy->block = 16;
    policy->gate = PRHS_GATE_COSINE;
    policy->tau = 0.8f;
    policy->dilate_m = 16;
    policy->dilate_back = 1;
    policy->dilate_ahead = 1;
}

const prhs_policy_entry prhs_policy_cis = { "cis", "shares lists over steps behind a cosine gate (CIS)", preset };
