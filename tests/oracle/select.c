// SPDX-License-Identifier: Apache-2.0
/* Joint weights of a unit's heads, the total order, dilation, runs, and when two lists are the same. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

static int special(double s) { return isnan(s) || s == (double)INFINITY; }

static int scored(int j, int sink_end, int mid_begin) { return j < sink_end || j >= mid_begin; }

/*
 * Rules taken, method.md being silent: a token whose score is NaN or +inf in any head of the unit has the joint weight NaN, and
 * so comes first; a head's normaliser leaves out that head's NaN and +inf, so that the other tokens keep their order; a head
 * whose scores are all -inf gives every token the weight 0.
 */
void oracle_joint_weights(const double *s, int heads, int N, int sink_end, int mid_begin, int join, double *lse, double *w) {
    double *usable = oracle_alloc((size_t)N, sizeof *usable);
    for (int j = 0; j < N; j++)
        w[j] = 0;
    for (int h = 0; h < heads; h++) {
        const double *x = s + (size_t)h * (size_t)N;
        int n = 0;
        for (int j = 0; j < N; j++)
            if (scored(j, sink_end, mid_begin) && !special(x[j]))
                usable[n++] = x[j];
        lse[h] = oracle_lse(usable, n);
        for (int j = 0; j < N; j++) {
            if (!scored(j, sink_end, mid_begin))
                continue;
            double a = x[j] == -(double)INFINITY ? 0 : exp(x[j] - lse[h]);
            if (special(x[j]) || isnan(w[j]))
                w[j] = NAN;
            else if (join == ORACLE_JOIN_MAX)
                w[j] = fmax(w[j], a);
            else
                w[j] += a;
        }
    }
    free(usable);
}

typedef struct ranked {
    double w;
    int index;
} ranked;

static int compare(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    int nan_x = isnan(x->w), nan_y = isnan(y->w);
    if (nan_x != nan_y)
        return nan_x ? -1 : 1;
    if (!nan_x && x->w != y->w) /* +0 == -0 */
        return x->w > y->w ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

void oracle_order(const double *w, int n, int *order) {
    ranked *r = oracle_alloc((size_t)n, sizeof *r);
    for (int i = 0; i < n; i++)
        r[i] = (ranked){ w[i], i };
    qsort(r, (size_t)n, sizeof *r, compare);
    for (int i = 0; i < n; i++)
        order[i] = r[i].index;
    free(r);
}

static int take(unsigned char *chosen, int i) {
    int fresh = !chosen[i];
    chosen[i] = 1;
    return fresh;
}

/* The neighbours of candidate `best`, clipped to the n candidates. */
static int take_around(unsigned char *chosen, int n, int best, int back, int ahead) {
    int count = 0;
    for (int64_t a = (int64_t)best - back; a <= (int64_t)best + ahead; a++)
        if (a >= 0 && a < n)
            count += take(chosen, (int)a);
    return count;
}

/* method.md's steps in its order: the top k', the neighbours of the best m, the next best up to k. */
int oracle_pick(const int *order, int n, int want, int m, int back, int ahead, unsigned char *chosen) {
    int64_t top = (int64_t)want - (int64_t)m * ((int64_t)back + ahead);
    int count = 0;
    if (want < 0 || m < 0 || back < 0 || ahead < 0 || top < m)
        return -1;
    memset(chosen, 0, (size_t)n);
    for (int i = 0; i < n && i < top; i++)
        count += take(chosen, order[i]);
    for (int i = 0; i < n && i < m; i++)
        count += take_around(chosen, n, order[i], back, ahead);
    for (int i = 0; i < n && count < want; i++)
        count += take(chosen, order[i]);
    return count;
}

int oracle_runs(int mid_begin, int mid_end, int g, int *first, int *end) {
    int low = (mid_begin + g - 1) / g, high = mid_end / g;
    int count = high > low ? high - low : 0;
    *first = count ? low * g : mid_begin;
    *end = count ? high * g : mid_begin;
    return count;
}

/* Candidates, and the partial runs around them. Without one whole run the entire middle is attended. */
static void lay_out(oracle_selection *s, int mid_begin, int mid_end) {
    s->count = oracle_runs(mid_begin, mid_end, s->run, &s->first, &s->win_begin);
    s->edge_begin = mid_begin;
    s->edge_end = s->first;
}

static void write_list(oracle_selection *s, const unsigned char *chosen) {
    s->n_list = 0;
    for (int i = 0; i < s->count; i++)
        if (chosen[i])
            s->list[s->n_list++] = s->first + i * s->run;
}

/* From the last in order on: what each head has dropped so far. */
static void fill_worst(oracle_selection *sel, const double *s, int heads, int N, const double *lse, const int *order) {
    double *dropped = oracle_alloc((size_t)heads, sizeof *dropped);
    for (int k = sel->count; k >= 0; k--) {
        sel->worst[k] = 0;
        for (int h = 0; h < heads; h++) {
            for (int r = 0; k < sel->count && r < sel->run; r++) {
                double x = s[(size_t)h * (size_t)N + (size_t)(sel->first + order[k] * sel->run + r)];
                dropped[h] += special(x) ? 1 : x == -(double)INFINITY ? 0 : exp(x - lse[h]);
            }
            sel->worst[k] = fmax(sel->worst[k], dropped[h]);
        }
    }
    free(dropped);
}

oracle_selection *oracle_select(const double *q, int heads, const double *K, int N, int D, double scale, int sink_end,
                                int mid_begin, int mid_end, const oracle_rule *rule) {
    if (rule->run < 1 || rule->k < 0 || mid_begin < 0 || mid_end > N)
        return NULL;
    oracle_selection *sel = oracle_alloc(1, sizeof *sel);
    sel->rule = *rule;
    sel->run = rule->run;
    lay_out(sel, mid_begin, mid_end);
    size_t n = (size_t)sel->count;
    double *s = oracle_alloc((size_t)heads * (size_t)N, sizeof *s), *w = oracle_alloc((size_t)N, sizeof *w);
    double *lse = oracle_alloc((size_t)heads, sizeof *lse);
    int *order = oracle_alloc(n, sizeof *order);
    unsigned char *chosen = oracle_alloc(n, 1);
    for (int h = 0; h < heads; h++)
        oracle_scores(q + (size_t)h * (size_t)D, K, N, D, scale, s + (size_t)h * (size_t)N);
    oracle_joint_weights(s, heads, N, sink_end, mid_begin, rule->join, lse, w);
    sel->weight = oracle_alloc(n, sizeof *sel->weight);
    sel->list = oracle_alloc(n, sizeof *sel->list);
    for (int i = 0; i < sel->count; i++)
        for (int j = 0; j < sel->run; j++)
            sel->weight[i] += w[sel->first + i * sel->run + j];
    oracle_order(sel->weight, sel->count, order);
    sel->worst = oracle_alloc(n + 1, sizeof *sel->worst);
    fill_worst(sel, s, heads, N, lse, order);
    int ok = oracle_pick(order, sel->count, rule->k / rule->run, rule->m, rule->back, rule->ahead, chosen);
    write_list(sel, chosen);
    free(s);
    free(w);
    free(lse);
    free(order);
    free(chosen);
    if (ok < 0) {
        oracle_selection_free(sel);
        return NULL;
    }
    return sel;
}

void oracle_selection_free(oracle_selection *s) {
    if (!s)
        return;
    free(s->weight);
    free(s->worst);
    free(s->list);
    free(s);
}

/* F9's tolerance. Special candidates are never confused with others nor with each other: their order is by index. */
static int close_weights(double a, double b) {
    if (isnan(a) || isnan(b))
        return 0;
    return fabs(a - b) < 1e-5 * fmax(fabs(a), fabs(b)) || (a < 1e-37 && b < 1e-37);
}

/* Marks a list's candidates; 0 if it is not ascending, or names what is no candidate. */
static int read_list(const oracle_selection *s, const int *list, int n, unsigned char *got) {
    memset(got, 0, (size_t)s->count);
    for (int i = 0; i < n; i++) {
        int at = list[i] - s->first;
        if ((i > 0 && list[i] <= list[i - 1]) || at < 0 || at % s->run || at / s->run >= s->count)
            return 0;
        got[at / s->run] = 1;
    }
    return 1;
}

/*
 * Number of swaps between two choices of equal size, -1 if one of them is not allowed. What only one of them has is paired off in
 * the order of weights: if any pairing is allowed, this one is.
 */
static int count_swaps(const oracle_selection *s, const int *order, const unsigned char *want, const unsigned char *got) {
    int *missing = oracle_alloc((size_t)s->count, sizeof *missing), *extra = oracle_alloc((size_t)s->count, sizeof *extra);
    int n = 0, e = 0;
    for (int i = 0; i < s->count; i++) {
        if (want[order[i]] && !got[order[i]])
            missing[n++] = order[i];
        if (got[order[i]] && !want[order[i]])
            extra[e++] = order[i];
    }
    int swaps = n == e ? n : -1;
    for (int i = 0; i < n && swaps >= 0; i++)
        if (!close_weights(s->weight[missing[i]], s->weight[extra[i]]))
            swaps = -1;
    free(missing);
    free(extra);
    return swaps;
}

typedef struct choice {
    const oracle_selection *s;
    const unsigned char *got;
    int *order;          /* the total order */
    int *trial;          /* an order with another best m */
    unsigned char *want; /* what `trial` chooses */
    int *near;           /* ranks that may be among the best m, all their neighbours being in `got` */
    int certain;         /* ranks below this are among the best m anyhow */
    int n_near, tries;
} choice;

static int try_order(choice *c) {
    const oracle_rule *r = &c->s->rule;
    oracle_pick(c->trial, c->s->count, r->k / r->run, r->m, r->back, r->ahead, c->want);
    return count_swaps(c->s, c->order, c->want, c->got);
}

/* Places ranks near[from ...] on the places [at, m) of the trial order in all ways; returns the swaps, -1 if none will do. */
static int try_best(choice *c, int at, int from) {
    int m = c->s->rule.m;
    if (at == m) {
        c->tries++;
        return try_order(c);
    }
    for (int i = from; i <= c->n_near - (m - at) && c->tries < 4096; i++) {
        int place = 0;
        while (c->trial[place] != c->order[c->near[i]])
            place++;
        /* Rotated rather than exchanged, so that the others keep their order. */
        memmove(c->trial + at + 1, c->trial + at, (size_t)(place - at) * sizeof *c->trial);
        c->trial[at] = c->order[c->near[i]];
        int swaps = try_best(c, at + 1, i + 1);
        if (swaps >= 0)
            return swaps;
        memmove(c->trial + at, c->trial + at + 1, (size_t)(place - at) * sizeof *c->trial);
        c->trial[place] = c->order[c->near[i]];
    }
    return -1;
}

static int surrounded(const choice *c, int best) {
    const oracle_rule *r = &c->s->rule;
    for (int64_t a = (int64_t)best - r->back; a <= (int64_t)best + r->ahead; a++)
        if (a >= 0 && a < c->s->count && !c->got[a])
            return 0;
    return 1;
}

/*
 * Rule taken: F9's tolerance holds for membership of the best m too, else a swap there, allowed by itself, would bring neighbours
 * of any weight. Only a candidate whose neighbours are all listed can have been among the best m.
 */
static int swapped_best(choice *c) {
    const oracle_selection *s = c->s;
    int m = s->rule.m;
    if (m < 1 || m >= s->count)
        return -1;
    double edge = s->weight[c->order[m - 1]], next = s->weight[c->order[m]];
    c->certain = 0;
    for (int i = 0; i < s->count; i++) {
        double w = s->weight[c->order[i]];
        int near = close_weights(w, edge) || (i < m && close_weights(w, next));
        if (i < m && !near)
            c->certain = i + 1;
        if (near && surrounded(c, c->order[i]))
            c->near[c->n_near++] = i;
    }
    memcpy(c->trial, c->order, (size_t)s->count * sizeof *c->trial);
    return try_best(c, c->certain, 0);
}

int oracle_list_valid(const oracle_selection *s, const int *list, int n) {
    unsigned char *got = oracle_alloc((size_t)s->count, 1);
    int ok = read_list(s, list, n, got);
    free(got);
    return ok;
}

int oracle_list_equivalent(const oracle_selection *s, const int *list, int n, int *swaps) {
    size_t count = (size_t)s->count;
    unsigned char *got = oracle_alloc(count, 1);
    choice c = { .s = s, .got = got };
    c.order = oracle_alloc(count, sizeof *c.order);
    c.trial = oracle_alloc(count, sizeof *c.trial);
    c.near = oracle_alloc(count, sizeof *c.near);
    c.want = oracle_alloc(count, 1);
    int result = -1;
    if (n == s->n_list && read_list(s, list, n, got)) {
        oracle_order(s->weight, s->count, c.order);
        read_list(s, s->list, s->n_list, c.want);
        result = count_swaps(s, c.order, c.want, got);
        if (result < 0)
            result = swapped_best(&c);
    }
    if (swaps)
        *swaps = result < 0 ? 0 : result;
    free(got);
    free(c.order);
    free(c.trial);
    free(c.near);
    free(c.want);
    return result >= 0;
}
