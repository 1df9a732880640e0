/* SPDX-License-Identifier: Apache-2.0 */
/* Presets by name, and the check that every policy passes before a session is made. */
#include <math.h>
#include <string.h>

#include "policies.h"

static const prhs_policy_entry *const entries[] = {
    &prhs_policy_dense, &prhs_policy_streaming, &prhs_policy_topk,     &prhs_policy_hshare,
    &prhs_policy_cis,   &prhs_policy_cpe,       &prhs_policy_cis_mass, &prhs_policy_cis_recall,
};
#define ENTRIES (sizeof entries / sizeof entries[0])

const char *prhs_policy_name(size_t i, const char **what) {
    if (i >= ENTRIES)
        return NULL;
    if (what)
        *what = entries[i]->what;
    return entries[i]->name;
}

prhs_status prhs_policy_preset(const char *name, uint32_t layers, prhs_policy *policy) {
    if (!name || !policy || layers == 0)
        return PRHS_ERR_ARGUMENT;
    for (size_t i = 0; i < ENTRIES; i++) {
        if (strcmp(name, entries[i]->name) != 0)
            continue;
        memset(policy, 0, sizeof *policy);
        policy->size = sizeof *policy;
        policy->k = 476;
        policy->k_min = 128;
        policy->sinks = 4;
        policy->local = 32;
        policy->dense_layers = 1;
        policy->block = 1;
        policy->references = 1;
        policy->granularity = 1;
        policy->join = PRHS_JOIN_SUM;
        entries[i]->preset(layers, policy);
        return PRHS_OK;
    }
    return PRHS_ERR_ARGUMENT;
}

static const char *window_fault(const prhs_policy *p, uint32_t layers) {
    if (p->psaw > 1 || p->etf > 1)
        return "psaw and etf are 0 or 1";
    if (p->psaw && !(p->psaw_phi > 0.0f && p->psaw_phi < 1.0f))
        return "psaw_phi must lie in (0, 1)";
    if (p->psaw && !(p->psaw_alpha >= 0.0f && isfinite(p->psaw_alpha)))
        return "psaw_alpha must be finite and at least 0";
    if (p->psaw && p->psaw_layer >= layers)
        return "psaw_layer must be below the number of layers";
    if (p->etf && !(p->etf_psi > 0.0f && p->etf_psi < 1.0f))
        return "etf_psi must lie in (0, 1)";
    if (p->etf && !(p->etf_gamma > 0.0f && isfinite(p->etf_gamma)))
        return "etf_gamma must be finite and above 0";
    if (p->etf && p->etf_layer >= layers)
        return "etf_layer must be below the number of layers";
    return NULL;
}

static const char *selection_fault(const prhs_policy *p) {
    if (p->granularity == 0 || p->granularity > 1024)
        return "granularity must be 1 to 1024";
    if (p->k != 0 && p->k < p->granularity)
        return "k must hold at least one run of `granularity` tokens, or be 0";
    if (!(p->target >= 0.0f && p->target < 1.0f))
        return "target must lie in [0, 1)";
    if (p->target > 0.0f && p->k == 0)
        return "a target needs lists, and so k above 0";
    if (p->target > 0.0f && p->dilate_m > 0)
        return "a target says how many tokens a list has: dilation, which spends some of them on neighbours, must be off (dilate_m 0)";
    if (p->dilate_m > 0) {
        uint64_t reach = (uint64_t)p->dilate_m * ((uint64_t)p->dilate_back + p->dilate_ahead);
        uint64_t runs = p->k / p->granularity;
        if (runs < reach || runs - reach < p->dilate_m)
            return "dilation does not fit: k - dilate_m * (dilate_back + dilate_ahead) must be at least dilate_m (in runs)";
    }
    return NULL;
}

static const char *gate_fault(const prhs_policy *p) {
    if ((int)p->gate < PRHS_GATE_NONE || p->gate > PRHS_GATE_MASS)
        return "gate is no prhs_gate";
    if (p->references < 1 || p->references > 16)
        return "references must be 1 to 16";
    if (p->references > 1 && p->gate == PRHS_GATE_NONE)
        return "several references need a gate, which tells whether the closest one will do";
    if (p->gate != PRHS_GATE_NONE && !(p->tau >= -1.0f && p->tau <= 1.0f))
        return "tau must lie in [-1, 1]";
    if (p->gate == PRHS_GATE_MASS && !(p->eps >= 0.0f && isfinite(p->eps)))
        return "eps must be finite and at least 0";
    if ((int)p->residual < PRHS_RESIDUAL_NONE || p->residual > PRHS_RESIDUAL_RETRIEVED)
        return "residual is no prhs_residual";
    if (p->residual != PRHS_RESIDUAL_NONE && p->k == 0)
        return "a residual needs the dropped mass, which is unknown with k = 0";
    if (p->residual != PRHS_RESIDUAL_NONE && p->gate != PRHS_GATE_MASS && p->block != 1)
        return "a residual on shared steps needs the mass gate";
    return NULL;
}

prhs_status prhs_policy_check(const prhs_policy *policy, uint32_t layers, const char **why) {
    const char *fault = NULL;
    if (!policy)
        fault = "policy is NULL";
    else if (policy->size != sizeof *policy)
        fault = "policy.size is not this library's sizeof(prhs_policy)";
    else if (layers == 0)
        fault = "layers is 0";
    else if (policy->sinks > INT32_MAX / 2 || policy->local > INT32_MAX / 2 || policy->block > INT32_MAX / 2)
        fault = "sinks, local and block must be below 2^30";
    else if (policy->local == 0)
        fault = "local must be at least 1: the current token is always attended";
    else if (policy->block == 0)
        fault = "block must be at least 1";
    else if ((int)policy->join < PRHS_JOIN_SUM || policy->join > PRHS_JOIN_PER_HEAD)
        fault = "join is no prhs_join";
    else if (!(fault = selection_fault(policy)) && !(fault = gate_fault(policy)))
        fault = window_fault(policy, layers);
    if (why)
        *why = fault;
    return fault ? PRHS_ERR_ARGUMENT : PRHS_OK;
}
