/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library session beside a reference session of tests/oracle. Both see the same queries and the same rounded rows; after each
 * step the reference takes over the library's verdict and list, once it has judged them.
 */
#ifndef PRHS_TEST_REFERENCE_H
#define PRHS_TEST_REFERENCE_H

#include "cases.h"
#include "oracle.h"
#include "world.h"

#define R_MARGIN 1e-3 /* a verdict may differ only where the reference's margin is below this */
#define R_ROWS 8      /* decode rows of a step, at most */
#define R_LIVE 6      /* sequences at a time, at most */
#define R_HEADS 64    /* query heads, at most */

/* A session's case, and how the tables name joins and layouts. */
typedef struct r_row {
    const char *name, *preset;
    int shape;
    t_layout layout;
    uint32_t rows; /* decode rows of an entry, at most */
    uint32_t granularity;
    prhs_join join;
    uint32_t audit; /* as in t_setup */
    void (*tune)(prhs_policy *p);
    int32_t times; /* lengths of the prompts: so many times as usual; 0: once */
    int steps;
} r_row;

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

/* Masses as the reference has them, and by how much the library's sum may be off. */
typedef struct r_mass {
    uint64_t n;
    double sum, bar;
} r_mass;

typedef struct r_masses {
    r_mass retrieved, shared, audited;
} r_masses;

/* Audited steps whose mass was not known without: observations, and by how much each of the sums may be off. */
typedef struct r_sample {
    uint64_t steps, unknown; /* sparse unit-steps; of these, not known without */
    r_mass known;            /* head-steps of the others */
    uint64_t n;
    double sum, square, worst, worst_square, bar; /* worst: of max(mass, residual's weight) */
    uint64_t pairs;                               /* audited shared head-steps */
    double exact, estimate, off, off_square, pair_bar;
} r_sample;

/* What the reference did in a slot, to be held against the library's statistics; unit-steps. */
typedef struct r_counts {
    uint64_t steps, dense, window, stream, share, retrieve, copy, seed, rows_dense, causes, cosine, close;
    uint64_t missed, within, near_within; /* of `dense`; of the audited masses, and so many that may as well be on the other side */
    double attended, kept;
    r_masses masses, head[R_HEADS]; /* of all heads, of each one */
    r_sample sample, head_sample[R_HEADS];
} r_counts;

typedef struct r_seq {
    t_wseq *seq;
    r_counts counts;
} r_seq;

typedef struct r_pair {
    t_world w;
    oracle_session *o;
    double targets[W_LAYERS];
    int list_layers[W_LAYERS];
    oracle_result *res;
    uint32_t units, unit_heads;
    oracle_follow *follow; /* [units] */
    prhs_unit_view *view;  /* [units] */
    signed char *rows;     /* [units][R_ROWS] */
    float *kf, *vf;        /* a layer of a sequence as cached */
    double *q, *K, *V, *out, *lse, *bar;
    uint64_t verdicts, close, swaps, steps;
} r_pair;

typedef struct r_part {
    r_seq *s;
    t_entry e;
} r_part;

void r_make(t_ctx *t, r_pair *p, const t_setup *setup);
void r_free(r_pair *p);
/* A step over all layers on both sides, compared. */
void r_step(r_pair *p, r_part *parts, int n);
/* 1 if the library must have audited the step of unit u, which it served in `mode` (the reference's), in this slot at this position. */
int r_audited(const r_pair *p, uint32_t layer, int32_t slot, uint32_t u, int32_t position, int mode);
/* Counts unit u's sparse step, and what the audit, if there was one, says of it. */
void r_count_audit(const r_pair *p, r_counts *c, uint32_t layer, uint32_t u, int mode, int audited);
/* The slot's audit report, all heads and each one, against what was counted. */
void r_check_audits(r_pair *p, const r_seq *s);
/* A case: `live` sequences of at most `most` rows at a time (more where the prompts are long). */
void r_run(t_ctx *t, const r_row *row, int live, uint32_t most);
/* The same with a shape that is not in the pool. */
void r_run_shape(t_ctx *t, const r_row *row, const t_shape *shape, int live, uint32_t most);
/* The same with a target a layer; NULL: the policy's. */
void r_run_targets(t_ctx *t, const r_row *row, const float *targets, int live, uint32_t most);
/* The same with lists of other layers; backwards: as in t_setup. */
void r_run_lists(t_ctx *t, const r_row *row, const uint32_t *list_layers, int backwards, int live, uint32_t most);
/* The slot's statistics against the reference's counts. */
void r_check_stats(r_pair *p, const r_seq *s);

#endif
