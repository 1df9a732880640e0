/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session's life beside the reference: sequences come and go, decode several rows and commit some of them, are forked,
 * truncated, moved, attached and preempted.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "reference.h"

#define SLOTS 8

typedef struct crowd {
    r_pair p;
    r_seq *seqs[R_LIVE];
    int live, times;
    uint8_t used[SLOTS];
    uint64_t next, unit_steps, share, retrieve;
} crowd;

static int32_t free_slot(crowd *c) {
    for (;;) {
        uint32_t i = t_below(c->p.w.t, SLOTS);
        if (!c->used[i]) {
            c->used[i] = 1;
            return (int32_t)i;
        }
    }
}

static r_seq *blank(crowd *c, t_wseq *seq) {
    r_seq *s = t_alloc(c->p.w.t, sizeof *s);
    s->seq = seq;
    return s;
}

static void leave(crowd *c, int i) {
    r_seq *s = c->seqs[i];
    t_ctx *t = c->p.w.t;
    r_check_stats(&c->p, s);
    c->unit_steps += s->counts.steps;
    c->share += s->counts.share;
    c->retrieve += s->counts.retrieve;
    T_OK(t, prhs_session_reset(c->p.w.session, t->queue, (uint32_t)s->seq->slot));
    oracle_reset(c->p.o, s->seq->slot);
    c->used[s->seq->slot] = 0;
    t_world_cut(&c->p.w, s->seq, 0);
    c->seqs[i] = NULL;
}

static void one(crowd *c, r_seq *s, int32_t n, int32_t flags, int32_t prompt_len) {
    r_part part = { s, { s->seq, n, flags, prompt_len, NULL, flags == PRHS_SEQ_SEED, 0 } };
    r_step(&c->p, &part, 1);
}

static void resize(crowd *c, r_seq *s, int what, int32_t len, int32_t kept) {
    t_world_resize(&c->p.w, s->seq, what, len);
    if (what == W_ATTACH)
        oracle_attach(c->p.o, -1, s->seq->slot, len, NULL, NULL);
    else if (what == W_TRUNCATE)
        oracle_truncate(c->p.o, -1, s->seq->slot, len);
    else
        T_CHECK(c->p.w.t, !oracle_commit(c->p.o, -1, s->seq->slot, kept), "the reference cannot commit %d rows", kept);
}

/* An empty sequence, a prompt in chunks that seeds, one that does not, or rows that are cached already. */
static void join(crowd *c, int i) {
    t_ctx *t = c->p.w.t;
    r_seq *s = blank(c, t_world_seq(&c->p.w, ++c->next, free_slot(c)));
    int32_t n = c->times * (20 + (int32_t)t_below(t, 60)), chunk = 17 + (int32_t)t_below(t, 30);
    c->seqs[i] = s;
    switch (t_below(t, 4)) {
    case 0: break;
    case 1:
        while (s->seq->len < n) {
            int32_t rest = n - s->seq->len, take = rest < chunk ? rest : chunk;
            one(c, s, take, take == rest ? PRHS_SEQ_PREFILL | PRHS_SEQ_SEED : PRHS_SEQ_PREFILL, n);
        }
        break;
    case 2: one(c, s, 45, PRHS_SEQ_PREFILL, 45); break;
    default:
        one(c, s, 50, PRHS_SEQ_PREFILL, 50);
        resize(c, s, W_ATTACH, 50, 0);
        if (t_below(t, 2))
            one(c, s, 1 + (int32_t)t_below(t, 3), PRHS_SEQ_SEED, 0);
    }
}

/* To another slot, through the session or through the host, where the statistics stay behind. */
static void move(crowd *c, r_seq *s, int through_host) {
    t_world *w = &c->p.w;
    t_ctx *t = w->t;
    int32_t old = s->seq->slot, slot = free_slot(c);
    if (through_host) {
        r_check_stats(&c->p, s);
        void *blob = t_world_export(w, old);
        T_OK(t, prhs_session_reset(w->session, t->queue, (uint32_t)old));
        t_put(t, w->blob.mem, blob, w->sizes.slot);
        T_OK(t, prhs_session_import(w->session, t->queue, (uint32_t)slot, w->blob.mem));
        T_OK(t, prhs_queue_finish(t->queue));
        memset(&s->counts, 0, sizeof s->counts);
        t_drop(t, blob);
    } else {
        T_OK(t, prhs_session_move(w->session, t->queue, (uint32_t)slot, (uint32_t)old));
    }
    oracle_move(c->p.o, slot, old);
    s->seq->slot = slot;
    c->used[old] = 0;
}

static void fork_to(crowd *c, const r_seq *s, int j) {
    t_world *w = &c->p.w;
    if (c->seqs[j])
        leave(c, j);
    int32_t slot = free_slot(c);
    T_OK(w->t, prhs_session_fork(w->session, w->t->queue, (uint32_t)slot, (uint32_t)s->seq->slot));
    oracle_fork(c->p.o, slot, s->seq->slot);
    c->seqs[j] = blank(c, t_world_share(w, s->seq, slot));
}

static void slot_operation(crowd *c, int i) {
    t_ctx *t = c->p.w.t;
    r_seq *s = c->seqs[i];
    int32_t len = s->seq->len;
    const int many = c->p.w.s.policy.references > 1;
    switch (t_below(t, 6)) {
    case 0: move(c, s, 0); break;
    case 1: move(c, s, 1); break;
    case 2:
        if (len > 12)
            resize(c, s, W_ATTACH, len, 0);
        break;
    case 3: fork_to(c, s, (i + 1) % c->live); break;
    default:
        if (len <= 12)
            break;
        if (!many || t_below(t, 2))
            resize(c, s, W_TRUNCATE, len - 1 - (int32_t)t_below(t, 10), 0);
        if (t_below(t, 2)) { /* the next turn's prompt */
            int32_t n = 1 + (int32_t)t_below(t, 6);
            const int seeds = many && t_below(t, 2); /* beside references of earlier turns */
            one(c, s, n, seeds ? PRHS_SEQ_PREFILL | PRHS_SEQ_SEED : PRHS_SEQ_PREFILL, s->seq->len + n);
        }
    }
}

/* The library may be told, or just see a shorter length in the next step. */
static void commit(crowd *c, r_seq *s, int32_t len, int32_t kept) {
    if (t_below(c->p.w.t, 4)) {
        resize(c, s, W_COMMIT, len, kept);
        return;
    }
    t_world_cut(&c->p.w, s->seq, len);
    T_CHECK(c->p.w.t, !oracle_commit(c->p.o, -1, s->seq->slot, kept), "the reference cannot commit %d rows", kept);
}

/* Most of the sequences decode; a run of several rows keeps some of them. */
static void decode(crowd *c, int step) {
    t_ctx *t = c->p.w.t;
    r_part parts[R_LIVE];
    uint64_t versions[R_LIVE][R_ROWS];
    int n = 0, first = (int)t_below(t, (uint32_t)c->live);
    for (int k = 0; k < c->live; k++) {
        int i = (first + k) % c->live;
        r_seq *s = c->seqs[i];
        if (!s || t_below(t, 4) == 0)
            continue;
        int32_t count = 1 + (int32_t)t_below(t, c->p.w.s.decode_rows);
        for (int r = 0; r < count; r++)
            versions[n][r] = t_key(c->p.w.s.seed, 9, (uint64_t)step * R_LIVE + (uint64_t)i, (uint64_t)r);
        parts[n] = (r_part){ s, { s->seq, count, 0, 0, versions[n], 0, 0 } };
        n++;
    }
    if (n)
        r_step(&c->p, parts, n);
    for (int k = 0; k < n; k++)
        if (parts[k].e.rows > 1) {
            int32_t kept = 1 + (int32_t)t_below(t, (uint32_t)parts[k].e.rows);
            commit(c, parts[k].s, parts[k].s->seq->len - parts[k].e.rows + kept, kept);
        }
}

static t_setup setup_of(t_ctx *t, const r_row *row, const t_shape *shape, int live, uint32_t most) {
    t_setup s = t_setup_default(t, row->preset, shape);
    s.layout = row->layout;
    s.policy.granularity = row->granularity;
    s.policy.join = row->join;
    if (row->granularity > 4) {
        s.policy.k = 3 * row->granularity;
        s.policy.dilate_m = 0;
    }
    s.decode_rows = row->rows;
    s.audit = row->audit;
    s.pad = row->layout.pad;
    s.max_slots = SLOTS;
    s.max_kv_len = row->times ? 90 * (uint32_t)row->times + 110 : most;
    s.max_rows = 80;
    s.pages = ((uint32_t)live + 1) * (s.max_kv_len / row->layout.page + 2);
    if (row->tune)
        row->tune(&s.policy);
    t_setup_turns(&s);
    return s;
}

/* s: setup_of() of the row, and what the case adds. */
static void run(t_ctx *t, const r_row *row, t_setup s, int live) {
    crowd *c = t_alloc(t, sizeof *c);
    c->live = live;
    c->times = row->times ? row->times : 1;
    r_make(t, &c->p, &s);
    for (int step = 0; step < row->steps; step++) {
        int i = (int)t_below(t, (uint32_t)live);
        if (!c->seqs[i])
            join(c, i);
        else if (t_below(t, 6) == 0)
            slot_operation(c, i);
        for (int k = 0; k < live; k++)
            if (c->seqs[k] && c->seqs[k]->seq->len > (int32_t)s.max_kv_len - 10)
                leave(c, k);
        decode(c, step);
    }
    for (int i = 0; i < live; i++)
        if (c->seqs[i])
            leave(c, i);
    for (uint32_t l = 0; l < s.layers; l++)
        t_cache_check(t, &c->p.w.cache[l], "session");
    snprintf(t->note, sizeof t->note,
             "%" PRIu64 " steps, %" PRIu64 " unit-steps: %" PRIu64 " shared, %" PRIu64 " retrieved; %" PRIu64 " close, %" PRIu64
             " swaps",
             c->p.steps, c->unit_steps, c->share, c->retrieve, c->p.close, c->p.swaps);
    T_CHECK(t, c->p.close * 20 <= c->p.verdicts, "%" PRIu64 " of %" PRIu64 " verdicts were too close to tell", c->p.close,
            c->p.verdicts);
    r_free(&c->p);
}

void r_run(t_ctx *t, const r_row *row, int live, uint32_t most) {
    run(t, row, setup_of(t, row, &t_shapes[row->shape], live, most), live);
}

void r_run_shape(t_ctx *t, const r_row *row, const t_shape *shape, int live, uint32_t most) {
    run(t, row, setup_of(t, row, shape, live, most), live);
}

void r_run_targets(t_ctx *t, const r_row *row, const float *targets, int live, uint32_t most) {
    t_setup s = setup_of(t, row, &t_shapes[row->shape], live, most);
    s.targets = targets;
    run(t, row, s, live);
}

void r_run_lists(t_ctx *t, const r_row *row, const uint32_t *list_layers, int backwards, int live, uint32_t most) {
    t_setup s = setup_of(t, row, &t_shapes[row->shape], live, most);
    s.list_layers = list_layers;
    s.backwards = backwards;
    run(t, row, s, live);
}
