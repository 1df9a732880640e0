/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Targets instead of k: sessions beside the reference, whose lists have the fewest tokens that meet the target, and which attends densely
 * where k tokens do not.
 */
#include "groups.h"
#include "reference.h"

static void aim(prhs_policy *p, float target, uint32_t least, uint32_t most) {
    p->target = target;
    p->k_min = least;
    p->k = most;
    p->dilate_m = 0;
    p->dense_layers = 0;
}

static void wide(prhs_policy *p) { aim(p, 0.2f, 4, 60); }
static void tight(prhs_policy *p) { aim(p, 0.02f, 1, 40); }
static void scarce(prhs_policy *p) { aim(p, 0.1f, 8, 14); } /* many units miss */
static void one_size(prhs_policy *p) { aim(p, 0.3f, 12, 12); }
static void hopeless(prhs_policy *p) { aim(p, 1e-6f, 1, 6); }
static void all(prhs_policy *p) { aim(p, 0.1f, 0, UINT32_MAX); }
static void easy(prhs_policy *p) { aim(p, 0.9f, 3, 30); }
static void retrieved(prhs_policy *p) {
    wide(p);
    p->residual = PRHS_RESIDUAL_RETRIEVED;
    p->tau = 0.2f;
}
static void mean(prhs_policy *p) {
    wide(p);
    p->residual = PRHS_RESIDUAL_MEAN;
}
static void blocks(prhs_policy *p) {
    wide(p);
    p->gate = PRHS_GATE_NONE;
    p->block = 4;
}
static void loose(prhs_policy *p) {
    wide(p);
    p->tau = -1.0f;
    p->block = 40;
}
static void runs(prhs_policy *p) { aim(p, 0.25f, 16, 80); }
static void psaw(prhs_policy *p) {
    aim(p, 0.15f, 6, 50);
    p->psaw = 1;
    p->psaw_layer = 0;
    p->psaw_phi = 0.5f;
    p->psaw_alpha = 0.8f;
}

static const float by_layer[] = { 0.3f, 0.0f, 0.05f, 0.9f };

static const struct {
    r_row row;
    const float *targets; /* by layer */
} rows[] = {
    { { "topk", "topk", S_G1_D32, NHD, 2, 1, SUM, 1, wide, 0, 50 }, NULL },
    { { "topk G3", "topk", S_G3_D64, HND, 3, 1, SUM, 1, wide, 0, 50 }, NULL },
    { { "topk G4, the heads' largest weight", "topk", S_G4_D128, ONE, 1, 1, MAX, 1, tight, 0, 50 }, NULL },
    { { "topk G16", "topk", S_G16_D40, P256, 1, 1, SUM, 0, scarce, 0, 50 }, NULL },
    { { "topk, one size", "topk", S_G3_D64, NHD, 2, 1, SUM, 0, one_size, 0, 50 }, NULL },
    { { "topk, no list will do", "topk", S_G1_D32, P1, 2, 1, SUM, 1, hopeless, 0, 50 }, NULL },
    { { "topk, as many as it takes", "topk", S_G2_D64, NHD, 2, 1, SUM, 1, all, 0, 50 }, NULL },
    { { "topk, runs of 4", "topk", S_G3_D64, NHD, 2, 4, SUM, 1, runs, 0, 50 }, NULL },
    { { "topk per head with mean", "topk", S_G2_D64, P1, 2, 1, EACH, 0, mean, 0, 50 }, NULL },
    { { "topk under PSAW", "topk", S_G1_D32, NHD, 2, 1, SUM, 1, psaw, 0, 50 }, NULL },
    { { "topk by layer", "topk", S_G3_D64, NHD, 2, 1, SUM, 1, wide, 0, 50 }, by_layer },
    { { "cis", "cis", S_G1_D32, HND, 3, 1, SUM, 1, wide, 0, 50 }, NULL },
    { { "cis, scarce", "cis", S_G3_D64, NHD, 3, 1, SUM, 0, scarce, 0, 50 }, NULL },
    { { "no gate", "cis", S_G3_D64, NHD, 2, 1, SUM, 1, blocks, 0, 50 }, NULL },
    { { "cis-mass", "cis-mass", S_G3_D64, NHD, 3, 1, SUM, 1, loose, 0, 50 }, NULL },
    { { "cis-mass, scarce", "cis-mass", S_G1_D32, ONE, 3, 1, SUM, 1, scarce, 0, 50 }, NULL },
    { { "cis-mass, tight", "cis-mass", S_MQA_D80, P1, 2, 1, SUM, 0, tight, 0, 50 }, NULL },
    { { "cis-mass, one row", "cis-mass", S_G4_D128, HND, 1, 1, SUM, 33, loose, 0, 50 }, NULL },
    { { "cis-mass, easy, per head", "cis-mass", S_G2_D64, NHD, 2, 1, EACH, 0, easy, 0, 50 }, NULL },
    { { "cis-mass, runs of 4", "cis-mass", S_G1_D128, NHD, 2, 4, SUM, 1, runs, 0, 50 }, NULL },
    { { "cis-mass, retrieved", "cis-mass", S_G3_D64, HND, 2, 1, SUM, 1, retrieved, 0, 50 }, NULL },
    { { "cis-mass by layer", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 1, loose, 0, 50 }, by_layer },
    { { "long cis-mass", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 1, loose, 14, 50 }, NULL },
};

static const char *row_name(int row) { return rows[row].row.name; }

static void run(t_ctx *t, int row) { r_run_targets(t, &rows[row].row, rows[row].targets, R_LIVE, 200); }

const t_group t_group_target = { "target", sizeof rows / sizeof *rows, 8, row_name, run };
