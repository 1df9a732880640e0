/* SPDX-License-Identifier: Apache-2.0 */
/* The following reference: sequences, slot operations, outputs of dense and prompt rows, statistics. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "follow.h"

void f_make(t_ctx *t, f_follow *f, const t_setup *setup) {
    const t_shape *sh = setup->shape;
    memset(f, 0, sizeof *f);
    t_world_make(t, &f->w, setup);
    f->units = setup->policy.join == PRHS_JOIN_PER_HEAD ? sh->heads : sh->kv_heads;
    f->unit_heads = sh->heads / f->units;
    f->group = sh->heads / sh->kv_heads;
    T_CHECK(t, prhs_session_units(f->w.session) == f->units, "the session has %u units", prhs_session_units(f->w.session));
    f->K = t_alloc(t, (size_t)setup->max_kv_len * sh->kv_heads * sh->dim * sizeof(float));
    f->V = t_alloc(t, (size_t)setup->max_kv_len * sh->kv_heads * sh->dim * sizeof(float));
    f->positions = t_alloc(t, (setup->max_kv_len + 1) * sizeof(int32_t));
}

static f_seq *blank(f_follow *f) {
    t_ctx *t = f->w.t;
    f_seq *s = t_alloc(t, sizeof *s);
    for (uint32_t l = f->w.s.policy.dense_layers; l < f->w.s.layers; l++) {
        s->units[l] = t_alloc(t, f->units * sizeof(f_unit));
        for (uint32_t u = 0; u < f->units; u++) {
            f_unit *unit = &s->units[l][u];
            unit->ref_pos = -1;
            unit->qref = t_alloc(t, f->unit_heads * f->w.s.shape->dim * sizeof(float));
            unit->drop = t_alloc(t, f->unit_heads * sizeof(t_dropped));
        }
    }
    return s;
}

f_seq *f_new(f_follow *f, uint64_t root, int32_t slot) {
    f_seq *s = blank(f);
    s->seq = t_world_seq(&f->w, root, slot);
    return s;
}

void f_judge(const f_where *at, int32_t row, uint32_t head, const int32_t *positions, size_t n, t_judged *j) {
    f_follow *f = at->f;
    const t_shape *sh = f->w.s.shape;
    float q[64 * 256];
    t_world_query(&f->w, at->s->seq, at->layer, at->s->seq->len - at->e->rows + row, q);
    t_judge(q + (size_t)head * sh->dim, f->K, f->V, sh->kv_heads, head / f->group, sh->dim,
            (double)(float)(1.0 / sqrt((double)sh->dim)), positions, n, j);
}

/* Puts the residual in: (1 - delta) * o + delta * mean, then holds the row against it. */
void f_check_output(const f_where *at, int32_t row, uint32_t head, t_judged *j, double delta, double delta_bar) {
    f_follow *f = at->f;
    const t_shape *sh = f->w.s.shape;
    size_t out = (size_t)(at->e->row_begin + row) * sh->heads + head;
    double gap = 0, norm = 0;
    char where[160];
    if (f->w.s.policy.residual == PRHS_RESIDUAL_MEAN && delta != 0) {
        int32_t rows = at->s->counted[at->layer];
        for (uint32_t d = 0; d < sh->dim; d++) {
            double sum = 0;
            for (int32_t r = 0; r < rows; r++)
                sum +=
                    rint(fmin(fmax((double)f->V[((size_t)r * sh->kv_heads + head / f->group) * sh->dim + d], -65536.0), 65536.0) *
                         0x1p24);
            double mean = sum * 0x1p-24 / rows;
            gap += (mean - j->o[d]) * (mean - j->o[d]);
            j->o[d] = (1 - delta) * j->o[d] + delta * mean;
            norm += j->o[d] * j->o[d];
        }
        j->bar += delta_bar * sqrt(gap / norm);
    }
    snprintf(where, sizeof where, "layer %u root %" PRIu64 " length %d row %d head %u mode %d", at->layer, at->s->seq->root,
             at->s->seq->len, row, head, at->view ? at->view->set.mode : -1);
    t_check_row(f->w.t, j, f->w.outs[at->layer] + out * sh->dim, f->w.lses[at->layer][out], sh->dim, sh->out, where);
}

/* Rows of a prompt chunk: sinks and PSAW's window; frozen rows are not written. */
static void check_prompt(const f_where *at) {
    f_follow *f = at->f;
    const t_setup *s = &f->w.s;
    uint32_t frozen = prhs_etf_frozen(&s->policy, s->layers, at->layer, (uint32_t)at->e->prompt_len);
    for (int32_t r = 0; r < at->e->rows; r++) {
        int32_t pos = at->s->seq->len - at->e->rows + r;
        int32_t start = (int32_t)prhs_psaw_start(&s->policy, s->layers, at->layer, (uint32_t)pos);
        size_t n = 0;
        if ((uint32_t)pos < frozen) {
            size_t out = (size_t)(at->e->row_begin + r) * s->shape->heads;
            T_CHECK(f->w.t, isnan(f->w.outs[at->layer][out * s->shape->dim]) && isnan(f->w.lses[at->layer][out]),
                    "frozen row %d was written", pos);
            continue;
        }
        for (int32_t j = 0; j <= pos; j++)
            if (j < (int32_t)s->policy.sinks || j >= start)
                f->positions[n++] = j;
        for (uint32_t h = 0; h < s->shape->heads; h++) {
            t_judged j;
            f_judge(at, r, h, f->positions, n, &j);
            f_check_output(at, r, h, &j, 0, 0);
        }
    }
}

static void check_dense_layer(const f_where *at) {
    f_follow *f = at->f;
    for (int32_t r = 0; r < at->e->rows; r++) {
        int32_t pos = at->s->seq->len - at->e->rows + r;
        for (int32_t j = 0; j <= pos; j++)
            f->positions[j] = j;
        for (uint32_t h = 0; h < f->w.s.shape->heads; h++) {
            t_judged j;
            f_judge(at, r, h, f->positions, (size_t)pos + 1, &j);
            f_check_output(at, r, h, &j, 0, 0);
        }
    }
}

static void check_layer(f_follow *f, f_part *p, uint32_t layer, const void *blob) {
    int32_t len = p->s->seq->len, t = p->e.flags ? len - 1 : len - p->e.rows;
    f_where at = { f, p->s, &p->e, layer, 0, NULL, t, (p->e.flags & PRHS_SEQ_SEED) != 0 };
    t_world_gather(&f->w, p->s->seq, layer, len, f->K, f->V);
    if (p->e.flags & PRHS_SEQ_PREFILL)
        check_prompt(&at);
    if (p->e.flags == PRHS_SEQ_SEED)
        for (int32_t r = 0; r < p->e.rows; r++)
            T_CHECK(f->w.t, isnan(f->w.outs[layer][(size_t)(p->e.row_begin + r) * f->w.s.shape->heads * f->w.s.shape->dim]),
                    "a seeding row was written");
    if (p->s->counted[layer] < (p->e.flags ? len : t + 1))
        p->s->counted[layer] = p->e.flags ? len : t + 1;
    if (!p->s->units[layer]) {
        if (!p->e.flags)
            check_dense_layer(&at);
        return;
    }
    if (p->e.flags == PRHS_SEQ_PREFILL)
        return;
    for (at.unit = 0; at.unit < f->units; at.unit++) {
        prhs_unit_view view = t_world_view(&f->w, blob, layer, at.unit);
        at.view = &view;
        f_unit_step(&at);
    }
}

void f_step(f_follow *f, f_part *parts, int n) {
    t_entry entries[8];
    for (int i = 0; i < n; i++) {
        entries[i] = parts[i].e;
        entries[i].seq = parts[i].s->seq;
    }
    t_world_step(&f->w, entries, n);
    for (int i = 0; i < n; i++) {
        size_t mark = t_mark(f->w.t);
        parts[i].e = entries[i];
        void *blob = t_world_export(&f->w, parts[i].s->seq->slot);
        for (uint32_t l = 0; l < f->w.s.layers; l++)
            check_layer(f, &parts[i], l, blob);
        t_release_to(f->w.t, mark);
    }
}

void f_one(f_follow *f, f_seq *s, int32_t rows, int32_t flags) {
    f_part p = { s, { s->seq, rows, flags, 0, NULL, flags == PRHS_SEQ_SEED, 0 } };
    f_step(f, &p, 1);
}

void f_prompt(f_follow *f, f_seq *s, int32_t n, int32_t chunk) {
    int32_t end = s->seq->len + n;
    while (s->seq->len < end) {
        int32_t rows = end - s->seq->len < chunk ? end - s->seq->len : chunk, last = s->seq->len + rows == end;
        f_part p = { s, { s->seq, rows, PRHS_SEQ_PREFILL | (last ? PRHS_SEQ_SEED : 0), end, NULL, 0, 0 } };
        f_step(f, &p, 1);
    }
}

void f_resize(f_follow *f, f_seq *s, int what, int32_t len) {
    t_world_resize(&f->w, s->seq, what, len);
    for (uint32_t l = f->w.s.policy.dense_layers; l < f->w.s.layers; l++) {
        s->counted[l] = what == W_ATTACH || s->counted[l] > len ? len : s->counted[l];
        for (uint32_t u = 0; u < f->units; u++)
            if (what == W_ATTACH || s->units[l][u].ref_pos >= len)
                s->units[l][u].ref_pos = -1;
    }
}

f_seq *f_fork(f_follow *f, const f_seq *s, int32_t slot) {
    f_seq *child = blank(f);
    size_t dim = f->w.s.shape->dim;
    child->seq = t_world_share(&f->w, s->seq, slot);
    memcpy(child->counted, s->counted, sizeof child->counted);
    for (uint32_t l = f->w.s.policy.dense_layers; l < f->w.s.layers; l++)
        for (uint32_t u = 0; u < f->units; u++) {
            f_unit *a = &child->units[l][u], keep = *a;
            const f_unit *b = &s->units[l][u];
            *a = *b;
            a->qref = keep.qref;
            a->drop = keep.drop;
            memcpy(a->qref, b->qref, f->unit_heads * dim * sizeof(float));
            memcpy(a->drop, b->drop, f->unit_heads * sizeof *a->drop);
        }
    T_OK(f->w.t, prhs_session_fork(f->w.session, f->w.t->queue, (uint32_t)slot, (uint32_t)s->seq->slot));
    return child;
}

void f_reset(f_follow *f, f_seq *s) {
    T_OK(f->w.t, prhs_session_reset(f->w.session, f->w.t->queue, (uint32_t)s->seq->slot));
    t_world_cut(&f->w, s->seq, 0);
}

void f_move(f_follow *f, f_seq *s, int32_t slot) {
    T_OK(f->w.t, prhs_session_move(f->w.session, f->w.t->queue, (uint32_t)slot, (uint32_t)s->seq->slot));
    s->seq->slot = slot;
}

void f_swap(f_follow *f, f_seq *s, int32_t slot) {
    t_ctx *t = f->w.t;
    void *blob = t_world_export(&f->w, s->seq->slot);
    T_OK(t, prhs_session_reset(f->w.session, t->queue, (uint32_t)s->seq->slot));
    t_put(t, f->w.blob.mem, blob, f->w.sizes.slot);
    T_OK(t, prhs_session_import(f->w.session, t->queue, (uint32_t)slot, f->w.blob.mem));
    T_OK(t, prhs_queue_finish(t->queue));
    s->seq->slot = slot;
    memset(&s->counts, 0, sizeof s->counts);
}

static void check_mass(t_ctx *t, const char *what, const prhs_mass *m, prhs_grade grade, uint64_t n, double sum) {
    T_CHECK(t, m->count == n, "%s mass: %" PRIu64 " head-steps instead of %" PRIu64, what, m->count, n);
    T_CHECK(t, m->grade == (n ? grade : PRHS_GRADE_UNKNOWN), "%s mass has grade %d instead of %d", what, m->grade, n ? grade : 0);
    T_CHECK(t, n ? fabs(m->mean - sum / (double)n) < 1e-10 : isnan(m->mean), "%s mass is %.12g instead of %.12g", what, m->mean,
            n ? sum / (double)n : (double)NAN);
}

void f_check_stats(f_follow *f, const f_seq *s) {
    t_ctx *t = f->w.t;
    const f_counts *c = &s->counts;
    const prhs_policy *p = &f->w.s.policy;
    prhs_stats g;
    t_world_stats(&f->w, (uint32_t)s->seq->slot, PRHS_ALL_LAYERS, &g);
#define SAME(field)                                                                                                              \
    T_CHECK(t, g.field == c->field, "statistics: " #field " is %" PRIu64 " instead of %" PRIu64, g.field, c->field)
    SAME(steps);
    SAME(dense);
    SAME(window);
    SAME(stream);
    SAME(share);
    SAME(retrieve);
    SAME(seed);
#undef SAME
    T_CHECK(t, g.cosine_failed + g.mass_failed == c->causes,
            "statistics: %" PRIu64 " + %" PRIu64 " gates failed instead of %" PRIu64, g.cosine_failed, g.mass_failed, c->causes);
    T_CHECK(t, g.cosine_failed <= c->cosine + c->unsure && g.cosine_failed + c->unsure >= c->cosine,
            "statistics: %" PRIu64 " cosines failed instead of %" PRIu64, g.cosine_failed, c->cosine);
    T_CHECK(t, g.rows_dense >= c->rows_dense && g.rows_dense <= c->rows_dense + c->rows_unsure,
            "statistics: %" PRIu64 " further rows were dense instead of %" PRIu64 " (and %" PRIu64 " unsure)", g.rows_dense,
            c->rows_dense, c->rows_unsure);
    uint64_t shared = c->share + c->retrieve, sparse = shared + c->window + c->stream;
    T_CHECK(t, shared ? t_near(g.rho, (double)c->retrieve / (double)shared, 1e-12) : isnan(g.rho), "statistics: rho %g", g.rho);
    T_CHECK(t, sparse ? t_near(g.kept, c->kept / (double)sparse, 1e-12) : isnan(g.kept), "statistics: kept %.9g instead of %.9g",
            g.kept, c->kept / (double)sparse);
    T_CHECK(t, c->steps ? t_near(g.attended, c->attended / (double)c->steps, 1e-12) : isnan(g.attended),
            "statistics: attended %.9g instead of %.9g", g.attended, c->attended / (double)c->steps);
    check_mass(t, "retrieved", &g.retrieved, p->psaw ? PRHS_GRADE_ESTIMATE : PRHS_GRADE_EXACT, c->exact_n, c->exact);
    check_mass(t, "shared", &g.shared, p->gate == PRHS_GATE_MASS ? PRHS_GRADE_ESTIMATE : PRHS_GRADE_STALE, c->estimate_n,
               c->estimate);
    check_mass(t, "audited", &g.audited, PRHS_GRADE_EXACT, c->audit_n, c->audit);
    T_CHECK(t, g.nan_masses == 0, "statistics: %" PRIu64 " masses were NaN", g.nan_masses);
}
