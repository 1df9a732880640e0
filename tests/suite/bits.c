/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Same inputs, same bits: one sequence alone and inside a ragged batch of seven with joins and leaves, in other slots and pages,
 * in other chunks of its prompt, with other thread counts and other numbers of work-groups; dense and a sparse policy whose middle
 * holds at most k tokens.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "groups.h"
#include "world.h"

#define PROMPT 53
#define STEPS 44

enum { RETRIEVED = 1, AIMED, COPIED, RECALLED }; /* the residual; lists that are made for a target; of another layer; several references */

static const uint32_t copied[] = { 0, 1, 1 };

static const struct b_row {
    const char *name, *preset;
    int shape;
    t_layout layout;
    uint32_t rows; /* query rows a step */
    uint32_t granularity;
    int what; /* else the preset as it is */
} rows[] = {
    { "cis-mass D32", "cis-mass", S_G1_D32, { 16, 0, 0, 0 }, 1, 1, 0 },
    { "cis-mass retrieved G3 D64", "cis-mass", S_G3_D64, { 16, 0, 0, 0 }, 2, 1, RETRIEVED },
    { "cis G3 D64", "cis", S_G3_D64, { 1, 1, 1, 0 }, 2, 1, 0 },
    { "cis-mass G4 D128 runs", "cis-mass", S_G4_D128, { 256, 0, 1, 1 }, 3, 4, 0 },
    { "topk MQA D80", "topk", S_MQA_D80, { 16, 1, 0, 0 }, 1, 1, 0 },
    { "cpe D40", "cpe", S_G16_D40, { 16, 0, 1, 0 }, 1, 1, 0 },
    { "streaming D96", "streaming", S_G3_D96, { 16, 0, 0, 0 }, 2, 1, 0 },
    { "dense D256", "dense", S_G4_D256, { 16, 1, 1, 0 }, 1, 1, 0 },
    { "cis-mass D128", "cis-mass", S_G1_D128, { 16, 0, 0, 0 }, 2, 16, 0 },
    { "cis-mass retrieved MQA D80", "cis-mass", S_MQA_D80, { 1, 0, 0, 0 }, 2, 4, RETRIEVED },
    { "cis-mass aimed G3 D64", "cis-mass", S_G3_D64, { 16, 0, 0, 0 }, 2, 1, AIMED },
    { "topk aimed MQA D80 runs", "topk", S_MQA_D80, { 16, 1, 0, 0 }, 1, 4, AIMED },
    { "hshare G3 D64, copied lists", "hshare", S_G3_D64, { 16, 0, 0, 0 }, 2, 1, COPIED },
    { "cis-mass, 3 references, G3 D64", "cis-mass", S_G3_D64, { 16, 0, 0, 0 }, 2, 1, RECALLED },
    { "cis-mass retrieved D128 bf16", "cis-mass", S_G1_D128, { 16, 0, 0, 0 }, 2, 1, RETRIEVED },
};

typedef struct trace {
    float *out, *lse; /* [STEPS][layers][rows][heads][dim], without dim */
    void *state;
} trace;

static trace make_trace(t_ctx *t, const t_setup *s) {
    size_t n = (size_t)STEPS * s->layers * s->decode_rows * s->shape->heads;
    trace tr = { t_alloc(t, n * s->shape->dim * sizeof(float)), t_alloc(t, n * sizeof(float)), NULL };
    return tr;
}

static void keep(const t_world *w, const t_entry *e, int step, trace *tr) {
    size_t heads = w->s.shape->heads, row = heads * w->s.shape->dim, rows_n = w->s.decode_rows;
    for (uint32_t l = 0; l < w->s.layers; l++) {
        size_t at = ((size_t)step * w->s.layers + l) * rows_n;
        memcpy(tr->out + at * row, w->outs[l] + (size_t)e->row_begin * row, rows_n * row * sizeof(float));
        memcpy(tr->lse + at * heads, w->lses[l] + (size_t)e->row_begin * heads, rows_n * heads * sizeof(float));
    }
}

static void same(t_ctx *t, const t_world *w, const trace *a, const trace *b, const char *what) {
    size_t heads = w->s.shape->heads, n = w->s.layers * w->s.decode_rows * heads;
    for (size_t step = 0; step < STEPS; step++) {
        T_CHECK(t, !isnan(a->lse[step * n]) && !isnan(a->out[step * n * w->s.shape->dim]), "%s: nothing was written", what);
        T_CHECK(t, !memcmp(a->lse + step * n, b->lse + step * n, n * sizeof(float)), "%s: other log-sum-exp bits at step %zu",
                what, step);
        n *= w->s.shape->dim;
        T_CHECK(t, !memcmp(a->out + step * n, b->out + step * n, n * sizeof(float)), "%s: other output bits at step %zu", what,
                step);
        n /= w->s.shape->dim;
    }
    if (a->state && b->state)
        T_CHECK(t, !memcmp(a->state, b->state, w->sizes.slot), "%s: the slot's state has other bits", what);
}

/* Every step brings `rows` rows; the first is committed. */
static void commit_first(t_world *w, t_wseq *seq) {
    if (w->s.decode_rows > 1)
        t_world_resize(w, seq, W_COMMIT, seq->len - (int32_t)w->s.decode_rows + 1);
}

static trace run_alone(t_ctx *t, const t_setup *s, int32_t slot, int32_t chunk) {
    t_world *w = t_alloc(t, sizeof *w);
    trace tr = make_trace(t, s);
    t_world_make(t, w, s);
    t_wseq *seq = t_world_seq(w, 1, slot);
    t_world_prompt(w, seq, PROMPT, chunk);
    for (int step = 0; step < STEPS; step++) {
        t_entry e = { seq, (int32_t)s->decode_rows, 0, 0, NULL, 0, 0 };
        t_world_step(w, &e, 1);
        keep(w, &e, step, &tr);
        commit_first(w, seq);
    }
    tr.state = t_world_export(w, slot);
    return tr;
}

/* The others join at different steps, prefill in chunks beside our decode rows, leave and come again. */
static int crowd(t_world *w, t_wseq **others, t_entry *entries, int step) {
    int n = 0;
    for (int i = 0; i < 6; i++) {
        int age = (step + 5 * i) % 23;
        if (!others[i] || age == 0) {
            if (others[i])
                t_world_cut(w, others[i], 0);
            others[i] = t_world_seq(w, 100 + (uint64_t)(step * 7 + i), i < 2 ? i : i + 1);
            T_OK(w->t, prhs_session_reset(w->session, w->t->queue, (uint32_t)others[i]->slot));
        }
        if (age < 3)
            entries[n++] =
                (t_entry){ others[i], 7 + 3 * i, PRHS_SEQ_PREFILL | (age == 2 ? PRHS_SEQ_SEED : 0), 3 * (7 + 3 * i), NULL, 0, 0 };
        else if (age < 18)
            entries[n++] = (t_entry){ others[i], 1 + (age + i) % (int)w->s.decode_rows, 0, 0, NULL, 0, 0 };
    }
    return n;
}

static trace run_crowd(t_ctx *t, const t_setup *s) {
    t_world *w = t_alloc(t, sizeof *w);
    trace tr = make_trace(t, s);
    t_wseq *others[6] = { NULL };
    t_entry entries[8];
    t_world_make(t, w, s);
    t_wseq *seq = t_world_seq(w, 1, 2);
    t_world_prompt(w, seq, PROMPT, 20);
    for (int step = 0; step < STEPS; step++) {
        int n = crowd(w, others, entries, step), at = (int)t_below(t, (uint32_t)n + 1);
        entries[n] = entries[at];
        entries[at] = (t_entry){ seq, (int32_t)s->decode_rows, 0, 0, NULL, 0, 0 };
        t_world_step(w, entries, n + 1);
        keep(w, &entries[at], step, &tr);
        commit_first(w, seq);
    }
    tr.state = t_world_export(w, 2);
    return tr;
}

static t_setup setup_of(t_ctx *t, const struct b_row *row) {
    t_setup s = t_setup_default(t, row->preset, &t_shapes[row->shape]);
    s.layout = row->layout;
    s.policy.granularity = row->granularity;
    if (row->what == AIMED) { /* of these units some miss it */
        s.policy.target = 0.2f;
        s.policy.k_min = 4;
    }
    if (row->what == RETRIEVED)
        s.policy.residual = PRHS_RESIDUAL_RETRIEVED;
    if (row->what == COPIED)
        s.list_layers = copied;
    if (row->what == RECALLED) {
        s.policy.references = 3;
        s.policy.block = 90;
        t_setup_turns(&s);
    }
    s.decode_rows = row->rows;
    s.max_kv_len = 160;
    s.max_rows = 7 * 24;
    s.pages = 9 * (160 / row->layout.page + 1);
    s.pad = row->layout.pad;
    return s;
}

/* The same on a device with another number of threads. */
static void other_threads(t_ctx *t, const t_setup *s, const trace *want) {
    prhs_device *dev = t->dev;
    prhs_queue *queue = t->queue;
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    params.backend = PRHS_BACKEND_CPU;
    params.caps_mask = t->opt->caps_mask;
    for (params.threads = 1; params.threads <= 3; params.threads += 2) {
        size_t mark = t_mark(t);
        prhs_device *other;
        prhs_queue *work;
        T_OK(t, prhs_device_open(&params, NULL, &other));
        t_own(t, T_DEVICE, other, 0);
        T_OK(t, prhs_queue_create(other, &work));
        t_own(t, T_QUEUE, work, 0);
        t->dev = other;
        t->queue = work;
        trace got = run_alone(t, s, 3, 20);
        t_world w = { .s = *s };
        same(t, &w, want, &(trace){ got.out, got.lse, NULL }, params.threads == 1 ? "one thread" : "three threads");
        t_check_guards(t);
        t->dev = dev;
        t->queue = queue;
        t_release_to(t, mark);
    }
}

/* The same where launches have as few work-groups as can be, and far more than usual (CUDA: never more than are resident). */
static void other_tables(t_ctx *t, const t_setup *s, const trace *want) {
    const int groups[] = { 1, 37 }, tables = t->info.backend == PRHS_BACKEND_CUDA ? 1 : 2;
    prhs_device *dev = t->dev;
    prhs_queue *queue = t->queue;
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    char path[] = "/tmp/prhs-tuning-XXXXXX";
    const int file = mkstemp(path);
    T_CHECK(t, file >= 0, "cannot make %s", path);
    close(file);
    params.backend = t->info.backend;
    params.index = t->info.index;
    params.caps_mask = t->opt->caps_mask;
    params.cache_dir = t->opt->cache_dir;
    params.tuning = path;
    for (int i = 0; i < tables; i++) {
        size_t mark = t_mark(t);
        prhs_device *other;
        prhs_queue *work;
        FILE *f = fopen(path, "w");
        if (f) {
            const int n = groups[i];
            fprintf(f, "X(cuda, sm_90, any, any, 0, 0, %d)\nX(opencl, cpu, any, any, 0, 0, %d)\nX(opencl, gpu, any, any, 0, 0, %d)\n", n, n, n);
            fclose(f);
        }
        prhs_status status = prhs_device_open(&params, NULL, &other);
        unlink(path); /* it is read while the device is opened */
        T_OK(t, status);
        t_own(t, T_DEVICE, other, 0);
        T_OK(t, prhs_queue_create(other, &work));
        t_own(t, T_QUEUE, work, 0);
        t->dev = other;
        t->queue = work;
        trace got = i ? run_alone(t, s, 4, 20) : run_crowd(t, s);
        t_world w = { .s = *s };
        same(t, &w, want, &(trace){ got.out, got.lse, NULL }, i ? "many work-groups a launch" : "one work-group a compute unit");
        t_check_guards(t);
        t->dev = dev;
        t->queue = queue;
        t_release_to(t, mark);
    }
}

/* With k (of a target: k_min) at least the middle, a sparse policy takes the dense path. */
static void small_middle(t_ctx *t, const t_setup *setup) {
    t_setup s = *setup;
    if (s.policy.k == 0 || s.policy.k > 1000 || s.policy.psaw)
        return;
    s.policy.k = s.policy.k_min = s.max_kv_len - 1;
    trace sparse = run_alone(t, &s, 1, 20);
    T_OK(t, prhs_policy_preset("dense", s.layers, &s.policy));
    trace dense = run_alone(t, &s, 1, 20);
    t_world w = { .s = s };
    same(t, &w, &(trace){ dense.out, dense.lse, NULL }, &(trace){ sparse.out, sparse.lse, NULL },
         "a middle of at most k tokens and dense");
}

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) {
    t_setup s = setup_of(t, &rows[row]);
    t_world w = { .s = s };
    trace alone = run_alone(t, &s, 0, 20), crowded = run_crowd(t, &s), chunks = run_alone(t, &s, 5, 7);
    prhs_session_params p = t_world_params(&s);
    w.sizes.size = sizeof w.sizes;
    T_OK(t, prhs_session_get_sizes(t->dev, &p, &w.sizes));
    same(t, &w, &alone, &crowded, "alone and in a ragged batch of 7");
    same(t, &w, &alone, &chunks, "prompt chunks of 20 and of 7");
    small_middle(t, &s);
    if (t->info.backend == PRHS_BACKEND_CPU)
        other_threads(t, &s, &alone);
    else
        other_tables(t, &s, &alone);
}

const t_group t_group_bits = { "bits", sizeof rows / sizeof *rows, 4, row_name, run };
