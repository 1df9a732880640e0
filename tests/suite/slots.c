/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a slot: what each operation leaves behind, to the bit. */
#include <string.h>

#include "groups.h"
#include "world.h"

/* What a session's state has besides lists. */
typedef struct kept {
    prhs_residual residual;
    uint32_t references;
} kept;

typedef struct pair {
    t_world a, b;
    t_wseq *sa, *sb;
} pair;

static t_setup base(t_ctx *t, kept what) {
    t_setup s = t_setup_default(t, "cis-mass", &t_shapes[S_G1_D32]);
    s.decode_rows = 4;
    s.policy.residual = what.residual;
    s.policy.references = what.references;
    if (what.references > 1)
        s.policy.block = 90;
    t_setup_turns(&s);
    s.seed = 99;
    return s;
}

static pair *make(t_ctx *t, kept what) {
    pair *p = t_alloc(t, sizeof *p);
    t_setup s = base(t, what);
    t_world_make(t, &p->a, &s);
    t_world_make(t, &p->b, &s);
    p->sa = t_world_seq(&p->a, 1, 0);
    p->sb = t_world_seq(&p->b, 1, 5);
    t_world_prompt(&p->a, p->sa, 70, 64);
    t_world_prompt(&p->b, p->sb, 70, 40);
    return p;
}

static void same_state(t_ctx *t, pair *p, const char *when) {
    void *a = t_world_export(&p->a, p->sa->slot), *b = t_world_export(&p->b, p->sb->slot);
    T_CHECK(t, !memcmp(a, b, p->a.sizes.slot), "%s: the states differ", when);
}

/* Decodes one row in both worlds: same bits out. */
static void same_step(t_ctx *t, pair *p, const char *when) {
    size_t n = p->a.s.shape->heads * p->a.s.shape->dim * sizeof(float);
    t_world_one(&p->a, p->sa, 1, 0);
    t_world_one(&p->b, p->sb, 1, 0);
    for (uint32_t l = 0; l < p->a.s.layers; l++)
        T_CHECK(t, !memcmp(p->a.outs[l], p->b.outs[l], n), "%s: layer %u has other output bits", when, l);
    same_state(t, p, when);
}

/* The other world follows alone: same bits and state. */
static void same_step_of_b(t_ctx *t, pair *p) {
    size_t n = p->a.s.shape->heads * p->a.s.shape->dim * sizeof(float);
    t_world_one(&p->b, p->sb, 1, 0);
    for (uint32_t l = 0; l < p->a.s.layers; l++)
        T_CHECK(t, !memcmp(p->a.outs[l], p->b.outs[l], n), "layer %u has other output bits", l);
    same_state(t, p, "run again");
}

/* A step of R rows of which c are committed leaves the state of the same step with c rows. */
static void commit(t_ctx *t, kept what) {
    pair *p = make(t, what);
    for (int i = 0; i < 40; i++) {
        int32_t c = 1 + i % 4;
        t_world_one(&p->a, p->sa, 4, 0);
        t_world_one(&p->b, p->sb, c, 0);
        t_world_resize(&p->a, p->sa, W_COMMIT, p->sa->len - 4 + c);
        same_state(t, p, "commit");
    }
    same_step(t, p, "after commits");
}

/* Rejected rows leave no trace without a commit call too: the next step names the committed length. */
static void rejected(t_ctx *t, kept what) {
    pair *p = make(t, what);
    for (int i = 0; i < 25; i++) {
        t_world_one(&p->a, p->sa, 3, 0);
        t_world_cut(&p->a, p->sa, p->sa->len - 2);
        t_world_one(&p->b, p->sb, 1, 0);
        same_state(t, p, "rejected rows");
    }
    same_step(t, p, "after rejected rows");
}

static void truncate(t_ctx *t, kept what) {
    pair *p = make(t, what);
    t_world_one(&p->a, p->sa, 1, 0);
    t_world_one(&p->b, p->sb, 1, 0);
    same_state(t, p, "before");
    for (int i = 0; i < 9; i++)
        t_world_one(&p->a, p->sa, 1, 0);
    void *blob = t_world_export(&p->a, 0);
    int32_t last = t_world_view(&p->a, blob, 1, 0).ref_pos;
    t_world_resize(&p->a, p->sa, W_TRUNCATE, 71);
    blob = t_world_export(&p->a, 0);
    prhs_unit_view view = t_world_view(&p->a, blob, 1, 0);
    T_CHECK(t, last >= 71 ? view.ref_pos < 0 : view.ref_pos == last, "reference at %d after a truncation to 71, before it at %d",
            view.ref_pos, last);
    t_world_one(&p->a, p->sa, 1, 0);
    blob = t_world_export(&p->a, 0);
    view = t_world_view(&p->a, blob, 1, 0);
    T_CHECK(t, last < 71 || what.references > 1 || view.set.mode == PRHS_MODE_RETRIEVE, "the step after the truncation has mode %d", view.set.mode);
}

static void fork(t_ctx *t, kept what) {
    pair *p = make(t, what);
    prhs_stats stats;
    for (int i = 0; i < 5; i++)
        same_step(t, p, "before the fork");
    t_wseq *former = t_world_seq(&p->a, 50, 3); /* the slot had another sequence before, whose statistics must go */
    t_world_prompt(&p->a, former, 60, 64);
    t_world_one(&p->a, former, 1, 0);
    t_world_cut(&p->a, former, 0);
    T_OK(t, prhs_session_fork(p->a.session, t->queue, 3, 0));
    t_wseq *child = t_world_share(&p->a, p->sa, 3), *parent = p->sa;
    p->sa = child;
    same_state(t, p, "the child");
    t_world_stats(&p->a, 3, PRHS_ALL_LAYERS, &stats);
    T_CHECK(t, stats.steps == 0 && stats.seed == 0, "a child's statistics do not start at zero");
    for (int i = 0; i < 15; i++) {
        uint64_t other = 77u + (uint64_t)i;
        t_entry e = { parent, 1, 0, 0, &other, 0, 0 };
        t_world_step(&p->a, &e, 1); /* the parent goes its own way */
        same_step(t, p, "the child's steps");
    }
}

static void move(t_ctx *t, kept what) {
    pair *p = make(t, what);
    prhs_stats before, after;
    for (int i = 0; i < 5; i++)
        same_step(t, p, "before the move");
    t_world_stats(&p->a, 0, PRHS_ALL_LAYERS, &before);
    void *empty = t_world_export(&p->a, 6);
    T_OK(t, prhs_session_move(p->a.session, t->queue, 7, 0));
    T_CHECK(t, !memcmp(empty, t_world_export(&p->a, 0), p->a.sizes.slot), "the slot that was left is not empty");
    p->sa->slot = 7;
    t_world_stats(&p->a, 7, PRHS_ALL_LAYERS, &after);
    T_CHECK(t, after.steps == before.steps && after.retrieve == before.retrieve && before.steps > 0,
            "statistics did not move along");
    t_world_stats(&p->a, 0, PRHS_ALL_LAYERS, &after);
    T_CHECK(t, after.steps == 0, "statistics stayed behind");
    for (int i = 0; i < 15; i++)
        same_step(t, p, "after the move");
    T_OK(t, prhs_session_move(p->a.session, t->queue, 7, 7));
    T_OK(t, prhs_session_fork(p->a.session, t->queue, 7, 7));
    same_step(t, p, "moved and forked onto itself");
}

static void preempt(t_ctx *t, kept what) {
    pair *p = make(t, what);
    for (int i = 0; i < 5; i++)
        same_step(t, p, "before");
    void *blob = t_world_export(&p->a, 0);
    T_OK(t, prhs_session_reset(p->a.session, t->queue, 0));
    t_put(t, p->a.blob.mem, blob, p->a.sizes.slot);
    T_OK(t, prhs_session_import(p->a.session, t->queue, 4, p->a.blob.mem));
    p->sa->slot = 4;
    for (int i = 0; i < 15; i++)
        same_step(t, p, "after export and import");
    void *other = t_world_export(&p->b, 5); /* a slot of another session of equal parameters */
    t_put(t, p->a.blob.mem, other, p->a.sizes.slot);
    T_OK(t, prhs_session_import(p->a.session, t->queue, 4, p->a.blob.mem));
    for (int i = 0; i < 5; i++)
        same_step(t, p, "after import from another session");
}

/* Attached and seeded rows serve as a prefilled and seeded prompt does. */
static void attach(t_ctx *t, kept what) {
    pair *p = make(t, what);
    t_world_resize(&p->a, p->sa, W_ATTACH, 70);
    void *blob = t_world_export(&p->a, 0);
    for (uint32_t l = 1; l < p->a.s.layers; l++)
        T_CHECK(t, t_world_view(&p->a, blob, l, 0).ref_pos < 0, "attach kept a reference");
    t_entry e = { p->sa, 1, PRHS_SEQ_SEED, 0, NULL, 1, 0 };
    t_world_step(&p->a, &e, 1);
    for (int i = 0; i < 20; i++)
        same_step(t, p, "attached and prefilled");
}

/* A reset slot is as good as new; its neighbours are not touched. */
static void reset(t_ctx *t, kept what) {
    pair *p = make(t, what);
    prhs_stats stats;
    t_wseq *other = t_world_seq(&p->a, 9, 1);
    void *empty = t_world_export(&p->a, 1);
    t_world_prompt(&p->a, other, 80, 64);
    t_world_one(&p->a, other, 1, 0);
    T_OK(t, prhs_session_reset(p->a.session, t->queue, 1));
    T_CHECK(t, !memcmp(empty, t_world_export(&p->a, 1), p->a.sizes.slot), "a reset slot is not empty");
    t_world_stats(&p->a, 1, PRHS_ALL_LAYERS, &stats);
    T_CHECK(t, stats.steps == 0 && stats.seed == 0, "a reset slot has statistics");
    for (int i = 0; i < 10; i++)
        same_step(t, p, "beside a reset slot");
}

/* The engine writes K/V itself: the same bits as append. */
static void own_rows(t_ctx *t, kept what) {
    pair *p = make(t, what);
    for (int i = 0; i < 20; i++) {
        size_t n = p->a.s.shape->kv_heads * p->a.s.shape->dim;
        float k[256], v[256];
        T_CHECK(t, n <= 256, "shape");
        t_world_reserve(&p->a, p->sa, 1);
        int32_t pos = p->sa->len++, ps = (int32_t)p->a.s.layout.page;
        p->sa->version[pos] = t_key(p->sa->root, 1, 0, (uint64_t)pos);
        for (uint32_t l = 0; l < p->a.s.layers; l++) {
            t_world_row(&p->a, p->sa, l, pos, k, v);
            t_cache_row(&p->a.cache[l], p->sa->page[pos / ps], (uint32_t)(pos % ps), k, v);
            t_cache_upload(t, &p->a.cache[l]);
        }
        t_entry e = { p->sa, 1, 0, 0, NULL, 1, 0 };
        t_world_step(&p->a, &e, 1);
        t_world_one(&p->b, p->sb, 1, 0);
        same_state(t, p, "rows of the engine's own");
    }
    same_step(t, p, "after rows of the engine's own");
}

/* A step that is run again at the same position (an engine that retries) retrieves where it retrieved: its own list is no earlier
 * one. */
static void repeated(t_ctx *t, kept what) {
    pair *p = make(t, what);
    int retrieved = 0;
    for (int i = 0; i < 30; i++) {
        t_world_one(&p->a, p->sa, 1, 0);
        void *blob = t_world_export(&p->a, 0);
        int32_t mode = t_world_view(&p->a, blob, 1, 0).set.mode;
        t_entry again = { p->sa, 1, 0, 0, NULL, 1, 0 };
        t_world_step(&p->a, &again, 1);
        int32_t second = t_world_view(&p->a, t_world_export(&p->a, 0), 1, 0).set.mode;
        T_CHECK(t, mode == second, "step %d has mode %d, and %d when it is run again", i, mode, second);
        retrieved += mode == PRHS_MODE_RETRIEVE;
        same_step_of_b(t, p);
    }
    T_CHECK(t, retrieved > 0, "no step retrieved");
}

/* Whether all units of layer 1 retrieved (1), shared (0), or neither (-1). */
static int retrieved(pair *p) {
    const void *blob = t_world_export(&p->a, p->sa->slot);
    const int32_t mode = t_world_view(&p->a, blob, 1, 0).set.mode;
    for (uint32_t u = 1; u < p->a.s.shape->kv_heads; u++)
        if (t_world_view(&p->a, blob, 1, u).set.mode != mode)
            return -1;
    return mode == PRHS_MODE_RETRIEVE ? 1 : mode == PRHS_MODE_SHARE ? 0 : -1;
}

/* A sequence of n rows that the engine has written by itself. */
static t_wseq *written(t_world *w, int32_t slot, int32_t n) {
    t_ctx *t = w->t;
    const t_shape *sh = w->s.shape;
    const int32_t page = (int32_t)w->s.layout.page;
    t_wseq *seq = t_world_seq(w, 1, slot);
    float *k = t_alloc(t, sh->kv_heads * sh->dim * sizeof *k), *v = t_alloc(t, sh->kv_heads * sh->dim * sizeof *v);
    t_world_reserve(w, seq, n);
    for (seq->len = 0; seq->len < n; seq->len++)
        seq->version[seq->len] = t_key(seq->root, 1, 0, (uint64_t)seq->len);
    for (uint32_t l = 0; l < w->s.layers; l++) {
        for (int32_t i = 0; i < n; i++) {
            t_world_row(w, seq, l, i, k, v);
            t_cache_row(&w->cache[l], seq->page[i / page], (uint32_t)(i % page), k, v);
        }
        t_cache_upload(t, &w->cache[l]);
    }
    t_world_resize(w, seq, W_ATTACH, n);
    return seq;
}

static pair *capacities(t_ctx *t, const char *preset, uint32_t rows, kept what) {
    pair *p = t_alloc(t, sizeof *p);
    t_setup s = t_setup_default(t, preset, &t_shapes[S_G1_D32]);
    s.seed = 99;
    s.layers = 2;
    s.decode_rows = rows;
    if (s.policy.k) {
        s.policy.block = 4;
        s.policy.tau = -1.0f;
        s.policy.eps = 1.0f;
    }
    if (s.policy.gate == PRHS_GATE_MASS)
        s.policy.residual = what.residual;
    t_world_make(t, &p->b, &s);
    s.max_seqs = 600;
    t_world_make(t, &p->a, &s);
    p->sa = written(&p->a, 7, 70);
    p->sb = written(&p->b, 5, 70);
    return p;
}

/*
 * One sequence in a batch for hundreds, at the first and the last place and around a multiple of 512, with a step in between that
 * holds nothing: bits and state as in a batch of its own size. Where a block ends, a step retrieves everything after one that
 * retrieved nothing.
 */
static void capacity(t_ctx *t, const char *preset, uint32_t rows, kept what) {
    static const uint32_t places[] = { 0, 599, 1, 511, 512, 513, 300, 599, 0 };
    pair *p = capacities(t, preset, rows, what);
    int last = -1, turned = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        p->a.place = places[i];
        if (i == 4) {
            t_world_step(&p->a, NULL, 0);
            same_state(t, p, "an idle step");
        }
        if (rows > 1 && i % 3 == 1) {
            t_world_one(&p->a, p->sa, (int32_t)rows, 0);
            t_world_one(&p->b, p->sb, (int32_t)rows, 0);
            same_state(t, p, "several rows");
        } else {
            same_step(t, p, "a place");
        }
        const int now = retrieved(p);
        turned += last == 0 && now == 1;
        last = now;
    }
    T_CHECK(t, turned > 0, "no step retrieved everything after one that retrieved nothing");
}

static void capacity_cis(t_ctx *t, kept what) { capacity(t, "cis", 1, what); }
static void capacity_mass(t_ctx *t, kept what) { capacity(t, "cis-mass", 1, what); }
static void capacity_rows(t_ctx *t, kept what) { capacity(t, "cis-mass", 4, what); }
static void capacity_dense(t_ctx *t, kept what) {
    pair *p = capacities(t, "dense", 1, what);
    for (uint32_t place = 0; place < 600; place += 299) {
        p->a.place = place;
        same_step(t, p, "a place");
    }
}

/* A batch of hundreds that is full, in two steps: the bits of each sequence by itself. */
static void crowd(t_ctx *t, kept what) {
    enum { CROWD = 600, LAST = 7 };
    t_world a, b;
    t_entry all[CROWD], few[LAST];
    t_setup s = t_setup_default(t, "dense", &t_shapes[S_G1_D32]);
    (void)what;
    const size_t row = s.shape->heads * s.shape->dim;
    s.layers = 1;
    t_world_make(t, &b, &s);
    s.max_seqs = s.max_slots = s.max_rows = s.pages = CROWD;
    t_world_make(t, &a, &s);
    for (int i = 0; i < CROWD; i++)
        all[i] = (t_entry){ t_world_seq(&a, 1000u + (uint64_t)i, i), 1, 0, 0, NULL, 0, 0 };
    for (int i = 0; i < LAST; i++)
        few[i] = (t_entry){ t_world_seq(&b, 1000u + (uint64_t)(CROWD - LAST + i), i), 1, 0, 0, NULL, 0, 0 };
    for (int step = 0; step < 2; step++) {
        t_world_step(&a, all, CROWD);
        t_world_step(&b, few, LAST);
        T_CHECK(t, !memcmp(a.outs[0] + (CROWD - LAST) * row, b.outs[0], LAST * row * sizeof(float)),
                "step %d: the last sequences of the batch have other output bits", step);
    }
}

/* What leaves state behind is run with both residuals, and with several references, as their state differs. */
#define MEAN(name, run) { name, run, { PRHS_RESIDUAL_MEAN, 1 } }
#define BOTH(name, run) MEAN(name, run), { name ", retrieved", run, { PRHS_RESIDUAL_RETRIEVED, 1 } }
#define THREE(name, run) BOTH(name, run), { name ", 3 references", run, { PRHS_RESIDUAL_MEAN, 3 } }

static const struct l_row {
    const char *name;
    void (*run)(t_ctx *t, kept what);
    kept what;
} rows[] = {
    THREE("commit", commit),
    THREE("rejected rows", rejected),
    THREE("truncate", truncate),
    THREE("fork", fork),
    THREE("move", move),
    THREE("export and import", preempt),
    THREE("attach", attach),
    THREE("reset", reset),
    BOTH("own rows", own_rows),
    THREE("repeated step", repeated),
    MEAN("capacity cis", capacity_cis),
    BOTH("capacity cis-mass", capacity_mass),
    BOTH("capacity several rows", capacity_rows),
    MEAN("capacity dense", capacity_dense),
    MEAN("crowd", crowd),
};

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) { rows[row].run(t, rows[row].what); }

const t_group t_group_slots = { "slots", sizeof rows / sizeof *rows, sizeof rows / sizeof *rows, row_name, run };
