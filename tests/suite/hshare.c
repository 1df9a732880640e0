/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists that serve several steps without a gate, and other layers: sessions beside the reference, whose window is fresh in every step
 * and so always has the current token.
 */
#include "groups.h"
#include "reference.h"

static void all_sparse(prhs_policy *p) { p->dense_layers = 0; }
static void longer(prhs_policy *p) {
    p->dense_layers = 0;
    p->block = 5;
}
static void minimum(prhs_policy *p) {
    p->dense_layers = 0;
    p->min_sparse_n = 70;
}
static void dilated(prhs_policy *p) {
    p->block = 3;
    p->dilate_m = 2;
    p->dilate_back = p->dilate_ahead = 1;
}
static void narrow(prhs_policy *p) {
    p->dense_layers = 0;
    p->local = 1;
    p->sinks = 0;
}

static const uint32_t second[] = { 0, 1, 1 }, first[] = { 0, 0, 0 }, pair[] = { 0, 0, 2 }, own[] = { 0, 1, 2 };

static const struct {
    r_row row;
    const uint32_t *list_layers;
    int backwards;
} rows[] = {
    { { "the second layer's", "hshare", S_G3_D64, HND, 3, 1, SUM, 1, NULL, 0, 60 }, second, 0 },
    { { "the first layer's, blocks of 5", "hshare", S_G1_D32, NHD, 2, 1, SUM, 0, longer, 0, 60 }, first, 0 },
    { { "of none but its own", "hshare", S_G3_D64, NHD, 2, 1, SUM, 1, NULL, 0, 60 }, own, 0 },
    { { "backwards: lists of the step before, or none", "hshare", S_G1_D32, NHD, 2, 1, SUM, 1, longer, 0, 60 }, first, 1 },
    { { "runs of 8", "hshare", S_G1_D32, HND, 2, 8, SUM, 0, longer, 0, 60 }, first, 0 },
    { { "per head, half audited", "hshare", S_G2_D64, P1, 3, 1, EACH, 50, all_sparse, 0, 60 }, pair, 0 },
    { { "without a map", "hshare", S_G4_D128, ONE, 2, 1, MAX, 1, NULL, 0, 60 }, NULL, 0 },
    { { "with N*", "hshare", S_G1_D32, NHD, 2, 1, SUM, 1, minimum, 0, 60 }, first, 0 },
    { { "every step", "topk", S_G4_D128, ONE, 2, 4, MAX, 1, all_sparse, 0, 60 }, first, 0 },
    { { "dilated, a third audited", "hshare", S_MQA_D80, P1, 2, 1, SUM, 33, dilated, 0, 60 }, second, 0 },
    { { "one local token", "hshare", S_G16_D40, P256, 1, 1, SUM, 0, narrow, 0, 60 }, first, 0 },
    { { "long", "hshare", S_G3_D64, NHD, 2, 1, SUM, 1, longer, 14, 60 }, first, 0 },
};
#define ROWS (int)(sizeof rows / sizeof *rows)

static const char *row_name(int row) { return row < ROWS ? rows[row].row.name : "a list of what is to come"; }

/* A list that was made at a later position, which an engine has taken back without a word, may name tokens that are not there. */
static void run_later(t_ctx *t) {
    t_world w;
    t_setup s = t_setup_default(t, "hshare", &t_shapes[S_G1_D32]);
    s.policy.dense_layers = 0;
    s.policy.block = 40;
    s.list_layers = first;
    s.backwards = 1;
    t_world_make(t, &w, &s);
    t_wseq *seq = t_world_seq(&w, 1, 0);
    t_world_one(&w, seq, 60, PRHS_SEQ_PREFILL);
    t_world_one(&w, seq, 1, 0); /* the first layer retrieves */
    t_world_cut(&w, seq, 55);
    t_world_one(&w, seq, 1, 0);
    const void *blob = t_world_export(&w, 0);
    for (uint32_t u = 0; u < prhs_session_units(w.session); u++) {
        const prhs_unit_view view = t_world_view(&w, blob, 2, u), from = t_world_view(&w, blob, 0, u);
        T_CHECK(t, view.set.mode == PRHS_MODE_DENSE, "unit %u: mode %d where the list is of what is to come", u, view.set.mode);
        T_CHECK(t, from.set.mode == PRHS_MODE_RETRIEVE && from.ref_pos == 55, "unit %u: mode %d, reference at %d", u, from.set.mode, from.ref_pos);
    }
}

static void run(t_ctx *t, int row) {
    if (row == ROWS)
        run_later(t);
    else
        r_run_lists(t, &rows[row].row, rows[row].list_layers, rows[row].backwards, R_LIVE, 200);
}

const t_group t_group_hshare = { "hshare", ROWS + 1, 5, row_name, run };
