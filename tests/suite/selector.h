/* SPDX-License-Identifier: Apache-2.0 */
/* Selection and what it drops, in double precision, with the bars that float32 needs. */
#ifndef PRHS_TEST_SELECTOR_H
#define PRHS_TEST_SELECTOR_H

#include "harness.h"

/* A unit's decision query and its keys. */
typedef struct t_unit {
    const float *q; /* [heads][dim] */
    const float *K, *V; /* [n][kv_heads][dim] */
    uint32_t kv_heads, hk, dim, heads;
    double scale;
} t_unit;

typedef struct t_select_rule {
    uint32_t k, run, dilate_m, dilate_back, dilate_ahead;
    int max; /* join by the maximum, else the sum */
} t_select_rule;

typedef struct t_selection {
    t_unit u;
    t_select_rule rule;
    int32_t n;      /* tokens up to the decision row's own */
    double *score;  /* [heads][n] */
    double bar;     /* F7's */
    int32_t runs;   /* candidates */
    int32_t first;  /* position of candidate 0; candidate i lies at first + i * run */
    double *key;    /* [runs] */
    uint8_t *taken; /* [runs] */
    int32_t edge_begin, edge_end, win_begin, count;
    int32_t mid_begin, mid_end;
} t_selection;

/* Scores [0, sink_end) and [mid_begin, pos], selects from [mid_begin, mid_end). */
t_selection t_select(t_ctx *t, const t_unit *u, const t_select_rule *rule, int32_t sink_end, int32_t mid_begin, int32_t mid_end,
                     int32_t pos);
/* F9: the same list but for swaps of tokens of nearly equal weight; ties of equal keys go to the lower position. */
int t_same_list(const t_selection *s, const int32_t *list, int32_t count, char *why, size_t size);

/* What a list drops from the middle, for one head. */
typedef struct t_dropped {
    double l;     /* log-sum-exp; -inf: nothing */
    int vanishes; /* so far below the middle's largest score that float32 weights are 0: -inf is right too */
    double mean[256], var[256], mean_bar[256], var_bar[256];   /* of its keys */
    double spread, spread_bar;                                 /* of its scores: their variance */
    double value[256], value_bar[256];                         /* mean value */
} t_dropped;

void t_drop_moments(t_ctx *t, const t_selection *s, uint32_t head, const prhs_set *set, const int32_t *list, t_dropped *out);

#endif
