/* SPDX-License-Identifier: Apache-2.0 */
/* Selection in double precision, from method.md. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "selector.h"

static const float *key_row(const t_unit *u, int32_t j) { return u->K + ((size_t)j * u->kv_heads + u->hk) * u->dim; }

static int bad(double s) { return isnan(s) || s == (double)INFINITY; }

static void score(t_ctx *t, t_selection *s) {
    double widest = 0;
    s->score = t_alloc(t, (size_t)s->u.heads * (size_t)s->n * sizeof *s->score);
    for (uint32_t h = 0; h < s->u.heads; h++)
        for (int32_t j = 0; j < s->n; j++) {
            const float *k = key_row(&s->u, j), *q = s->u.q + (size_t)h * s->u.dim;
            double sum = 0, wide = 0;
            for (uint32_t d = 0; d < s->u.dim; d++) {
                sum += (double)q[d] * (double)k[d];
                wide += fabs((double)q[d] * (double)k[d]);
            }
            wide *= s->u.scale;
            s->score[(size_t)h * (size_t)s->n + (size_t)j] = sum * s->u.scale;
            widest = isfinite(wide) && wide > widest ? wide : widest;
        }
    s->bar = 1e-6 * fmax(1.0, widest / 8);
}

/* Log-sum-exp of a head's scored tokens, without NaN and +inf. */
static double normaliser(const t_selection *s, uint32_t h, int32_t sink_end) {
    const double *x = s->score + (size_t)h * (size_t)s->n;
    double top = -INFINITY, sum = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t j = 0; j < s->n; j++) {
            if ((j >= sink_end && j < s->mid_begin) || bad(x[j]))
                continue;
            if (pass == 0)
                top = fmax(top, x[j]);
            else if (x[j] > -(double)INFINITY)
                sum += exp(x[j] - top);
        }
    return sum > 0 ? top + log(sum) : 0;
}

static double token_key(const t_selection *s, const double *norm, int32_t j) {
    double key = 0;
    if (s->u.heads == 1 && s->rule.run == 1)
        return bad(s->score[j]) ? (double)NAN : s->score[j];
    for (uint32_t h = 0; h < s->u.heads; h++) {
        double x = s->score[(size_t)h * (size_t)s->n + (size_t)j], w = bad(x) ? (double)NAN : exp(x - norm[h]);
        if (isnan(w) || isnan(key))
            key = NAN;
        else
            key = s->rule.max ? fmax(key, w) : key + w;
    }
    return key;
}

static int before(const t_selection *s, int32_t a, int32_t b) {
    double x = s->key[a], y = s->key[b];
    if (isnan(x) || isnan(y))
        return isnan(x) && isnan(y) ? a < b : isnan(x);
    return x != y ? x > y : a < b;
}

static const t_selection *sorting;

static int compare(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x == y ? 0 : before(sorting, x, y) ? -1 : 1;
}

static void choose(t_ctx *t, t_selection *s) {
    int32_t *order = t_alloc(t, (size_t)(s->runs + 1) * sizeof *order), want = (int32_t)(s->rule.k / s->rule.run);
    s->taken = t_alloc(t, (size_t)s->runs + 1);
    for (int32_t i = 0; i < s->runs; i++)
        order[i] = i;
    sorting = s;
    qsort(order, (size_t)s->runs, sizeof *order, compare);
    for (int32_t i = 0; i < (int32_t)s->rule.dilate_m && i < s->runs; i++)
        for (int64_t a = (int64_t)order[i] - s->rule.dilate_back; a <= (int64_t)order[i] + s->rule.dilate_ahead; a++)
            if (a >= 0 && a < s->runs && !s->taken[a]) {
                s->taken[a] = 1;
                s->count++;
            }
    for (int32_t i = 0; i < s->runs && s->count < want; i++)
        if (!s->taken[order[i]]) {
            s->taken[order[i]] = 1;
            s->count++;
        }
}

t_selection t_select(t_ctx *t, const t_unit *u, const t_select_rule *rule, int32_t sink_end, int32_t mid_begin, int32_t mid_end,
                     int32_t pos) {
    t_selection s = { .u = *u, .rule = *rule, .n = pos + 1, .mid_begin = mid_begin, .mid_end = mid_end };
    int32_t g = (int32_t)rule->run, first = (mid_begin + g - 1) / g, last = mid_end / g;
    double norm[64];
    score(t, &s);
    for (uint32_t h = 0; h < u->heads; h++)
        norm[h] = normaliser(&s, h, sink_end);
    s.runs = last > first ? last - first : 0;
    s.first = first * g;
    s.key = t_alloc(t, (size_t)(s.runs + 1) * sizeof *s.key);
    for (int32_t i = 0; i < s.runs; i++)
        for (int32_t j = s.first + i * g; j < s.first + (i + 1) * g; j++)
            s.key[i] = j == s.first + i * g ? token_key(&s, norm, j) : s.key[i] + token_key(&s, norm, j);
    s.win_begin = s.runs ? last * g : mid_begin;
    if (s.runs && s.first > mid_begin) {
        s.edge_begin = mid_begin;
        s.edge_end = s.first;
    }
    choose(t, &s);
    return s;
}

/* Weights that float32 may confuse. */
static int close_keys(const t_selection *s, double a, double b) {
    if (isnan(a) || isnan(b))
        return 0;
    if (s->u.heads == 1 && s->rule.run == 1)
        return fabs(a - b) < 1e-5 || (a < -200 && b < -200) || a == b;
    return fabs(a - b) <= 1e-5 * fmax(a, b) || (a < 1e-37 && b < 1e-37);
}

static int same_rows(const t_selection *s, int32_t a, int32_t b) {
    return !memcmp(key_row(&s->u, s->first + a), key_row(&s->u, s->first + b), s->u.dim * sizeof(float));
}

/* Nearly equal weights where the best m end: then other neighbours may be forced. */
static int shaky_dilation(t_ctx *t, const t_selection *s) {
    (void)t;
    int32_t m = (int32_t)s->rule.dilate_m;
    if (!m || m >= s->runs)
        return 0;
    for (int32_t a = 0; a < s->runs; a++) {
        int32_t above = 0, close = 0;
        for (int32_t b = 0; b < s->runs; b++) {
            above += b != a && before(s, b, a);
            close += b != a && close_keys(s, s->key[a], s->key[b]) && before(s, a, b) && !same_rows(s, a, b);
        }
        if (above == m - 1)
            return close > 0;
    }
    return 0;
}

int t_same_list(const t_selection *s, const int32_t *list, int32_t count, char *why, size_t size) {
    int32_t g = (int32_t)s->rule.run, last = -1, n = 0;
    uint8_t *got = calloc((size_t)s->runs + 1, 1);
    why[0] = 0;
    if (count != s->count)
        snprintf(why, size, "%d runs listed instead of %d", count, s->count);
    for (int32_t i = 0; i < count && !why[0]; i++) {
        int32_t at = (list[i] - s->first) / g;
        if (list[i] <= last || list[i] < s->first || (list[i] - s->first) % g || at >= s->runs)
            snprintf(why, size, "entry %d is %d after %d: not ascending, or not a run of the middle", i, list[i], last);
        else
            got[at] = 1;
        last = list[i];
    }
    for (int32_t a = 0; a < s->runs && !why[0]; a++) {
        if (got[a] == s->taken[a])
            continue;
        int partner = 0;
        for (int32_t b = 0; b < s->runs; b++)
            partner |= got[b] != s->taken[b] && got[b] != got[a] && close_keys(s, s->key[a], s->key[b]) &&
                       !(g == 1 && same_rows(s, a, b));
        if (!partner && !shaky_dilation(NULL, s))
            snprintf(why, size, "position %d, key %.9g, is %s the list", s->first + a * g, s->key[a],
                     got[a] ? "wrongly in" : "missing from");
        n++;
    }
    free(got);
    return !why[0];
}

static int attended(const prhs_set *set, const int32_t *list, int32_t j) {
    if (j < set->sink_end || (j >= set->edge_begin && j < set->edge_end) || j >= set->win_begin)
        return 1;
    for (int32_t i = 0; i < set->count; i++)
        if (j >= list[i] && j < list[i] + set->run)
            return 1;
    return 0;
}

/* Log-sum-exp of what is not kept, and whether float32 weights relative to the middle's maximum see it. */
static void dropped_mass(const t_selection *s, const double *x, const uint8_t *kept, double top, t_dropped *out) {
    double highest = -INFINITY, sum = 0;
    int broken = 0;
    for (int32_t j = s->mid_begin; j < s->mid_end; j++) {
        broken |= !kept[j] && bad(x[j]);
        highest = !kept[j] && !bad(x[j]) ? fmax(highest, x[j]) : highest;
    }
    for (int32_t j = s->mid_begin; j < s->mid_end; j++)
        sum += kept[j] || bad(x[j]) || x[j] == -(double)INFINITY ? 0 : exp(x[j] - highest);
    out->l = broken ? (double)NAN : sum > 0 ? highest + log(sum) : -(double)INFINITY;
    out->vanishes = out->l - top < -80;
}

/* The variance of the dropped scores, by their weights. Float32 takes it from squares of their distances to the largest. */
static void dropped_spread(const t_selection *s, const double *x, const uint8_t *kept, double top, t_dropped *out) {
    double mean = 0, sum = 0, away = 0;
    for (int32_t j = s->mid_begin; j < s->mid_end; j++)
        if (!kept[j] && x[j] != -(double)INFINITY)
            mean += exp(x[j] - out->l) * x[j];
    for (int32_t j = s->mid_begin; j < s->mid_end; j++)
        if (!kept[j] && x[j] != -(double)INFINITY) {
            sum += exp(x[j] - out->l) * (x[j] - mean) * (x[j] - mean);
            away += exp(x[j] - out->l) * fabs(x[j] - mean);
        }
    out->spread = sum;
    out->spread_bar = 4 * s->bar * (2 * away + 4 * sum) + 1e-6 * (sum + (top - mean) * (top - mean)) + s->bar * s->bar;
}

/* Channel d of the dropped tokens' mean value. What is not finite stays, attended (and taken away again) or not. */
static void dropped_value(const t_selection *s, const double *x, const uint8_t *kept, double top, double zf, double eps, uint32_t d,
                          t_dropped *out) {
    double sum = 0, size = 0;
    for (int32_t j = s->mid_begin; j < s->mid_end; j++) {
        double w = x[j] == -(double)INFINITY ? 0 : exp(x[j] - top);
        double v = (double)s->u.V[((size_t)j * s->u.kv_heads + s->u.hk) * s->u.dim + d];
        size += w * fabs(v);
        sum += kept[j] && isfinite(v) ? 0 : w * v;
    }
    out->value[d] = sum / zf;
    out->value_bar[d] = eps * size / zf + 1e-6 * fabs(sum / zf);
}

void t_drop_moments(t_ctx *t, const t_selection *s, uint32_t head, const prhs_set *set, const int32_t *list, t_dropped *out) {
    const double *x = s->score + (size_t)head * (size_t)s->n;
    double top = -INFINITY, zm = 0;
    const float *c = key_row(&s->u, s->mid_end - 1);
    uint8_t *kept = t_alloc(t, (size_t)s->n);
    int broken = 0;
    memset(out, 0, sizeof *out);
    for (int32_t j = s->mid_begin; j < s->mid_end; j++) {
        kept[j] = (uint8_t)attended(set, list, j);
        broken |= bad(x[j]);
        top = bad(x[j]) ? top : fmax(top, x[j]);
    }
    for (int32_t j = s->mid_begin; j < s->mid_end; j++)
        zm += bad(x[j]) || x[j] == -(double)INFINITY ? 0 : exp(x[j] - top);
    dropped_mass(s, x, kept, top, out);
    if (out->l == -(double)INFINITY)
        return;
    dropped_spread(s, x, kept, top, out);
    double zf = fmax(exp(out->l - top), zm * 0x1p-20), eps = 4 * s->bar;
    for (uint32_t d = 0; d < s->u.dim; d++) {
        double m1 = 0, m2 = 0, a1 = 0, a2 = 0;
        for (int32_t j = s->mid_begin; j < s->mid_end; j++) {
            double w = x[j] == -(double)INFINITY ? 0 : exp(x[j] - top), y = (double)key_row(&s->u, j)[d] - (double)c[d];
            a1 += w * fabs(y);
            a2 += w * y * y;
            m1 += kept[j] ? 0 : w * y;
            m2 += kept[j] ? 0 : w * y * y;
        }
        m1 /= zf;
        m2 /= zf;
        dropped_value(s, x, kept, top, zf, eps, d, out);
        out->value[d] = broken ? (double)NAN : out->value[d];
        double e1 = eps * a1 / zf + 1e-7 * fabs((double)c[d]), e2 = eps * a2 / zf;
        out->mean[d] = broken ? (double)NAN : (double)c[d] + m1;
        out->var[d] = broken ? (double)NAN : fmax(0, m2 - m1 * m1);
        out->mean_bar[d] = e1 + 1e-6 * fabs(m1);
        out->var_bar[d] = e2 + 2 * fabs(m1) * e1 + e1 * e1 + 1e-6 * (m2 + m1 * m1);
    }
}
