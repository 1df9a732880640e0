/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A step over all layers that is recorded once and replayed ever after, beside the same session without a graph: the same bits of every
 * output, list, count and byte of state. Meanwhile sequences grow over the ends of blocks, chunks and pages, one joins, one leaves and another
 * takes its slot and pages, one is truncated, one moves to another slot, rows are rejected, and once the batch is empty.
 */
#include <string.h>

#include "groups.h"
#include "record.h"
#include "world.h"

#define STEPS 40
#define SEQS 4

static void local_long(prhs_policy *p) { p->local = 150; }
static void no_residual(prhs_policy *p) { p->residual = PRHS_RESIDUAL_NONE; }
/* What is attended grows from 122 tokens over 128 before the block ends. */
static void list_long(prhs_policy *p) { p->k = 112; }
static void runs(prhs_policy *p) {
    list_long(p);
    p->granularity = 4;
    p->join = PRHS_JOIN_MAX;
}
static void head_lists(prhs_policy *p) {
    list_long(p);
    p->join = PRHS_JOIN_PER_HEAD;
}

static void aimed(prhs_policy *p) {
    list_long(p);
    p->target = 0.1f;
    p->k_min = 16;
}

static void recalled(prhs_policy *p) {
    list_long(p);
    p->references = 3;
}

static const uint32_t copied[] = { 0, 1, 1 };

static const struct g_row {
    const char *name, *preset;
    int shape;
    uint32_t rows;  /* query rows of a decoding sequence, at most; all but the first are rejected */
    int prompts;    /* 1: prompts are replayed too, in chunks beside decoding rows */
    uint32_t audit; /* as in t_setup */
    void (*change)(prhs_policy *p);
    const uint32_t *list_layers;
} rows[] = {
    { "cis-mass", "cis-mass", S_G3_D64, 2, 0, 0, list_long, NULL },
    { "dense", "dense", S_G4_D128, 1, 0, 0, NULL, NULL },
    { "cis with prompts", "cis", S_G1_D32, 1, 1, 0, list_long, NULL },
    { "streaming", "streaming", S_G1_D32, 1, 0, 0, local_long, NULL },
    { "topk", "topk", S_G2_D64, 1, 0, 0, NULL, NULL },
    { "cis", "cis", S_G4_D128, 2, 0, 0, list_long, NULL },
    { "cpe", "cpe", S_G3_D96, 1, 0, 0, list_long, NULL },
    { "cis-mass without residual", "cis-mass", S_G1_D128, 1, 0, 0, no_residual, NULL },
    { "cis-mass audited, with prompts", "cis-mass", S_MQA_D80, 2, 1, 1, list_long, NULL },
    { "cis-mass, a quarter audited", "cis-mass", S_G3_D64, 2, 1, 25, list_long, NULL },
    { "cis-mass runs of 4", "cis-mass", S_G4_D256, 1, 0, 0, runs, NULL },
    { "cis-mass with a target", "cis-mass", S_G3_D64, 2, 0, 1, aimed, NULL },
    { "cis-mass, 3 references", "cis-mass", S_G3_D64, 2, 1, 0, recalled, NULL },
    { "cis-mass per head", "cis-mass", S_G16_D40, 1, 0, 0, head_lists, NULL },
    { "hshare, copied lists, half audited", "hshare", S_G3_D64, 2, 1, 50, list_long, copied },
};

/* When a sequence decodes for the first time and for the last, and how long its prompt is. */
static const struct g_part {
    int32_t slot, prompt;
    int begin, end;
} parts[SEQS] = {
    { 0, 118, 0, STEPS }, /* grows to 138, is cut back to 122 */
    { 1, 246, 0, 30 },
    { 3, 60, 12, STEPS },
    { 1, 70, 36, STEPS }, /* in the slot and the pages that the second one left */
};
enum { CUT_AT = 20, CUT_TO = 122, MOVE_AT = 17, MOVE_TO = 5, IDLE_AT = 25, PROMPT_STEPS = 4 };

typedef struct g_play {
    t_world w;
    t_rows q[W_LAYERS], k[W_LAYERS], v[W_LAYERS], out[W_LAYERS];
    t_buf lse[W_LAYERS];
    t_wseq *seqs[SEQS];
    uint32_t kinds;
    int replays;
    void *graph; /* NULL: not recorded yet */
} g_play;

/* Not T_OK: a recording has to be ended before the case may be left. */
static prhs_status enqueue(g_play *p) {
    t_world *w = &p->w;
    prhs_status status = PRHS_OK;
    for (uint32_t l = 0; l < w->s.layers && status == PRHS_OK; l++) {
        prhs_step step = PRHS_STEP_INIT;
        step.layer = l;
        step.batch = w->batch.b;
        step.batch.kinds = p->kinds;
        step.kv = w->cache[l].kv;
        step.q = p->q[l].r;
        step.k = p->k[l].r;
        step.v = p->v[l].r;
        step.out = p->out[l].r;
        step.lse = p->lse[l].mem;
        status = prhs_session_step(w->session, w->t->queue, &step);
    }
    return status;
}

static void record(g_play *p) {
    t_ctx *t = p->w.t;
    T_OK(t, t_graph_begin(t->queue));
    prhs_status enqueued = enqueue(p), ended = t_graph_end(t->queue, &p->graph);
    if (p->graph)
        t_own(t, T_GRAPH, p->graph, 0);
    T_OK(t, enqueued);
    T_OK(t, ended);
}

static void replay(g_play *p) {
    t_ctx *t = p->w.t;
    prhs_counters before, after;
    if (!p->graph)
        record(p);
    before.size = after.size = sizeof before;
    T_OK(t, prhs_device_get_counters(t->dev, &before));
    T_OK(t, t_graph_launch(p->graph, t->queue));
    T_OK(t, prhs_device_get_counters(t->dev, &after));
    T_CHECK(t, !memcmp(&before, &after, sizeof before), "the library did work of its own for a replay");
}

static void step(g_play *p, t_entry *entries, int n) {
    t_world *w = &p->w;
    t_ctx *t = w->t;
    t_world_place(w, entries, n);
    for (uint32_t l = 0; l < w->s.layers; l++) {
        t_world_fill(w, l, entries, n);
        t_rows_put(t, &p->q[l], w->qh);
        t_rows_put(t, &p->k[l], w->kh);
        t_rows_put(t, &p->v[l], w->vh);
        t_poison(t, p->out[l].buf);
        t_poison(t, p->lse[l]);
    }
    if (p->replays)
        replay(p);
    else
        T_OK(t, enqueue(p));
    for (uint32_t l = 0; l < w->s.layers; l++) {
        float *out = t_rows_get(t, &p->out[l]);
        memcpy(w->outs[l], out, (size_t)w->s.max_rows * w->s.shape->heads * w->s.shape->dim * sizeof *out);
        t_drop(t, out);
        t_get(t, w->lses[l], p->lse[l].mem, p->lse[l].size);
    }
}

static void make(t_ctx *t, g_play *p, const t_setup *s, const struct g_row *row, int replays) {
    const t_shape *sh = s->shape;
    t_world_make(t, &p->w, s);
    for (uint32_t l = 0; l < s->layers; l++) {
        p->q[l] = t_rows_new(t, sh->q, s->max_rows, sh->heads, sh->dim, 0);
        p->k[l] = t_rows_new(t, sh->q, s->max_rows, sh->kv_heads, sh->dim, 0);
        p->v[l] = t_rows_new(t, sh->q, s->max_rows, sh->kv_heads, sh->dim, 0);
        p->out[l] = t_rows_new(t, sh->out, s->max_rows, sh->heads, sh->dim, 0);
        p->lse[l] = t_buffer(t, (size_t)s->max_rows * sh->heads * sizeof(float));
    }
    p->kinds = PRHS_HAS_DECODE | (row->prompts ? PRHS_HAS_PREFILL | PRHS_HAS_SEED : 0);
    p->replays = replays;
    for (int i = 0; i < SEQS; i++)
        p->seqs[i] = t_world_seq(&p->w, (uint64_t)i + 1, parts[i].slot);
}

/* What happens between two steps, by itself in both worlds. */
static void between(g_play *p, int at, int prompts) {
    t_world *w = &p->w;
    t_ctx *t = w->t;
    for (int i = 0; i < SEQS; i++) {
        if (at == parts[i].end) {
            T_OK(t, prhs_session_reset(w->session, t->queue, (uint32_t)p->seqs[i]->slot));
            t_world_cut(w, p->seqs[i], 0);
        }
        if (at == parts[i].begin && (at == 0 || !prompts))
            t_world_prompt(w, p->seqs[i], parts[i].prompt, (int32_t)w->s.max_rows);
    }
    if (at == CUT_AT)
        t_world_resize(w, p->seqs[0], W_TRUNCATE, CUT_TO);
    if (at == MOVE_AT) {
        T_OK(t, prhs_session_move(w->session, t->queue, MOVE_TO, (uint32_t)p->seqs[2]->slot));
        p->seqs[2]->slot = MOVE_TO;
    }
}

/* The step's entries; their places in the batch change from step to step. */
static int entries_at(g_play *p, int at, int prompts, t_entry *entries) {
    int n = 0;
    for (int k = 0; k < SEQS && at != IDLE_AT; k++) {
        int i = (k + at) % SEQS, left = parts[i].begin - at;
        const int32_t chunk = parts[i].prompt / PROMPT_STEPS, last = parts[i].prompt - chunk * (PROMPT_STEPS - 1);
        if (left <= 0 && at < parts[i].end)
            entries[n++] = (t_entry){ p->seqs[i], 1 + (at + i) % (int32_t)p->w.s.decode_rows, 0, 0, NULL, 0, 0 };
        else if (prompts && parts[i].begin && left > 0 && left <= PROMPT_STEPS)
            entries[n++] = (t_entry){ p->seqs[i], left > 1 ? chunk : last, PRHS_SEQ_PREFILL | (left > 1 ? 0 : PRHS_SEQ_SEED),
                                      parts[i].prompt, NULL, 0, 0 };
    }
    return n;
}

static void commit(g_play *p, const t_entry *entries, int n) {
    for (int i = 0; i < n; i++)
        if (!entries[i].flags && entries[i].rows > 1)
            t_world_resize(&p->w, entries[i].seq, W_COMMIT, entries[i].seq->len - entries[i].rows + 1);
}

static void same(t_ctx *t, const g_play *a, const g_play *b, int at) {
    const t_setup *s = &a->w.s;
    const size_t heads = (size_t)s->max_rows * s->shape->heads;
    for (uint32_t l = 0; l < s->layers; l++) {
        T_CHECK(t, !memcmp(a->w.outs[l], b->w.outs[l], heads * s->shape->dim * sizeof(float)), "step %d, layer %u: other output bits", at, l);
        T_CHECK(t, !memcmp(a->w.lses[l], b->w.lses[l], heads * sizeof(float)), "step %d, layer %u: other log-sum-exp bits", at, l);
    }
    /* Of all slots: references, lists, moments, value sums, statistics, the error word. */
    uint8_t *x = t_fetch(t, a->w.state.mem, a->w.state.size), *y = t_fetch(t, b->w.state.mem, b->w.state.size);
    for (size_t i = 0; i < a->w.state.size; i++)
        T_CHECK(t, x[i] == y[i], "step %d: byte %zu of %zu of the state differs", at, i, a->w.state.size);
    t_drop(t, y);
    t_drop(t, x);
}

/* The public calls tell the same, and the script was worth its while. */
static void same_stats(t_ctx *t, g_play *a, g_play *b) {
    const prhs_policy *policy = &a->w.s.policy;
    prhs_stats x, y;
    memset(&x, 0, sizeof x);
    memset(&y, 0, sizeof y);
    t_world_stats(&a->w, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &x);
    t_world_stats(&b->w, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &y);
    T_CHECK(t, !memcmp(&x, &y, sizeof x), "other statistics");
    prhs_audit_report r, q;
    memset(&r, 0, sizeof r);
    memset(&q, 0, sizeof q);
    t_world_audit(&a->w, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &r);
    t_world_audit(&b->w, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, &q);
    T_CHECK(t, r.audits == q.audits && r.unknown == q.unknown && (r.audits == 0 || (r.bound.low == q.bound.low && r.bound.high == q.bound.high)),
            "other audits");
    T_CHECK(t, !a->w.s.audit || r.audits > 0, "nothing was audited");
    T_CHECK(t, x.steps > 0 || policy->dense_layers >= a->w.s.layers, "nothing was counted");
    T_CHECK(t, !policy->k || policy->k > 1000 || x.retrieve > 0, "nothing retrieved");
    T_CHECK(t, policy->gate == PRHS_GATE_NONE || x.share > 0, "nothing shared");
}

static t_setup setup_of(t_ctx *t, const struct g_row *row) {
    t_setup s = t_setup_default(t, row->preset, &t_shapes[row->shape]);
    s.decode_rows = row->rows;
    s.max_seqs = SEQS;
    s.max_slots = 6;
    s.max_kv_len = 320;
    s.pages = SEQS * 21;
    s.audit = row->audit;
    s.list_layers = row->list_layers;
    s.validate = 1;
    if (row->change)
        row->change(&s.policy);
    t_setup_turns(&s);
    return s;
}

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) {
    const char *missing = t_graph_missing(t->info.backend);
    if (missing)
        t_skip(t, missing);
    g_play *plain = t_alloc(t, sizeof *plain), *graph = t_alloc(t, sizeof *graph), *both[2] = { plain, graph };
    t_setup s = setup_of(t, &rows[row]);
    t_entry entries[SEQS];
    for (int i = 0; i < 2; i++)
        make(t, both[i], &s, &rows[row], i);
    for (int at = 0; at < STEPS; at++) {
        for (int i = 0; i < 2; i++) {
            between(both[i], at, rows[row].prompts);
            int n = entries_at(both[i], at, rows[row].prompts, entries);
            step(both[i], entries, n);
            commit(both[i], entries, n);
        }
        same(t, plain, graph, at);
    }
    same_stats(t, plain, graph);
}

const t_group t_group_graph = { "graph", sizeof rows / sizeof *rows, 3, row_name, run };
