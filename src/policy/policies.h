/* SPDX-License-Identifier: Apache-2.0 */
/* The table of policies: one file each, one line each in policy.c. */
#ifndef PRHS_POLICIES_H
#define PRHS_POLICIES_H

#include <prhs/policy.h>

typedef struct prhs_policy_entry {
    const char *name;
    const char *what;                                   /* one line for listings */
    void (*preset)(uint32_t layers, prhs_policy *policy); /* changes what differs from the common values */
} prhs_policy_entry;

extern const prhs_policy_entry prhs_policy_dense;
extern const prhs_policy_entry prhs_policy_streaming;
extern const prhs_policy_entry prhs_policy_topk;
extern const prhs_policy_entry prhs_policy_hshare;
extern const prhs_policy_entry prhs_policy_cis;
extern const prhs_policy_entry prhs_policy_cpe;
extern const prhs_policy_entry prhs_policy_cis_mass;
extern const prhs_policy_entry prhs_policy_cis_recall;

#endif
