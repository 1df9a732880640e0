/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions beside the reference session: presets and parameters, shapes and layouts. */
#include "groups.h"
#include "reference.h"

static void minimum(prhs_policy *p) { p->min_sparse_n = 90; }
static void no_gate(prhs_policy *p) {
    p->gate = PRHS_GATE_NONE;
    p->residual = PRHS_RESIDUAL_NONE;
    p->block = 5;
}
static void no_gate_runs(prhs_policy *p) {
    no_gate(p);
    p->granularity = 8;
}
static void psaw_alone(prhs_policy *p) {
    p->psaw = 1;
    p->psaw_layer = 0;
    p->psaw_phi = 0.4f;
    p->psaw_alpha = 1.0f;
    p->k = 100000;
}
static void psaw_topk(prhs_policy *p) {
    p->psaw = 1;
    p->psaw_layer = 0;
    p->psaw_phi = 0.3f;
    p->psaw_alpha = 0.7f;
}
static void psaw_mass(prhs_policy *p) {
    psaw_topk(p);
    p->psaw_phi = 0.6f;
    p->dense_layers = 0;
}
static void psaw_stream(prhs_policy *p) {
    psaw_topk(p);
    p->local = 7;
}
static void mean_topk(prhs_policy *p) { p->residual = PRHS_RESIDUAL_MEAN; }
static void mean_runs(prhs_policy *p) {
    p->residual = PRHS_RESIDUAL_MEAN;
    p->granularity = 4;
    p->dilate_m = 1;
    p->dilate_ahead = 1;
}
static void all_sparse(prhs_policy *p) {
    p->dense_layers = 0;
    p->eps = 0.02f;
}
static void all_dense(prhs_policy *p) { p->dense_layers = 3; }
static void retrieved(prhs_policy *p) { p->residual = PRHS_RESIDUAL_RETRIEVED; }
static void retrieved_loose(prhs_policy *p) {
    retrieved(p);
    p->dense_layers = 0;
    p->eps = 0.3f;
    p->tau = 0.2f;
    p->block = 40;
}
static void retrieved_psaw(prhs_policy *p) {
    psaw_mass(p);
    retrieved(p);
    p->eps = 0.2f;
}
static void retrieved_dilated(prhs_policy *p) {
    retrieved(p);
    p->tau = 0.3f;
    p->dilate_m = 2;
    p->dilate_back = 1;
    p->dilate_ahead = 2;
}
static void loose(prhs_policy *p) {
    p->eps = 0.5f;
    p->tau = 0.0f;
    p->block = 40;
}
static void no_sinks(prhs_policy *p) {
    p->sinks = 0;
    p->local = 1;
    p->k = 5;
}
static void tau_low(prhs_policy *p) {
    p->tau = -1.0f;
    p->block = 9;
}
static void one_best(prhs_policy *p) { p->dilate_m = 1; }
static void mass_plain(prhs_policy *p) {
    p->residual = PRHS_RESIDUAL_NONE;
    p->dilate_m = 2;
    p->dilate_back = 2;
    p->dilate_ahead = 1;
}

/* More tokens than the places of rows that a block of CUDA's finds together. */
static void long_lists(prhs_policy *p) {
    p->dense_layers = 0;
    p->k = 650;
    p->block = 3;
}

static const r_row rows[] = {
    { "cis-mass", "cis-mass", S_G3_D64, NHD, 3, 1, SUM, 0, NULL, 0, 60 },
    { "dense", "dense", S_G1_D32, NHD, 2, 1, SUM, 0, NULL, 0, 60 },
    { "streaming audited", "streaming", S_G1_D32, HND, 2, 1, SUM, 1, NULL, 0, 60 },
    { "topk audited", "topk", S_G1_D32, NHD, 2, 1, SUM, 1, NULL, 0, 60 },
    { "cis", "cis", S_G3_D64, HND, 3, 1, SUM, 0, NULL, 0, 60 },
    { "cpe audited", "cpe", S_G1_D32, NHD, 2, 1, SUM, 1, NULL, 0, 60 },
    { "cis-mass audited", "cis-mass", S_G1_D32, ONE, 1, 1, SUM, 1, all_sparse, 0, 60 },
    { "cis-mass runs of 4", "cis-mass", S_G4_D128, ONE, 2, 4, SUM, 1, NULL, 0, 60 },
    { "cis-mass, a third audited", "cis-mass", S_G3_D64, HND, 3, 1, SUM, 33, loose, 0, 60 },
    { "cis, half audited", "cis", S_G1_D32, NHD, 2, 1, SUM, 50, NULL, 0, 60 },
    { "streaming, a fifth audited", "streaming", S_G1_D32, NHD, 2, 1, SUM, 20, NULL, 0, 60 },
    { "cpe, half audited", "cpe", S_G1_D32, HND, 2, 1, SUM, 50, NULL, 0, 60 },
    { "per head, a third audited", "cis-mass", S_G2_D64, P1, 3, 1, EACH, 33, mass_plain, 0, 60 },
    { "retrieved, half audited", "cis-mass", S_G4_D128, ONE, 1, 4, SUM, 50, retrieved_loose, 0, 60 },
    { "cis-mass per head", "cis-mass", S_G2_D64, P1, 3, 1, EACH, 0, NULL, 0, 60 },
    { "cis-mass page 1 MQA", "cis-mass", S_MQA_D80, P1, 2, 1, MAX, 0, loose, 0, 60 },
    { "cis-mass G16", "cis-mass", S_G16_D40, P256, 1, 1, SUM, 1, loose, 0, 60 },
    { "cis-mass D96 bf16", "cis-mass", S_G3_D96, HND, 2, 16, SUM, 0, NULL, 0, 60 },
    { "cis-mass D256", "cis-mass", S_G4_D256, NHD, 2, 1, SUM, 0, NULL, 0, 60 },
    { "cis-mass D128 bf16", "cis-mass", S_G1_D128, P256, 4, 1, SUM, 0, loose, 0, 60 },
    { "cis-mass with N*", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 0, minimum, 0, 60 },
    { "cis-mass without residual", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 0, mass_plain, 0, 60 },
    { "no gate", "cis", S_G1_D32, NHD, 2, 1, SUM, 1, no_gate, 0, 60 },
    { "no gate, runs", "cis", S_G1_D32, HND, 2, 8, SUM, 0, no_gate_runs, 0, 60 },
    { "PSAW alone", "dense", S_G1_D32, NHD, 2, 1, SUM, 1, psaw_alone, 0, 60 },
    { "PSAW topk", "topk", S_G3_D64, NHD, 2, 1, SUM, 1, psaw_topk, 0, 60 },
    { "PSAW cis-mass", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 1, psaw_mass, 0, 60 },
    { "PSAW streaming", "streaming", S_G1_D32, NHD, 1, 1, SUM, 1, psaw_stream, 0, 60 },
    { "topk with mean", "topk", S_G3_D64, HND, 2, 1, MAX, 0, mean_topk, 0, 60 },
    { "topk with mean, dilated runs", "topk", S_G1_D32, NHD, 2, 4, SUM, 1, mean_runs, 0, 60 },
    { "all layers dense", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 0, all_dense, 0, 60 },
    { "no sinks, one local", "cis-mass", S_G1_D32, P1, 2, 1, SUM, 1, no_sinks, 0, 60 },
    { "cis with a low threshold", "cis", S_G1_D32, NHD, 3, 1, SUM, 0, tau_low, 0, 60 },
    { "cpe runs per head", "cpe", S_G2_D64, HND, 2, 4, EACH, 0, one_best, 0, 60 },
    { "retrieved audited", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 1, retrieved_loose, 0, 60 },
    { "retrieved G3", "cis-mass", S_G3_D64, HND, 3, 1, SUM, 0, retrieved, 0, 60 },
    { "retrieved G4 runs of 4", "cis-mass", S_G4_D128, ONE, 2, 4, MAX, 0, retrieved, 0, 60 },
    { "retrieved per head, runs of 4", "cis-mass", S_G2_D64, P1, 3, 4, EACH, 0, retrieved_loose, 0, 60 },
    { "retrieved with PSAW", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 1, retrieved_psaw, 0, 60 },
    { "retrieved D80 dilated", "cis-mass", S_MQA_D80, P1, 2, 1, SUM, 0, retrieved_dilated, 0, 60 },
    { "retrieved G16 D40", "cis-mass", S_G16_D40, P256, 1, 1, SUM, 0, retrieved_loose, 0, 60 },
    { "retrieved D256", "cis-mass", S_G4_D256, NHD, 2, 1, SUM, 0, retrieved_loose, 0, 60 },
    { "retrieved D128 bf16", "cis-mass", S_G1_D128, P256, 4, 1, SUM, 0, retrieved_loose, 0, 60 },
    { "topk retrieved", "topk", S_G3_D64, HND, 2, 1, SUM, 1, retrieved, 0, 60 },
    { "long retrieved", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 1, retrieved_loose, 14, 60 },
    { "long cis-mass", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 1, loose, 14, 60 },
    { "long cpe", "cpe", S_G1_D32, HND, 1, 1, SUM, 1, NULL, 20, 60 },
    { "long dense", "dense", S_G2_D64, P256, 2, 1, SUM, 0, NULL, 14, 60 },
};

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) { r_run(t, &rows[row], R_LIVE, 200); }

const t_group t_group_session = { "session", sizeof rows / sizeof *rows, 8, row_name, run };

/* Many units of one head each, of sequences that are short: what a backend may serve a block a unit. */
static const r_row short_rows[] = {
    { "cis-mass", "cis-mass", S_20_D80, NHD, 1, 1, SUM, 0, all_sparse, 0, 20 },
    { "cis", "cis", S_40_D128, HND, 1, 1, SUM, 0, NULL, 0, 20 },
    { "cis with a low threshold", "cis", S_20_D80, P1, 1, 1, SUM, 0, tau_low, 0, 20 },
    { "cis-mass, loose", "cis-mass", S_40_D128, P256, 1, 1, SUM, 0, loose, 0, 20 },
    { "cpe in runs", "cpe", S_20_D80, HND, 1, 4, SUM, 0, one_best, 0, 20 },
    { "PSAW cis-mass", "cis-mass", S_40_D128, NHD, 1, 1, SUM, 0, psaw_mass, 0, 20 },
    { "long lists", "cis", S_40_D128, P256, 1, 1, SUM, 0, long_lists, 11, 4 },
};

static const char *short_name(int row) { return short_rows[row].name; }

static void run_short(t_ctx *t, int row) { r_run(t, &short_rows[row], R_LIVE, 200); }

const t_group t_group_whole = { "whole", sizeof short_rows / sizeof *short_rows, 2, short_name, run_short };

/* Capacities beyond what one block of a GPU selects from, of sequences that are short. */
static const r_row roomy_rows[] = {
    { "cis-mass", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 0, all_sparse, 0, 25 },
    { "cpe in runs, audited", "cpe", S_G1_D32, HND, 1, 4, SUM, 1, one_best, 0, 25 },
    { "retrieved", "cis-mass", S_G1_D32, P256, 1, 1, SUM, 0, retrieved_loose, 0, 25 },
    { "many units", "cis", S_20_D80, NHD, 1, 1, SUM, 0, tau_low, 0, 12 },
};

static const char *roomy_name(int row) { return roomy_rows[row].name; }

static void run_roomy(t_ctx *t, int row) { r_run(t, &roomy_rows[row], 2, 9000); }

const t_group t_group_room = { "room", sizeof roomy_rows / sizeof *roomy_rows, 1, roomy_name, run_roomy };
