/* SPDX-License-Identifier: Apache-2.0 */
/* Long sessions beside the reference session: thousands of steps in all, every one compared in every layer. */

#include "reference.h"
#include "groups.h"

/* Verdicts of all kinds, close ones too. */
static void wary(prhs_policy *p) {
    p->tau = 0.7f;
    p->eps = 0.05f;
}
static void plain(prhs_policy *p) {
    p->residual = PRHS_RESIDUAL_NONE;
    p->dilate_m = 2;
    p->dilate_back = 1;
    p->dilate_ahead = 2;
}
static void all_sparse(prhs_policy *p) {
    p->dense_layers = 0;
    p->tau = 0.2f;
    p->eps = 0.3f;
    p->block = 40;
}
static void mean_value(prhs_policy *p) { p->residual = PRHS_RESIDUAL_MEAN; }
static void ungated(prhs_policy *p) {
    p->gate = PRHS_GATE_NONE;
    p->block = 5;
}
static void deep(prhs_policy *p) {
    p->psaw = 1;
    p->psaw_layer = 0;
    p->psaw_phi = 0.6f;
    p->psaw_alpha = 0.8f;
    p->min_sparse_n = 60;
}
static void ungated_deep(prhs_policy *p) {
    ungated(p);
    deep(p);
    p->min_sparse_n = 0;
}
static void low_threshold(prhs_policy *p) {
    p->tau = 0.4f;
    p->block = 9;
}

static const r_row rows[] = {
    { "cis-mass G3", "cis-mass", S_G3_D64, NHD, 3, 1, SUM, 0, wary, 0, 120 },
    { "cis", "cis", S_G1_D32, HND, 3, 1, SUM, 1, low_threshold, 0, 120 },
    { "cis-mass runs of 8", "cis-mass", S_G1_D32, ONE, 3, 8, SUM, 1, all_sparse, 0, 150 },
    { "topk with mean", "topk", S_G1_D32, NHD, 2, 1, MAX, 0, mean_value, 0, 120 },
    { "dense", "dense", S_G1_D32, P1, 2, 1, SUM, 0, NULL, 0, 300 },
    { "streaming", "streaming", S_G3_D64, HND, 2, 1, SUM, 1, NULL, 0, 250 },
    { "topk G3", "topk", S_G3_D64, NHD, 3, 1, MAX, 0, NULL, 0, 150 },
    { "cis G4", "cis", S_G4_D128, ONE, 3, 1, SUM, 0, low_threshold, 0, 150 },
    { "cis runs of 8, per head", "cis", S_G2_D64, P1, 2, 8, EACH, 0, low_threshold, 0, 200 },
    { "cpe", "cpe", S_G1_D32, NHD, 3, 1, SUM, 1, NULL, 0, 600 },
    { "cis-mass without residual", "cis-mass", S_G3_D64, ONE, 2, 1, MAX, 1, plain, 0, 200 },
    { "cis-mass G4 runs of 8", "cis-mass", S_G4_D128, HND, 3, 8, MAX, 0, wary, 0, 150 },
    { "cis-mass per head", "cis-mass", S_G2_D64, NHD, 3, 1, EACH, 0, wary, 0, 250 },
    { "cis-mass with PSAW and N*", "cis-mass", S_G1_D32, P1, 2, 1, SUM, 1, deep, 0, 600 },
    { "no gate", "cis", S_G1_D32, NHD, 2, 1, SUM, 1, ungated, 0, 500 },
    { "no gate, runs of 8", "cis", S_G1_D32, NHD, 2, 8, SUM, 1, ungated, 0, 400 },
    { "no gate, PSAW, runs of 8", "cis", S_G1_D32, HND, 2, 8, SUM, 1, ungated_deep, 0, 300 },
};

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) { r_run(t, &rows[row], 4, 150); }

const t_group t_group_reference = { "reference", sizeof rows / sizeof *rows, 4, row_name, run };
