/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reference session in double precision that follows the library: after each step it holds every verdict, list, mass and output
 * against its own, then takes over the library's verdict and list, so that one borderline decision does not hide what comes
 * after.
 */
#ifndef PRHS_TEST_FOLLOW_H
#define PRHS_TEST_FOLLOW_H

#include "cases.h"
#include "selector.h"
#include "world.h"

#define F_MARGIN 1e-3 /* a verdict may differ only where the reference's margin is below this */
#define F_HEADS 64

typedef struct f_unit {
    int32_t ref_pos; /* < 0: none */
    prhs_set set;
    int32_t list[512];
    float *qref;     /* [heads][dim] */
    t_dropped *drop; /* [heads] */
    double delta_ref[F_HEADS];
} f_unit;

/* What the test counts by itself; unit-steps, as prhs_stats. */
typedef struct f_counts {
    uint64_t steps, dense, window, stream, share, retrieve, seed, causes, cosine, rows_dense, unsure, rows_unsure;
    uint64_t exact_n, estimate_n, audit_n;
    double kept, attended, exact, estimate, audit;
} f_counts;

typedef struct f_seq {
    t_wseq *seq;
    f_unit *units[W_LAYERS];   /* NULL in dense layers */
    int32_t counted[W_LAYERS]; /* rows in the value sums */
    f_counts counts;
} f_seq;

typedef struct f_follow {
    t_world w;
    uint32_t units, unit_heads, group;
    float *K, *V; /* one layer of one sequence */
    int32_t *positions;
    uint64_t verdicts, unsure;
} f_follow;

typedef struct f_part {
    f_seq *s;
    t_entry e;
} f_part;

void f_make(t_ctx *t, f_follow *f, const t_setup *setup);
f_seq *f_new(f_follow *f, uint64_t root, int32_t slot);
/* A step over all layers, followed. */
void f_step(f_follow *f, f_part *parts, int n);
void f_one(f_follow *f, f_seq *s, int32_t rows, int32_t flags);
void f_prompt(f_follow *f, f_seq *s, int32_t n, int32_t chunk);
void f_resize(f_follow *f, f_seq *s, int what, int32_t len);
f_seq *f_fork(f_follow *f, const f_seq *s, int32_t slot);
void f_reset(f_follow *f, f_seq *s);
void f_move(f_follow *f, f_seq *s, int32_t slot);
/* Export, reset, import elsewhere: statistics stay behind. */
void f_swap(f_follow *f, f_seq *s, int32_t slot);
/* The library's statistics against the counts. */
void f_check_stats(f_follow *f, const f_seq *s);

/* Shared by follow.c and follow_unit.c. */
typedef struct f_where {
    f_follow *f;
    f_seq *s;
    const t_entry *e;
    uint32_t layer, unit;
    const prhs_unit_view *view;
    int32_t t; /* position of row 0 (of the last row in a seed) */
    int seed;
} f_where;

void f_unit_step(const f_where *at);
/* Attention of one row and head over positions; fills *j. */
void f_judge(const f_where *at, int32_t row, uint32_t head, const int32_t *positions, size_t n, t_judged *j);
void f_check_output(const f_where *at, int32_t row, uint32_t head, t_judged *j, double delta, double delta_bar);

#endif
