/* SPDX-License-Identifier: Apache-2.0 */
/* One step on both sides: rows, verdicts, lists, masses, outputs. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "reference.h"

/* One layer of one entry. */
typedef struct where {
    r_pair *p;
    r_part *part;
    uint32_t layer;
    char text[120];
} where;

static oracle_params params_of(const t_setup *s) {
    const prhs_policy *p = &s->policy;
    oracle_params o = { .L = (int)s->layers, .H = (int)s->shape->heads, .H_kv = (int)s->shape->kv_heads };
    o.D = (int)s->shape->dim;
    o.slots = (int)s->max_slots;
    o.scale = (double)(float)(1.0 / sqrt((double)o.D));
    o.c_sink = (int)p->sinks;
    o.c_local = (int)p->local;
    o.k = p->k < 1u << 30 ? (int)p->k : 1 << 30;
    o.never_retrieve = p->k == 0;
    o.dense_layers = (int)p->dense_layers;
    o.min_sparse_n = (int)p->min_sparse_n;
    o.block = (int)p->block;
    o.gate = p->gate == PRHS_GATE_MASS ? ORACLE_GATE_MASS : p->gate == PRHS_GATE_COSINE ? ORACLE_GATE_COSINE : ORACLE_GATE_NONE;
    o.references = (int)p->references;
    o.tau = (double)p->tau;
    o.eps = (double)p->eps;
    o.m = (int)p->dilate_m;
    o.back = (int)p->dilate_back;
    o.ahead = (int)p->dilate_ahead;
    o.granularity = (int)p->granularity;
    o.join = p->join == PRHS_JOIN_MAX ? ORACLE_JOIN_MAX : p->join == PRHS_JOIN_PER_HEAD ? ORACLE_JOIN_PER_HEAD : ORACLE_JOIN_SUM;
    o.residual = p->residual == PRHS_RESIDUAL_MEAN        ? ORACLE_RESIDUAL_MEAN
                 : p->residual == PRHS_RESIDUAL_RETRIEVED ? ORACLE_RESIDUAL_RETRIEVED
                                                          : ORACLE_RESIDUAL_NONE;
    o.target = (double)p->target;
    o.k_min = p->k_min < 1u << 30 ? (int)p->k_min : 1 << 30;
    o.psaw = (int)p->psaw;
    o.psaw_layer = (int)p->psaw_layer;
    o.phi = (double)p->psaw_phi;
    o.alpha = (double)p->psaw_alpha;
    o.etf = (int)p->etf;
    o.etf_layer = (int)p->etf_layer;
    o.psi = (double)p->etf_psi;
    o.gamma = (double)p->etf_gamma;
    return o;
}

void r_make(t_ctx *t, r_pair *p, const t_setup *setup) {
    const t_shape *sh = setup->shape;
    size_t kn = sh->kv_heads * sh->dim, qn = sh->heads * sh->dim, kv = setup->max_kv_len * kn, q = setup->max_rows * qn;
    memset(p, 0, sizeof *p);
    T_CHECK(t, sh->heads <= R_HEADS, "%u query heads are more than this test counts", sh->heads);
    t_world_make(t, &p->w, setup);
    p->units = prhs_session_units(p->w.session);
    p->unit_heads = sh->heads / p->units;
    p->follow = t_alloc(t, p->units * sizeof *p->follow);
    p->view = t_alloc(t, p->units * sizeof *p->view);
    p->rows = t_alloc(t, p->units * R_ROWS);
    p->kf = t_alloc(t, kv * sizeof *p->kf);
    p->vf = t_alloc(t, kv * sizeof *p->vf);
    p->K = t_alloc(t, kv * sizeof *p->K);
    p->V = t_alloc(t, kv * sizeof *p->V);
    p->q = t_alloc(t, q * sizeof *p->q);
    p->out = t_alloc(t, q * sizeof *p->out);
    p->lse = t_alloc(t, setup->max_rows * sh->heads * sizeof *p->lse);
    p->bar = t_alloc(t, setup->max_rows * sh->heads * sizeof *p->bar);
    oracle_params params = params_of(setup);
    for (uint32_t i = 0; setup->targets && i < setup->layers; i++)
        p->targets[i] = (double)setup->targets[i];
    if (setup->targets)
        params.targets = p->targets;
    for (uint32_t i = 0; setup->list_layers && i < setup->layers; i++)
        p->list_layers[i] = (int)setup->list_layers[i];
    if (setup->list_layers)
        params.list_layers = p->list_layers;
    p->o = oracle_session_new(&params);
    T_CHECK(t, p->o, "the reference refuses the policy");
    p->res = oracle_result_new(p->o, R_ROWS);
    T_CHECK(t, oracle_units(p->o) == (int)p->units, "%u units instead of %d", p->units, oracle_units(p->o));
}

void r_free(r_pair *p) {
    oracle_result_free(p->res);
    oracle_session_free(p->o);
}

/* The rows of the entry go to the reference as the cache holds them. */
static void feed(const where *at) {
    r_pair *p = at->p;
    const t_wseq *seq = at->part->s->seq;
    size_t kn = p->w.s.shape->kv_heads * p->w.s.shape->dim, qn = p->w.s.shape->heads * p->w.s.shape->dim;
    int32_t rows = at->part->e.rows, first = seq->len - rows;
    float q[64 * 256];
    for (int32_t r = 0; r < rows; r++) {
        t_world_query(&p->w, seq, at->layer, first + r, q);
        for (size_t i = 0; i < qn; i++)
            p->q[(size_t)r * qn + i] = (double)q[i];
    }
    if (at->part->e.cached)
        return;
    t_world_gather(&p->w, seq, at->layer, seq->len, p->kf, p->vf);
    for (size_t i = 0; i < (size_t)rows * kn; i++) {
        p->K[i] = (double)p->kf[(size_t)first * kn + i];
        p->V[i] = (double)p->vf[(size_t)first * kn + i];
    }
    oracle_append(p->o, (int)at->layer, seq->slot, rows, p->K, p->V);
}

static size_t out_row(const where *at, int32_t row, uint32_t head) {
    return (size_t)(at->part->e.row_begin + row) * at->p->w.s.shape->heads + head;
}

static void check_row(const where *at, int32_t row, uint32_t head, const double *o, double lse, double bar, double extra, bool prompt) {
    t_world *w = &at->p->w;
    size_t dim = w->s.shape->dim, out = out_row(at, row, head);
    t_judged j = { .lse = lse, .bar = bar + extra };
    char text[160];
    memcpy(j.o, o, dim * sizeof *o);
    snprintf(text, sizeof text, "%s row %d head %u", at->text, row, head);
    float got = w->lses[at->layer][out];
    if (prompt)
        t_allow_tensor(w->t, w->s.shape->kv, &j, got, text);
    else
        T_CHECK(w->t, t_near((double)got, lse, bar), "%s: log-sum-exp %.9g instead of %.9g", text, (double)got, lse);
    t_check_row(w->t, &j, w->outs[at->layer] + out * dim, got, (uint32_t)dim, w->s.shape->out, text);
}

static void prompt(const where *at) {
    r_pair *p = at->p;
    t_ctx *t = p->w.t;
    const t_shape *sh = p->w.s.shape;
    const t_entry *e = &at->part->e;
    for (size_t i = 0; i < (size_t)e->rows * sh->heads; i++)
        p->lse[i] = NAN; /* stays where a row is frozen */
    int bad = oracle_prefill(p->o, (int)at->layer, at->part->s->seq->slot, e->rows, p->q, e->prompt_len, p->out, p->lse, p->bar);
    T_CHECK(t, !bad, "%s: the reference refuses the prompt", at->text);
    for (int32_t r = 0; r < e->rows; r++)
        for (uint32_t h = 0; h < sh->heads; h++) {
            size_t i = (size_t)r * sh->heads + h, out = out_row(at, r, h);
            if (!isnan(p->lse[i]))
                check_row(at, r, h, p->out + i * sh->dim, p->lse[i], p->bar[i], 0, true);
            else
                T_CHECK(t, isnan(p->w.outs[at->layer][out * sh->dim]) && isnan(p->w.lses[at->layer][out]),
                        "%s: frozen row %d was written", at->text, r);
        }
}

static int mode_of(int mode) {
    static const int modes[] = { ORACLE_IDLE, ORACLE_DENSE, ORACLE_WINDOW, ORACLE_SHARE, ORACLE_RETRIEVE, ORACLE_STREAM,
                                 ORACLE_COPY };
    return mode >= PRHS_MODE_IDLE && mode <= PRHS_MODE_COPY ? modes[mode] : -1;
}

static int listed(int mode) { return mode == ORACLE_SHARE || mode == ORACLE_RETRIEVE; }

/* What the library did, from its exported state. A seed's mode is the reference's own affair. */
static void look(const where *at, const void *blob, int seed) {
    r_pair *p = at->p;
    for (uint32_t u = 0; u < p->units; u++) {
        p->view[u] = t_world_view(&p->w, blob, at->layer, u);
        const prhs_unit_view *v = &p->view[u];
        int mode = seed ? ORACLE_RETRIEVE : mode_of(v->set.mode);
        if (seed && v->ref_pos != at->part->s->seq->len - 1)
            mode = ORACLE_IDLE; /* there is no new list */
        p->follow[u] =
            (oracle_follow){ mode, listed(mode) ? v->list : NULL, listed(mode) ? v->set.count : 0, v->ref_pos, p->rows + u * R_ROWS };
        memset(p->rows + u * R_ROWS, -1, R_ROWS);
    }
}

/* A new reference on both sides: bounds, list (F9), what was dropped. */
static void check_reference(const where *at, uint32_t u) {
    r_pair *p = at->p;
    t_ctx *t = p->w.t;
    const prhs_unit_view *v = &p->view[u];
    const prhs_set *got = &v->set;
    const oracle_unit *unit = &p->res->unit[u];
    const oracle_set *want = &unit->set;
    T_CHECK(t, v->ref_pos == unit->ref_pos, "%s unit %u: the reference is at %d instead of %d", at->text, u, v->ref_pos,
            unit->ref_pos);
    T_CHECK(t, got->end == want->N, "%s unit %u: the reference's length is %d instead of %d", at->text, u, got->end, want->N);
    T_CHECK(t,
            got->sink_end == want->sink_end && got->mid_begin == want->mid_begin && got->mid_end == want->mid_end &&
                got->win_begin == want->win_begin && got->run == want->run,
            "%s unit %u: the set is %d %d %d %d %d instead of %d %d %d %d %d", at->text, u, got->sink_end, got->mid_begin,
            got->mid_end, got->win_begin, got->run, want->sink_end, want->mid_begin, want->mid_end, want->win_begin, want->run);
    T_CHECK(t, got->edge_end - got->edge_begin == want->edge_end - want->edge_begin, "%s unit %u: the partial run has %d tokens",
            at->text, u, got->edge_end - got->edge_begin);
    T_CHECK(t, got->edge_end == got->edge_begin || got->edge_begin == want->edge_begin, "%s unit %u: the partial run is at %d",
            at->text, u, got->edge_begin);
    T_CHECK(t, unit->list_ok, "%s unit %u: the list of %d is not the reference's", at->text, u, got->count);
    p->swaps += (uint64_t)unit->swaps;
    for (uint32_t g = 0; g < p->unit_heads; g++) {
        const oracle_head *h = &p->res->head[u * p->unit_heads + g];
        const prhs_head_view *head = &v->heads[g];
        T_CHECK(t, t_near((double)head->l_dropped, h->L_D, 2 * h->bar), "%s unit %u head %u: L_D %.9g instead of %.9g", at->text,
                u, g, (double)head->l_dropped, h->L_D);
        T_CHECK(t, fabs((double)head->delta_ref - h->delta_ref) <= 4 * h->bar * h->delta_ref + 1e-12,
                "%s unit %u head %u: exact mass %.9g instead of %.9g", at->text, u, g, (double)head->delta_ref, h->delta_ref);
    }
}

/* Retrievals that a gate brought about; `cause` is the reference's own, so that a close verdict leaves it open. */
static void count_cause(const where *at, const oracle_unit *unit, int got, int close) {
    r_counts *c = &at->part->s->counts;
    int judged = unit->cause != ORACLE_CAUSE_NO_REFERENCE && unit->cause != ORACLE_CAUSE_BLOCK, retrieves = got != ORACLE_SHARE;
    if ((!listed(unit->own_mode) && !unit->aimed) || !judged)
        return;
    c->close += (uint64_t)close;
    c->causes += (uint64_t)retrieves;
    c->cosine += retrieves && unit->cause == ORACLE_CAUSE_COSINE;
}

/* Whether the library may have served the unit so: by a verdict that is too close to call, and a target that is nearly missed. */
static int may_be(const oracle_unit *unit, int got, int close) {
    if (got == unit->own_mode)
        return 1;
    if (!listed(unit->own_mode) && !unit->aimed)
        return 0;
    if (got == ORACLE_SHARE)
        return close;
    return (!unit->holds || close) && ((got == ORACLE_RETRIEVE && (!unit->missed || unit->near_miss)) ||
                                       (got == ORACLE_DENSE && (unit->missed || unit->near_miss)));
}

/* Row 0's verdict, against the reference's own. */
static void check_verdict(const where *at, uint32_t u) {
    r_pair *p = at->p;
    const oracle_unit *unit = &p->res->unit[u];
    int got = mode_of(p->view[u].set.mode), sparse = listed(unit->own_mode) || unit->aimed, close = fabs(unit->margin) < R_MARGIN;
    T_CHECK(p->w.t, may_be(unit, got, close), "%s unit %u: mode %d instead of %d (cause %d), the reference's margin is %.4g",
            at->text, u, got, unit->own_mode, unit->cause, unit->margin);
    T_CHECK(p->w.t, unit->mode == got, "%s unit %u: mode %d cannot be followed", at->text, u, got);
    p->verdicts += (uint64_t)sparse;
    p->close += (uint64_t)(sparse && close);
    count_cause(at, unit, got, close);
    T_CHECK(p->w.t, unit->list_ok, "%s unit %u: the list %s", at->text, u,
            got == ORACLE_RETRIEVE ? "is not the reference's" : "has changed since its retrieval");
    if (got == ORACLE_RETRIEVE)
        check_reference(at, u);
    else
        T_CHECK(p->w.t, p->view[u].ref_pos == unit->ref_pos, "%s unit %u: the reference in hand is at %d instead of %d", at->text, u,
                p->view[u].ref_pos, unit->ref_pos);
}

/*
 * Further rows whose verdict is too close to call: their log-sum-exp tells which the library took. Returns 1 if the reference has
 * to take the step again, because it took another.
 */
static int read_rows(const where *at) {
    r_pair *p = at->p;
    const oracle_result *res = p->res;
    int again = 0;
    for (int32_t r = 1; r < at->part->e.rows; r++)
        for (uint32_t u = 0; u < p->units; u++) {
            size_t i = (size_t)r * p->units + u, first = u * p->unit_heads;
            const oracle_head *h = &res->head[(size_t)r * p->w.s.shape->heads + first];
            if (!(fabs(res->margin[i]) < R_MARGIN))
                continue;
            int same = t_near((double)p->w.lses[at->layer][out_row(at, r, (uint32_t)first)], h->lse, h->bar);
            p->rows[u * R_ROWS + (size_t)r] = (signed char)(same ? res->own_dense[i] : !res->own_dense[i]);
            again |= !same;
        }
    return again;
}

static void add(r_mass *m, double mass, double bar) {
    m->n++;
    m->sum += mass;
    m->bar += bar;
}

/* For all heads and for this one. */
#define ADD(c, kind, i, mass, bar) (add(&(c)->masses.kind, mass, bar), add(&(c)->head[i].kind, mass, bar))

/* < 0 where there is none: no mass is within. */
static double target_of(const r_pair *p, uint32_t layer) {
    const t_setup *s = &p->w.s;
    double target = s->targets ? (double)s->targets[layer] : (double)s->policy.target;
    return target > 0 ? target : -1;
}

/* Masses of row 0 of a unit; returns nothing that the outputs need. */
static void check_masses(const where *at, uint32_t u) {
    r_pair *p = at->p;
    t_ctx *t = p->w.t;
    r_counts *c = &at->part->s->counts;
    int mode = p->res->unit[u].mode;
    int audited = r_audited(p, at->layer, at->part->s->seq->slot, u, at->part->s->seq->len - at->part->e.rows, mode);
    r_count_audit(p, c, at->layer, u, mode, audited);
    for (uint32_t g = 0; g < p->unit_heads; g++) {
        const oracle_head *h = &p->res->head[u * p->unit_heads + g];
        const prhs_head_view *head = &p->view[u].heads[g];
        double exact_bar = 4 * h->bar * h->delta + 1e-12, bar = exact_bar;
        if (mode == ORACLE_SHARE)
            bar = p->w.s.policy.gate == PRHS_GATE_MASS ? h->hat_bar : 4e-6 * h->delta + 8 * h->bar * h->delta + 1e-12;
        if (listed(mode) || mode == ORACLE_DENSE)
            T_CHECK(t, fabs((double)head->delta - h->delta) <= bar, "%s unit %u head %u: mass %.9g instead of %.9g, bar %.2g",
                    at->text, u, g, (double)head->delta, h->delta, bar);
        else
            T_CHECK(t, isnan(head->delta), "%s unit %u head %u: mass %.9g of what was never scored", at->text, u, g,
                    (double)head->delta);
        if (mode == ORACLE_RETRIEVE)
            ADD(c, retrieved, u * p->unit_heads + g, h->delta, bar);
        if (mode == ORACLE_SHARE)
            ADD(c, shared, u * p->unit_heads + g, h->delta, bar);
        if (!audited)
            continue;
        T_CHECK(t, fabs((double)head->audit - h->delta_full) <= 8 * h->bar,
                "%s unit %u head %u: audited mass %.9g instead of %.9g", at->text, u, g, (double)head->audit, h->delta_full);
        ADD(c, audited, u * p->unit_heads + g, h->delta_full, 8 * h->bar);
        double over = h->delta_full - target_of(p, at->layer);
        c->within += over <= 0;
        c->near_within += fabs(over) <= 8 * h->bar;
    }
}

static void count(const where *at, uint32_t u) {
    r_pair *p = at->p;
    r_counts *c = &at->part->s->counts;
    const oracle_unit *unit = &p->res->unit[u];
    int t = at->part->s->seq->len - at->part->e.rows;
    c->steps++;
    c->attended += oracle_set_positions(&unit->set, unit->list, unit->n_list, t, NULL);
    c->dense += unit->mode == ORACLE_DENSE;
    c->missed += unit->mode == ORACLE_DENSE && unit->aimed;
    c->window += unit->mode == ORACLE_WINDOW;
    c->stream += unit->mode == ORACLE_STREAM;
    c->share += unit->mode == ORACLE_SHARE;
    c->retrieve += unit->mode == ORACLE_RETRIEVE;
    c->copy += unit->mode == ORACLE_COPY;
    if (listed(unit->mode)) { /* as retrieved; check_reference has seen that set */
        const prhs_set *ref = &p->view[u].set;
        c->kept +=
            ref->sink_end + (ref->edge_end - ref->edge_begin) + (double)ref->count * ref->run + (ref->end - ref->win_begin);
    } else if (unit->mode == ORACLE_STREAM) {
        c->kept += unit->set.sink_end + (double)p->w.s.policy.local;
    } else if (unit->mode == ORACLE_WINDOW || unit->mode == ORACLE_COPY) {
        c->kept += oracle_set_positions(&unit->set, unit->list, unit->n_list, t, NULL);
    }
    for (int32_t r = 1; r < at->part->e.rows; r++)
        c->rows_dense += p->res->dense[(size_t)r * p->units + u];
}

/* What a row may be off more than its attention, by its residual. On a retrieval the retrieved one makes it plain attention again. */
static double residual_bar(const r_pair *p, const oracle_head *h, int32_t row, uint32_t unit) {
    const int whole = p->w.s.policy.residual == PRHS_RESIDUAL_RETRIEVED && row == 0 && p->res->unit[unit].mode == ORACLE_RETRIEVE;
    return h->weight > 0 && !whole ? h->spread * h->weight_bar + h->value_bar : 0;
}

static void decode(const where *at, int has_state) {
    r_pair *p = at->p;
    const t_shape *sh = p->w.s.shape;
    int32_t slot = at->part->s->seq->slot, R = at->part->e.rows;
    int bad = oracle_step(p->o, (int)at->layer, slot, R, p->q, has_state ? p->follow : NULL, p->res);
    T_CHECK(p->w.t, !bad, "%s: the reference refuses the step", at->text);
    for (uint32_t u = 0; has_state && u < p->units; u++)
        check_verdict(at, u);
    if (has_state && read_rows(at))
        oracle_step(p->o, (int)at->layer, slot, R, p->q, p->follow, p->res);
    for (uint32_t u = 0; has_state && u < p->units; u++) {
        check_masses(at, u);
        count(at, u);
    }
    for (int32_t r = 0; r < R; r++)
        for (uint32_t i = 0; i < sh->heads; i++) {
            const oracle_head *h = &p->res->head[(size_t)r * sh->heads + i];
            check_row(at, r, i, p->res->out + ((size_t)r * sh->heads + i) * sh->dim, h->lse, h->bar,
                      residual_bar(p, h, r, i / p->unit_heads), false);
        }
}

/* The last row's query makes a reference where the step would be sparse; where not, what was there stays. */
static void seed(const where *at, int has_state) {
    r_pair *p = at->p;
    const t_entry *e = &at->part->e;
    const double *q = p->q + (size_t)(e->rows - 1) * p->w.s.shape->heads * p->w.s.shape->dim;
    oracle_seed(p->o, (int)at->layer, at->part->s->seq->slot, q, has_state ? p->follow : NULL, p->res);
    for (uint32_t u = 0; has_state && u < p->units; u++) {
        if (p->res->unit[u].mode != ORACLE_RETRIEVE)
            continue;
        check_reference(at, u);
        at->part->s->counts.seed++;
    }
    if (e->flags == PRHS_SEQ_SEED)
        for (int32_t r = 0; r < e->rows; r++)
            T_CHECK(p->w.t, isnan(p->w.outs[at->layer][out_row(at, r, 0) * p->w.s.shape->dim]), "%s: a seeding row was written",
                    at->text);
}

static void compare(r_pair *p, r_part *part, uint32_t layer, const void *blob) {
    where at = { .p = p, .part = part, .layer = layer };
    int has_state = layer >= p->w.s.policy.dense_layers, seeds = (part->e.flags & PRHS_SEQ_SEED) != 0;
    snprintf(at.text, sizeof at.text, "layer %u root %" PRIu64 " length %d", layer, part->s->seq->root, part->s->seq->len);
    feed(&at);
    if (has_state)
        look(&at, blob, seeds);
    if (part->e.flags & PRHS_SEQ_PREFILL)
        prompt(&at);
    if (seeds)
        seed(&at, has_state);
    if (!part->e.flags)
        decode(&at, has_state);
}

void r_step(r_pair *p, r_part *parts, int n) {
    t_entry entries[8];
    for (int i = 0; i < n; i++) {
        entries[i] = parts[i].e;
        entries[i].seq = parts[i].s->seq;
    }
    t_world_step(&p->w, entries, n);
    p->steps++;
    for (int i = 0; i < n; i++) {
        size_t mark = t_mark(p->w.t);
        parts[i].e = entries[i];
        void *blob = t_world_export(&p->w, parts[i].s->seq->slot);
        for (uint32_t l = 0; l < p->w.s.layers; l++)
            compare(p, &parts[i], p->w.s.backwards ? p->w.s.layers - 1 - l : l, blob);
        t_release_to(p->w.t, mark);
    }
}

static void check_mass(t_ctx *t, const char *what, const prhs_mass *got, prhs_grade grade, const r_mass *want) {
    T_CHECK(t, got->grade == (want->n ? grade : PRHS_GRADE_UNKNOWN), "statistics: the %s mass has grade %d", what, got->grade);
    T_CHECK(t, got->count == want->n, "statistics: %" PRIu64 " %s masses instead of %" PRIu64, got->count, what, want->n);
    if (!want->n)
        T_CHECK(t, isnan(got->mean), "statistics: the mean of no %s masses is %.9g", what, got->mean);
    else
        T_CHECK(t, fabs(got->mean - want->sum / (double)want->n) <= want->bar / (double)want->n + 1e-10,
                "statistics: the %s mass is %.9g instead of %.9g", what, got->mean, want->sum / (double)want->n);
}

static void check_masses_of(r_pair *p, const prhs_head_stats *got, const r_masses *want) {
    t_ctx *t = p->w.t;
    const prhs_policy *policy = &p->w.s.policy;
    check_mass(t, "retrieved", &got->retrieved, policy->psaw ? PRHS_GRADE_ESTIMATE : PRHS_GRADE_EXACT, &want->retrieved);
    check_mass(t, "shared", &got->shared, policy->gate == PRHS_GATE_MASS ? PRHS_GRADE_ESTIMATE : PRHS_GRADE_STALE, &want->shared);
    check_mass(t, "audited", &got->audited, PRHS_GRADE_EXACT, &want->audited);
    T_CHECK(t, got->nan_masses == 0, "statistics: %" PRIu64 " masses were NaN", got->nan_masses);
}

static void check_ratio(t_ctx *t, const char *what, double got, double sum, uint64_t n) {
    T_CHECK(t, n ? t_near(got, sum / (double)n, 1e-12) : isnan(got), "statistics: %s is %.9g instead of %.9g", what, got,
            sum / (double)n);
}

void r_check_stats(r_pair *p, const r_seq *s) {
    t_ctx *t = p->w.t;
    const r_counts *c = &s->counts;
    prhs_stats g;
    t_world_stats(&p->w, (uint32_t)s->seq->slot, PRHS_ALL_LAYERS, &g);
#define SAME(field)                                                                                                              \
    T_CHECK(t, g.field == c->field, "statistics: " #field " is %" PRIu64 " instead of %" PRIu64, g.field, c->field)
    SAME(steps);
    SAME(dense);
    SAME(window);
    SAME(stream);
    SAME(share);
    SAME(retrieve);
    SAME(copy);
    SAME(seed);
    SAME(rows_dense);
    SAME(missed);
#undef SAME
    T_CHECK(t, g.cosine_failed + g.mass_failed == c->causes,
            "statistics: %" PRIu64 " + %" PRIu64 " gates failed instead of %" PRIu64, g.cosine_failed, g.mass_failed, c->causes);
    T_CHECK(t, g.cosine_failed <= c->cosine + c->close && g.cosine_failed + c->close >= c->cosine,
            "statistics: %" PRIu64 " cosines failed instead of %" PRIu64, g.cosine_failed, c->cosine);
    T_CHECK(t, g.within <= c->within + c->near_within && g.within + c->near_within >= c->within,
            "statistics: %" PRIu64 " masses are within the target instead of %" PRIu64, g.within, c->within);
    uint64_t shared = c->share + c->copy + c->retrieve, sparse = shared + c->window + c->stream;
    check_ratio(t, "rho", g.rho, (double)c->retrieve, shared);
    check_ratio(t, "kept", g.kept, c->kept, sparse);
    check_ratio(t, "attended", g.attended, c->attended, c->steps);
    check_masses_of(p,
                    &(prhs_head_stats){ .size = sizeof(prhs_head_stats),
                                        .retrieved = g.retrieved,
                                        .shared = g.shared,
                                        .audited = g.audited,
                                        .nan_masses = g.nan_masses },
                    &c->masses);
    for (uint32_t h = 0; h < p->w.s.shape->heads; h++) {
        prhs_head_stats head;
        t_world_head_stats(&p->w, (uint32_t)s->seq->slot, PRHS_ALL_LAYERS, h, &head);
        check_masses_of(p, &head, &c->head[h]);
    }
    r_check_audits(p, s);
}
