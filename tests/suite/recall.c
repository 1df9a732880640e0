/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Units that choose among several references: sessions beside the reference session, with queries that come back to where they were. The
 * reference follows which one is in hand after every step.
 */
#include "groups.h"
#include "reference.h"

static void few(prhs_policy *p) {
    p->references = 3;
    p->block = 60;
    p->tau = 0.3f;
    p->eps = 0.1f;
}
static void two(prhs_policy *p) {
    p->references = 2;
    p->block = 30;
    p->tau = 0.4f;
}
static void many(prhs_policy *p) {
    few(p);
    p->references = 16;
    p->dense_layers = 0;
    p->tau = 0.1f;
}
static void retrieved(prhs_policy *p) {
    few(p);
    p->references = 4;
    p->residual = PRHS_RESIDUAL_RETRIEVED;
    p->tau = 0.0f;
    p->eps = 0.3f;
}
static void aimed(prhs_policy *p) {
    few(p);
    p->target = 0.2f;
    p->k = 60;
    p->k_min = 4;
}
static void deep(prhs_policy *p) {
    few(p);
    p->dense_layers = 0;
    p->psaw = 1;
    p->psaw_layer = 0;
    p->psaw_phi = 0.6f;
    p->psaw_alpha = 0.7f;
    p->min_sparse_n = 40;
}
static void single(prhs_policy *p) {
    few(p);
    p->block = 1; /* nothing is ever shared */
}

static const r_row rows[] = {
    { "3 of G3 D64", "cis-mass", S_G3_D64, NHD, 3, 1, SUM, 0, few, 0, 60 },
    { "2 behind the cosine gate", "cis", S_G1_D32, HND, 3, 1, SUM, 1, two, 0, 60 },
    { "16, runs of 4", "cis-mass", S_G4_D128, ONE, 2, 4, SUM, 1, many, 0, 60 },
    { "4, retrieved", "cis-mass", S_MQA_D80, P1, 2, 1, SUM, 0, retrieved, 0, 60 },
    { "3 per head, a third audited", "cis-mass", S_G2_D64, P1, 3, 1, EACH, 33, few, 0, 60 },
    { "3 with a target", "cis-mass", S_G3_D64, HND, 2, 1, SUM, 0, aimed, 0, 60 },
    { "3 with PSAW and N*", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 1, deep, 0, 60 },
    { "16 of G16 D40", "cis-mass", S_G16_D40, P256, 1, 1, SUM, 0, many, 0, 60 },
    { "3 of G3 D96, bf16", "cis-mass", S_G3_D96, HND, 2, 1, SUM, 0, few, 0, 60 },
    { "3 of D256", "cis-mass", S_G4_D256, NHD, 2, 1, SUM, 0, few, 0, 60 },
    { "3 in blocks of 1", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 0, single, 0, 40 },
    { "long, 16", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 1, many, 14, 60 },
};

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) { r_run(t, &rows[row], R_LIVE, 200); }

const t_group t_group_recall = { "recall", sizeof rows / sizeof *rows, 4, row_name, run };
