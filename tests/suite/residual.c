/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The retrieved residual where it must equal something else: a retrieval's output is that of dense attention, whatever was selected; a
 * value that is NaN stays a NaN of its own channel, dropped or not, as it would in dense attention.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "groups.h"
#include "world.h"

#define PROMPT 70
#define STEPS 24

static const struct e_row {
    const char *name;
    int shape;
    uint32_t granularity;
    prhs_join join;
} rows[] = {
    { "dense again, D32", S_G1_D32, 1, PRHS_JOIN_SUM },
    { "dense again, G3 D64", S_G3_D64, 1, PRHS_JOIN_MAX },
    { "dense again, per head, runs of 4", S_G2_D64, 4, PRHS_JOIN_PER_HEAD },
    { "dense again, G4 D128", S_G4_D128, 1, PRHS_JOIN_SUM },
};
#define ROWS (int)(sizeof rows / sizeof *rows)

static const char *row_name(int row) { return row < ROWS ? rows[row].name : "a NaN value"; }

static t_setup setup_of(t_ctx *t, const struct e_row *row) {
    t_setup s = t_setup_default(t, "cis-mass", &t_shapes[row->shape]);
    s.policy.residual = PRHS_RESIDUAL_RETRIEVED;
    s.policy.granularity = row->granularity;
    s.policy.join = row->join;
    s.policy.dense_layers = 0;
    s.policy.block = 1; /* every step retrieves */
    s.seed = 7;
    return s;
}

/* |a - b| / |b| of a head's output rows, rounding of the output apart. */
static double distance(const t_world *w, uint32_t layer, uint32_t head, const float *other) {
    const t_shape *sh = w->s.shape;
    double error = 0, norm = 0, step = sh->out == PRHS_F32 ? 0 : sh->out == PRHS_F16 ? 0x1p-10 : 0x1p-7;
    for (uint32_t d = 0; d < sh->dim; d++) {
        double a = (double)w->outs[layer][head * sh->dim + d], b = (double)other[head * sh->dim + d];
        double off = fabs(a - b) - step * (fabs(b) + 0x1p-14);
        error += off > 0 || isnan(off) ? off * off : 0;
        norm += b * b;
    }
    return sqrt(error / norm);
}

/* Both within F7's bar of the truth, so within two of each other; queries here make it a few units. */
static void dense_again(t_ctx *t, const struct e_row *row) {
    t_world a, b;
    t_setup s = setup_of(t, row);
    double worst = 0;
    prhs_stats stats;
    t_world_make(t, &a, &s);
    T_OK(t, prhs_policy_preset("dense", s.layers, &s.policy));
    t_world_make(t, &b, &s);
    t_wseq *sa = t_world_seq(&a, 1, 2), *sb = t_world_seq(&b, 1, 2);
    t_world_prompt(&a, sa, PROMPT, 64);
    t_world_prompt(&b, sb, PROMPT, 64);
    for (int i = 0; i < STEPS; i++) {
        t_world_one(&a, sa, 1, 0);
        t_world_one(&b, sb, 1, 0);
        for (uint32_t l = 0; l < s.layers; l++)
            for (uint32_t h = 0; h < s.shape->heads; h++) {
                double off = distance(&a, l, h, b.outs[l]);
                T_CHECK(t, off <= 4e-6, "step %d layer %u head %u: off by %.3g from dense attention", i, l, h, off);
                worst = fmax(worst, off);
            }
    }
    t_world_stats(&a, 2, PRHS_ALL_LAYERS, &stats);
    T_CHECK(t, stats.retrieve == stats.steps && stats.retrieved.mean > 1e-3, "%" PRIu64 " of %" PRIu64 " steps retrieved, mass %g",
            stats.retrieve, stats.steps, stats.retrieved.mean);
    snprintf(t->note, sizeof t->note, "at most %.2g from dense attention, of which %.3f was dropped", worst, stats.retrieved.mean);
}

#define PLACE 33
#define CHANNEL 5

/* KV head 1's value at PLACE has a NaN. */
static void plant(uint32_t layer, int32_t pos, float *q, float *k, float *v) {
    (void)layer, (void)q, (void)k;
    if (v && pos == PLACE)
        v[64 + CHANNEL] = NAN;
}

/* From the first retrieval that sees it on, in every mode, and in no other channel or head. */
static void nan_value(t_ctx *t) {
    t_world w;
    t_setup s = t_setup_default(t, "cis-mass", &t_shapes[S_G3_D64]);
    const uint32_t dim = s.shape->dim, group = s.shape->heads / s.shape->kv_heads;
    prhs_stats stats;
    s.policy.residual = PRHS_RESIDUAL_RETRIEVED;
    s.policy.dense_layers = 0;
    s.policy.tau = 0.0f;
    s.policy.eps = 0.3f;
    s.policy.k = 12;
    s.seed = 3;
    t_world_make(t, &w, &s);
    w.edit = plant;
    t_wseq *seq = t_world_seq(&w, 1, 0);
    t_world_prompt(&w, seq, PROMPT, 64);
    for (int i = 0; i < STEPS; i++) {
        t_world_one(&w, seq, 1, 0);
        for (uint32_t l = 0; l < s.layers; l++)
            for (uint32_t j = 0; j < s.shape->heads * dim; j++) {
                int want = j / dim / group == 1 && j % dim == CHANNEL;
                T_CHECK(t, isnan(w.outs[l][j]) == want, "step %d layer %u head %u channel %u is %g", i, l, j / dim, j % dim,
                        (double)w.outs[l][j]);
            }
    }
    t_world_stats(&w, 0, PRHS_ALL_LAYERS, &stats);
    T_CHECK(t, stats.share > 0 && stats.retrieve > 0 && stats.nan_masses == 0, "%" PRIu64 " shared, %" PRIu64 " retrieved, %" PRIu64
            " masses are NaN", stats.share, stats.retrieve, stats.nan_masses);
}

static void run(t_ctx *t, int row) {
    if (row < ROWS)
        dense_again(t, &rows[row]);
    else
        nan_value(t);
}

const t_group t_group_residual = { "residual", ROWS + 1, ROWS + 1, row_name, run };
