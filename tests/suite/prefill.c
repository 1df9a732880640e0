/* SPDX-License-Identifier: Apache-2.0 */
/* Causal prefill: all tokens, PSAW's window, ETF's frozen rows; against double precision. */
#include <math.h>
#include <stdio.h>

#include "cases.h"
#include "groups.h"

#define LAYERS 12

static const struct window {
    const char *name;
    int psaw, etf;
    uint32_t layer, sinks;
} windows[] = {
    { "no policy", 0, 0, 0, 0 },
    { "window", 1, 0, 9, 4 },
    { "window and frozen rows", 1, 1, 11, 3 },
    { "frozen rows", 0, 1, 7, 4 },
    { "before the window's layers", 1, 1, 3, 4 },
    { "many sinks", 1, 0, 11, 64 },
};

static size_t visible(const prhs_policy *policy, uint32_t layer, int32_t pos, int32_t *out) {
    size_t n = 0;
    int32_t sinks = policy ? (int32_t)policy->sinks : 0;
    int32_t start = policy ? (int32_t)prhs_psaw_start(policy, LAYERS, layer, (uint32_t)pos) : 0;
    for (int32_t j = 0; j <= pos; j++)
        if (j < sinks || j >= start)
            out[n++] = j;
    return n;
}

static void check_rows(t_bench *b, int seq, const prhs_policy *policy, const struct window *w, const float *out,
                       const float *lse) {
    t_ctx *t = b->t;
    int32_t *positions = t_alloc(t, b->max_len * sizeof *positions), rows = t_bench_rows(b, seq), len = b->c->len[seq];
    uint32_t frozen = policy ? prhs_etf_frozen(policy, LAYERS, w->layer, (uint32_t)b->batch.seqs[seq].prompt_len) : 0;
    char where[160];
    for (int32_t r = 0; r < rows; r++) {
        size_t row = (size_t)(b->batch.seqs[seq].row_begin + r);
        int32_t pos = len - rows + r;
        if ((uint32_t)pos < frozen) {
            T_CHECK(t, t_rows_untouched(t, &b->out, (uint32_t)row), "%s: frozen row %d of sequence %d was written", w->name, pos,
                    seq);
            T_CHECK(t, isnan(lse[row * b->sh->heads]), "%s: frozen row %d of sequence %d: log-sum-exp was written", w->name, pos,
                    seq);
            continue;
        }
        size_t n = visible(policy, w->layer, pos, positions);
        for (uint32_t h = 0; h < b->sh->heads; h++) {
            t_judged j;
            t_judge(b->Q + (row * b->sh->heads + h) * b->sh->dim, b->K[seq], b->V[seq], b->sh->kv_heads, h / b->group, b->sh->dim,
                    (double)b->scale, positions, n, &j);
            snprintf(where, sizeof where, "%s: sequence %d position %d head %u", w->name, seq, pos, h);
            t_allow_tensor(t, b->sh->kv, &j, lse[row * b->sh->heads + h], where);
            t_check_row(t, &j, out + (row * b->sh->heads + h) * b->sh->dim, lse[row * b->sh->heads + h], b->sh->dim, b->sh->out,
                        where);
        }
    }
}

static prhs_policy policy_of(t_ctx *t, const struct window *w) {
    prhs_policy policy;
    T_OK(t, prhs_policy_preset("cpe", LAYERS, &policy));
    policy.psaw = (uint32_t)w->psaw;
    policy.etf = (uint32_t)w->etf;
    policy.sinks = w->sinks;
    return policy;
}

static void check_window(t_bench *b, const struct window *w, const prhs_policy *policy) {
    t_ctx *t = b->t;
    t_poison(t, b->out.buf);
    t_poison(t, b->lse);
    T_OK(t,
         prhs_op_prefill(b->ops, t->queue, &b->batch.b, &b->cache.kv, &b->q.r, policy, LAYERS, w->layer, &b->out.r, b->lse.mem));
    float *out = t_rows_get(t, &b->out), *lse = t_fetch(t, b->lse.mem, b->lse.size);
    for (int i = 0; i < C_SEQS - 1; i++)
        check_rows(b, i, policy, w, out, lse);
    T_CHECK(t, t_rows_untouched(t, &b->out, (uint32_t)b->batch.seqs[6].row_begin), "%s: a decode row was written", w->name);
    T_CHECK(t, t_rows_untouched(t, &b->out, 0), "%s: a row that belongs to nobody was written", w->name);
}

static void run(t_ctx *t, int row) {
    t_bench *b = t_alloc(t, sizeof *b);
    t_bench_make(t, b, &t_cases[row], 33);
    for (int i = 0; i < C_SEQS; i++) {
        b->batch.seqs[i].flags = PRHS_SEQ_PREFILL | (i % 2 ? PRHS_SEQ_SEED : 0);
        b->batch.seqs[i].prompt_len = b->c->len[i] + i * 5;
    }
    b->batch.seqs[6].flags = 0; /* a decode entry is none of prefill's business */
    t_batch_upload(t, &b->batch);
    for (size_t k = 0; k < sizeof windows / sizeof *windows; k++) {
        prhs_policy policy = policy_of(t, &windows[k]);
        check_window(b, &windows[k], k ? &policy : NULL);
    }
    for (int k = 0; row == 0 && k < 100; k++) { /* the window's start at every place of a block */
        struct window w = { "any window", 1, k % 2, 11, t_below(t, 70) };
        prhs_policy policy = policy_of(t, &w);
        policy.psaw_phi = 0.05f + 0.9f * (float)t_uniform(t);
        policy.etf_psi = 0.05f + 0.9f * (float)t_uniform(t);
        check_window(b, &w, &policy);
    }
    t_cache_check(t, &b->cache, "prefill");
}

const t_group t_group_prefill = { "prefill", 27, 10, t_case_name, run };
