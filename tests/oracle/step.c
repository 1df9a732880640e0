// SPDX-License-Identifier: Apache-2.0
/* One layer of one step of a reference session: bounds, verdicts, retrieval, outputs; and how it follows the library. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

/* A unit in a step. Row 0 (in a seed the only row) is the decision row, at position t. */
typedef struct work {
    oracle_session *s;
    oracle_cache *c;
    int layer, slot, unit, t, R;
    const double *q;             /* [R][H][D] */
    const oracle_follow *follow; /* this unit's, or NULL */
    oracle_result *r;
} work;

static const double *query(const work *w, int row, int g) {
    size_t head = (size_t)(w->unit * w->s->unit_heads + g);
    return w->q + ((size_t)row * (size_t)w->s->p.H + head) * (size_t)w->s->p.D;
}

static int kv_head(const work *w) { return w->unit * w->s->unit_heads / w->s->group; }

static const double *keys(const work *w) { return w->c->K[kv_head(w)]; }

static oracle_ref *reference(const work *w) { return &w->c->ref[w->unit]; }

static oracle_unit *result(const work *w) { return &w->r->unit[w->unit]; }

static oracle_head *head(const work *w, int row, int g) {
    return &w->r->head[(size_t)row * (size_t)w->s->p.H + (size_t)(w->unit * w->s->unit_heads + g)];
}

static double target_of(const oracle_params *p, int layer) {
    return layer < p->dense_layers ? 0 : p->targets ? p->targets[layer] : p->target;
}

/* The fewest tokens of a list that is made for a target: at least a run of them. */
static int least_of(const oracle_params *p) {
    int least = p->k_min > p->granularity ? p->k_min : p->granularity;
    return least < p->k ? least : p->k;
}

/* Attention of a row's head over a set up to the row's own position; o and bar (F7's) may be NULL. */
static double attend(const work *w, int row, int g, const oracle_set *set, const int *list, int n_list, double *o, double *bar) {
    int pos = w->t + row, D = w->s->p.D;
    int *at = oracle_alloc((size_t)pos + 1, sizeof *at);
    double *scratch = oracle_alloc((size_t)D, sizeof *scratch), lse;
    int n = oracle_set_positions(set, list, n_list, pos, at);
    oracle_attend(query(w, row, g), keys(w), w->c->V[kv_head(w)], D, w->s->p.scale, at, n, o ? o : scratch, &lse);
    if (bar)
        *bar = 1e-6 * oracle_bar(query(w, row, g), keys(w), D, w->s->p.scale, at, n);
    free(at);
    free(scratch);
    return lse;
}

/*
 * The bounds of a step at position t and what they alone decide; mode RETRIEVE stands for "sparse". Rules taken: below
 * min_sparse_n PSAW is ignored, the sequence attends densely; with P > c_sink and a middle of at most k the set is [0, c_sink) +
 * [P, N), so where P exceeds N - c_local PSAW's own text wins over the local window's; further rows take row 0's set, cut at
 * their own position.
 */
static oracle_set fresh_set(const oracle_params *p, int layer, int t) {
    oracle_set set = { .mode = ORACLE_RETRIEVE, .N = t + 1, .run = p->granularity, .psaw = oracle_psaw(p, layer, t) };
    int k = p->never_retrieve ? 0 : target_of(p, layer) > 0 ? least_of(p) : p->k;
    set.w = set.N > p->c_local ? set.N - p->c_local : 0;
    set.mid_begin = p->c_sink > set.psaw ? p->c_sink : set.psaw;
    set.mid_end = set.w;
    set.sink_end = p->c_sink;
    set.win_begin = set.w;
    int fits = set.w - set.mid_begin <= k;
    if (layer < p->dense_layers || set.N < p->min_sparse_n || (fits && set.psaw <= p->c_sink)) {
        set.mode = ORACLE_DENSE;
        set.sink_end = set.win_begin = 0;
    } else if (fits) {
        set.mode = ORACLE_WINDOW;
        set.win_begin = set.psaw;
    } else if (k == 0) {
        set.mode = ORACLE_STREAM; /* granularity has no meaning without a list: no partial runs */
    }
    return set;
}

/*
 * The set of a shared step. With a gate everything stays as retrieved, and the window grows. Without one the middle's high end is
 * fresh, with its partial run, which is always attended. Rules taken: the list and the partial run at the low end stay as
 * retrieved, even where P has moved past them; a middle that was attended whole, having no whole run, stays so until the next
 * retrieval.
 */
static oracle_set shared_set(const work *w, const oracle_set *fresh) {
    oracle_set set = reference(w)->set;
    if (w->s->p.gate == ORACLE_GATE_NONE) {
        set.w = set.mid_end = fresh->mid_end;
        set.psaw = fresh->psaw;
        if (set.win_begin > set.mid_begin)
            set.win_begin = fresh->mid_end / set.run * set.run;
    }
    set.mode = ORACLE_SHARE;
    set.N = w->t + 1;
    return set;
}

/* channels: as verdicts take it. */
static double estimate(const work *w, int row, int g, int channels, double L_C) {
    const oracle_ref *ref = reference(w);
    int D = w->s->p.D;
    oracle_moments m = oracle_ref_moments(ref, g, D);
    return oracle_estimate(query(w, row, g), ref->q + (size_t)g * (size_t)D, D, w->s->p.scale, &m, channels, L_C, NULL);
}

/* What float32 may be off in the estimate `hat`; bar: of the log-sum-exp. */
static double estimate_bar(const work *w, int row, int g, int channels, double hat, double bar) {
    const oracle_ref *ref = reference(w);
    int D = w->s->p.D;
    oracle_moments m = oracle_ref_moments(ref, g, D);
    return oracle_estimate_bar(query(w, row, g), ref->q + (size_t)g * (size_t)D, D, w->s->p.scale, &m, channels, hat, bar);
}

static double cosine(const work *w, int row, int g) {
    return oracle_cosine(query(w, row, g), reference(w)->q + (size_t)g * (size_t)w->s->p.D, w->s->p.D);
}

/* Whether a reference is of an earlier step of this block. */
static int in_force(const work *w, const oracle_ref *ref) {
    const int block = w->s->p.block;
    return ref->pos >= 0 && ref->pos < w->t && (ref->pos + w->layer) / block == (w->t + w->layer) / block;
}

/* Puts what the last step has made into the pool: where nothing is in force, else where what is there has been unused for longest. */
static void save_reference(const work *w) {
    oracle_ref *own = reference(w), *pool = &w->c->pool[w->unit * oracle_pool(w->s)], *to = pool, *free = NULL;
    const int n = oracle_pool(w->s);
    for (oracle_ref *r = pool; r < pool + n; r++) {
        if (r->pos >= w->t)
            oracle_ref_clear(r); /* of rows that were taken back */
        if (!free && !in_force(w, r))
            free = r;
        if (r->used < to->used)
            to = r;
    }
    if (!in_force(w, own))
        return;
    for (oracle_ref *r = pool; r < pool + n; r++)
        if (r->pos == own->pos) {
            if (own->used < w->t && own->used > r->used)
                r->used = own->used;
            return;
        }
    to = free ? free : to;
    oracle_ref_copy(w->s, to, own);
    to->used = own->pos;
}

/* References whose nearness differs by less may be either's choice. */
#define TIE 1e-5

/*
 * Before a step: the reference in hand becomes the one whose query is closest, by the head that is farthest off. Rules taken: it counts as used
 * by the step unless that retrieves; a retrieval enters the pool when the next step or seed of its block begins.
 */
static void recall(const work *w) {
    oracle_ref *own = reference(w), *pool = &w->c->pool[w->unit * oracle_pool(w->s)], *best = NULL;
    const int D = w->s->p.D;
    double most = -3;
    for (int pass = 0; pass < 2; pass++) {
        for (oracle_ref *r = pool; r < pool + oracle_pool(w->s); r++) {
            if (!in_force(w, r))
                continue;
            double least = 2;
            for (int g = 0; g < w->s->unit_heads; g++) {
                double c = oracle_cosine(query(w, 0, g), r->q + (size_t)g * (size_t)D, D);
                least = isnan(c) ? -2 : fmin(least, c);
            }
            if (pass == 0 && least > most) {
                most = least;
                best = r;
            } else if (pass == 1 && r != best && least > most - TIE) {
                result(w)->tied = 1;
                if (w->follow && w->follow->ref_pos == r->pos) {
                    oracle_ref_copy(w->s, own, r);
                    own->used = w->t;
                    return;
                }
            }
        }
    }
    if (best)
        oracle_ref_copy(w->s, own, best);
    own->used = w->t;
}

typedef struct verdict {
    int holds, cause;
    double margin;
} verdict;

/* Estimates that float32 may have this far off, or farther, and on the other side of what is allowed, leave a verdict open. */
#define FAR_OFF 1e-3

/* One head's share in a row's verdict. A NaN retrieves, and nothing about it is borderline. */
static void judge(const work *w, int row, int g, double cos, double hat, verdict *v) {
    const oracle_params *p = &w->s->p;
    double target = target_of(p, w->layer), by_mass = target > 0 ? target - hat : p->eps - (hat - reference(w)->delta[g]);
    double by_cos = cos - p->tau;
    if (p->gate == ORACLE_GATE_NONE)
        return;
    if (!(cos > p->tau)) {
        v->holds = 0;
        v->cause = ORACLE_CAUSE_COSINE;
    }
    v->margin = isnan(by_cos) ? -(double)INFINITY : fmin(v->margin, by_cos);
    if (p->gate != ORACLE_GATE_MASS)
        return;
    if (!(by_mass >= 0)) {
        v->holds = 0;
        v->cause = v->cause == ORACLE_CAUSE_COSINE ? v->cause : ORACLE_CAUSE_MASS;
    }
    /* Where next to nothing is dropped its moments are differences of sums that are nearly equal. */
    const double off = estimate_bar(w, row, g, 1, hat, 1e-6);
    v->margin = isnan(by_mass) ? -(double)INFINITY : fmin(v->margin, off > FAR_OFF && fabs(by_mass) < off ? 0 : by_mass);
}

/* Row 0's gate, against the reference before the verdict. */
static verdict decide(const work *w, const oracle_set *shared) {
    const oracle_ref *ref = reference(w);
    int block = w->s->p.block;
    verdict v = { 1, ORACLE_CAUSE_NONE, INFINITY };
    if (ref->pos < 0 || ref->pos >= w->t)
        return (verdict){ 0, ORACLE_CAUSE_NO_REFERENCE, -INFINITY };
    if ((ref->pos + w->layer) / block != (w->t + w->layer) / block)
        return (verdict){ 0, ORACLE_CAUSE_BLOCK, -INFINITY };
    for (int g = 0; g < w->s->unit_heads; g++) {
        oracle_head *h = head(w, 0, g);
        h->gate_cos = cosine(w, 0, g);
        h->gate_hat = estimate(w, 0, g, 1, attend(w, 0, g, shared, ref->list, ref->n_list, NULL, NULL));
        h->gate_ref = ref->delta[g];
        judge(w, 0, g, h->gate_cos, h->gate_hat, &v);
    }
    return v;
}

/* Takes the followed list over if it names distinct candidates, else the own. */
static void set_list(const work *w, const oracle_selection *own) {
    oracle_ref *ref = reference(w);
    oracle_unit *u = result(w);
    const int *list = own->list;
    int n = own->n_list;
    u->list_ok = 1;
    if (w->follow && w->follow->mode == ORACLE_RETRIEVE && w->follow->list) {
        u->list_ok = oracle_list_equivalent(own, w->follow->list, w->follow->n_list, &u->swaps);
        if (oracle_list_valid(own, w->follow->list, w->follow->n_list)) {
            list = w->follow->list;
            n = w->follow->n_list;
        }
    }
    oracle_ref_clear(ref);
    ref->list = oracle_alloc((size_t)n, sizeof *ref->list);
    if (n > 0)
        memcpy(ref->list, list, (size_t)n * sizeof *list);
    ref->n_list = n;
}

/* What the unit's candidates are, and the best of them. */
static oracle_selection *choose(const work *w, const oracle_set *fresh, int k) {
    const oracle_params *p = &w->s->p;
    oracle_rule rule = { k, p->m, p->back, p->ahead, p->granularity, p->join };
    oracle_selection *own = oracle_select(query(w, 0, 0), w->s->unit_heads, keys(w), w->t + 1, p->D, p->scale, fresh->sink_end,
                                          fresh->mid_begin, fresh->mid_end, &rule);
    if (!own)
        abort(); /* oracle_session_new() has checked the rule */
    return own;
}

/* The sums of many weights that float32 rounds. */
#define AIM_OFF(mass) (1e-4 * (mass) + 1e-9)

/*
 * How many tokens a list takes: k, or what the target asks for; the library's number where rounding may have led there. Says on
 * the way whether the target is missed.
 */
static int aim(const work *w, const oracle_set *fresh) {
    const oracle_params *p = &w->s->p;
    oracle_unit *u = result(w);
    const int run = p->granularity;
    double mass = target_of(p, w->layer) / (p->block > 1 ? 2 : 1);
    u->aimed = mass > 0;
    if (!u->aimed)
        return p->k;
    oracle_selection *all = choose(w, fresh, p->k);
    int least = least_of(p) / run < all->count ? least_of(p) / run : all->count,
        most = p->k / run < all->count ? p->k / run : all->count;
    int n = least, got = w->follow && w->follow->mode == ORACLE_RETRIEVE && w->follow->list ? w->follow->n_list : -1;
    while (n < all->count && all->worst[n] > mass)
        n++;
    u->missed = n > most;
    u->near_miss = fabs(all->worst[most] - mass) <= AIM_OFF(mass);
    if (got >= least && got <= most && all->worst[got] <= mass + AIM_OFF(mass) &&
        (got == least || all->worst[got - 1] > mass - AIM_OFF(mass)))
        n = got;
    oracle_selection_free(all);
    return n * run;
}

/* Row 0 retrieves: its query becomes the reference, with the list, the bounds, the moments and the exact mass. */
static void retrieve(const work *w, const oracle_set *fresh, int k) {
    const oracle_params *p = &w->s->p;
    oracle_ref *ref = reference(w);
    int heads = w->s->unit_heads, D = p->D;
    oracle_selection *own = choose(w, fresh, k);
    result(w)->own = own;
    set_list(w, own);
    ref->pos = w->t;
    ref->set = *fresh;
    ref->set.mode = ORACLE_RETRIEVE;
    ref->set.edge_begin = own->edge_begin;
    ref->set.edge_end = own->edge_end;
    ref->set.win_begin = own->win_begin;
    memcpy(ref->q, query(w, 0, 0), (size_t)heads * (size_t)D * sizeof *ref->q);
    for (int g = 0; g < heads; g++) {
        oracle_moments m = oracle_ref_moments(ref, g, D);
        oracle_moments_make(query(w, 0, g), keys(w), D, p->scale, &ref->set, ref->list, ref->n_list, p->floor, &m);
        oracle_dropped_value(query(w, 0, g), keys(w), w->c->V[kv_head(w)], D, p->scale, &ref->set, ref->list, ref->n_list, &m,
                             ref->value + (size_t)g * (size_t)D, ref->value_bar + (size_t)g * (size_t)D);
        ref->L_D[g] = m.L_D;
        ref->top[g] = m.top;
        ref->Z_middle[g] = m.Z_middle;
        ref->Z_f[g] = m.Z_f;
        ref->V[g] = m.V;
        ref->V_bar[g] = m.V_bar;
        ref->delta[g] = oracle_mass(m.L_D, attend(w, 0, g, &ref->set, ref->list, ref->n_list, NULL, NULL));
    }
}

/* The mean over [0, row 0], summed afresh: the sum is an exact integer, so that any way to it is the same. */
static void value_mean(const work *w, double *mean) {
    int D = w->s->p.D;
    int64_t *sum = oracle_alloc((size_t)D, sizeof *sum), nonfinite = 0;
    oracle_value_sum(w->c->V[kv_head(w)], w->t + 1, D, 1, sum, &nonfinite);
    oracle_value_mean(sum, w->t + 1, nonfinite, D, mean);
    free(sum);
}

static double *output(const work *w, int row, int g) {
    size_t at = (size_t)row * (size_t)w->s->p.H + (size_t)(w->unit * w->s->unit_heads + g);
    return w->r->out + at * (size_t)w->s->p.D;
}

static int has_list(int mode) { return mode == ORACLE_SHARE || mode == ORACLE_RETRIEVE; }

/* Attention of one head of a row over the unit's set, with its figures. */
static void row_head(const work *w, int row, int g) {
    const oracle_unit *u = result(w);
    const oracle_ref *ref = reference(w);
    oracle_head *h = head(w, row, g);
    h->lse = attend(w, row, g, &u->set, u->list, u->n_list, output(w, row, g), &h->bar);
    h->delta_full =
        oracle_dropped(query(w, row, g), keys(w), w->s->p.D, w->s->p.scale, &u->set, u->list, u->n_list, w->t + row, NULL);
    h->weight = h->weight_bar = h->spread = h->value_bar = 0;
    if (u->mode == ORACLE_DENSE)
        h->delta = 0;
    if (!has_list(u->mode))
        return;
    h->delta_hat = estimate(w, row, g, 0, h->lse);
    h->hat_bar = estimate_bar(w, row, g, 0, h->delta_hat, h->bar);
    h->cos = cosine(w, row, g);
    h->delta_ref = ref->delta[g];
    h->L_D = ref->L_D[g];
    h->delta = w->s->p.gate == ORACLE_GATE_MASS ? h->delta_hat : ref->delta[g];
    if (u->mode == ORACLE_RETRIEVE && row == 0)
        h->delta = ref->delta[g];
    if (row > 0) {
        h->gate_cos = h->cos;
        h->gate_hat = estimate(w, row, g, 1, h->lse);
        h->gate_ref = h->delta_ref;
    }
    /* Rule taken: a stale mass puts no residual in ("a residual on shared steps needs the mass gate", further rows share). */
    const int judged = w->s->p.gate == ORACLE_GATE_MASS && (row > 0 || u->mode == ORACLE_SHARE);
    if (w->s->p.residual != ORACLE_RESIDUAL_NONE && (row == 0 || judged))
        h->weight = judged ? estimate(w, row, g, 1, h->lse) : h->delta;
    h->weight_bar = judged ? estimate_bar(w, row, g, 1, h->weight, h->bar) : 4 * h->bar * h->weight;
}

/* Rule taken: "attends densely" is everything up to the row's own position, PSAW or not; nothing is dropped then. */
static void row_dense(const work *w, int row) {
    oracle_set all = { .mode = ORACLE_DENSE, .N = w->t + row + 1, .run = 1 };
    for (int g = 0; g < w->s->unit_heads; g++) {
        oracle_head *h = head(w, row, g);
        h->lse = attend(w, row, g, &all, NULL, 0, output(w, row, g), &h->bar);
        h->delta = h->delta_full = h->weight = h->spread = h->value_bar = 0;
    }
}

/* Puts the residual in: the mean of all values, or the reference's of the dropped ones. */
static void mix(const work *w, int row, int g, const double *mean) {
    const int own = w->s->p.residual == ORACLE_RESIDUAL_RETRIEVED;
    const double *value = own ? reference(w)->value + (size_t)g * (size_t)w->s->p.D : mean;
    const double *bar = reference(w)->value_bar + (size_t)g * (size_t)w->s->p.D;
    oracle_head *h = head(w, row, g);
    double *o = output(w, row, g), gap = 0, norm = 0, off = 0;
    if (h->weight == 0)
        return;
    for (int d = 0; d < w->s->p.D; d++) {
        gap += (value[d] - o[d]) * (value[d] - o[d]);
        off += bar[d] * bar[d];
    }
    oracle_mix(o, value, h->weight, w->s->p.D);
    for (int d = 0; d < w->s->p.D; d++)
        norm += o[d] * o[d];
    h->spread = sqrt(gap / norm);
    h->value_bar = own ? h->weight * sqrt(off / norm) : 0;
}

/* A row of the unit: the set, its own gate if it is a further row, the residual. */
static void serve_row(const work *w, int row, const double *mean) {
    size_t at = (size_t)row * (size_t)w->s->units + (size_t)w->unit;
    const oracle_unit *u = result(w);
    verdict v = { 1, ORACLE_CAUSE_NONE, INFINITY };
    for (int g = 0; g < w->s->unit_heads; g++) {
        row_head(w, row, g);
        if (row > 0 && has_list(u->mode))
            judge(w, row, g, head(w, row, g)->cos, head(w, row, g)->gate_hat, &v);
    }
    w->r->margin[at] = row > 0 ? v.margin : u->margin;
    w->r->own_dense[at] = (unsigned char)!v.holds;
    w->r->dense[at] = (unsigned char)!v.holds;
    int gated = row > 0 && has_list(u->mode) && w->s->p.gate != ORACLE_GATE_NONE;
    if (gated && w->follow && w->follow->rows && w->follow->rows[row] >= 0)
        w->r->dense[at] = (unsigned char)(w->follow->rows[row] > 0);
    if (w->r->dense[at])
        row_dense(w, row);
    for (int g = 0; g < w->s->unit_heads; g++)
        mix(w, row, g, mean);
}

static void clear_unit(oracle_unit *u) {
    oracle_selection_free(u->own);
    *u = (oracle_unit){ .ref_pos = -1, .margin = -INFINITY, .list_ok = 1 };
}

static void clear_rows(const work *w) {
    double x = NAN;
    for (int row = 0; row < w->R; row++)
        for (int g = 0; g < w->s->unit_heads; g++)
            *head(w, row, g) = (oracle_head){ x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x };
}

/* Row 0's verdict, the library's where it is followed, and what it brings about. */
static void settle(const work *w, const oracle_set *fresh) {
    oracle_unit *u = result(w);
    oracle_ref *ref = reference(w);
    oracle_set shared = shared_set(w, fresh);
    verdict v = decide(w, &shared);
    int k = aim(w, fresh);
    u->holds = v.holds;
    u->own_mode = v.holds ? ORACLE_SHARE : u->missed ? ORACLE_DENSE : ORACLE_RETRIEVE;
    u->cause = v.cause;
    u->margin = u->tied ? 0 : v.margin;
    u->mode = u->own_mode;
    /* Sharing needs something to share: a reference of an earlier position. */
    if (w->follow && ((w->follow->mode == ORACLE_RETRIEVE && (!u->missed || u->near_miss)) ||
                      (w->follow->mode == ORACLE_SHARE && ref->pos >= 0 && ref->pos < w->t) ||
                      (w->follow->mode == ORACLE_DENSE && (u->missed || u->near_miss))))
        u->mode = w->follow->mode;
    if (u->mode == ORACLE_DENSE) {
        u->set = (oracle_set){ .mode = ORACLE_DENSE, .N = w->t + 1, .run = 1 };
        return;
    }
    if (u->mode == ORACLE_RETRIEVE)
        retrieve(w, fresh, k);
    u->set = u->mode == ORACLE_RETRIEVE ? ref->set : shared;
    u->list = ref->list;
    u->n_list = ref->n_list;
    if (u->mode == ORACLE_SHARE && w->follow && w->follow->list)
        u->list_ok = w->follow->n_list == ref->n_list &&
                     (ref->n_list == 0 || !memcmp(ref->list, w->follow->list, (size_t)ref->n_list * sizeof *ref->list));
}

/*
 * Another layer's list, as that has it in force in this step: made in it, or in an earlier step of its block; the window is fresh. Rule
 * taken: without such a list everything is attended.
 */
static void copy_list(const work *w, int from, const oracle_set *fresh) {
    oracle_unit *u = result(w);
    const oracle_ref *ref = &oracle_cache_of(w->s, from, w->slot)->ref[w->unit];
    const int block = w->s->p.block;
    u->mode = u->own_mode = ORACLE_DENSE;
    u->set = (oracle_set){ .mode = ORACLE_DENSE, .N = w->t + 1, .run = 1 };
    if (ref->pos < 0 || ref->pos > w->t || (ref->pos + from) / block != (w->t + from) / block)
        return;
    u->mode = u->own_mode = ORACLE_COPY;
    u->set = ref->set;
    u->set.mode = ORACLE_COPY;
    u->set.N = w->t + 1;
    u->set.w = u->set.mid_end = fresh->mid_end;
    if (u->set.win_begin > u->set.mid_begin)
        u->set.win_begin = fresh->mid_end / u->set.run * u->set.run;
    u->list = ref->list;
    u->n_list = ref->n_list;
}

/* The layer whose lists a layer attends with. */
static int source(const oracle_params *p, int layer) { return p->list_layers ? p->list_layers[layer] : layer; }

static void serve(const work *w) {
    const oracle_params *p = &w->s->p;
    oracle_unit *u = result(w);
    oracle_set fresh = fresh_set(p, w->layer, w->t);
    clear_unit(u);
    clear_rows(w);
    u->mode = u->own_mode = fresh.mode;
    u->set = fresh;
    if (oracle_pool(w->s)) {
        save_reference(w);
        recall(w);
    }
    if (fresh.mode == ORACLE_RETRIEVE && source(p, w->layer) != w->layer)
        copy_list(w, source(p, w->layer), &fresh);
    else if (fresh.mode == ORACLE_RETRIEVE)
        settle(w, &fresh);
    u->ref_pos = reference(w)->pos;
    double *mean = oracle_alloc((size_t)p->D, sizeof *mean);
    if (p->residual == ORACLE_RESIDUAL_MEAN && has_list(u->mode))
        value_mean(w, mean);
    for (int row = 0; row < w->R; row++)
        serve_row(w, row, mean);
    free(mean);
}

int oracle_step(oracle_session *s, int layer, int slot, int R, const double *q, const oracle_follow *follow, oracle_result *r) {
    oracle_cache *c = oracle_cache_at(s, layer, slot);
    if (!c || R < 1 || R > r->max_rows || c->n < R)
        return -1;
    for (int u = 0; u < s->units; u++) {
        work w = { s, c, layer, slot, u, c->n - R, R, q, follow ? &follow[u] : NULL, r };
        serve(&w);
    }
    c->row0 = c->n - R;
    c->rows = R;
    return 0;
}

/* Rule taken: the decision row is the prompt's last, t = its position, N = t + 1; what would not be sparse there seeds nothing.
 */
int oracle_seed(oracle_session *s, int layer, int slot, const double *q, const oracle_follow *follow, oracle_result *r) {
    oracle_cache *c = oracle_cache_at(s, layer, slot);
    if (!c || c->n < 1)
        return -1;
    for (int i = 0; i < s->units; i++) {
        work w = { s, c, layer, slot, i, c->n - 1, 1, q, follow ? &follow[i] : NULL, r };
        oracle_unit *u = result(&w);
        oracle_set fresh = fresh_set(&s->p, layer, w.t);
        clear_unit(u);
        clear_rows(&w);
        u->set = fresh;
        if (source(&s->p, layer) != layer)
            continue; /* nothing of its own to seed */
        if (oracle_pool(s))
            save_reference(&w);
        int k = fresh.mode == ORACLE_RETRIEVE ? aim(&w, &fresh) : 0;
        int misses = u->missed && !(u->near_miss && w.follow && w.follow->mode == ORACLE_RETRIEVE);
        if (fresh.mode == ORACLE_RETRIEVE && !misses) {
            const oracle_ref *ref = reference(&w);
            retrieve(&w, &fresh, k);
            u->mode = u->own_mode = ORACLE_RETRIEVE;
            u->set = ref->set;
            u->list = ref->list;
            u->n_list = ref->n_list;
            for (int g = 0; g < s->unit_heads; g++) {
                oracle_head *h = head(&w, 0, g);
                h->delta = h->delta_ref = ref->delta[g];
                h->L_D = ref->L_D[g];
                h->lse = attend(&w, 0, g, &ref->set, ref->list, ref->n_list, NULL, &h->bar);
            }
        }
        u->ref_pos = reference(&w)->pos;
    }
    return 0;
}

int oracle_prefill(oracle_session *s, int layer, int slot, int n, const double *q, int prompt_len, double *out, double *lse,
                   double *bar) {
    const oracle_params *p = &s->p;
    oracle_cache *c = oracle_cache_at(s, layer, slot);
    if (!c || n < 1 || c->n < n || (p->etf && prompt_len < 1))
        return -1;
    uint64_t a = p->psaw && layer >= p->dense_layers ? oracle_factor(p->L, layer, p->psaw_layer, p->phi, p->alpha) : 0;
    int first = c->n - n, frozen = oracle_frozen(p, layer, prompt_len);
    for (int i = 0; i < n; i++)
        for (int h = 0; h < p->H; h++) {
            size_t row = (size_t)i * (size_t)p->H + (size_t)h, at = row * (size_t)p->D;
            oracle_causal(q + at, c->K[h / s->group], c->V[h / s->group], p->D, p->scale, first + i, 1, p->c_sink, a, frozen,
                          out + at, lse + row, bar ? bar + row : NULL);
        }
    return 0;
}

oracle_result *oracle_result_new(const oracle_session *s, int max_rows) {
    oracle_result *r = oracle_alloc(1, sizeof *r);
    size_t rows = (size_t)max_rows, heads = rows * (size_t)s->p.H, units = (size_t)s->units;
    r->max_rows = max_rows;
    r->units = s->units;
    r->H = s->p.H;
    r->D = s->p.D;
    r->unit = oracle_alloc(units, sizeof *r->unit);
    r->head = oracle_alloc(heads, sizeof *r->head);
    r->out = oracle_alloc(heads * (size_t)s->p.D, sizeof *r->out);
    r->dense = oracle_alloc(rows * units, sizeof *r->dense);
    r->own_dense = oracle_alloc(rows * units, sizeof *r->own_dense);
    r->margin = oracle_alloc(rows * units, sizeof *r->margin);
    return r;
}

void oracle_result_free(oracle_result *r) {
    if (!r)
        return;
    for (int u = 0; u < r->units; u++)
        oracle_selection_free(r->unit[u].own);
    free(r->unit);
    free(r->head);
    free(r->out);
    free(r->dense);
    free(r->own_dense);
    free(r->margin);
    free(r);
}
