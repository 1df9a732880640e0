/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HShare (ICLR 2025, openreview Tb5PY5vwp6) with a local window that is fresh in every step: a list serves `block` steps, whatever the
 * queries do. Which layers share lists is the session's to say (prhs_session_params.list_layers); heads share by their KV head.
 */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    (void)layers;
    policy->block = 2;
}

const prhs_policy_entry prhs_policy_hshare = { "hshare", "lists shared over steps, and over layers by a map, without a gate (HShare)", preset };
