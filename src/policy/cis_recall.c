/* SPDX-License-Identifier: Apache-2.0 */
/* The mass gate over several references: a query that comes back to where it was finds the list that it had there. Blocks are
 * long, for that. No floor under the cosine: beside the closest of so many references most of what it would refuse has kept its
 * mass, and a lower threshold makes more of the same retrievals. */
#include "policies.h"

static void preset(uint32_t layers, prhs_policy *policy) {
    prhs_policy_cis_mass.preset(layers, policy);
    policy->references = 16;
    policy->block = 512;
    policy->tau = -1.0f;
}

const prhs_policy_entry prhs_policy_cis_recall = {
    "cis-recall", "cis-mass with 16 references a unit: half of its retrievals for about its loss", preset
};
