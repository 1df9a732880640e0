/* SPDX-License-Identifier: Apache-2.0 */
/* Attend over all tokens, over ranges, over lists made by hand and over nothing, against double precision. */
#include <stdio.h>
#include <string.h>

#include "cases.h"
#include "groups.h"

typedef enum kind { ALL, EMPTY, RANGE, LIST, FULL, KINDS } kind;

static const char *const names[KINDS] = { "all", "nothing", "a range", "a list", "rows of another shard" };

/* A list of runs in ascending order, between `from` and `to`, each taken with some chance. */
static int32_t make_list(t_ctx *t, int32_t *list, int32_t cap, int32_t run, int32_t from, int32_t to) {
    int32_t n = 0, first = (from + run - 1) / run * run;
    uint32_t chance = 1 + t_below(t, 4);
    for (int32_t a = first; a + run <= to && n < cap; a += run)
        if (t_below(t, 4) < chance)
            list[n++] = a;
    return n;
}

static prhs_set make_set(t_bench *b, kind k, int32_t *list, int32_t len, int32_t rows) {
    prhs_set s = { .mode = PRHS_MODE_RETRIEVE, .run = 1, .end = len };
    int32_t first = len - rows + 1; /* tokens that row 0 may see */
    switch (k) {
    case EMPTY: s.win_begin = s.end = 0; break;
    case RANGE:
        s.win_begin = (int32_t)t_below(b->t, (uint32_t)first);
        s.sink_end = s.win_begin < 3 ? 0 : 3;
        break;
    case LIST: {
        int32_t run = (int32_t)b->c->granularity, sinks = first < 6 ? 0 : 2, win = first - (first < 9 ? first - sinks : 7);
        s.sink_end = sinks;
        s.run = run;
        s.count = make_list(b->t, list, (int32_t)b->params.list_cap, run, sinks + (run > 1 ? 1 : 0), win);
        if (run > 1 && win > sinks) { /* a partial run at the low end */
            s.edge_begin = sinks;
            s.edge_end = s.count && list[0] < sinks + 1 ? sinks : sinks + 1;
        }
        s.win_begin = win;
        break;
    }
    default: break;
    }
    s.mid_end = s.mid_begin;
    return s;
}

static void put_lists(t_bench *b, const int32_t *lists) {
    size_t n = (size_t)b->units * b->params.list_cap;
    for (int i = 0; i < C_SEQS; i++)
        if (b->batch.seqs[i].slot >= 0)
            t_put(b->t, t_at(b->state.mem, (uint64_t)b->batch.seqs[i].slot * b->layout.slot_bytes + b->layout.lists),
                  lists + (size_t)i * n, n * sizeof *lists);
}

static void run(t_ctx *t, int row) {
    t_bench *b = t_alloc(t, sizeof *b);
    t_bench_make(t, b, &t_cases[row], 0);
    size_t units = C_SEQS * (size_t)b->units;
    for (kind k = 0; k < KINDS; k++) {
        prhs_set *sets = t_alloc(t, units * sizeof *sets);
        int32_t *lists = t_alloc(t, units * b->params.list_cap * sizeof *lists);
        memset(lists, 0x7e, units * b->params.list_cap * sizeof *lists);
        if (k == FULL) { /* every row sees all cached tokens, whatever its position */
            for (int i = 0; i < C_SEQS; i++)
                b->batch.seqs[i].flags = PRHS_SEQ_FULL;
            t_batch_upload(t, &b->batch);
        }
        for (size_t u = 0; u < units; u++) {
            int seq = (int)(u / b->units);
            int32_t len = b->c->len[seq];
            sets[u] = len ? make_set(b, k, lists + u * b->params.list_cap, len, t_bench_rows(b, seq)) : (prhs_set){ .run = 1 };
        }
        put_lists(b, lists);
        t_bench_set_sets(b, sets);
        t_bench_attend(b, sets, lists, names[k]);
    }
    t_cache_check(t, &b->cache, "attend");
}

const t_group t_group_attend = { "attend", 29, 10, t_case_name, run };
