/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planted needle: one dropped key turns relevant on a shared step while the rest does not. What docs/method.md says of it
 * holds: the unit goes on sharing, the reported mass is an estimate and far too small, only an audit (grade exact) or the next
 * block sees it. A key that is no number, in contrast, is in the window and seen at once: no verdict on such a step holds.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "groups.h"
#include "world.h"

#define NEEDLE 40 /* position of the key */
#define FIRST 96  /* first decoded position: a block begins here (block 32, layer 0) */
#define TURN 101  /* from here on queries look for the needle */
#define BLOCK 32

/* Queries are 8 * e0 with a little noise, from TURN on 8 * (e0 + e1); the needle's key is 35 * e1 - 21 * e0. */
static void plant(uint32_t layer, int32_t pos, float *q, float *k, float *v) {
    (void)layer;
    for (int h = 0; q && h < 2; h++) {
        for (int d = 0; d < 32; d++)
            q[h * 32 + d] *= 0.01f;
        q[h * 32] += 8.0f;
        q[h * 32 + 1] += pos >= TURN ? 8.0f : 0.0f;
    }
    for (int h = 0; k && h < 2; h++) {
        k[h * 32 + 1] = 0.0f; /* no other key changes its score */
        for (int d = 0; d < 32 && pos == NEEDLE; d++) {
            k[h * 32 + d] = d == 0 ? -21.0f : d == 1 ? 35.0f : 0.0f;
            v[h * 32 + d] = 5.0f;
        }
    }
}

/* The same queries throughout; the key of TURN is no number. */
static void plant_no_number(uint32_t layer, int32_t pos, float *q, float *k, float *v) {
    plant(layer, pos < TURN ? pos : TURN - 1, q, k, v);
    for (int h = 0; k && pos == TURN && h < 2; h++)
        k[h * 32 + 5] = NAN;
}

static int listed(const prhs_unit_view *view) {
    for (int32_t i = 0; i < view->set.count; i++)
        if (view->list[i] == NEEDLE)
            return 1;
    return 0;
}

static void shared_step(t_ctx *t, t_world *w, int32_t pos, int audit) {
    void *blob = t_world_export(w, 0);
    for (uint32_t u = 0; u < prhs_session_units(w->session); u++) {
        prhs_unit_view view = t_world_view(w, blob, 0, u);
        T_CHECK(t, view.set.mode == PRHS_MODE_SHARE, "position %d: mode %d instead of sharing", pos, view.set.mode);
        T_CHECK(t, !listed(&view), "position %d: the needle is in the list", pos);
        for (uint32_t h = 0; h < view.head_count; h++) {
            const prhs_head_view *head = &view.heads[h];
            T_CHECK(t, head->delta < 0.9f, "position %d: the estimate is %g", pos, (double)head->delta);
            if (audit)
                T_CHECK(t, pos < TURN ? head->audit < 0.9f : head->audit > 0.999f, "position %d: the audit says %g", pos,
                        (double)head->audit);
        }
    }
}

static void check_grades(t_ctx *t, t_world *w, int audit) {
    prhs_stats s;
    t_world_stats(w, 0, 0, &s);
    T_CHECK(t, s.shared.grade == PRHS_GRADE_ESTIMATE, "shared steps' mass has grade %d", s.shared.grade);
    T_CHECK(t, s.retrieved.grade == PRHS_GRADE_EXACT, "retrievals' mass has grade %d", s.retrieved.grade);
    T_CHECK(t, s.audited.grade == (audit ? PRHS_GRADE_EXACT : PRHS_GRADE_UNKNOWN), "audited mass has grade %d", s.audited.grade);
    T_CHECK(t, audit ? s.audited.count > 0 : s.audited.count == 0, "%u audits", (unsigned)s.audited.count);
    T_CHECK(t, s.mass_failed == 0 && s.cosine_failed == 0, "a gate saw the needle");
    T_CHECK(t, s.shared.mean < 0.9, "shared steps report %g", s.shared.mean);
    if (audit)
        T_CHECK(t, s.audited.mean > s.shared.mean + 0.1, "audits say %g, estimates %g", s.audited.mean, s.shared.mean);
    snprintf(t->note, sizeof t->note, "%" PRIu64 " shared steps, mass %.4f by estimate, %.4f by audit; never found before the block ends",
             s.share, s.shared.mean, s.audited.mean);
}

static void begin(t_ctx *t, t_world *w, const char *policy, int audit) {
    t_setup s = t_setup_default(t, policy, &t_shapes[S_G1_D32]);
    s.layers = 1;
    s.policy.dense_layers = 0;
    s.policy.block = BLOCK;
    s.policy.k = 16;
    s.audit = (uint32_t)audit;
    t_world_make(t, w, &s);
}

static void run_no_number(t_ctx *t) {
    t_world w;
    prhs_stats s;
    begin(t, &w, "cis-mass", 0);
    w.edit = plant_no_number;
    t_wseq *seq = t_world_seq(&w, 1, 0);
    t_world_prompt(&w, seq, FIRST, 64);
    for (int32_t pos = FIRST; pos <= TURN; pos++) {
        t_world_one(&w, seq, 1, 0);
        void *blob = t_world_export(&w, 0);
        const int want = pos == FIRST || pos == TURN ? PRHS_MODE_RETRIEVE : PRHS_MODE_SHARE;
        for (uint32_t u = 0; u < 2; u++) {
            prhs_unit_view view = t_world_view(&w, blob, 0, u);
            T_CHECK(t, view.set.mode == want, "position %d: mode %d instead of %d", pos, view.set.mode, want);
        }
    }
    t_world_stats(&w, 0, 0, &s);
    T_CHECK(t, s.mass_failed == 2, "%u lists failed instead of 2", (unsigned)s.mass_failed);
    T_CHECK(t, isnan(w.outs[0][0]), "the output is %g: the key has been left out", (double)w.outs[0][0]);
}

static void run(t_ctx *t, int row) {
    const int audit = row == 1;
    if (row == 2) {
        run_no_number(t);
        return;
    }
    t_world w;
    begin(t, &w, row == 3 ? "cis-recall" : "cis-mass", audit);
    w.edit = plant;
    t_wseq *seq = t_world_seq(&w, 1, 0);
    t_world_prompt(&w, seq, FIRST, 64);
    for (int32_t pos = FIRST; pos < FIRST + BLOCK; pos++) {
        t_world_one(&w, seq, 1, 0);
        if (pos > FIRST)
            shared_step(t, &w, pos, audit);
        if (pos >= TURN)
            T_CHECK(t, w.outs[0][0] < 3.0f, "position %d: the output holds the needle's value: %g", pos, (double)w.outs[0][0]);
    }
    check_grades(t, &w, audit);
    t_world_one(&w, seq, 1, 0);
    void *blob = t_world_export(&w, 0);
    for (uint32_t u = 0; u < 2; u++) {
        prhs_unit_view view = t_world_view(&w, blob, 0, u);
        T_CHECK(t, view.set.mode == PRHS_MODE_RETRIEVE && listed(&view), "the next block's retrieval has not found the needle");
        T_CHECK(t, view.heads[0].delta < 0.01f, "after the retrieval the mass is %g", (double)view.heads[0].delta);
    }
    T_CHECK(t, fabsf(w.outs[0][0] - 5.0f) < 0.1f, "after the retrieval the output is %g", (double)w.outs[0][0]);
}

static const char *row_name(int row) {
    static const char *const names[] = { "not audited", "audited", "a key that is no number", "several references" };
    return names[row];
}

const t_group t_group_needle = { "needle", 4, 4, row_name, run };
