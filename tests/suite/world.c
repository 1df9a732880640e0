/* SPDX-License-Identifier: Apache-2.0 */
/* The small engine: its making and its steps. */
#include <string.h>

#include "world.h"

t_setup t_setup_default(t_ctx *t, const char *preset, const t_shape *shape) {
    t_setup s = { .shape = shape,
                  .layout = { 16, 0, 0, 0 },
                  .layers = 3,
                  .max_slots = 8,
                  .max_seqs = 7,
                  .max_rows = 64,
                  .decode_rows = 1,
                  .max_kv_len = 256,
                  .pages = 128,
                  .sharp = 2.0f,
                  .drift = 0.35f,
                  .stretch = 6 };
    T_OK(t, prhs_policy_preset(preset, s.layers, &s.policy));
    if (s.policy.k > 0 && s.policy.k < 1000)
        s.policy.k = 24;
    s.policy.sinks = 2;
    s.policy.local = s.policy.k ? 8 : 24;
    if (s.policy.block > 12)
        s.policy.block = 12;
    if (s.policy.dilate_m)
        s.policy.dilate_m = 3;
    s.seed = t_rand(t);
    return s;
}

void t_setup_turns(t_setup *s) {
    if (s->policy.references <= 1)
        return;
    s->stretch = 3;
    s->cycle = 4;
}

prhs_session_params t_world_params(const t_setup *s) {
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    p.policy = s->policy;
    p.shape = (prhs_shape){ s->shape->heads, s->shape->kv_heads, s->shape->dim, 0 };
    p.layers = s->layers;
    p.max_slots = s->max_slots;
    p.max_seqs = s->max_seqs;
    p.max_rows = s->max_rows;
    p.decode_rows = s->decode_rows;
    p.max_kv_len = s->max_kv_len;
    p.kv_dtype = s->shape->kv;
    p.q_dtype = s->shape->q;
    p.out_dtype = s->shape->out;
    p.audit = s->audit == 1;
    p.audit_rate = s->audit > 1 ? s->audit / 100.0 : 0.0;
    p.audit_seed = s->seed;
    p.validate = s->validate;
    p.targets = s->targets;
    p.list_layers = s->list_layers;
    return p;
}

void t_world_make(t_ctx *t, t_world *w, const t_setup *setup) {
    memset(w, 0, sizeof *w);
    w->t = t;
    w->s = *setup;
    const t_shape *sh = setup->shape;
    uint32_t rows = setup->max_rows, stride = (setup->max_kv_len + setup->layout.page - 1) / setup->layout.page;
    T_CHECK(t, setup->layers <= W_LAYERS, "a world has at most %d layers", W_LAYERS);
    prhs_session_params p = t_world_params(setup);
    w->sizes.size = sizeof w->sizes;
    T_OK(t, prhs_session_get_sizes(t->dev, &p, &w->sizes));
    w->state = t_buffer(t, w->sizes.state);
    w->ws = t_buffer(t, w->sizes.workspace);
    T_OK(t, prhs_session_create(t->dev, &p, t->queue, w->state.mem, w->ws.mem, &w->session));
    t_own(t, T_SESSION, w->session, 0);
    w->blob = t_buffer(t, w->sizes.slot ? w->sizes.slot : 16);
    for (uint32_t l = 0; l < setup->layers; l++) {
        w->cache[l] = t_cache_new(t, sh, setup->layout, setup->pages);
        w->outs[l] = t_alloc(t, (size_t)rows * sh->heads * sh->dim * sizeof(float));
        w->lses[l] = t_alloc(t, (size_t)rows * sh->heads * sizeof(float));
    }
    w->pool = t_pool_new(t, setup->pages);
    w->refs = t_alloc(t, setup->pages * sizeof *w->refs);
    w->batch = t_batch_new(t, setup->max_seqs, stride, rows, setup->decode_rows);
    w->q = t_rows_new(t, sh->q, rows, sh->heads, sh->dim, setup->pad);
    w->k = t_rows_new(t, sh->q, rows, sh->kv_heads, sh->dim, setup->pad);
    w->v = t_rows_new(t, sh->q, rows, sh->kv_heads, sh->dim, setup->pad);
    w->out = t_rows_new(t, sh->out, rows, sh->heads, sh->dim, setup->pad);
    w->lse = t_buffer(t, (size_t)rows * sh->heads * sizeof(float));
    w->want_lse = 1;
    w->qh = t_alloc(t, (size_t)rows * sh->heads * sh->dim * sizeof(float));
    w->kh = t_alloc(t, (size_t)rows * sh->kv_heads * sh->dim * sizeof(float));
    w->vh = t_alloc(t, (size_t)rows * sh->kv_heads * sh->dim * sizeof(float));
}

void t_world_fill(t_world *w, uint32_t layer, const t_entry *entries, int n) {
    const t_shape *sh = w->s.shape;
    size_t qn = sh->heads * sh->dim, kn = sh->kv_heads * sh->dim;
    memset(w->qh, T_POISON, w->s.max_rows * qn * sizeof(float));
    memset(w->kh, T_POISON, w->s.max_rows * kn * sizeof(float));
    memset(w->vh, T_POISON, w->s.max_rows * kn * sizeof(float));
    for (int i = 0; i < n; i++)
        for (int32_t r = 0; r < entries[i].rows; r++) {
            const t_wseq *seq = entries[i].seq;
            int32_t pos = seq->len - entries[i].rows + r;
            size_t row = (size_t)(entries[i].row_begin + r);
            t_world_query(w, seq, layer, pos, w->qh + row * qn);
            if (entries[i].cached)
                continue;
            t_world_row(w, seq, layer, pos, w->kh + row * kn, w->vh + row * kn);
            for (size_t d = 0; d < kn; d++) { /* an engine's rows come in q's dtype */
                w->kh[row * kn + d] = t_round(sh->q, w->kh[row * kn + d]);
                w->vh[row * kn + d] = t_round(sh->q, w->vh[row * kn + d]);
            }
            t_cache_row(&w->cache[layer], seq->page[pos / (int32_t)w->s.layout.page], (uint32_t)pos % w->s.layout.page,
                        w->kh + row * kn, w->vh + row * kn);
        }
}

static void run_layer(t_world *w, uint32_t layer, int append) {
    t_ctx *t = w->t;
    const t_shape *sh = w->s.shape;
    prhs_step step = PRHS_STEP_INIT;
    t_rows_put(t, &w->q, w->qh);
    t_poison(t, w->out.buf);
    t_poison(t, w->lse);
    if (append) {
        t_rows_put(t, &w->k, w->kh);
        t_rows_put(t, &w->v, w->vh);
        step.k = w->k.r;
        step.v = w->v.r;
    }
    step.layer = layer;
    step.batch = w->batch.b;
    step.kv = w->elsewhere ? w->elsewhere[layer] : w->cache[layer].kv;
    step.q = w->q.r;
    step.out = w->out.r;
    step.lse = w->want_lse ? w->lse.mem : t_none();
    T_OK(t, prhs_session_step(w->session, t->queue, &step));
    size_t mark = t_mark(t);
    float *out = t_rows_get(t, &w->out);
    memcpy(w->outs[layer], out, (size_t)w->s.max_rows * sh->heads * sh->dim * sizeof *out);
    t_release_to(t, mark);
    t_get(t, w->lses[layer], w->lse.mem, w->lse.size);
}

/* Every other step says what it holds, as an engine does that decodes; the others that it may hold anything. */
static uint32_t kinds_of(const t_entry *entries, int n) {
    const uint32_t all = PRHS_HAS_DECODE | PRHS_HAS_PREFILL | PRHS_HAS_SEED;
    uint32_t kinds = 0;
    for (int i = 0; i < n; i++) {
        const int32_t flags = entries[i].flags;
        kinds |= flags & PRHS_SEQ_PREFILL ? PRHS_HAS_PREFILL : 0;
        kinds |= flags & PRHS_SEQ_SEED ? PRHS_HAS_SEED : 0;
        kinds |= flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED) ? 0 : PRHS_HAS_DECODE;
    }
    return n && entries[0].seq->len % 2 ? kinds : all;
}

int t_world_place(t_world *w, t_entry *entries, int n) {
    t_batch *b = &w->batch;
    int32_t row = 0;
    int append = 0;
    t_batch_clear(b);
    for (int i = 0; i < n; i++) {
        t_entry *e = &entries[i];
        t_wseq *seq = e->seq;
        if (!e->cached) {
            t_world_reserve(w, seq, e->rows);
            for (int32_t r = 0; r < e->rows; r++)
                seq->version[seq->len + r] = e->version ? e->version[r] : t_key(seq->root, 1, 0, (uint64_t)(seq->len + r));
            seq->len += e->rows;
            append = 1;
        }
        e->row_begin = row;
        row += e->rows;
        const uint32_t at = w->place + (uint32_t)i;
        t_batch_set(b, at, seq->slot, e->row_begin, e->rows, seq->len, e->flags);
        b->seqs[at].prompt_len = e->prompt_len;
        memcpy(b->pages + (size_t)at * b->b.page_stride, seq->page, (size_t)seq->pages * sizeof *seq->page);
    }
    T_CHECK(w->t, row <= (int32_t)w->s.max_rows, "the test's step has %d rows", row);
    b->b.kinds = kinds_of(entries, n);
    t_batch_upload(w->t, b);
    return append;
}

void t_world_step(t_world *w, t_entry *entries, int n) {
    int append = t_world_place(w, entries, n);
    for (uint32_t l = 0; l < w->s.layers; l++) {
        const uint32_t layer = w->s.backwards ? w->s.layers - 1 - l : l;
        t_world_fill(w, layer, entries, n);
        run_layer(w, layer, append);
    }
}

void t_world_one(t_world *w, t_wseq *seq, int32_t rows, int32_t flags) {
    t_entry e = { seq, rows, flags, 0, NULL, 0, 0 };
    t_world_step(w, &e, 1);
}

void t_world_prompt(t_world *w, t_wseq *seq, int32_t n, int32_t chunk) {
    int32_t end = seq->len + n;
    while (seq->len < end) {
        int32_t rows = end - seq->len < chunk ? end - seq->len : chunk;
        t_entry e = { seq, rows, PRHS_SEQ_PREFILL, end, NULL, 0, 0 };
        if (seq->len + rows == end)
            e.flags |= PRHS_SEQ_SEED;
        t_world_step(w, &e, 1);
    }
}

void t_world_resize(t_world *w, t_wseq *seq, int what, int32_t kv_len) {
    t_ctx *t = w->t;
    t_batch *b = &w->batch;
    t_batch_clear(b);
    t_batch_set(b, 0, seq->slot, 0, 0, kv_len, 0);
    memcpy(b->pages, seq->page, (size_t)seq->pages * sizeof *seq->page);
    t_batch_upload(t, b);
    for (uint32_t layer = 0; layer < w->s.layers; layer++) {
        const prhs_kv *kv = w->elsewhere ? &w->elsewhere[layer] : &w->cache[layer].kv;
        if (what == W_ATTACH)
            T_OK(t, prhs_session_attach(w->session, t->queue, layer, &b->b, kv));
        else if (what == W_TRUNCATE)
            T_OK(t, prhs_session_truncate(w->session, t->queue, layer, &b->b, kv));
        else
            T_OK(t, prhs_session_commit(w->session, t->queue, layer, &b->b, kv));
    }
    T_OK(t, prhs_queue_finish(t->queue));
    t_world_cut(w, seq, kv_len);
}
