/* SPDX-License-Identifier: Apache-2.0 */
/* StreamingLLM (arXiv 2309.17453) in mask form: sinks and a local window, nothing is ever scored. */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    (void)layers;
    policy->k = 0;
    policy->local = 508;
}

const prhs_policy_entry prhs_policy_streaming = { "streaming", "sinks and a local window (StreamingLLM)", preset };
