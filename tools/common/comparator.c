/* SPDX-License-Identifier: Apache-2.0 */
#include "comparator.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64, LANES = 8, LEAST_PAGES = 3 };

/* --- text --- */

static bool read_number(const char *text, uint32_t *to) {
    char *end;
    errno = 0;
    unsigned long x = strtoul(text, &end, 10);
    if (end == text || *end || errno || x > INT32_MAX || text[0] == '-')
        return false;
    *to = (uint32_t)x;
    return true;
}

bool comparator_parse(const char *program, const char *text, comparator *c) {
    char copy[128], *save = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    char *name = strtok_r(copy, ",", &save);
    *c = (comparator){ COMPARATOR_NONE, 0, 0, 0, 0 };
    if (name && strcmp(name, "quest") == 0)
        *c = (comparator){ COMPARATOR_QUEST, 2, 512, 16, 0 };
    else if (name && strcmp(name, "h2o") == 0)
        *c = (comparator){ COMPARATOR_H2O, 0, 256, 0, 256 };
    else
        return true;
    const bool quest = c->kind == COMPARATOR_QUEST;
    for (char *item; (item = strtok_r(NULL, ",", &save));) {
        char *value = strchr(item, '=');
        if (value)
            *value++ = 0;
        uint32_t *to = strcmp(item, "k") == 0                  ? &c->k
                       : strcmp(item, "dense") == 0            ? &c->dense
                       : quest && strcmp(item, "page") == 0    ? &c->page
                       : !quest && strcmp(item, "recent") == 0 ? &c->recent
                                                               : NULL;
        if (!value || !to || !read_number(value, to)) {
            fprintf(stderr, "%s: '%s' in --policy %s is not understood (see --help)\n", program, item, text);
            return false;
        }
    }
    if (c->k == 0 || (quest && c->page == 0) || (!quest && c->recent == 0)) {
        fprintf(stderr, "%s: --policy %s: k, page and recent must be above 0\n", program, text);
        return false;
    }
    return true;
}

static uint32_t pages_kept(const comparator *c) {
    const uint32_t pages = c->k / c->page;
    return pages > LEAST_PAGES ? pages : LEAST_PAGES;
}

uint32_t comparator_list_cap(const comparator *c) { return c->kind == COMPARATOR_QUEST ? pages_kept(c) : c->k; }
bool comparator_per_head(const comparator *c) { return c->kind == COMPARATOR_QUEST; }
double comparator_reads(const comparator *c, double n) { return c->kind == COMPARATOR_QUEST ? 2 * n / c->page : 0; }

/* --- weights --- */

void comparator_product_plain(uint32_t rows, uint32_t n, uint32_t dim, float scale, const float *q, size_t q_step, const float *k, size_t k_step,
                              float *out, size_t out_step) {
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < n; j++) {
            const float *a = q + i * q_step, *b = k + j * k_step;
            float sums[LANES] = { 0 };
            for (uint32_t d = 0; d < dim; d += LANES)
                for (uint32_t l = 0; l < LANES; l++)
                    sums[l] += a[d + l] * b[d + l];
            out[i * out_step + j] =
                scale * (((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
        }
}

static float largest(const float *s, uint32_t n) {
    float m[LANES], top;
    uint32_t j = 0;
    for (int i = 0; i < LANES; i++)
        m[i] = -INFINITY;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++)
            m[i] = s[j + (uint32_t)i] > m[i] ? s[j + (uint32_t)i] : m[i];
    top = m[0];
    for (int i = 1; i < LANES; i++)
        top = m[i] > top ? m[i] : top;
    for (; j < n; j++)
        top = s[j] > top ? s[j] : top;
    return top;
}

/* e^x for x <= 0, within 2e-7 of it: 2^n times a polynomial; in a shape that compilers vectorise. */
static inline float weight(float x) {
    const float y = (x > -87.0f ? x : -87.0f) * 1.44269504f, n = y - 0.5f;
    const int32_t whole = (int32_t)n;
    const float f = (y - (float)whole) * 0.693147181f;
    union {
        int32_t i;
        float f;
    } two = { (whole + 127) * (1 << 23) };
    return two.f * (1.0f + f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (8.33333333e-3f + f * 1.38888889e-3f))))));
}

/* Turns n scores into weights relative to the largest; returns their sum. */
static float make_weights(float *s, uint32_t n) {
    const float top = largest(s, n);
    float sums[LANES] = { 0 }, sum = 0.0f;
    uint32_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++) {
            const float w = weight(s[j + (uint32_t)i] - top);
            s[j + (uint32_t)i] = w;
            sums[i] += w;
        }
    for (int i = 0; i < LANES; i++)
        sum += sums[i];
    for (; j < n; j++) {
        s[j] = weight(s[j] - top);
        sum += s[j];
    }
    return sum;
}

bool comparator_give(const float *q, size_t q_step, const float *k, size_t k_step, uint32_t n, uint32_t dim, float scale, float *given,
                     comparator_product *product) {
    float *s = malloc(sizeof *s * BLOCK * n);
    if (!s)
        return false;
    for (uint32_t at = 0; at < n; at += BLOCK) {
        const uint32_t rows = n - at < BLOCK ? n - at : BLOCK, seen = at + rows;
        product(rows, seen, dim, scale, q + at * q_step, q_step, k, k_step, s, n);
        for (uint32_t r = 0; r < rows; r++) {
            float *row = s + (size_t)r * n;
            const float each = 1.0f / make_weights(row, at + r + 1);
            for (uint32_t j = 0; j <= at + r; j++)
                given[j] += row[j] * each;
        }
    }
    free(s);
    return true;
}

/* --- choices --- */

/* What a KV head's choices rest on, from step to step. */
typedef struct chooser {
    const comparator *c;
    comparator_task *t;
    float *low, *high;      /* Quest: [pages][dim] */
    float *bound;           /* [pages] */
    int32_t *heavy;         /* H2O: [k], ascending: what is kept behind the window */
    uint32_t heavies;
    float *s;               /* [BLOCK * group][n]: scores, then weights */
} chooser;

static uint32_t list_count(const chooser *x) { return comparator_per_head(x->c) ? x->t->group : 1; }

static prhs_set *set_of(const chooser *x, uint32_t step, uint32_t i) { return x->t->set + step * x->t->set_step + i; }
static int32_t *list_of(const chooser *x, uint32_t step, uint32_t i) {
    return x->t->list + step * x->t->list_step + (size_t)i * comparator_list_cap(x->c);
}

static void widen(chooser *x, uint32_t token) {
    const uint32_t dim = x->t->dim, page = token / x->c->page;
    const float *k = x->t->k + (size_t)token * dim;
    float *low = x->low + (size_t)page * dim, *high = x->high + (size_t)page * dim;
    const bool first = token % x->c->page == 0;
    for (uint32_t d = 0; d < dim; d++) {
        low[d] = first || k[d] < low[d] ? k[d] : low[d];
        high[d] = first || k[d] > high[d] ? k[d] : high[d];
    }
}

/* The count-th largest of n numbers, which change places. */
static float nth_largest(float *x, uint32_t n, uint32_t count) {
    uint32_t low = 0, high = n - 1, want = count - 1;
    while (low < high) {
        const float pivot = x[(low + high) / 2];
        uint32_t i = low, j = high;
        for (;;) {
            while (x[i] > pivot)
                i++;
            while (x[j] < pivot)
                j--;
            if (i >= j)
                break;
            const float y = x[i];
            x[i++] = x[j];
            x[j--] = y;
        }
        const uint32_t end = x[j] < pivot ? j - 1 : j;
        if (want <= end)
            high = end;
        else
            low = end + 1;
    }
    return x[want];
}

/* The best `count` of n candidates, ascending; of equal ones the first. `scratch`: [n]. */
static void best_of(const float *value, uint32_t n, uint32_t count, float *scratch, int32_t *out) {
    memcpy(scratch, value, sizeof *value * n);
    const float limit = nth_largest(scratch, n, count);
    uint32_t better = 0, taken = 0;
    for (uint32_t i = 0; i < n; i++)
        better += value[i] > limit;
    uint32_t equals = count - better;
    for (uint32_t i = 0; i < n && taken < count; i++)
        if (value[i] > limit || (value[i] == limit && equals > 0)) {
            equals -= value[i] == limit;
            out[taken++] = (int32_t)i;
        }
}

/* Pages of a head's query, the last one apart; fewer than asked for where there are no more. */
static void choose_pages(chooser *x, uint32_t step, uint32_t g) {
    const comparator_task *t = x->t;
    const uint32_t n = t->context + step + 1, page = x->c->page, last = (n - 1) / page, want = pages_kept(x->c) - 1;
    const float *q = t->q + step * t->q_step + (size_t)g * t->dim;
    int32_t *list = list_of(x, step, g);
    uint32_t count = last < want ? last : want;
    for (uint32_t p = 0; p < last; p++) {
        const float *low = x->low + (size_t)p * t->dim, *high = x->high + (size_t)p * t->dim;
        float sums[LANES] = { 0 };
        for (uint32_t d = 0; d < t->dim; d += LANES)
            for (uint32_t i = 0; i < LANES; i++) {
                const float a = q[d + i] * low[d + i], b = q[d + i] * high[d + i];
                sums[i] += a > b ? a : b;
            }
        x->bound[p] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    if (count > 0)
        best_of(x->bound, last, count, x->bound + last, list);
    for (uint32_t i = 0; i < count; i++)
        list[i] *= (int32_t)page;
    *set_of(x, step, g) = (prhs_set){ .mode = PRHS_MODE_SHARE, .count = (prhs_i32)count, .run = (prhs_i32)page,
                                      .win_begin = (prhs_i32)(last * page), .end = (prhs_i32)n };
}

/* Of the tokens kept so far the one that has left the window counts from now on; one too many goes, the least, of equal ones the last. */
static void let_go(chooser *x, uint32_t token) {
    const float *given = x->t->given;
    x->heavy[x->heavies++] = (int32_t)token;
    if (x->heavies <= x->c->k)
        return;
    uint32_t least = 0;
    for (uint32_t i = 1; i < x->heavies; i++)
        if (given[x->heavy[i]] <= given[x->heavy[least]])
            least = i;
    memmove(x->heavy + least, x->heavy + least + 1, sizeof *x->heavy * (x->heavies - least - 1));
    x->heavies--;
}

/* What the prompt leaves: the window of the first step, and of the tokens behind it the best k. */
static bool keep_prompt(chooser *x) {
    const comparator_task *t = x->t;
    const uint32_t n = t->context + 1, behind = n > x->c->recent ? n - x->c->recent : 0;
    x->heavies = behind < x->c->k ? behind : x->c->k;
    float *scratch = malloc(sizeof *scratch * (behind ? behind : 1));
    if (scratch && x->heavies)
        best_of(t->given, behind, x->heavies, scratch, x->heavy);
    free(scratch);
    return scratch != NULL;
}

static void keep_tokens(chooser *x, uint32_t step) {
    const uint32_t n = x->t->context + step + 1, window = n > x->c->recent ? n - x->c->recent : 0;
    if (step > 0 && window > 0)
        let_go(x, window - 1);
    memcpy(list_of(x, step, 0), x->heavy, sizeof *x->heavy * x->heavies);
    *set_of(x, step, 0) = (prhs_set){ .mode = PRHS_MODE_SHARE, .count = (prhs_i32)x->heavies, .run = 1, .win_begin = (prhs_i32)window,
                                      .end = (prhs_i32)n };
}

/* Sum of the weights of what a list attends to; `each` > 0: every token is given its weight times that. */
static double walk(const chooser *x, const prhs_set *set, const int32_t *list, const float *w, float each) {
    double sum = 0.0;
    float *given = x->t->given;
    for (int32_t i = 0; i < set->count; i++)
        for (int32_t j = list[i]; j < list[i] + set->run; j++) {
            sum += (double)w[j];
            if (each > 0.0f)
                given[j] += w[j] * each;
        }
    for (int32_t j = set->win_begin; j < set->end; j++) {
        sum += (double)w[j];
        if (each > 0.0f)
            given[j] += w[j] * each;
    }
    return sum;
}

static void choose(chooser *x, uint32_t step) {
    const comparator_task *t = x->t;
    const uint32_t n = t->context + step + 1;
    if (t->dense)
        for (uint32_t i = 0; i < list_count(x); i++)
            *set_of(x, step, i) = (prhs_set){ .mode = PRHS_MODE_DENSE, .run = 1, .end = (prhs_i32)n };
    else if (x->c->kind == COMPARATOR_H2O)
        keep_tokens(x, step);
    else
        for (uint32_t g = 0; g < t->group; g++)
            choose_pages(x, step, g);
    if (x->c->kind == COMPARATOR_QUEST && !t->dense)
        widen(x, n - 1);
}

/* What the step's lists leave out; and, for H2O, what its heads give the tokens of theirs. */
static void settle(chooser *x, uint32_t step, float *weights, size_t stride) {
    comparator_task *t = x->t;
    const uint32_t n = t->context + step + 1;
    const bool h2o = x->c->kind == COMPARATOR_H2O;
    for (uint32_t i = 0; i < list_count(x); i++) {
        const prhs_set *set = set_of(x, step, i);
        t->attended += (double)set->count * set->run + (set->end - set->win_begin);
    }
    for (uint32_t g = 0; g < t->group && weights; g++) {
        const uint32_t i = comparator_per_head(x->c) ? g : 0;
        float *w = weights + g * stride;
        const double all = (double)make_weights(w, n), kept = walk(x, set_of(x, step, i), list_of(x, step, i), w, 0.0f);
        if (h2o)
            walk(x, set_of(x, step, i), list_of(x, step, i), w, (float)(1.0 / kept));
        if (t->dropped)
            t->dropped[step * t->dropped_step + g] += kept < all ? 1.0 - kept / all : 0.0;
    }
}

static bool make_chooser(chooser *x, const comparator *c, comparator_task *t) {
    const size_t n = (size_t)t->context + t->steps, pages = c->page ? n / c->page + 1 : 1;
    *x = (chooser){ .c = c, .t = t };
    x->low = malloc(sizeof *x->low * pages * t->dim);
    x->high = malloc(sizeof *x->high * pages * t->dim);
    x->bound = malloc(sizeof *x->bound * 2 * pages);
    x->heavy = malloc(sizeof *x->heavy * ((size_t)c->k + 1));
    x->s = malloc(sizeof *x->s * BLOCK * t->group * n);
    if (!x->low || !x->high || !x->bound || !x->heavy || !x->s)
        return false;
    if (t->dense)
        return true;
    for (uint32_t j = 0; j < t->context && c->kind == COMPARATOR_QUEST; j++)
        widen(x, j);
    return c->kind != COMPARATOR_H2O || keep_prompt(x);
}

bool comparator_lists(const comparator *c, comparator_task *t, comparator_product *product) {
    chooser x;
    const size_t n = (size_t)t->context + t->steps;
    const bool weighs = !t->dense && (t->dropped || c->kind == COMPARATOR_H2O);
    bool ok = make_chooser(&x, c, t);
    t->attended = 0.0;
    for (uint32_t at = 0; ok && at < t->steps; at += BLOCK) {
        const uint32_t rows = t->steps - at < BLOCK ? t->steps - at : BLOCK;
        for (uint32_t g = 0; g < t->group && weighs; g++)
            product(rows, t->context + at + rows, t->dim, t->scale, t->q + at * t->q_step + (size_t)g * t->dim, t->q_step, t->k, t->dim,
                    x.s + g * n, t->group * n);
        for (uint32_t r = 0; r < rows; r++) {
            choose(&x, at + r);
            settle(&x, at + r, weighs ? x.s + (size_t)r * t->group * n : NULL, n);
        }
    }
    void *blocks[] = { x.low, x.high, x.bound, x.heavy, x.s };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
    return ok;
}
