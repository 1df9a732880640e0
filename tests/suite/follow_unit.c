/* SPDX-License-Identifier: Apache-2.0 */
/* The following reference: one unit's verdict, list, masses, further rows and outputs. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "follow.h"

typedef struct plan {
    int mode; /* DENSE, WINDOW, STREAM, or SHARE for "sparse" */
    int32_t n, w, start, lo;
} plan;

static plan bounds(const f_where *at) {
    const t_setup *s = &at->f->w.s;
    const prhs_policy *p = &s->policy;
    plan b = { PRHS_MODE_SHARE, at->t + 1, 0, (int32_t)prhs_psaw_start(p, s->layers, at->layer, (uint32_t)at->t), 0 };
    int32_t sinks = (int32_t)p->sinks, local = (int32_t)p->local;
    b.w = b.n > local ? b.n - local : 0;
    b.lo = sinks > b.start ? sinks : b.start;
    int fits = (int64_t)b.w - b.lo <= (int64_t)p->k;
    if (b.n < (int32_t)p->min_sparse_n || (fits && b.start <= sinks))
        b.mode = PRHS_MODE_DENSE;
    else if (fits)
        b.mode = PRHS_MODE_WINDOW;
    else if (p->k == 0)
        b.mode = PRHS_MODE_STREAM;
    return b;
}

static f_unit *unit_of(const f_where *at) { return &at->s->units[at->layer][at->unit]; }

static void query(const f_where *at, int32_t row, uint32_t g, float *q) {
    float all[64 * 256];
    uint32_t dim = at->f->w.s.shape->dim;
    t_world_query(&at->f->w, at->s->seq, at->layer, at->s->seq->len - at->e->rows + row, all);
    memcpy(q, all + ((size_t)at->unit * at->f->unit_heads + g) * dim, dim * sizeof *q);
}

static double cosine(const float *a, const float *b, uint32_t dim) {
    double ab = 0, aa = 0, bb = 0;
    for (uint32_t d = 0; d < dim; d++) {
        ab += (double)a[d] * (double)b[d];
        aa += (double)a[d] * (double)a[d];
        bb += (double)b[d] * (double)b[d];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

/* The worst head's cosine above tau, against the reference query. */
static double cosine_margin(const f_where *at, int32_t row) {
    float q[256];
    uint32_t dim = at->f->w.s.shape->dim;
    double worst = INFINITY;
    for (uint32_t g = 0; g < at->f->unit_heads; g++) {
        query(at, row, g, q);
        worst = fmin(worst, cosine(q, unit_of(at)->qref + (size_t)g * dim, dim) - (double)at->f->w.s.policy.tau);
    }
    return worst;
}

/* The dropped mass predicted for a row's head whose kept set has log-sum-exp L; *bar: what float32 may be off. */
static double estimate(const f_where *at, int32_t row, uint32_t g, const t_judged *j, double *bar) {
    const f_unit *u = unit_of(at);
    const t_dropped *drop = &u->drop[g];
    float q[256];
    uint32_t dim = at->f->w.s.shape->dim;
    double scale = (double)(float)(1.0 / sqrt((double)dim)), x = 0, off = 4 * j->bar;
    *bar = 0;
    if (drop->l == -(double)INFINITY)
        return 0;
    query(at, row, g, q);
    for (uint32_t d = 0; d < dim; d++) {
        double delta = (double)q[d] - (double)u->qref[(size_t)g * dim + d];
        x += scale * delta * drop->mean[d] + 0.5 * scale * scale * delta * delta * drop->var[d];
        off += scale * fabs(delta) * drop->mean_bar[d] + 0.5 * scale * scale * delta * delta * drop->var_bar[d];
        off += 3e-7 * fabs(scale * delta * drop->mean[d]);
    }
    double l = drop->l + x - j->lse, est = 1 / (1 + exp(-fmin(20.0, l)));
    *bar = est * (1 - est) * off + 2e-7 * est;
    return est;
}

static t_judged kept(const f_where *at, int32_t row, uint32_t g, const prhs_set *set) {
    t_judged j;
    int32_t pos = at->s->seq->len - at->e->rows + row;
    size_t n = t_set_positions(set, unit_of(at)->list, pos, at->f->positions);
    f_judge(at, row, at->unit * at->f->unit_heads + g, at->f->positions, n, &j);
    return j;
}

/* The verdict on sharing: > 0 share, < 0 retrieve, NAN where there is nothing to share. Sets *by_cosine. */
static double share_margin(const f_where *at, const plan *b, int *by_cosine) {
    const prhs_policy *p = &at->f->w.s.policy;
    const f_unit *u = unit_of(at);
    uint32_t block = p->block;
    *by_cosine = 0;
    if (at->seed || u->ref_pos < 0 || u->ref_pos >= at->t ||
        ((uint32_t)u->ref_pos + at->layer) / block != ((uint32_t)at->t + at->layer) / block)
        return NAN;
    double margin = p->gate == PRHS_GATE_NONE ? (double)INFINITY : cosine_margin(at, 0);
    *by_cosine = margin < 0;
    (void)b;
    if (p->gate != PRHS_GATE_MASS || margin < -F_MARGIN)
        return margin;
    prhs_set set = u->set;
    set.end = at->s->seq->len;
    for (uint32_t g = 0; g < at->f->unit_heads; g++) {
        double bar;
        t_judged j = kept(at, 0, g, &set);
        double rise = (double)p->eps - (estimate(at, 0, g, &j, &bar) - u->delta_ref[g]);
        margin = fmin(margin, rise);
    }
    return margin;
}

static void check_list(const f_where *at, const plan *b) {
    f_follow *f = at->f;
    const prhs_policy *p = &f->w.s.policy;
    const t_shape *sh = f->w.s.shape;
    f_unit *u = unit_of(at);
    const prhs_set *set = &at->view->set;
    int32_t row = at->seed ? at->e->rows - 1 : 0;
    char why[256];
    float *q = t_alloc(f->w.t, f->unit_heads * sh->dim * sizeof *q);
    for (uint32_t g = 0; g < f->unit_heads; g++)
        query(at, row, g, q + (size_t)g * sh->dim);
    t_unit unit = { q,
                    f->K,
                    sh->kv_heads,
                    at->unit * f->unit_heads / f->group,
                    sh->dim,
                    f->unit_heads,
                    (double)(float)(1.0 / sqrt((double)sh->dim)) };
    t_select_rule rule = { p->k, p->granularity, p->dilate_m, p->dilate_back, p->dilate_ahead, p->join == PRHS_JOIN_MAX };
    t_selection ref = t_select(f->w.t, &unit, &rule, (int32_t)p->sinks, b->lo, b->w, at->t);
    T_CHECK(f->w.t,
            set->sink_end == (int32_t)p->sinks && set->mid_begin == b->lo && set->mid_end == b->w &&
                set->win_begin == ref.win_begin && set->run == (int32_t)p->granularity,
            "layer %u at %d: set %d %d %d %d", at->layer, at->t, set->sink_end, set->mid_begin, set->mid_end, set->win_begin);
    T_CHECK(f->w.t, set->edge_end - set->edge_begin == ref.edge_end - ref.edge_begin, "layer %u at %d: edge", at->layer, at->t);
    T_CHECK(f->w.t, t_same_list(&ref, at->view->list, set->count, why, sizeof why), "layer %u at %d unit %u: %s", at->layer,
            at->t, at->unit, why);
    T_CHECK(f->w.t, set->end == at->t + 1, "layer %u at %d: the reference's length is %d", at->layer, at->t, set->end);
    T_CHECK(f->w.t, at->view->ref_pos == at->t, "layer %u at %d: the reference is at %d", at->layer, at->t, at->view->ref_pos);
    u->ref_pos = at->t;
    u->set = *set;
    memcpy(u->list, at->view->list, (size_t)set->count * sizeof *u->list);
    memcpy(u->qref, q, f->unit_heads * sh->dim * sizeof *q);
    for (uint32_t g = 0; g < f->unit_heads; g++) {
        t_drop_moments(f->w.t, &ref, g, set, u->list, &u->drop[g]);
        prhs_set now = *set;
        now.end = at->s->seq->len;
        t_judged j = kept(at, row, g, &now);
        double l = u->drop[g].l, delta = l == -(double)INFINITY ? 0 : 1 / (1 + exp(j.lse - l));
        u->delta_ref[g] = (double)at->view->heads[g].delta_ref;
        T_CHECK(f->w.t, fabs(delta - u->delta_ref[g]) <= 4 * j.bar * delta + 1e-12,
                "layer %u at %d head %u: exact mass %.9g instead of %.9g", at->layer, at->t, g, u->delta_ref[g], delta);
        T_CHECK(f->w.t, t_near((double)at->view->heads[g].l_dropped, l, 2 * j.bar),
                "layer %u at %d head %u: L_D %.9g instead of %.9g", at->layer, at->t, g, (double)at->view->heads[g].l_dropped, l);
    }
}

/* The exact dropped mass of row 0, over all cached tokens. */
static void check_audit(const f_where *at, uint32_t g, const prhs_set *set) {
    f_counts *c = &at->s->counts;
    if (!at->f->w.s.audit)
        return;
    t_judged in = kept(at, 0, g, set), all;
    for (int32_t j = 0; j <= at->t; j++)
        at->f->positions[j] = j;
    f_judge(at, 0, at->unit * at->f->unit_heads + g, at->f->positions, (size_t)at->t + 1, &all);
    double want = 1 - exp(in.lse - all.lse), got = (double)at->view->heads[g].audit;
    T_CHECK(at->f->w.t, fabs(got - want) <= 8 * all.bar, "layer %u at %d head %u: audited mass %.9g instead of %.9g", at->layer,
            at->t, g, got, want);
    c->audit += got;
    c->audit_n++;
}

static void row_zero(const f_where *at, const prhs_set *set) {
    const prhs_policy *p = &at->f->w.s.policy;
    f_counts *c = &at->s->counts;
    int mode = at->view->set.mode;
    for (uint32_t g = 0; g < at->f->unit_heads; g++) {
        t_judged j = kept(at, 0, g, set);
        double delta = 0, bar = 0, got = (double)at->view->heads[g].delta;
        if (mode == PRHS_MODE_RETRIEVE) {
            delta = (double)at->view->heads[g].delta_ref;
            T_CHECK(at->f->w.t, got == delta, "layer %u at %d head %u: mass %.9g after a retrieval of %.9g", at->layer, at->t, g,
                    got, delta);
            c->exact += delta;
            c->exact_n++;
        } else if (mode == PRHS_MODE_SHARE) {
            delta = p->gate == PRHS_GATE_MASS ? estimate(at, 0, g, &j, &bar) : unit_of(at)->delta_ref[g];
            T_CHECK(at->f->w.t, fabs(got - delta) <= bar, "layer %u at %d head %u: estimate %.9g instead of %.9g, bar %.2g",
                    at->layer, at->t, g, got, delta, bar);
            delta = got; /* followed */
            c->estimate += got;
            c->estimate_n++;
        }
        f_check_output(at, 0, at->unit * at->f->unit_heads + g, &j, delta, 0);
        if (mode != PRHS_MODE_DENSE)
            check_audit(at, g, set);
    }
}

/* A further row: the list up to its own position, or densely where its own gate fails. */
static void further_row(const f_where *at, int32_t row, const prhs_set *set) {
    const prhs_policy *p = &at->f->w.s.policy;
    int mode = at->view->set.mode, sparse = mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE;
    double margin = sparse && p->gate != PRHS_GATE_NONE ? cosine_margin(at, row) : (double)INFINITY, delta[F_HEADS] = { 0 },
           bar[F_HEADS] = { 0 };
    t_judged j[F_HEADS];
    for (uint32_t g = 0; g < at->f->unit_heads; g++) {
        j[g] = kept(at, row, g, set);
        if (sparse && p->gate == PRHS_GATE_MASS) {
            delta[g] = estimate(at, row, g, &j[g], &bar[g]);
            margin = fmin(margin, (double)p->eps - (delta[g] - unit_of(at)->delta_ref[g]));
        }
    }
    int32_t pos = at->s->seq->len - at->e->rows + row;
    size_t out = (size_t)(at->e->row_begin + row) * at->f->w.s.shape->heads + at->unit * at->f->unit_heads;
    if (fabs(margin) < F_MARGIN) { /* either way is right: the row's own log-sum-exp tells which was taken */
        at->s->counts.rows_unsure++;
        margin = t_near((double)at->f->w.lses[at->layer][out], j[0].lse, j[0].bar) ? 1 : -1;
        at->s->counts.rows_dense -= margin < 0;
    }
    at->s->counts.rows_dense += margin < 0;
    for (uint32_t g = 0; g < at->f->unit_heads; g++) {
        if (margin < 0) {
            for (int32_t i = 0; i <= pos; i++)
                at->f->positions[i] = i;
            f_judge(at, row, at->unit * at->f->unit_heads + g, at->f->positions, (size_t)pos + 1, &j[g]);
            delta[g] = bar[g] = 0;
        }
        f_check_output(at, row, at->unit * at->f->unit_heads + g, &j[g], delta[g], bar[g]);
    }
}

static void count(const f_where *at, const plan *b, const prhs_set *set) {
    f_counts *c = &at->s->counts;
    const f_unit *u = unit_of(at);
    size_t n = t_set_positions(set, u->list, at->t, NULL);
    c->steps++;
    c->attended += (double)n;
    switch (at->view->set.mode) {
    case PRHS_MODE_DENSE: c->dense++; return;
    case PRHS_MODE_WINDOW:
        c->window++;
        c->kept += (double)n;
        return;
    case PRHS_MODE_STREAM:
        c->stream++;
        c->kept += set->sink_end + (double)at->f->w.s.policy.local;
        return;
    case PRHS_MODE_SHARE: c->share++; break;
    default: c->retrieve++; break;
    }
    c->kept += u->set.sink_end + (u->set.edge_end - u->set.edge_begin) + (double)u->set.count * u->set.run +
               (u->set.end - u->set.win_begin);
    (void)b;
}

/* The set of the mode that the library took. */
static prhs_set attended_set(const f_where *at, const plan *b) {
    const prhs_policy *p = &at->f->w.s.policy;
    const f_unit *u = unit_of(at);
    int32_t end = at->s->seq->len, sinks = (int32_t)p->sinks;
    prhs_set s = { .mode = at->view->set.mode, .run = 1, .end = end };
    switch (at->view->set.mode) {
    case PRHS_MODE_DENSE: return s;
    case PRHS_MODE_WINDOW:
        s.sink_end = sinks;
        s.win_begin = b->start;
        return s;
    case PRHS_MODE_STREAM:
        s.sink_end = sinks;
        s.win_begin = b->w > b->lo ? b->w : b->lo;
        return s;
    default:
        s = u->set;
        s.end = end;
        if (p->gate == PRHS_GATE_NONE && at->view->set.mode == PRHS_MODE_SHARE)
            s.win_begin = u->set.win_begin > u->set.mid_begin ? b->w - b->w % (int32_t)p->granularity : u->set.win_begin;
        return s;
    }
}

static void verdict(const f_where *at, const plan *b) {
    f_counts *c = &at->s->counts;
    int mode = at->view->set.mode, by_cosine;
    double margin = share_margin(at, b, &by_cosine);
    int want = margin > 0 ? PRHS_MODE_SHARE : PRHS_MODE_RETRIEVE;
    at->f->verdicts++;
    T_CHECK(at->f->w.t, mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE, "layer %u at %d: mode %d of a sparse step",
            at->layer, at->t, mode);
    T_CHECK(at->f->w.t, mode == want || fabs(margin) < F_MARGIN, "layer %u at %d unit %u: %s, the reference's margin is %.4g",
            at->layer, at->t, at->unit, mode == PRHS_MODE_SHARE ? "shared" : "retrieved", margin);
    if (isnan(margin))
        return;
    at->f->unsure += fabs(margin) < F_MARGIN;
    c->unsure += fabs(margin) < F_MARGIN;
    if (mode == PRHS_MODE_RETRIEVE) {
        c->causes++;
        c->cosine += (uint64_t)by_cosine;
    }
}

void f_unit_step(const f_where *at) {
    plan b = bounds(at);
    if (at->seed) {
        if (b.mode == PRHS_MODE_SHARE) {
            check_list(at, &b);
            at->s->counts.seed++;
        }
        return;
    }
    if (b.mode == PRHS_MODE_SHARE)
        verdict(at, &b);
    else
        T_CHECK(at->f->w.t, at->view->set.mode == b.mode, "layer %u at %d: mode %d instead of %d", at->layer, at->t,
                at->view->set.mode, b.mode);
    if (at->view->set.mode == PRHS_MODE_RETRIEVE)
        check_list(at, &b);
    prhs_set set = attended_set(at, &b);
    row_zero(at, &set);
    for (int32_t r = 1; r < at->e->rows; r++)
        further_row(at, r, &set);
    count(at, &b, &set);
}
