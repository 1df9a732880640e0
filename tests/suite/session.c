/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions against the following reference: presets and parameters, prompts in chunks with seeding, ragged decode batches with
 * joins and leaves, speculation with commits, forks, truncation, attachment, moves, preemption; statistics and audits.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "follow.h"
#include "groups.h"

typedef struct s_row {
    const char *name, *preset;
    int shape;
    t_layout layout;
    uint32_t rows; /* query rows a step, at most */
    uint32_t granularity;
    prhs_join join;
    uint32_t audit;
    void (*tune)(prhs_policy *p);
    int32_t times; /* lengths of the prompts: so many times as usual; 0: once */
} s_row;

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

#define SUM PRHS_JOIN_SUM
#define MAX PRHS_JOIN_MAX
#define EACH PRHS_JOIN_PER_HEAD
#define NHD                                                                                                                      \
    { 16, 0, 0, 0 }
#define HND                                                                                                                      \
    { 16, 1, 1, 0 }
#define ONE                                                                                                                      \
    { 16, 0, 1, 1 }
#define P1                                                                                                                       \
    { 1, 0, 1, 0 }
#define P256                                                                                                                     \
    { 256, 1, 0, 0 }

static const s_row rows[] = {
    { "cis-mass", "cis-mass", S_G3_D64, NHD, 3, 1, SUM, 0, NULL, 0 },
    { "dense", "dense", S_G1_D32, NHD, 2, 1, SUM, 0, NULL, 0 },
    { "streaming audited", "streaming", S_G1_D32, HND, 2, 1, SUM, 1, NULL, 0 },
    { "topk audited", "topk", S_G1_D32, NHD, 2, 1, SUM, 1, NULL, 0 },
    { "cis", "cis", S_G3_D64, HND, 3, 1, SUM, 0, NULL, 0 },
    { "cpe audited", "cpe", S_G1_D32, NHD, 2, 1, SUM, 1, NULL, 0 },
    { "cis-mass audited", "cis-mass", S_G1_D32, ONE, 1, 1, SUM, 1, all_sparse, 0 },
    { "cis-mass runs of 4", "cis-mass", S_G4_D128, ONE, 2, 4, SUM, 1, NULL, 0 },
    { "cis-mass per head", "cis-mass", S_G2_D64, P1, 3, 1, EACH, 0, NULL, 0 },
    { "cis-mass page 1 MQA", "cis-mass", S_MQA_D80, P1, 2, 1, MAX, 0, loose, 0 },
    { "cis-mass G16", "cis-mass", S_G16_D40, P256, 1, 1, SUM, 1, loose, 0 },
    { "cis-mass D96 bf16", "cis-mass", S_G3_D96, HND, 2, 16, SUM, 0, NULL, 0 },
    { "cis-mass D256", "cis-mass", S_G4_D256, NHD, 2, 1, SUM, 0, NULL, 0 },
    { "cis-mass D128 bf16", "cis-mass", S_G1_D128, P256, 4, 1, SUM, 0, loose, 0 },
    { "cis-mass with N*", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 0, minimum, 0 },
    { "cis-mass without residual", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 0, mass_plain, 0 },
    { "no gate", "cis", S_G1_D32, NHD, 2, 1, SUM, 1, no_gate, 0 },
    { "no gate, runs", "cis", S_G1_D32, HND, 2, 8, SUM, 0, no_gate_runs, 0 },
    { "PSAW alone", "dense", S_G1_D32, NHD, 2, 1, SUM, 1, psaw_alone, 0 },
    { "PSAW topk", "topk", S_G3_D64, NHD, 2, 1, SUM, 1, psaw_topk, 0 },
    { "PSAW cis-mass", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 1, psaw_mass, 0 },
    { "PSAW streaming", "streaming", S_G1_D32, NHD, 1, 1, SUM, 1, psaw_stream, 0 },
    { "topk with mean", "topk", S_G3_D64, HND, 2, 1, MAX, 0, mean_topk, 0 },
    { "topk with mean, dilated runs", "topk", S_G1_D32, NHD, 2, 4, SUM, 1, mean_runs, 0 },
    { "all layers dense", "cis-mass", S_G1_D32, NHD, 2, 1, SUM, 0, all_dense, 0 },
    { "no sinks, one local", "cis-mass", S_G1_D32, P1, 2, 1, SUM, 1, no_sinks, 0 },
    { "cis with a low threshold", "cis", S_G1_D32, NHD, 3, 1, SUM, 0, tau_low, 0 },
    { "cpe runs per head", "cpe", S_G2_D64, HND, 2, 4, EACH, 0, one_best, 0 },
    { "long cis-mass", "cis-mass", S_G3_D64, NHD, 2, 1, SUM, 1, loose, 14 },
    { "long cpe", "cpe", S_G1_D32, HND, 1, 1, SUM, 1, NULL, 20 },
    { "long dense", "dense", S_G2_D64, P256, 2, 1, SUM, 0, NULL, 14 },
};

#define LIVE 6

typedef struct crowd {
    f_follow f;
    f_seq *seqs[LIVE];
    uint8_t used[8];
    int32_t times;
    uint64_t next;
    f_counts sum;
} crowd;

static int32_t free_slot(crowd *c) {
    for (;;) {
        uint32_t i = t_below(c->f.w.t, 8);
        if (!c->used[i]) {
            c->used[i] = 1;
            return (int32_t)i;
        }
    }
}

static void leave(crowd *c, int i) {
    const f_counts *n = &c->seqs[i]->counts;
    f_check_stats(&c->f, c->seqs[i]);
    c->sum.steps += n->steps;
    c->sum.share += n->share;
    c->sum.retrieve += n->retrieve;
    c->sum.causes += n->causes;
    c->used[c->seqs[i]->seq->slot] = 0;
    f_reset(&c->f, c->seqs[i]);
    c->seqs[i] = NULL;
}

/* Joins in one of four ways: an empty sequence, a prompt, a prompt without a seed, rows that are cached already. */
static void join(crowd *c, int i) {
    f_follow *f = &c->f;
    t_ctx *t = f->w.t;
    f_seq *s = f_new(f, ++c->next, free_slot(c));
    c->seqs[i] = s;
    switch (t_below(t, 4)) {
    case 0: break;
    case 1: f_prompt(f, s, c->times * (20 + (int32_t)t_below(t, 70)), 17 + (int32_t)t_below(t, 40)); break;
    case 2: f_one(f, s, 50, PRHS_SEQ_PREFILL); break;
    default: {
        f_part p = { s, { s->seq, 60, PRHS_SEQ_PREFILL, 60, NULL, 0, 0 } };
        f_step(f, &p, 1);
        f_resize(f, s, W_ATTACH, 60);
        if (t_below(t, 2))
            f_one(f, s, 1 + (int32_t)t_below(t, 3), PRHS_SEQ_SEED);
    }
    }
}

static void slot_operation(crowd *c, int i) {
    f_follow *f = &c->f;
    t_ctx *t = f->w.t;
    f_seq *s = c->seqs[i];
    int32_t old = s->seq->slot, len = s->seq->len;
    switch (t_below(t, 5)) {
    case 0:
        f_move(f, s, free_slot(c));
        c->used[old] = 0;
        break;
    case 1:
        f_check_stats(f, s);
        f_swap(f, s, free_slot(c));
        c->used[old] = 0;
        break;
    case 2:
        if (len > 12)
            f_resize(f, s, W_TRUNCATE, len - 1 - (int32_t)t_below(t, 10));
        break;
    case 3:
        if (len > 12)
            f_resize(f, s, W_ATTACH, len);
        break;
    default: {
        int j = (i + 1) % LIVE;
        if (c->seqs[j])
            leave(c, j);
        c->seqs[j] = f_fork(f, s, free_slot(c));
        /* The child's rows differ from here on. */
        c->seqs[j]->seq->root = s->seq->root;
    }
    }
}

static void decode(crowd *c, int step) {
    f_follow *f = &c->f;
    t_ctx *t = f->w.t;
    f_part parts[LIVE];
    uint64_t versions[LIVE][8];
    int who[LIVE], n = 0, first = (int)t_below(t, LIVE);
    for (int k = 0; k < LIVE; k++) {
        int i = (first + k) % LIVE;
        f_seq *s = c->seqs[i];
        if (!s || t_below(t, 4) == 0)
            continue;
        int32_t rows_n = 1 + (int32_t)t_below(t, f->w.s.decode_rows);
        for (int r = 0; r < rows_n; r++)
            versions[n][r] = t_key(f->w.s.seed, 9, (uint64_t)step * 8 + (uint64_t)i, (uint64_t)r);
        parts[n] = (f_part){ s, { s->seq, rows_n, 0, 0, versions[n], 0, 0 } };
        who[n++] = i;
    }
    if (!n)
        return;
    f_step(f, parts, n);
    for (int k = 0; k < n; k++)
        if (parts[k].e.rows > 1) {
            f_seq *s = c->seqs[who[k]];
            f_resize(f, s, W_COMMIT, s->seq->len - (int32_t)t_below(t, (uint32_t)parts[k].e.rows));
        }
}

static t_setup setup_of(t_ctx *t, const s_row *row) {
    t_setup s = t_setup_default(t, row->preset, &t_shapes[row->shape]);
    s.layout = row->layout;
    s.policy.granularity = row->granularity;
    s.policy.join = row->join;
    if (row->granularity > 4) {
        s.policy.k = 3 * row->granularity;
        s.policy.dilate_m = 0;
    }
    s.decode_rows = row->rows;
    s.audit = row->audit;
    s.pad = row->layout.pad;
    s.max_kv_len = row->times ? 90 * (uint32_t)row->times + 110 : 200;
    s.max_rows = 160;
    s.pages = 9 * (s.max_kv_len / row->layout.page + 2);
    if (row->tune)
        row->tune(&s.policy);
    return s;
}

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) {
    crowd *c = t_alloc(t, sizeof *c);
    t_setup s = setup_of(t, &rows[row]);
    c->times = rows[row].times ? rows[row].times : 1;
    f_make(t, &c->f, &s);
    for (int step = 0; step < 60; step++) {
        int i = (int)t_below(t, LIVE);
        if (!c->seqs[i])
            join(c, i);
        else if (c->seqs[i]->seq->len > (int32_t)s.max_kv_len - 20)
            leave(c, i);
        else if (t_below(t, 5) == 0)
            slot_operation(c, i);
        for (int k = 0; k < LIVE; k++)
            if (c->seqs[k] && c->seqs[k]->seq->len > (int32_t)s.max_kv_len - 10)
                leave(c, k);
        decode(c, step);
    }
    for (int i = 0; i < LIVE; i++)
        if (c->seqs[i])
            leave(c, i);
    for (uint32_t l = 0; l < s.layers; l++)
        t_cache_check(t, &c->f.w.cache[l], "session");
    snprintf(t->note, sizeof t->note,
             "%" PRIu64 " unit-steps: %" PRIu64 " shared, %" PRIu64 " retrieved (%" PRIu64 " gates), %" PRIu64 " close",
             c->sum.steps, c->sum.share, c->sum.retrieve, c->sum.causes, c->f.unsure);
    T_CHECK(t, c->f.unsure * 20 <= c->f.verdicts, "%u of %u verdicts were too close to tell", (unsigned)c->f.unsure,
            (unsigned)c->f.verdicts);
}

const t_group t_group_session = { "session", sizeof rows / sizeof *rows, 8, row_name, run };
