// SPDX-License-Identifier: Apache-2.0
/* Scores, attention over sets of positions, merging, causal rows. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "oracle.h"

void *oracle_alloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) {
        fputs("oracle: out of memory\n", stderr);
        abort();
    }
    return p;
}

static double score(const double *q, const double *k, int D, double scale) {
    double sum = 0;
    for (int d = 0; d < D; d++)
        sum += q[d] * k[d];
    return scale * sum;
}

void oracle_scores(const double *q, const double *K, int n, int D, double scale, double *s) {
    for (int j = 0; j < n; j++)
        s[j] = score(q, K + (size_t)j * (size_t)D, D, scale);
}

/* NaN and +inf have no place in a softmax: method.md makes what attends to them NaN. */
static int special(double s) { return isnan(s) || s == (double)INFINITY; }

double oracle_lse(const double *s, int n) {
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) {
        if (special(s[i]))
            return NAN;
        top = fmax(top, s[i]);
    }
    if (top == -(double)INFINITY)
        return -INFINITY;
    for (int i = 0; i < n; i++)
        sum += exp(s[i] - top);
    return top + log(sum);
}

/*
 * Rule taken: a token whose score is -inf contributes nothing at all, its value row is not read (0 * inf would be NaN). All of
 * them -inf is Z = 0: output 0, log-sum-exp -inf.
 */
void oracle_attend(const double *q, const double *K, const double *V, int D, double scale, const int *pos, int n, double *o,
                   double *lse) {
    double *s = oracle_alloc((size_t)n, sizeof *s);
    for (int i = 0; i < n; i++)
        s[i] = score(q, K + (size_t)pos[i] * (size_t)D, D, scale);
    *lse = oracle_lse(s, n);
    for (int d = 0; d < D; d++)
        o[d] = isnan(*lse) ? (double)NAN : 0;
    if (isfinite(*lse))
        for (int i = 0; i < n; i++) {
            if (s[i] == -(double)INFINITY)
                continue;
            double w = exp(s[i] - *lse);
            for (int d = 0; d < D; d++)
                o[d] += w * V[(size_t)pos[i] * (size_t)D + (size_t)d];
        }
    free(s);
}

void oracle_merge(const double *parts, const double *lses, int n, int D, double *o, double *lse) {
    *lse = oracle_lse(lses, n);
    for (int d = 0; d < D; d++)
        o[d] = isnan(*lse) ? (double)NAN : 0;
    if (!isfinite(*lse))
        return;
    for (int i = 0; i < n; i++) {
        if (lses[i] == -(double)INFINITY)
            continue; /* an empty part's output is not read */
        double w = exp(lses[i] - *lse);
        for (int d = 0; d < D; d++)
            o[d] += w * parts[(size_t)i * (size_t)D + (size_t)d];
    }
}

/* Rule taken: PSAW bounds a prompt row by its own position p, P = a p >> 32, and c_local widens nothing there. */
void oracle_causal(const double *q, const double *K, const double *V, int D, double scale, int first, int n, int sinks,
                   uint64_t psaw, int frozen, double *o, double *lse, double *bar) {
    int *pos = oracle_alloc((size_t)(first + n), sizeof *pos);
    for (int i = 0; i < n; i++) {
        int p = first + i, start = oracle_start(psaw, p), count = 0;
        if (p < frozen)
            continue;
        for (int j = 0; j <= p; j++)
            if (j < sinks || j >= start)
                pos[count++] = j;
        size_t row = (size_t)i * (size_t)D;
        oracle_attend(q + row, K, V, D, scale, pos, count, o + row, lse + i);
        if (bar)
            bar[i] = 1e-6 * oracle_bar(q + row, K, D, scale, pos, count);
    }
    free(pos);
}

double oracle_bar(const double *q, const double *K, int D, double scale, const int *pos, int n) {
    double widest = 1;
    for (int i = 0; i < n; i++) {
        const double *k = K + (size_t)pos[i] * (size_t)D;
        double sum = 0;
        for (int d = 0; d < D; d++)
            sum += fabs(q[d] * k[d]);
        sum *= fabs(scale) / 8;
        if (isfinite(sum) && sum > widest)
            widest = sum;
    }
    return widest;
}

double oracle_distance(const double *a, const double *b, int D) {
    double diff = 0, size = 0;
    for (int d = 0; d < D; d++) {
        if (isnan(a[d]) != isnan(b[d]))
            return INFINITY;
        if (isnan(a[d]) || a[d] == b[d])
            diff += 0; /* equal infinities too */
        else
            diff += (a[d] - b[d]) * (a[d] - b[d]);
        if (isfinite(b[d]))
            size += b[d] * b[d];
    }
    return diff == 0 ? 0 : sqrt(diff) / fmax(sqrt(size), 1e-300);
}

int oracle_set_positions(const oracle_set *set, const int *list, int n_list, int pos, int *out) {
    int count = 0, at = 0;
    for (int j = 0; j <= pos; j++) {
        while (at < n_list && list[at] + set->run <= j)
            at++;
        int listed = at < n_list && list[at] <= j;
        if (j < set->sink_end || (j >= set->edge_begin && j < set->edge_end) || listed || j >= set->win_begin) {
            if (out)
                out[count] = j;
            count++;
        }
    }
    return count;
}
