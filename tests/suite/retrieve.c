/* SPDX-License-Identifier: Apache-2.0 */
/* A retrieval, op by op: score, select (total order, runs, dilation), moments, attend over what was selected. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"
#include "groups.h"
#include "selector.h"

static int32_t decision(const t_bench *b, int seq) { return b->c->len[seq] - t_bench_rows(b, seq); }

/* The set before selection, as docs/kernels.md has it: the middle is what PSAW's start and the window leave. */
static prhs_set fresh(const t_bench *b, int seq) {
    int32_t n = decision(b, seq) + 1, w = n - (int32_t)b->c->local, start = seq == 5 ? 9 : 0;
    int32_t sinks = (int32_t)b->c->sinks, lo = sinks > start ? sinks : start;
    if (!t_bench_rows(b, seq) || w <= lo)
        return (prhs_set){ .mode = PRHS_MODE_IDLE, .run = 1 };
    return (prhs_set){ .mode = PRHS_MODE_RETRIEVE,
                       .sink_end = sinks,
                       .run = (int32_t)b->c->granularity,
                       .win_begin = w,
                       .end = b->c->len[seq],
                       .mid_begin = lo,
                       .mid_end = w };
}

static t_selection reference(t_bench *b, int seq, uint32_t unit, const prhs_set *set) {
    const t_case *c = b->c;
    t_select_rule rule = { c->k, c->granularity, c->dilate_m, c->dilate_back, c->dilate_ahead, c->join == PRHS_JOIN_MAX };
    t_unit u = { t_bench_q(b, seq, 0) + (size_t)unit * b->unit_heads * b->sh->dim,
                 b->K[seq],
                 b->V[seq],
                 b->sh->kv_heads,
                 unit * b->unit_heads / b->group,
                 b->sh->dim,
                 b->unit_heads,
                 (double)b->scale };
    return t_select(b->t, &u, &rule, set->sink_end, set->mid_begin, set->mid_end, decision(b, seq));
}

static void check_scores(t_bench *b, int seq, uint32_t unit, const prhs_set *set, const t_selection *ref) {
    t_ctx *t = b->t;
    int32_t n = decision(b, seq) + 1;
    for (uint32_t g = 0; g < b->unit_heads; g++) {
        uint64_t head = (uint64_t)seq * b->sh->heads + unit * b->unit_heads + g;
        float *got = t_fetch(t, t_at(b->ws.mem, b->layout.scores + head * b->layout.score_stride * 4), (size_t)n * 4);
        for (int32_t j = 0; j < n; j++)
            if (j < set->sink_end || j >= set->mid_begin) {
                double want = ref->score[(size_t)g * (size_t)n + (size_t)j];
                T_CHECK(t, t_near((double)got[j], want, ref->bar / fmax(1.0, fabs(want))),
                        "score of sequence %d unit %u head %u at %d: %.9g instead of %.9g", seq, unit, g, j, (double)got[j],
                        want);
            }
        t_drop(t, got);
    }
}

/* Where a score is a token's key, the total order holds on the library's own scores: NaN (and +inf) first, then the higher one,
 * zeros of both signs alike, then the lower position. */
static void check_order(t_bench *b, int seq, uint32_t unit, const prhs_set *set, const int32_t *list) {
    t_ctx *t = b->t;
    int32_t n = decision(b, seq) + 1, last_in = -1, first_out = -1;
    uint64_t head = (uint64_t)seq * b->sh->heads + unit;
    if (b->unit_heads != 1 || set->run != 1 || b->c->dilate_m)
        return;
    float *s = t_fetch(t, t_at(b->ws.mem, b->layout.scores + head * b->layout.score_stride * 4), (size_t)n * 4);
    for (int32_t j = set->mid_begin, i = 0; j < set->mid_end; j++) {
        int in = i < set->count && list[i] == j;
        int32_t *worst = in ? &last_in : &first_out;
        float key = s[j] < INFINITY ? s[j] : NAN, other = *worst < 0 || s[*worst] < INFINITY ? s[*worst < 0 ? j : *worst] : NAN;
        int higher = isnan(key) ? !isnan(other) : key > other;
        i += in;
        if (*worst < 0 || (in ? !higher : higher)) /* the last of those within in order, the first of those without */
            *worst = j;
    }
    if (last_in < 0 || first_out < 0)
        return;
    float in = s[last_in] < INFINITY ? s[last_in] : NAN, out = s[first_out] < INFINITY ? s[first_out] : NAN;
    int right = isnan(in) ? !isnan(out) || last_in < first_out : !isnan(out) && (in > out || (in == out && last_in < first_out));
    T_CHECK(t, right, "sequence %d unit %u: position %d with score %g is listed before %d with %g", seq, unit, last_in,
            (double)in, first_out, (double)out);
}

static void check_moments(t_bench *b, int seq, uint32_t unit, const prhs_set *set, const int32_t *list, const t_selection *ref) {
    t_ctx *t = b->t;
    uint64_t slot = (uint64_t)b->batch.seqs[seq].slot * b->layout.slot_bytes;
    uint32_t dim = b->sh->dim;
    for (uint32_t g = 0; g < b->unit_heads; g++) {
        uint64_t head = unit * b->unit_heads + g;
        float *mass = t_fetch(t, t_at(b->state.mem, slot + b->layout.masses + head * 16), 16);
        float *mu = t_fetch(t, t_at(b->state.mem, slot + b->layout.moments + head * dim * 8), dim * 8), *var = mu + dim;
        float *spread = t_fetch(t, t_at(b->state.mem, slot + b->layout.spreads + head * 8), 4);
        float *value = t_fetch(t, t_at(b->state.mem, slot + b->layout.values + head * dim * 4), dim * 4);
        float *q = t_fetch(t, t_at(b->state.mem, slot + b->layout.queries + head * dim * 4), dim * 4);
        t_dropped want;
        t_drop_moments(t, ref, g, set, list, &want);
        T_CHECK(t, t_near((double)mass[0], want.l, 2 * ref->bar) || (want.vanishes && mass[0] == -INFINITY),
                "sequence %d unit %u head %u: dropped log-sum %.9g instead of %.9g", seq, unit, g, (double)mass[0], want.l);
        T_CHECK(t, mass[0] == -INFINITY ? *spread == 0 : want.vanishes || t_near((double)*spread, want.spread, want.spread_bar / fmax(1, want.spread)),
                "sequence %d unit %u head %u: scores vary by %.9g instead of %.9g, bar %.3g", seq, unit, g, (double)*spread, want.spread,
                want.spread_bar);
        for (uint32_t d = 0; d < dim && mass[0] == -INFINITY; d++)
            T_CHECK(t, mu[d] == 0 && var[d] == 0 && value[d] == 0, "sequence %d unit %u head %u: moments of nothing are %g, %g, %g", seq,
                    unit, g, (double)mu[d], (double)var[d], (double)value[d]);
        for (uint32_t d = 0; d < dim && !want.vanishes; d++) {
            T_CHECK(t, q[d] == t_bench_q(b, seq, 0)[head * dim + d], "sequence %d head %u: the reference query", seq,
                    (unsigned)head);
            T_CHECK(t, t_near((double)mu[d], want.mean[d], want.mean_bar[d] / fmax(1, fabs(want.mean[d]))),
                    "sequence %d unit %u head %u channel %u: mean %.9g instead of %.9g, bar %.3g", seq, unit, g, d, (double)mu[d],
                    want.mean[d], want.mean_bar[d]);
            T_CHECK(t, t_near((double)var[d], want.var[d], want.var_bar[d] / fmax(1, fabs(want.var[d]))),
                    "sequence %d unit %u head %u channel %u: variance %.9g instead of %.9g, bar %.3g", seq, unit, g, d,
                    (double)var[d], want.var[d], want.var_bar[d]);
            T_CHECK(t, t_near((double)value[d], want.value[d], want.value_bar[d] / fmax(1, fabs(want.value[d]))),
                    "sequence %d unit %u head %u channel %u: dropped value %.9g instead of %.9g, bar %.3g", seq, unit, g, d,
                    (double)value[d], want.value[d], want.value_bar[d]);
        }
    }
}

static void check_unit(t_bench *b, int seq, uint32_t unit, const prhs_set *before, const prhs_set *set, const int32_t *list) {
    t_ctx *t = b->t;
    size_t mark = t_mark(t);
    char why[256];
    t_selection ref = reference(b, seq, unit, before);
    check_scores(b, seq, unit, before, &ref);
    T_CHECK(t,
            set->mode == PRHS_MODE_RETRIEVE && set->sink_end == before->sink_end && set->end == before->end &&
                set->run == before->run,
            "sequence %d unit %u: select changed what it may not", seq, unit);
    T_CHECK(t, set->mid_begin == before->mid_begin && set->mid_end == before->mid_end, "sequence %d unit %u: the middle moved",
            seq, unit);
    T_CHECK(t,
            set->edge_end - set->edge_begin == ref.edge_end - ref.edge_begin &&
                (ref.edge_begin == ref.edge_end || set->edge_begin == ref.edge_begin),
            "sequence %d unit %u: edge [%d, %d) instead of [%d, %d)", seq, unit, set->edge_begin, set->edge_end, ref.edge_begin,
            ref.edge_end);
    T_CHECK(t, set->win_begin == ref.win_begin, "sequence %d unit %u: window from %d instead of %d", seq, unit, set->win_begin,
            ref.win_begin);
    T_CHECK(t, t_same_list(&ref, list, set->count, why, sizeof why), "sequence %d unit %u: %s", seq, unit, why);
    check_order(b, seq, unit, set, list);
    check_moments(b, seq, unit, set, list, &ref);
    t_release_to(t, mark);
}

static void run(t_ctx *t, int row) {
    t_bench *b = t_alloc(t, sizeof *b);
    const t_case *c = &t_cases[row];
    t_bench_make(t, b, c, 0);
    size_t units = C_SEQS * (size_t)b->units, cap = b->params.list_cap;
    prhs_set *before = t_alloc(t, units * sizeof *before);
    for (size_t u = 0; u < units; u++)
        before[u] = fresh(b, (int)(u / b->units));
    t_bench_set_sets(b, before);
    prhs_select_params select = PRHS_SELECT_PARAMS_INIT;
    select.k = c->k;
    select.granularity = c->granularity;
    select.dilate_m = c->dilate_m;
    select.dilate_back = c->dilate_back;
    select.dilate_ahead = c->dilate_ahead;
    select.join = c->join == PRHS_JOIN_MAX ? PRHS_JOIN_MAX : PRHS_JOIN_SUM;
    T_OK(t, prhs_op_score(b->ops, t->queue, &b->batch.b, &b->cache.kv, &b->q.r, 0, 2, b->ws.mem));
    T_OK(t, prhs_op_select(b->ops, t->queue, &b->batch.b, &b->q.r, &select, b->state.mem, b->ws.mem));
    T_OK(t, prhs_op_moments(b->ops, t->queue, &b->batch.b, &b->cache.kv, 1, b->state.mem, b->ws.mem));
    prhs_set *sets = t_bench_get_sets(b);
    int32_t *lists = t_alloc(t, units * cap * sizeof *lists);
    for (int i = 0; i < C_SEQS; i++)
        if (t_bench_rows(b, i))
            t_get(t, lists + (size_t)i * b->units * cap,
                  t_at(b->state.mem, (uint64_t)b->batch.seqs[i].slot * b->layout.slot_bytes + b->layout.lists),
                  b->units * cap * sizeof *lists);
    for (size_t u = 0; u < units; u++) {
        if (before[u].mode == PRHS_MODE_RETRIEVE)
            check_unit(b, (int)(u / b->units), (uint32_t)(u % b->units), &before[u], &sets[u], lists + u * cap);
        else
            sets[u] = (prhs_set){ .run = 1, .end = c->len[u / b->units] }; /* all tokens, for the attention below */
    }
    t_bench_set_sets(b, sets);
    t_bench_attend(b, sets, lists, "selected");
    t_cache_check(t, &b->cache, "retrieval");
}

const t_group t_group_retrieve = { "retrieve", 41, 10, t_case_name, run };
