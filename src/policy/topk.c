/* SPDX-License-Identifier: Apache-2.0 */
/* The oracle selector: retrieves at every step, so that a list never grows old. Blocks of one step say exactly that. */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    (void)layers;
    policy->block = 1;
}

const prhs_policy_entry prhs_policy_topk = { "topk", "retrieves at every step (the oracle selector)", preset };
