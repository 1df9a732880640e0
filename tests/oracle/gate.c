// SPDX-License-Identifier: Apache-2.0
/* What a shared step knows: dropped mass, moments of the dropped keys, the estimate, the cosine; and the value sum. */
#include <math.h>
#include <stdlib.h>

#include "oracle.h"

/*
 * Rule taken: nothing dropped, or only scores of -inf, is a mass of 0 even if what is kept has Z = 0 or is NaN (the output is 0
 * or NaN by itself then); elsewhere IEEE decides.
 */
double oracle_mass(double L_D, double L_C) {
    if (L_D == -(double)INFINITY)
        return 0;
    return 1 / (1 + exp(L_C - L_D));
}

/* attended[j] = 1 for the set's positions up to `pos`. */
static unsigned char *mark(const oracle_set *set, const int *list, int n_list, int pos) {
    int *at = oracle_alloc((size_t)pos + 1, sizeof *at);
    unsigned char *attended = oracle_alloc((size_t)pos + 1, 1);
    int n = oracle_set_positions(set, list, n_list, pos, at);
    for (int i = 0; i < n; i++)
        attended[at[i]] = 1;
    free(at);
    return attended;
}

double oracle_dropped(const double *q, const double *K, int D, double scale, const oracle_set *set, const int *list, int n_list,
                      int pos, double *L_D) {
    int N = pos + 1, in = 0, out = N;
    double *s = oracle_alloc((size_t)N, sizeof *s), *split = oracle_alloc((size_t)N, sizeof *split);
    unsigned char *attended = mark(set, list, n_list, pos);
    oracle_scores(q, K, N, D, scale, s);
    for (int j = 0; j < N; j++) {
        if (attended[j])
            split[in++] = s[j];
        else
            split[--out] = s[j];
    }
    double dropped = oracle_lse(split + in, N - in), delta = oracle_mass(dropped, oracle_lse(split, in));
    if (L_D)
        *L_D = dropped;
    free(s);
    free(split);
    free(attended);
    return delta;
}

static int special(double s) { return isnan(s) || s == (double)INFINITY; }

/* The middle's maximum and sum relative to it; NaN if a score is NaN or +inf. */
static void middle(const double *s, const oracle_set *set, oracle_moments *m) {
    m->top = -INFINITY;
    m->Z_middle = 0;
    for (int j = set->mid_begin; j < set->mid_end; j++) {
        if (special(s[j])) {
            m->top = m->Z_middle = NAN;
            return;
        }
        m->top = fmax(m->top, s[j]);
    }
    for (int j = set->mid_begin; j < set->mid_end; j++)
        m->Z_middle += s[j] == -(double)INFINITY ? 0 : exp(s[j] - m->top);
}

/* One channel's moments from the weights w; k: the channel of key 0. */
static void channel(const double *w, const unsigned char *attended, const double *k, double c, int D, const oracle_set *set,
                    oracle_moments *m, int d) {
    double m1 = 0, m2 = 0;
    for (int j = set->mid_begin; j < set->mid_end; j++) {
        if (attended[j] || w[j] == 0)
            continue;
        double y = k[(size_t)j * (size_t)D] - c;
        m1 += w[j] * y;
        m2 += w[j] * y * y;
    }
    m1 /= m->Z_f;
    m2 /= m->Z_f;
    double var = m2 - m1 * m1;
    m->mu[d] = m->L_D == -(double)INFINITY ? 0 : c + m1;
    m->var[d] = m->L_D == -(double)INFINITY ? 0 : var < 0 ? 0 : var; /* a NaN passes */
}

static double bar_of_all(const double *q, const double *K, int D, double scale, int N) {
    int *every = oracle_alloc((size_t)N, sizeof *every);
    for (int j = 0; j < N; j++)
        every[j] = j;
    double bar = oracle_bar(q, K, D, scale, every, N);
    free(every);
    return bar;
}

/*
 * The variance of the n dropped scores by their own weights; of n = 0, and where all are -inf, 0. The bar: a score may be off by
 * four of F7's bars, and with it its weight; and the square is taken of distances from the largest score, wherever the mean lies.
 */
static void score_variance(const double *s, int n, double bar, oracle_moments *m) {
    double mean = 0, away = 0, reach = 0, top = -INFINITY;
    m->V = m->V_bar = 0;
    if (m->L_D == -(double)INFINITY)
        return;
    for (int j = 0; j < n; j++)
        mean += s[j] == -(double)INFINITY ? 0 : exp(s[j] - m->L_D) * s[j];
    for (int j = 0; j < n; j++) {
        double p = s[j] == -(double)INFINITY ? 0 : exp(s[j] - m->L_D), off = p == 0 ? 0 : s[j] - mean;
        m->V += p * off * off;
        away += p * fabs(off);
        top = fmax(top, s[j]);
    }
    reach = fmax(m->top, top) - mean; /* from the middle's largest, if one likes */
    m->V_bar = 4 * bar * (2 * away + 4 * m->V) + 1e-6 * (m->V + reach * reach) + bar * bar;
}

/*
 * Every weight of the middle may be off by four of F7's bars; what is kept is taken away again, so that its rounding errors stay,
 * relative to Z_f. The rest is rounding of what is left.
 */
static void moment_bars(const double *q, const double *w, const double *K, const double *c, int D, double scale,
                        const oracle_set *set, oracle_moments *m) {
    double eps = 4e-6 * bar_of_all(q, K, D, scale, set->N);
    for (int d = 0; d < D; d++) {
        double a1 = 0, a2 = 0, m1 = fabs(m->mu[d] - c[d]);
        for (int j = set->mid_begin; j < set->mid_end; j++) {
            double y = w[j] == 0 ? 0 : K[(size_t)j * (size_t)D + (size_t)d] - c[d];
            a1 += w[j] * fabs(y);
            a2 += w[j] * y * y;
        }
        double e1 = eps * a1 / m->Z_f + 1e-7 * fabs(c[d]);
        m->mu_bar[d] = e1 + 1e-6 * m1;
        m->var_bar[d] = eps * a2 / m->Z_f + 2 * m1 * e1 + e1 * e1 + 1e-6 * (m->var[d] + 2 * m1 * m1);
    }
}

/*
 * "M over the middle, minus the selected rows" is the sum over the dropped rows, taken directly here.
 * Rules taken: a NaN or +inf score anywhere in the middle makes the moments NaN (so IEEE would have it: NaN - NaN), and so the
 * estimate NaN, and the gate retrieves, even where that token was selected; a score of -inf has w = 0 and its key is not read;
 * nothing dropped (L_D = -inf): the moments are 0 and never read; tokens attended as partial runs count as selected.
 */
void oracle_moments_make(const double *q, const double *K, int D, double scale, const oracle_set *set, const int *list,
                         int n_list, double floor, oracle_moments *m) {
    int N = set->N, n = 0;
    double *s = oracle_alloc((size_t)N, sizeof *s), *out = oracle_alloc((size_t)N, sizeof *out);
    unsigned char *attended = mark(set, list, n_list, N - 1);
    const double *c = K + (size_t)(set->mid_end - 1) * (size_t)D;
    oracle_scores(q, K, N, D, scale, s);
    for (int j = set->mid_begin; j < set->mid_end; j++)
        if (!attended[j])
            out[n++] = s[j];
    m->L_D = oracle_lse(out, n);
    middle(s, set, m);
    m->Z_f = fmax(exp(m->L_D - m->top), floor * m->Z_middle);
    if (isnan(m->L_D) || isnan(m->top))
        m->Z_f = NAN;
    for (int j = set->mid_begin; j < set->mid_end; j++)
        s[j] = s[j] == -(double)INFINITY ? 0 : exp(s[j] - m->top);
    score_variance(out, n, 1e-6 * bar_of_all(q, K, D, scale, N), m);
    for (int d = 0; d < D; d++)
        channel(s, attended, K + d, c[d], D, set, m, d);
    if (m->mu_bar)
        moment_bars(q, s, K, c, D, scale, set, m);
    free(s);
    free(out);
    free(attended);
}

/*
 * "V over the middle, minus the selected rows", taken over the dropped rows directly, as the moments are. Rules taken: a value that is not
 * finite makes its channel what IEEE would have it: NaN where the token was selected (what is taken away again was NaN or infinite).
 */
void oracle_dropped_value(const double *q, const double *K, const double *V, int D, double scale, const oracle_set *set,
                          const int *list, int n_list, const oracle_moments *m, double *vhat, double *bar) {
    double *w = oracle_alloc((size_t)set->N, sizeof *w), eps = 4e-6;
    int *every = oracle_alloc((size_t)set->N, sizeof *every);
    unsigned char *attended = mark(set, list, n_list, set->N - 1);
    oracle_scores(q, K, set->N, D, scale, w);
    for (int j = 0; j < set->N; j++) {
        every[j] = j;
        w[j] = w[j] == -(double)INFINITY ? 0 : exp(w[j] - m->top);
    }
    eps *= oracle_bar(q, K, D, scale, every, set->N);
    for (int d = 0; d < D; d++) {
        double sum = 0, size = 0;
        for (int j = set->mid_begin; j < set->mid_end; j++) {
            double v = V[(size_t)j * (size_t)D + (size_t)d];
            if (w[j] == 0)
                continue;
            size += w[j] * fabs(v);
            if (!attended[j])
                sum += w[j] * v;
            else if (!isfinite(v))
                sum = NAN;
        }
        vhat[d] = m->L_D == -(double)INFINITY ? 0 : sum / m->Z_f;
        if (bar)
            bar[d] = m->L_D == -(double)INFINITY ? 0 : eps * size / m->Z_f + 1e-6 * fabs(vhat[d]);
    }
    free(w);
    free(every);
    free(attended);
}

/* By which multiple of qref q has moved along it; 0 where qref is zero. */
static double along(const double *q, const double *qref, int D) {
    double dot = 0, square = 0;
    for (int d = 0; d < D; d++) {
        dot += (q[d] - qref[d]) * qref[d];
        square += qref[d] * qref[d];
    }
    return square == 0 ? 0 : dot / square;
}

double oracle_estimate(const double *q, const double *qref, int D, double scale, const oracle_moments *m, int channels,
                       double L_C, double *x) {
    const double a = channels ? 0 : along(q, qref, D);
    double rise = 0.5 * a * a * m->V;
    for (int d = 0; d < D; d++) {
        double delta = q[d] - qref[d], across = delta - a * qref[d];
        rise += scale * delta * m->mu[d] + 0.5 * scale * scale * across * across * m->var[d];
    }
    if (x)
        *x = rise;
    if (m->L_D == -(double)INFINITY)
        return 0;
    double l = m->L_D + rise - L_C;
    if (l > 20) /* not fmin: a NaN passes on */
        l = 20;
    return 1 / (1 + exp(-l));
}

double oracle_estimate_bar(const double *q, const double *qref, int D, double scale, const oracle_moments *m, int channels,
                           double hat, double bar) {
    const double a = channels ? 0 : along(q, qref, D);
    double off = 4 * bar + 0.5 * a * a * m->V_bar;
    if (m->L_D == -(double)INFINITY)
        return 0;
    for (int d = 0; d < D; d++) {
        double step = scale * fabs(q[d] - qref[d]), back = scale * a * qref[d], across = scale * (q[d] - qref[d]) - back;
        off += step * m->mu_bar[d] + 0.5 * across * across * m->var_bar[d] + 3e-7 * step * fabs(m->mu[d]);
        if (a != 0) /* the square may be multiplied out */
            off += 1.5e-7 * (step + fabs(back)) * (step + fabs(back)) * m->var[d];
    }
    return hat * (1 - hat) * off + 2e-7 * hat;
}

double oracle_cosine(const double *a, const double *b, int D) {
    double ab = 0, aa = 0, bb = 0;
    for (int d = 0; d < D; d++) {
        ab += a[d] * b[d];
        aa += a[d] * a[d];
        bb += b[d] * b[d];
    }
    if (aa == 0 || bb == 0)
        return 0;
    return ab / (sqrt(aa) * sqrt(bb));
}

/* Rule taken: a mass of 0, from whatever cause, leaves v unread, so that its NaN does not reach the output. */
void oracle_mix(double *o, const double *v, double d, int D) {
    if (d == 0)
        return;
    for (int i = 0; i < D; i++)
        o[i] = (1 - d) * o[i] + d * v[i];
}

static int finite_row(const double *v, int D) {
    for (int d = 0; d < D; d++)
        if (!isfinite(v[d]))
            return 0;
    return 1;
}

void oracle_value_sum(const double *V, int n, int D, int sign, int64_t *sum, int64_t *nonfinite) {
    for (int i = 0; i < n; i++) {
        const double *v = V + (size_t)i * (size_t)D;
        if (!finite_row(v, D)) {
            *nonfinite += sign;
            continue;
        }
        for (int d = 0; d < D; d++) {
            double x = v[d] > 65536 ? 65536 : v[d] < -65536 ? -65536 : v[d];
            sum[d] += sign * (int64_t)rint(x * 16777216.0);
        }
    }
}

/* Rule taken: the divisor is the number of covered rows (a non-finite row makes the mean NaN, so it cannot matter otherwise). */
void oracle_value_mean(const int64_t *sum, int64_t rows, int64_t nonfinite, int D, double *mean) {
    for (int d = 0; d < D; d++)
        mean[d] = rows > 0 && nonfinite <= 0 ? (double)sum[d] / 16777216.0 / (double)rows : (double)NAN;
}
