/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Targets instead of k: sessions beside the reference, whose lists have the fewest tokens that meet the target, and which attends
 * densely where k tokens do not.
 */
#include <math.h>

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
    { { "topk G3", "topk", S_G3_D64, HND, 3, 1, SUM, 1, wide, 0, 50 }, NULL },
    { { "topk, no list will do", "topk", S_G1_D32, P1, 2, 1, SUM, 1, hopeless, 0, 50 }, NULL },
    { { "topk by layer", "topk", S_G3_D64, NHD, 2, 1, SUM, 1, wide, 0, 50 }, by_layer },
    { { "cis, scarce", "cis", S_G3_D64, NHD, 3, 1, SUM, 0, scarce, 0, 50 }, NULL },
    { { "cis-mass", "cis-mass", S_G3_D64, NHD, 3, 1, SUM, 1, loose, 0, 50 }, NULL },
    { { "cis-mass, scarce", "cis-mass", S_G1_D32, ONE, 3, 1, SUM, 1, scarce, 0, 50 }, NULL },
    { { "cis-mass, runs of 4", "cis-mass", S_G1_D128, NHD, 2, 4, SUM, 1, runs, 0, 50 }, NULL },
    { { "topk", "topk", S_G1_D32, NHD, 2, 1, SUM, 1, wide, 0, 50 }, NULL },
    { { "topk G4, the heads' largest weight", "topk", S_G4_D128, ONE, 1, 1, MAX, 1, tight, 0, 50 }, NULL },
    { { "topk G16", "topk", S_G16_D40, P256, 1, 1, SUM, 0, scarce, 0, 50 }, NULL },
    { { "topk, one size", "topk", S_G3_D64, NHD, 2, 1, SUM, 0, one_size, 0, 50 }, NULL },
    { { "topk, as many as it takes", "topk", S_G2_D64, NHD, 2, 1, SUM, 1, all, 0, 50 }, NULL },
    { { "topk, runs of 4", "topk", S_G3_D64, NHD, 2, 4, SUM, 1, runs, 0, 50 }, NULL },
    { { "topk per head with mean", "topk", S_G2_D64, P1, 2, 1, EACH, 0, mean, 0, 50 }, NULL },
    { { "topk under PSAW", "topk", S_G1_D32, NHD, 2, 1, SUM, 1, psaw, 0, 50 }, NULL },
    { { "cis", "cis", S_G1_D32, HND, 3, 1, SUM, 1, wide, 0, 50 }, NULL },
    { { "no gate", "cis", S_G3_D64, NHD, 2, 1, SUM, 1, blocks, 0, 50 }, NULL },
    { { "cis-mass, tight", "cis-mass", S_MQA_D80, P1, 2, 1, SUM, 0, tight, 0, 50 }, NULL },
    { { "cis-mass, one row", "cis-mass", S_G4_D128, HND, 1, 1, SUM, 33, loose, 0, 50 }, NULL },
    { { "cis-mass, easy, per head", "cis-mass", S_G2_D64, NHD, 2, 1, EACH, 0, easy, 0, 50 }, NULL },
    { { "cis-mass, retrieved", "cis-mass", S_G3_D64, HND, 2, 1, SUM, 1, retrieved, 0, 50 }, NULL },
    { { "cis-mass by layer", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 1, loose, 0, 50 }, by_layer },
    { { "long cis-mass", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 1, loose, 14, 50 }, NULL },
};

/* --- made-up keys --- */

static void make_equal(float *k, int channels) {
    for (int i = 0; k && i < channels; i++)
        k[i] = 0.0f;
}

enum { KV_HEADS = 2 }; /* of both shapes below */

/* All keys are zero: every token weighs the same, and the lower position comes first. */
static void plant_equals(uint32_t layer, int32_t pos, float *q, float *k, float *v) {
    (void)layer, (void)pos, (void)q, (void)v;
    make_equal(k, KV_HEADS * 64);
}

static void plant_small_equals(uint32_t layer, int32_t pos, float *q, float *k, float *v) {
    (void)layer, (void)pos, (void)q, (void)v;
    make_equal(k, KV_HEADS * 32);
}

/* The same, and two keys are no numbers. */
static void plant_no_numbers(uint32_t layer, int32_t pos, float *q, float *k, float *v) {
    plant_equals(layer, pos, q, k, v);
    for (int h = 0; k && h < KV_HEADS && (pos == 10 || pos == 20); h++)
        k[h * 64 + 7] = NAN;
}

/* 100 tokens and one more, of which 2 + 8 are always attended. What units do, and how many tokens they list. */
static const struct {
    const char *name;
    void (*plant)(uint32_t layer, int32_t pos, float *q, float *k, float *v);
    float target;
    uint32_t least, most;
    int mode, count;
} made[] = {
    { "equals", plant_equals, 0.305f, 1, 80, PRHS_MODE_RETRIEVE, 61 }, /* 30 of 101 may go */
    { "equals, just enough", plant_equals, 0.305f, 1, 61, PRHS_MODE_RETRIEVE, 61 },
    { "equals, one too few", plant_equals, 0.305f, 1, 60, PRHS_MODE_DENSE, 0 },
    { "equals, the floor", plant_equals, 0.95f, 33, 61, PRHS_MODE_RETRIEVE, 33 },
    { "equals, no more than the floor", plant_equals, 0.305f, 91, 95, PRHS_MODE_DENSE, 0 },
    { "two that are no numbers", plant_no_numbers, 0.95f, 1, 40, PRHS_MODE_RETRIEVE, 2 },
    { "no room for the second", plant_no_numbers, 0.95f, 1, 1, PRHS_MODE_DENSE, 0 },
};
enum { ROWS = sizeof rows / sizeof *rows, MADE = sizeof made / sizeof *made };

static void check_made(t_ctx *t, t_world *w, int row) {
    const int numbers = made[row].plant == plant_equals;
    const void *blob = t_world_export(w, 0);
    prhs_stats s;
    for (uint32_t layer = 0; layer < w->s.layers; layer++)
        for (uint32_t u = 0; u < prhs_session_units(w->session); u++) {
            const prhs_unit_view view = t_world_view(w, blob, layer, u);
            T_CHECK(t, view.set.mode == made[row].mode, "layer %u unit %u: mode %d", layer, u, view.set.mode);
            if (made[row].mode == PRHS_MODE_DENSE)
                continue;
            T_CHECK(t, view.set.count == made[row].count, "layer %u unit %u: %d tokens are listed", layer, u, view.set.count);
            for (int32_t i = 0; i < view.set.count; i++)
                T_CHECK(t, view.list[i] == (numbers ? 2 + i : 10 + 10 * i), "layer %u unit %u: token %d is at %d", layer, u, i,
                        view.list[i]);
        }
    t_world_stats(w, 0, PRHS_ALL_LAYERS, &s);
    const int whole = made[row].least >= 91; /* nothing is asked of a list then */
    T_CHECK(t, s.steps > 0 && s.missed == (made[row].mode == PRHS_MODE_DENSE && !whole ? s.steps : 0), "%u of %u steps missed",
            (unsigned)s.missed, (unsigned)s.steps);
    T_CHECK(t, s.within == (numbers ? s.audited.count : 0), "%u of %u masses are within the target", (unsigned)s.within,
            (unsigned)s.audited.count);
    T_CHECK(t, (s.audited.count > 0) == (numbers && made[row].mode == PRHS_MODE_RETRIEVE), "%u audits",
            (unsigned)s.audited.count);
}

static void run_made(t_ctx *t, int row) {
    t_world w;
    t_setup s = t_setup_default(t, "topk", &t_shapes[S_G3_D64]);
    aim(&s.policy, made[row].target, made[row].least, made[row].most);
    s.audit = 1;
    t_world_make(t, &w, &s);
    w.edit = made[row].plant;
    t_wseq *seq = t_world_seq(&w, 1, 0);
    t_world_prompt(&w, seq, 100, 64);
    t_world_one(&w, seq, 1, 0);
    check_made(t, &w, row);
}

/* Equal keys in more than one of the slices that a GPU's select cuts: of N tokens 19 in 20 may go. */
static void run_long(t_ctx *t) {
    enum { ROWS_A_STEP = 64, TOKENS = 8500 };
    t_world w;
    t_setup s = t_setup_default(t, "topk", &t_shapes[S_G1_D32]);
    aim(&s.policy, 0.95f, 8, 600);
    s.layers = 1;
    s.decode_rows = s.max_rows = ROWS_A_STEP;
    s.max_kv_len = TOKENS + ROWS_A_STEP;
    s.pages = s.max_kv_len / s.layout.page + 2;
    t_world_make(t, &w, &s);
    w.edit = plant_small_equals;
    t_wseq *seq = t_world_seq(&w, 1, 0);
    while (seq->len < TOKENS) /* much is attended by few rows only: prompts would take long */
        t_world_one(&w, seq, ROWS_A_STEP, 0);
    t_world_one(&w, seq, 1, 0);
    const void *blob = t_world_export(&w, 0);
    const int middle = seq->len - 2 - 8, want = middle - (int)(0.95 * seq->len);
    for (uint32_t u = 0; u < prhs_session_units(w.session); u++) {
        const prhs_unit_view view = t_world_view(&w, blob, 0, u);
        T_CHECK(t, view.set.mode == PRHS_MODE_RETRIEVE && view.set.count == want, "unit %u: mode %d, %d tokens instead of %d", u,
                view.set.mode, view.set.count, want);
        for (int32_t i = 0; i < view.set.count; i++)
            T_CHECK(t, view.list[i] == 2 + i, "unit %u: token %d is at %d", u, i, view.list[i]);
    }
}

static const char *row_name(int row) {
    return row < MADE ? made[row].name : row < MADE + ROWS ? rows[row - MADE].row.name : "long, equals";
}

static void run(t_ctx *t, int row) {
    if (row < MADE)
        run_made(t, row);
    else if (row == MADE + ROWS)
        run_long(t);
    else
        r_run_targets(t, &rows[row - MADE].row, rows[row - MADE].targets, R_LIVE, 200);
}

const t_group t_group_target = { "target", MADE + ROWS + 1, MADE + 7, row_name, run };
