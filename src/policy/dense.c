/* SPDX-License-Identifier: Apache-2.0 */
/* Dense attention, the baseline: the middle always fits into k, so that every step takes the dense path. */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    (void)layers;
    policy->k = UINT32_MAX;
}

const prhs_policy_entry prhs_policy_dense = { "dense", "every cached token; the baseline", preset };
