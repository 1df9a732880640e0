/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ten thousand random operations on a changing crowd of sequences in ragged batches, then the same log replayed with every
 * sequence alone, in other slots and other pages: the same bits, of every output and of every slot's state.
 */
#include <stdio.h>
#include <string.h>

#include "groups.h"
#include "world.h"

#define MAX_SEQS 4096

typedef enum r_kind { R_NEW, R_PROMPT, R_DECODE, R_COMMIT, R_TRUNCATE, R_FORK, R_MOVE, R_ATTACH, R_SEED, R_SWAP, R_KILL } r_kind;

typedef struct r_op {
    r_kind kind;
    int seq, other;  /* other: the parent of a fork */
    int rows, flags; /* of a step; rows: the length for commit and truncate; prompt length in `total` */
    int total;
    int batch; /* steps with the same number run in one batch */
} r_op;

typedef struct r_log {
    r_op *ops;
    int count, cap, seqs, batches;
    int len[MAX_SEQS], prompt[MAX_SEQS], total[MAX_SEQS], alive[MAX_SEQS];
    int live[16], lives;
} r_log;

static const struct r_row {
    const char *name, *preset;
    int shape, ops, decode_rows;
    uint32_t page, granularity;
    prhs_join join;
} rows[] = {
    { "cis-mass", "cis-mass", S_G1_D32, 10000, 3, 16, 1, PRHS_JOIN_SUM },
    { "cpe", "cpe", S_G1_D32, 2500, 2, 1, 1, PRHS_JOIN_SUM },
    { "cis-mass per head", "cis-mass", S_G2_D64, 1500, 4, 16, 1, PRHS_JOIN_PER_HEAD },
    { "cis-mass runs of 4", "cis-mass", S_G3_D64, 1500, 2, 256, 4, PRHS_JOIN_MAX },
};

static r_op *add(r_log *g, r_kind kind, int seq) {
    r_op *op = &g->ops[g->count++];
    *op = (r_op){ .kind = kind, .seq = seq };
    return op;
}

static void log_new(r_log *g, t_ctx *t, int parent) {
    int s = g->seqs++;
    g->alive[s] = 1;
    g->live[g->lives++] = s;
    if (parent < 0) {
        g->total[s] = g->prompt[s] = 24 + (int)t_below(t, 60);
        add(g, R_NEW, s);
    } else {
        g->len[s] = g->len[parent];
        add(g, R_FORK, s)->other = parent;
    }
}

static void log_kill(r_log *g, int at) {
    int s = g->live[at];
    add(g, R_KILL, s);
    g->alive[s] = 0;
    g->live[at] = g->live[--g->lives];
}

/* One sequence's part of a batch: a prompt chunk, or decode rows. */
static void log_part(r_log *g, t_ctx *t, int s, const struct r_row *row, int max_len) {
    if (g->prompt[s]) {
        int n = 1 + (int)t_below(t, 24);
        r_op *op = add(g, R_PROMPT, s);
        op->rows = n < g->prompt[s] ? n : g->prompt[s];
        op->total = g->total[s];
        op->batch = g->batches;
        g->prompt[s] -= op->rows;
        g->len[s] += op->rows;
        op->flags = PRHS_SEQ_PREFILL | (g->prompt[s] ? 0 : PRHS_SEQ_SEED);
        return;
    }
    int n = t_below(t, 3) ? 1 : 1 + (int)t_below(t, (uint32_t)row->decode_rows);
    if (g->len[s] + n > max_len)
        return;
    r_op *op = add(g, R_DECODE, s);
    op->rows = n;
    op->batch = g->batches;
    g->len[s] += n;
}

static void log_batch(r_log *g, t_ctx *t, const struct r_row *row, int max_len) {
    int32_t order[16];
    int n = 1 + (int)t_below(t, 7), first = g->count;
    for (int i = 0; i < g->lives; i++)
        order[i] = g->live[i];
    t_shuffle(t, order, (size_t)g->lives);
    g->batches++;
    for (int i = 0; i < n && i < g->lives; i++)
        log_part(g, t, order[i], row, max_len);
    int last = g->count;
    for (int i = first; i < last; i++)
        if (g->ops[i].kind == R_DECODE && g->ops[i].rows > 1) {
            int s = g->ops[i].seq, drop = (int)t_below(t, (uint32_t)g->ops[i].rows);
            g->len[s] -= drop;
            add(g, R_COMMIT, s)->rows = g->len[s];
        }
}

static void log_slot(r_log *g, t_ctx *t, int at, uint32_t dice) {
    int s = g->live[at];
    if (g->prompt[s])
        return;
    if (dice < 4) {
        int cut = 1 + (int)t_below(t, 20);
        g->len[s] -= cut < g->len[s] - 4 ? cut : 0;
        add(g, R_TRUNCATE, s)->rows = g->len[s];
    } else if (dice < 7) {
        add(g, R_MOVE, s);
    } else if (dice < 9) {
        add(g, R_ATTACH, s);
        if (t_below(t, 2))
            add(g, R_SEED, s);
    } else {
        add(g, R_SWAP, s);
    }
}

static void make_log(r_log *g, t_ctx *t, const struct r_row *row, int max_len) {
    g->cap = row->ops + 64;
    g->ops = t_alloc(t, (size_t)g->cap * sizeof *g->ops);
    while (g->count < row->ops) {
        uint32_t dice = t_below(t, 100);
        int at = g->lives ? (int)t_below(t, (uint32_t)g->lives) : 0;
        if (g->lives < 2 || (dice < 3 && g->lives < 8))
            log_new(g, t, -1);
        else if (dice < 6 && g->lives < 8 && !g->prompt[g->live[at]])
            log_new(g, t, g->live[at]);
        else if (dice < 8 || g->len[g->live[at]] > max_len - 4)
            log_kill(g, at);
        else if (dice < 20)
            log_slot(g, t, at, dice - 8);
        else
            log_batch(g, t, row, max_len);
        if (g->seqs > MAX_SEQS - 2)
            T_FAIL(t, "the test's log has too many sequences");
    }
}

typedef struct r_play {
    t_world w;
    t_wseq *seqs[MAX_SEQS];
    uint8_t used[64]; /* slots */
    uint64_t *hash;   /* of each op's outputs or state */
    prhs_stats sum;
    int alone;
} r_play;

static int take_slot(r_play *p) {
    t_ctx *t = p->w.t;
    uint32_t n = p->w.s.max_slots, i = t_below(t, n);
    for (uint32_t k = 0; k < n; k++, i = (i + 1) % n)
        if (!p->used[i]) {
            p->used[i] = 1;
            return (int)i;
        }
    T_FAIL(t, "the test has no free slot");
}

static uint64_t hash_bytes(uint64_t h, const void *bytes, size_t n) {
    const uint8_t *b = bytes;
    for (size_t i = 0; i < n; i++)
        h = (h ^ b[i]) * UINT64_C(0x100000001b3);
    return h ^ (h >> 31);
}

static void keep_stats(r_play *p, int slot) {
    prhs_stats s;
    if (p->alone)
        return;
    t_world_stats(&p->w, (uint32_t)slot, PRHS_ALL_LAYERS, &s);
    p->sum.steps += s.steps;
    p->sum.dense += s.dense;
    p->sum.share += s.share;
    p->sum.retrieve += s.retrieve;
}

static void free_slot(r_play *p, int slot) {
    T_OK(p->w.t, prhs_session_reset(p->w.session, p->w.t->queue, (uint32_t)slot));
    p->used[slot] = 0;
}

static void play_steps(r_play *p, const r_op *ops, int first, int n) {
    t_entry entries[8];
    uint64_t versions[8][64];
    t_world *w = &p->w;
    size_t heads = w->s.shape->heads, row = heads * w->s.shape->dim;
    for (int i = 0; i < n; i++) {
        const r_op *op = &ops[first + i];
        for (int r = 0; r < op->rows; r++)
            versions[i][r] = t_key(w->s.seed, 7, (uint64_t)(first + i), (uint64_t)r);
        entries[i] = (t_entry){ p->seqs[op->seq], op->rows, op->flags, op->total, versions[i], op->kind == R_SEED, 0 };
    }
    t_world_step(w, entries, n);
    for (int i = 0; i < n; i++) {
        uint64_t h = 1;
        size_t at = (size_t)entries[i].row_begin, many = (size_t)entries[i].rows;
        for (uint32_t l = 0; l < w->s.layers; l++) {
            h = hash_bytes(h, w->outs[l] + at * row, many * row * sizeof(float));
            h = hash_bytes(h, w->lses[l] + at * heads, many * heads * sizeof(float));
        }
        p->hash[first + i] = h;
    }
}

static void play_slot(r_play *p, const r_op *op, int index) {
    t_world *w = &p->w;
    t_ctx *t = w->t;
    t_wseq *s = p->seqs[op->seq];
    int old = s->slot, slot = take_slot(p);
    if (op->kind == R_MOVE) {
        T_OK(t, prhs_session_move(w->session, t->queue, (uint32_t)slot, (uint32_t)old));
        p->used[old] = 0;
    } else if (op->kind == R_ATTACH) {
        s->slot = slot;
        t_world_resize(w, s, W_ATTACH, s->len);
        keep_stats(p, old);
        free_slot(p, old);
    } else {
        void *blob = t_world_export(w, old);
        keep_stats(p, old);
        free_slot(p, old);
        t_put(t, w->blob.mem, blob, w->sizes.slot);
        T_OK(t, prhs_session_import(w->session, t->queue, (uint32_t)slot, w->blob.mem));
        p->hash[index] = hash_bytes(2, blob, w->sizes.slot);
        t_drop(t, blob);
    }
    s->slot = slot;
}

static void play_other(r_play *p, const r_op *op, int index) {
    t_world *w = &p->w;
    t_wseq *s = p->seqs[op->seq];
    switch (op->kind) {
    case R_NEW: p->seqs[op->seq] = t_world_seq(w, (uint64_t)op->seq + 1, take_slot(p)); break;
    case R_FORK:
        p->seqs[op->seq] = t_world_share(w, p->seqs[op->other], take_slot(p));
        T_OK(w->t,
             prhs_session_fork(w->session, w->t->queue, (uint32_t)p->seqs[op->seq]->slot, (uint32_t)p->seqs[op->other]->slot));
        break;
    case R_COMMIT:
    case R_TRUNCATE: t_world_resize(w, s, op->kind == R_COMMIT ? W_COMMIT : W_TRUNCATE, op->rows); break;
    case R_KILL: {
        void *blob = t_world_export(w, s->slot);
        p->hash[index] = hash_bytes(3, blob, w->sizes.slot);
        t_drop(w->t, blob);
        keep_stats(p, s->slot);
        free_slot(p, s->slot);
        t_world_cut(w, s, 0);
        break;
    }
    default: play_slot(p, op, index);
    }
}

static void play(r_play *p, const r_log *g) {
    for (int i = 0; i < g->count;) {
        const r_op *op = &g->ops[i];
        if (op->kind != R_PROMPT && op->kind != R_DECODE && op->kind != R_SEED) {
            play_other(p, op, i++);
            continue;
        }
        int n = 1;
        while (!p->alone && op->kind != R_SEED && i + n < g->count && g->ops[i + n].batch == op->batch &&
               (g->ops[i + n].kind == R_PROMPT || g->ops[i + n].kind == R_DECODE))
            n++;
        play_steps(p, g->ops, i, n);
        i += n;
    }
}

static const char *op_name(r_kind kind) {
    static const char *const names[] = { "new",  "prompt", "decode", "commit", "truncate", "fork",
                                         "move", "attach", "seed",   "swap",   "kill" };
    return names[kind];
}

static t_setup setup_of(t_ctx *t, const struct r_row *row) {
    t_setup s = t_setup_default(t, row->preset, &t_shapes[row->shape]);
    s.layout.page = row->page;
    s.policy.granularity = row->granularity;
    s.policy.join = row->join;
    s.layers = 2;
    s.policy.dense_layers = 0;
    s.policy.psaw_layer = s.policy.etf_layer = 1;
    s.policy.k = 16;
    s.policy.local = 6;
    s.decode_rows = (uint32_t)row->decode_rows;
    s.max_rows = 7 * 24;
    s.max_kv_len = 160;
    s.max_slots = 10;
    s.pages = 12 * (160 / row->page + 2);
    s.stretch = 9;
    return s;
}

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) {
    r_log *g = t_alloc(t, sizeof *g);
    r_play *crowd = t_alloc(t, sizeof *crowd), *alone = t_alloc(t, sizeof *alone);
    t_setup s = setup_of(t, &rows[row]);
    make_log(g, t, &rows[row], (int)s.max_kv_len);
    crowd->hash = t_alloc(t, (size_t)g->count * sizeof *crowd->hash);
    alone->hash = t_alloc(t, (size_t)g->count * sizeof *alone->hash);
    t_world_make(t, &crowd->w, &s);
    play(crowd, g);
    keep_stats(crowd, (int)PRHS_ALL_SLOTS);
    s.max_slots = 23;
    s.pages += 31;
    alone->alone = 1;
    t_world_make(t, &alone->w, &s);
    play(alone, g);
    for (int i = 0; i < g->count; i++)
        T_CHECK(t, crowd->hash[i] == alone->hash[i], "operation %d (%s of sequence %d): other bits than alone", i,
                op_name(g->ops[i].kind), g->ops[i].seq);
    const prhs_stats *sum = &crowd->sum;
    double sparse = (double)(sum->steps - sum->dense) / (double)sum->steps, shared = (double)sum->share / (double)sum->steps;
    snprintf(t->note, sizeof t->note, "%d operations, %d sequences; of the unit-steps %.2f sparse, %.2f shared", g->count,
             g->seqs, sparse, shared);
    T_CHECK(t, sparse >= 0.5 && shared >= 0.1, "only %.3f of the unit-steps were sparse and %.3f shared: the test is too easy",
            sparse, shared);
    t_world_stats(&crowd->w, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &crowd->sum);
}

const t_group t_group_replay = { "replay", sizeof rows / sizeof *rows, 1, row_name, run };
