/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file policy.h
 * Tier 3: which cached tokens a step reads. One struct holds every parameter; a policy's name is a preset of it.
 * Source: "Near-Oracle KV Selection via Pre-hoc Sparsity for Long-Context Inference" (arXiv 2602.08329): PrHS, CIS, PSAW, ETF,
 * CPE; the mass gate and the residual are libprhs's own (docs/method.md).
 */
#ifndef PRHS_POLICY_H
#define PRHS_POLICY_H

#include <prhs/common.h>

PRHS_EXTERN_C_BEGIN

/** When a unit may go on with its list instead of retrieving. */
typedef enum prhs_gate {
    PRHS_GATE_NONE = 0,    /**< always, inside its block */
    PRHS_GATE_COSINE = 1,  /**< while cos(query, reference query) > tau for all heads of the unit (CIS) */
    PRHS_GATE_MASS = 2     /**< while the dropped mass, estimated by the keys' channels alone (docs/method.md), rose by at most eps since the
                                reference, and the cosine is > tau */
} prhs_gate;

/** How the query heads of a KV head agree on a list. */
typedef enum prhs_join {
    PRHS_JOIN_SUM = 0,      /**< by the sum of the heads' attention weights */
    PRHS_JOIN_MAX = 1,      /**< by their maximum */
    PRHS_JOIN_PER_HEAD = 2  /**< they do not: every query head has its own list */
} prhs_join;

/** What stands in for the dropped tokens in the output. */
typedef enum prhs_residual {
    PRHS_RESIDUAL_NONE = 0,  /**< nothing: the kept weights are renormalised */
    PRHS_RESIDUAL_MEAN = 1,  /**< the mean of the KV head's cached values, weighted with the dropped mass */
    PRHS_RESIDUAL_RETRIEVED = 2  /**< the dropped tokens' own mean value, weighted by their attention at the reference: retrievals
                                      read V as well, and their output is that of dense attention */
} prhs_residual;

/** The policy. Fill it with prhs_policy_preset() and change what you need; 0 means 0. */
typedef struct prhs_policy {
    size_t size;               /**< sizeof(prhs_policy) */
    uint32_t k;                /**< tokens selected from the middle; 0: none, ever (streaming); >= max_kv_len: all (dense, PSAW alone).
                                    With a target: at most so many, the lists' capacity */
    float target;              /**< delta* in (0, 1): a retrieval lists the fewest tokens with which every head of the unit drops at most
                                    this (half of it where lists are shared, block > 1), and a shared list holds under the mass gate
                                    while its estimate is at most delta*. Where k tokens do not suffice the unit attends densely in that
                                    step. 0: none, lists have k tokens. Needs k > 0 and no dilation */
    uint32_t k_min;            /**< with a target: at least so many tokens (as runs of `granularity`, at least one, at most k); a middle that
                                    holds no more is attended whole */
    uint32_t sinks;            /**< c_sink: first tokens that are always attended */
    uint32_t local;            /**< c_local: last tokens that are always attended, >= 1 */
    uint32_t dense_layers;     /**< the first layers attend densely and ignore PSAW */
    uint32_t min_sparse_n;     /**< N*: sequences shorter than this attend densely; 0: off */
    uint32_t block;            /**< s: steps between forced retrievals, >= 1 */
    uint32_t references;       /**< R: retrievals of its block that a unit remembers, 1 to 16: a step shares the list of the one whose query
                                    is closest, and a retrieval takes the place of the one unused for longest. Above 1 needs a gate. State
                                    grows by what a list with its moments takes, R times: see prhs_session_get_sizes() */
    prhs_gate gate;
    float tau;                 /**< cosine threshold (COSINE) or floor (MASS), in [-1, 1] */
    float eps;                 /**< allowed rise of the dropped mass (MASS), >= 0 */
    uint32_t dilate_m;         /**< m: best tokens whose neighbours join the list, inside k; 0: none */
    uint32_t dilate_back;      /**< r_b */
    uint32_t dilate_ahead;     /**< r_f */
    uint32_t granularity;      /**< g: tokens are selected in aligned runs of g, >= 1 */
    prhs_join join;
    prhs_residual residual;
    uint32_t psaw;             /**< 1: PSAW's window over depth, in prefill and decode */
    uint32_t psaw_layer;       /**< l_s of PSAW */
    float psaw_phi;            /**< phi in (0, 1) */
    float psaw_alpha;          /**< alpha >= 0 */
    uint32_t etf;              /**< 1: ETF's frozen prefix in prefill; every prompt row needs prhs_seq.prompt_len */
    uint32_t etf_layer;        /**< l_s of ETF */
    float etf_psi;             /**< psi in (0, 1) */
    float etf_gamma;           /**< gamma > 0 */
} prhs_policy;

/**
 * Fills *policy with the preset `name`: dense, streaming, topk, hshare, cis, cpe, cis-mass, cis-recall. `layers` is the model's
 * number of layers (cpe starts at layers / 2). Thread-safe. PRHS_ERR_ARGUMENT: NULL, layers 0, or no such preset (*policy is untouched).
 */
PRHS_API prhs_status prhs_policy_preset(const char *name, uint32_t layers, prhs_policy *policy);

/** Name and one-line description of preset i; NULL past the last one. `what` may be NULL. Thread-safe. */
PRHS_API const char *prhs_policy_name(size_t i, const char **what);

/**
 * Checks a policy for a model of `layers` layers. On failure *why, where not NULL, is one static sentence. Thread-safe.
 * PRHS_ERR_ARGUMENT: a parameter is out of its range or contradicts another one (docs/embedding.md lists the sentences).
 */
PRHS_API prhs_status prhs_policy_check(const prhs_policy *policy, uint32_t layers, const char **why);

/** P_l(t): first position of PSAW's window in `layer` for a query at position t; 0 without PSAW or in a dense layer. Pure. */
PRHS_API uint32_t prhs_psaw_start(const prhs_policy *policy, uint32_t layers, uint32_t layer, uint32_t t);

/**
 * E_l(n-1): prompt tokens [0, E) are frozen in `layer` when the prompt's final length is n. The engine carries their hidden state
 * over unchanged from the layer before and skips their rows; 0 without ETF. Pure.
 */
PRHS_API uint32_t prhs_etf_frozen(const prhs_policy *policy, uint32_t layers, uint32_t layer, uint32_t n);

PRHS_EXTERN_C_END

#endif
