/* SPDX-License-Identifier: Apache-2.0 */
/* The table of op cases, and the data that a case lays out: sequences in a paged cache, their queries, their sets. */
#ifndef PRHS_TEST_CASES_H
#define PRHS_TEST_CASES_H

#include "fixture.h"

#define C_SEQS 7

typedef enum t_data { D_NORMAL, D_PEAKED, D_TINY, D_HUGE, D_TIES, D_NAN, D_INF, D_ZERO, D_DEAD, D_EQUAL, D_CUTS } t_data;

typedef struct t_case {
    const char *name;
    uint8_t shape;
    prhs_join join;
    t_data data;
    t_layout layout;
    uint32_t decode_rows, granularity, k, sinks, local;
    uint32_t dilate_m, dilate_back, dilate_ahead;
    int32_t len[C_SEQS]; /* kv_len of each sequence, 0: idle */
} t_case;

extern const t_case t_cases[];
extern const int t_case_count, t_case_quick;
const char *t_case_name(int row);

typedef struct t_bench {
    t_ctx *t;
    const t_case *c;
    const t_shape *sh;
    uint32_t units, unit_heads, group, max_len, rows, max_rows; /* rows: of one entry, at most */
    float scale;
    t_cache cache;
    t_batch batch;
    float *K[C_SEQS], *V[C_SEQS]; /* [len][kv_heads][dim], as cached */
    float *Q;                     /* [max_rows][heads][dim], as the device sees them */
    t_rows q, out;
    t_buf lse, state, ws;
    prhs_ops *ops;
    prhs_ops_params params;
    prhs_ops_layout layout;
} t_bench;

/* Makes everything: K/V are in the cache, each entry has `rows` rows (fewer where it is shorter); 0: the case's decode_rows. */
void t_bench_make(t_ctx *t, t_bench *b, const t_case *c, uint32_t rows);
int32_t t_bench_rows(const t_bench *b, int seq);
/* Where the sequence's row lies, on the host. */
const float *t_bench_q(const t_bench *b, int seq, int32_t row);
void t_bench_set_sets(t_bench *b, const prhs_set *sets); /* [C_SEQS][units] */
prhs_set *t_bench_get_sets(t_bench *b);
/* Position j of the set of (seq, unit); the list is the unit's. Returns how many there are; out may be NULL. */
size_t t_set_positions(const prhs_set *set, const int32_t *list, int32_t pos, int32_t *out);
/* Runs attend and compares every decode row with the oracle over the sets given. */
void t_bench_attend(t_bench *b, const prhs_set *sets, const int32_t *lists, const char *what);

/* Attention of one head over n positions, in double precision. */
typedef struct t_judged {
    double o[256], lse;
    double bar; /* F7: 1e-6 * max(1, max scale * sum |q k| / 8) */
} t_judged;

void t_judge(const float *q, const float *K, const float *V, uint32_t kv_heads, uint32_t hk, uint32_t dim, double scale,
             const int32_t *positions, size_t n, t_judged *j);
/*
 * For prompt rows on tensor cores, which multiply weights of the cache's dtype: 2^-10 or 2^-7 for the output. Scores are as good as
 * float32's, but for queries that become two bfloat16: the log-sum-exp is checked here.
 */
void t_allow_tensor(t_ctx *t, prhs_dtype kv, t_judged *j, float lse, const char *what);
/* Holds an output row and its log-sum-exp against the judge; `type` is what the output was rounded to. */
void t_check_row(t_ctx *t, const t_judged *j, const float *o, float lse, uint32_t dim, prhs_dtype type, const char *what);
/* |a - b| within bar * max(1, |b|), NaN and infinities alike. */
int t_near(double a, double b, double bar);

#endif
