/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small engine around a session: sequences with pages of their own (shared by forks, copied on write), rows whose contents
 * depend on their identity alone, and steps over all layers. Two worlds with other slots and pages compute the same sequences.
 */
#ifndef PRHS_TEST_WORLD_H
#define PRHS_TEST_WORLD_H

#include "fixture.h"

#define W_LAYERS 4

typedef struct t_setup {
    const t_shape *shape;
    t_layout layout;
    prhs_policy policy;
    uint32_t layers, max_slots, max_seqs, max_rows, decode_rows, max_kv_len, pages;
    uint32_t audit;       /* 0, 1: params.audit; else the percentage of steps that are drawn, with `seed` */
    uint32_t validate;
    const float *targets; /* as in prhs_session_params */
    const uint32_t *list_layers;
    int backwards;        /* a step takes the last layer first */
    float sharp;      /* scale of the queries: larger is more peaked */
    float drift;      /* noise of a query around its stretch's direction */
    uint32_t stretch; /* positions that share a direction */
    uint32_t cycle;   /* stretches after which the directions come again; 0: never */
    int pad;          /* padded q, k, v, out rows */
    uint64_t seed;    /* of the contents */
} t_setup;

/* A sequence of the engine. */
typedef struct t_wseq {
    int32_t slot, len;
    uint64_t root;     /* identity of the query stretches; a fork keeps it */
    uint64_t *version; /* [max_kv_len]: identity of each row */
    int32_t *page;     /* [page_stride] */
    int32_t pages;
} t_wseq;

/* One sequence's part of a step. */
typedef struct t_entry {
    t_wseq *seq;
    int32_t rows; /* query rows; with `cached` they are the last rows that are there already */
    int32_t flags, prompt_len;
    const uint64_t *version; /* identities of the new rows; NULL: root and position */
    int32_t cached;
    int32_t row_begin; /* set by t_world_step */
} t_entry;

typedef struct t_world {
    t_ctx *t;
    t_setup s;
    prhs_session *session;
    prhs_session_sizes sizes;
    t_buf state, ws, lse, blob;
    t_cache cache[W_LAYERS];
    t_pool pool;
    uint16_t *refs; /* of pages */
    t_batch batch;
    t_rows q, k, v, out;
    float *qh, *kh, *vh;   /* the step's rows on the host, before rounding */
    float *outs[W_LAYERS]; /* [max_rows][heads][dim], last step; poison where nothing was written */
    float *lses[W_LAYERS]; /* [max_rows][heads] */
    int want_lse;
    uint32_t place; /* of a step's first entry in the batch; those before it are idle */
    /* Where set, [layers]: caches of the test's own, that steps use instead; the images above still follow. */
    const prhs_kv *elsewhere;
    /* Where set: changes a position's contents before they are rounded; q, or k and v, are NULL. */
    void (*edit)(uint32_t layer, int32_t pos, float *q, float *k, float *v);
} t_world;

t_setup t_setup_default(t_ctx *t, const char *preset, const t_shape *shape);
/* Queries that come back to where they were, if the policy has units that remember. */
void t_setup_turns(t_setup *s);
void t_world_make(t_ctx *t, t_world *w, const t_setup *setup);
/* The session's parameters for a setup. */
prhs_session_params t_world_params(const t_setup *s);

t_wseq *t_world_seq(t_world *w, uint64_t root, int32_t slot);
/* Pages for `rows` more rows, none of them shared. */
void t_world_reserve(t_world *w, t_wseq *seq, int32_t rows);
/* Gives back pages past `len` and forgets the rows. Calls no library function. */
void t_world_cut(t_world *w, t_wseq *seq, int32_t len);
/* A new sequence that shares the pages of `seq`. */
t_wseq *t_world_share(t_world *w, const t_wseq *seq, int32_t slot);

/* One step over all layers: appends (unless cached) and attends; reads outputs back. */
void t_world_step(t_world *w, t_entry *entries, int n);
/* Its parts, for a test that enqueues layers itself. The batch, on the device too, with room for the entries' rows; 1: there are rows to
 * append. */
int t_world_place(t_world *w, t_entry *entries, int n);
/* The host rows (qh, kh, vh) of one layer for these entries; appended rows also go into the cache's image. */
void t_world_fill(t_world *w, uint32_t layer, const t_entry *entries, int n);
/* A step for a single sequence. */
void t_world_one(t_world *w, t_wseq *seq, int32_t rows, int32_t flags);
/* Prefill in chunks, the last one seeding. */
void t_world_prompt(t_world *w, t_wseq *seq, int32_t n, int32_t chunk);

enum { W_ATTACH, W_TRUNCATE, W_COMMIT };
/* Attach, truncate or commit one sequence to kv_len, all layers. */
void t_world_resize(t_world *w, t_wseq *seq, int what, int32_t kv_len);

/* The contents of a position, before rounding. */
void t_world_query(const t_world *w, const t_wseq *seq, uint32_t layer, int32_t pos, float *q);
void t_world_row(const t_world *w, const t_wseq *seq, uint32_t layer, int32_t pos, float *k, float *v);
/* Rows [0, n) of a sequence as the cache holds them: [n][kv_heads][dim]. */
void t_world_gather(const t_world *w, const t_wseq *seq, uint32_t layer, int32_t n, float *k, float *v);
/* Makes every cached row that no sequence may read NaN, on the device too. */
void t_world_poison(t_world *w, t_wseq *const *seqs, int n);
void *t_world_export(t_world *w, int32_t slot);
void t_world_stats(t_world *w, uint32_t slot, uint32_t layer, prhs_stats *stats);
/* At 95 %, lengths up to max_kv_len. */
void t_world_audit(t_world *w, uint32_t slot, uint32_t layer, uint32_t head, prhs_audit_report *report);
void t_world_head_stats(t_world *w, uint32_t slot, uint32_t layer, uint32_t head, prhs_head_stats *stats);
prhs_unit_view t_world_view(t_world *w, const void *blob, uint32_t layer, uint32_t unit);

#endif
