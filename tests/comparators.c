/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of Quest and H2O beside their papers' rules in double precision, on random rows: which pages have the largest bounds, who is evicted,
 * what is dropped. usage: comparators [SEED]
 */
#include "comparator.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 150, STEPS = 75, TOKENS = CONTEXT + STEPS, GROUP = 3, DIM = 32, CAP = 64 };

static uint64_t state;
static int bad;
static float K[TOKENS][DIM], Q[STEPS][GROUP][DIM], given[TOKENS];
static double told[TOKENS]; /* what each token has been given by the rule */
static int32_t list[STEPS][GROUP][CAP];
static prhs_set set[STEPS][GROUP];

static float draw(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)((double)(state >> 11) / 9007199254740992.0 * 2.0 - 1.0);
}

static void check(int good, const char *what, int step, int head) {
    if (!good && bad++ < 10)
        printf("FAIL %s at step %d, head %d\n", what, step, head);
}

static double score(const float *q, int j) {
    double sum = 0.0;
    for (int d = 0; d < DIM; d++)
        sum += (double)q[d] * (double)K[j][d];
    return sum;
}

/* Weights of rows [0, n) for a query: sum 1 over those that `in` has, NULL: all. Returns the share of these in the sum over all. */
static double softmax(const float *q, int n, const unsigned char *in, double *w) {
    double all = 0.0, some = 0.0;
    for (int j = 0; j < n; j++) {
        w[j] = exp(score(q, j));
        all += w[j];
        some += !in || in[j] ? w[j] : 0.0;
    }
    for (int j = 0; j < n; j++)
        w[j] = !in || in[j] ? w[j] / some : 0.0;
    return some / all;
}

/* What the set and its list attend to; their count. */
static int marks(int step, int i, unsigned char in[TOKENS]) {
    const prhs_set *s = &set[step][i];
    int n = 0, last = -1;
    memset(in, 0, TOKENS);
    for (int r = 0; r < s->count; r++) {
        check(list[step][i][r] > last && list[step][i][r] + s->run <= s->win_begin, "order of a list", step, i);
        last = list[step][i][r];
        for (int j = 0; j < s->run; j++)
            in[last + j] = 1;
    }
    for (int j = s->win_begin; j < s->end; j++)
        in[j] = 1;
    check(s->end == CONTEXT + step + 1, "end of a set", step, i);
    for (int j = 0; j < TOKENS; j++)
        n += in[j];
    return n;
}

static double bound(const float *q, int page, int size) {
    double sum = 0.0;
    for (int d = 0; d < DIM; d++) {
        double most = -INFINITY;
        for (int j = page * size; j < (page + 1) * size; j++)
            most = fmax(most, (double)q[d] * (double)K[j][d]);
        sum += most;
    }
    return sum;
}

static comparator_task task(double *dropped) {
    return (comparator_task){ .context = CONTEXT, .steps = STEPS, .group = GROUP, .dim = DIM, .scale = 1.0f, .k = K[0], .q = Q[0][0],
                              .q_step = GROUP * DIM, .given = given, .list = list[0][0], .set = set[0], .list_step = (size_t)GROUP * CAP,
                              .set_step = GROUP, .dropped = dropped };
}

static void quest(void) {
    comparator c;
    double dropped[GROUP] = { 0 }, want[GROUP] = { 0 }, w[TOKENS];
    unsigned char in[TOKENS];
    check(comparator_parse("test", "quest,k=64,page=8", &c) && c.kind == COMPARATOR_QUEST && c.dense == 2, "quest's options", 0, 0);
    comparator_task t = task(dropped);
    t.list_step = (size_t)GROUP * comparator_list_cap(&c);
    static int32_t packed[STEPS][GROUP][8];
    t.list = packed[0][0];
    check(comparator_list_cap(&c) == 8 && comparator_per_head(&c) && comparator_lists(&c, &t, comparator_product_plain), "quest", 0, 0);
    for (int s = 0; s < STEPS; s++)
        for (int g = 0; g < GROUP; g++) {
            const int last = (CONTEXT + s) / 8;
            double least = INFINITY, most = -INFINITY;
            memcpy(list[s][g], packed[s][g], sizeof packed[s][g]);
            check(marks(s, g, in) == 7 * 8 + CONTEXT + s + 1 - last * 8 && set[s][g].win_begin == last * 8, "pages of a budget", s, g);
            for (int p = 0; p < last; p++) {
                const double b = bound(Q[s][g], p, 8);
                if (in[p * 8])
                    least = fmin(least, b);
                else
                    most = fmax(most, b);
            }
            check(least >= most - 1e-5, "pages with the largest bounds", s, g);
            want[g] += 1.0 - softmax(Q[s][g], CONTEXT + s + 1, in, w);
        }
    for (int g = 0; g < GROUP; g++)
        check(fabs(dropped[g] - want[g]) < 1e-4 * STEPS, "mass that quest drops", STEPS, g);
}

static void h2o(void) {
    comparator c;
    double dropped[GROUP] = { 0 }, want[GROUP] = { 0 }, w[TOKENS];
    unsigned char in[TOKENS], before[TOKENS];
    check(comparator_parse("test", "h2o,k=20,recent=12", &c) && c.kind == COMPARATOR_H2O && c.dense == 0, "h2o's options", 0, 0);
    memset(given, 0, sizeof given);
    static float prompt[CONTEXT][GROUP][DIM];
    for (int i = 0; i < CONTEXT * GROUP * DIM; i++)
        (&prompt[0][0][0])[i] = draw();
    for (int g = 0; g < GROUP; g++) {
        check(comparator_give(prompt[0][g], GROUP * DIM, K[0], DIM, CONTEXT, DIM, 1.0f, given, comparator_product_plain), "give", 0, g);
        for (int i = 0; i < CONTEXT; i++) {
            softmax(prompt[i][g], i + 1, NULL, w);
            for (int j = 0; j <= i; j++)
                told[j] += w[j];
        }
    }
    for (int j = 0; j < CONTEXT; j++)
        check(fabs(told[j] - (double)given[j]) < 1e-4 * told[j], "what a prompt gives", j, 0);
    comparator_task t = task(dropped);
    static int32_t packed[STEPS][20];
    static prhs_set sets[STEPS];
    t.list = packed[0];
    t.list_step = 20;
    t.set = sets;
    t.set_step = 1;
    check(comparator_list_cap(&c) == 20 && !comparator_per_head(&c) && comparator_lists(&c, &t, comparator_product_plain), "h2o", 0, 0);
    memset(before, 1, sizeof before);
    for (int s = 0; s < STEPS; s++) {
        set[s][0] = sets[s];
        memcpy(list[s][0], packed[s], sizeof packed[s]);
        check(marks(s, 0, in) == 32 && sets[s].win_begin == CONTEXT + s + 1 - 12, "tokens of a budget", s, 0);
        double least = INFINITY, most = -INFINITY;
        for (int j = 0; j < sets[s].win_begin; j++) {
            check(before[j] || !in[j], "an evicted token is back", s, 0);
            if (in[j])
                least = fmin(least, told[j]);
            else if (before[j])
                most = fmax(most, told[j]);
        }
        check(least >= most - 1e-4, "who is evicted", s, 0);
        memcpy(before, in, sizeof before);
        memset(before + CONTEXT + s + 1, 1, (size_t)(STEPS - s - 1));
        for (int g = 0; g < GROUP; g++) {
            want[g] += 1.0 - softmax(Q[s][g], CONTEXT + s + 1, in, w);
            for (int j = 0; j <= CONTEXT + s; j++)
                told[j] += w[j];
        }
    }
    for (int g = 0; g < GROUP; g++)
        check(fabs(dropped[g] - want[g]) < 1e-4 * STEPS, "mass that h2o drops", STEPS, g);
    check(fabs(t.attended - 32.0 * STEPS) < 1e-9, "tokens that h2o attends to", STEPS, 0);
}

static void texts(void) {
    comparator c;
    check(comparator_parse("test", "cis-mass,k=220", &c) && c.kind == COMPARATOR_NONE, "a policy is no comparator", 0, 0);
    check(!comparator_parse("test", "quest,recent=4", &c) && !comparator_parse("test", "h2o,page=4", &c) && !comparator_parse("test", "h2o,k", &c) &&
              !comparator_parse("test", "quest,page=0", &c) && !comparator_parse("test", "h2o,k=-1", &c),
          "options that are none", 0, 0);
}

int main(int argc, char **argv) {
    state = argc > 1 ? strtoull(argv[1], NULL, 10) * 2 + 1 : 20241;
    printf("seed %llu\n", (unsigned long long)(state / 2));
    for (int i = 0; i < TOKENS * DIM; i++)
        (&K[0][0])[i] = draw();
    for (int i = 0; i < STEPS * GROUP * DIM; i++)
        (&Q[0][0][0])[i] = draw();
    quest();
    h2o();
    texts();
    printf(bad ? "%d failed\n" : "all good\n", bad);
    return bad != 0;
}
