/* SPDX-License-Identifier: Apache-2.0 */
/* What the ops share: the batch's entries, rows of the caller's arrays and of the cache, sets, chunks, state and workspace. */
#ifndef PRHS_CPU_ROWS_H
#define PRHS_CPU_ROWS_H

#include <math.h>

#include "convert.h"
#include "cpu.h"

/* The start of an op's buffer i; NULL where it is absent. */
static inline char *prhs_cpu_mem(const prhs_op *op, int i) { return op->mem[i] ? ((prhs_cpu_buffer *)op->mem[i])->host : NULL; }

/* --- entries --- */

static inline const prhs_seq *prhs_cpu_seq(const prhs_k_batch *batch, const char *seqs, size_t b) {
    return (const prhs_seq *)(const void *)(seqs + batch->seqs_off) + b;
}

static inline bool prhs_cpu_decodes(const prhs_seq *e) { return !(e->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)); }

/* The PRHS_FAULT_* bits of an entry that is not idle: what must not be followed into arrays. */
static inline prhs_i32 prhs_cpu_faults(const prhs_k_batch *batch, const prhs_seq *e) {
    prhs_i32 faults = 0;
    if (e->slot >= batch->max_slots)
        faults |= PRHS_FAULT_SLOT;
    if (e->kv_len < e->row_count || e->kv_len > batch->max_kv_len)
        faults |= PRHS_FAULT_LENGTH;
    if (e->row_begin < 0 || e->row_count > batch->max_rows - e->row_begin || (prhs_cpu_decodes(e) && e->row_count > batch->rows))
        faults |= PRHS_FAULT_ROWS;
    return faults;
}

static inline bool prhs_cpu_idle(const prhs_k_batch *batch, const prhs_seq *e) {
    return e->slot < 0 || e->row_count <= 0 || prhs_cpu_faults(batch, e) != 0;
}

/* Rows that an entry brings to the decode path: its own, or the one that seeds, or none. */
static inline int prhs_cpu_decode_rows(const prhs_seq *e) {
    return e->flags & PRHS_SEQ_SEED ? 1 : e->flags & PRHS_SEQ_PREFILL ? 0 : e->row_count;
}

/* Decode row r of an entry: its index among the caller's rows and its position. A seed's only row is the entry's last. */
static inline int prhs_cpu_row_index(const prhs_seq *e, int r) {
    return e->row_begin + (e->flags & PRHS_SEQ_SEED ? e->row_count - 1 : r);
}

static inline int prhs_cpu_row_pos(const prhs_seq *e, int r) {
    return e->kv_len - e->row_count + (e->flags & PRHS_SEQ_SEED ? e->row_count - 1 : r);
}

/* The longest kv_len of the batch's good entries that have decode rows (or, with prompts, of all), 0: nothing to do. */
static inline int prhs_cpu_longest(const prhs_k_batch *batch, const char *seqs, bool prompts, double *tokens) {
    int longest = 0;
    *tokens = 0.0;
    for (int b = 0; b < batch->max_seqs; b++) {
        const prhs_seq *e = prhs_cpu_seq(batch, seqs, (size_t)b);
        if (prhs_cpu_idle(batch, e) || (!prompts && prhs_cpu_decode_rows(e) == 0))
            continue;
        longest = e->kv_len > longest ? e->kv_len : longest;
        *tokens += e->kv_len;
    }
    return longest;
}

/* --- rows --- */

static inline char *prhs_cpu_row(const prhs_k_rows *rows, char *base, int row, int head) {
    return base + rows->off + (row * rows->row + head * rows->head) * prhs_cpu_size(rows->dtype);
}

/* `heads` heads from `head` on of a query row as padded floats. */
static inline void prhs_cpu_load_q(const prhs_k_rows *q, char *base, int row, int head, int heads, int dim, float *out) {
    int pad = PRHS_CPU_PAD(dim);
    for (int j = 0; j < heads; j++) {
        prhs_cpu_load(q->dtype, prhs_cpu_row(q, base, row, head + j), dim, out + j * pad);
        memset(out + j * pad + dim, 0, (size_t)(pad - dim) * sizeof *out);
    }
}

/* K or V of one KV head of one sequence. */
typedef struct prhs_cpu_cache {
    char *base;
    const prhs_i32 *pages;
    prhs_i64 page, token; /* strides in bytes */
    prhs_i32 page_size, last_page;
} prhs_cpu_cache;

static inline prhs_cpu_cache prhs_cpu_keys(const prhs_k_kv *kv, const prhs_k_batch *batch, char *pages, char *k, size_t b,
                                           int head) {
    int size = prhs_cpu_size(kv->dtype);
    const prhs_i32 *table = (const prhs_i32 *)(const void *)(pages + batch->pages_off) + (prhs_i64)b * batch->page_stride;
    return (prhs_cpu_cache){
        k + kv->k_off + head * kv->k_head * size, table, kv->k_page * size, kv->k_token * size, kv->page_size, kv->pages - 1
    };
}

static inline prhs_cpu_cache prhs_cpu_values(const prhs_k_kv *kv, const prhs_k_batch *batch, char *pages, char *v, size_t b,
                                             int head) {
    int size = prhs_cpu_size(kv->dtype);
    const prhs_i32 *table = (const prhs_i32 *)(const void *)(pages + batch->pages_off) + (prhs_i64)b * batch->page_stride;
    return (prhs_cpu_cache){
        v + kv->v_off + head * kv->v_head * size, table, kv->v_page * size, kv->v_token * size, kv->page_size, kv->pages - 1
    };
}

/* Where position j lies: its page, and its place in it. */
typedef struct prhs_cpu_place {
    prhs_i64 page, token;
} prhs_cpu_place;

static inline prhs_cpu_place prhs_cpu_find(const prhs_cpu_cache *c, int j) {
    prhs_i32 i = j / c->page_size, page = c->pages[i];
    page = page < 0 ? 0 : page > c->last_page ? c->last_page : page;
    return (prhs_cpu_place){ page, j - i * c->page_size };
}

static inline char *prhs_cpu_at(const prhs_cpu_cache *c, prhs_cpu_place p) {
    return c->base + p.page * c->page + p.token * c->token;
}

static inline char *prhs_cpu_cached(const prhs_cpu_cache *c, int j) { return prhs_cpu_at(c, prhs_cpu_find(c, j)); }

/* Completes a tile of n rows: vectors may look at rows past them. */
static inline void prhs_cpu_close_tile(prhs_cpu_tile *t, int n) {
    t->n = n;
    for (int r = n; r < PRHS_CPU_TILE; r++)
        t->row[r] = t->row[n - 1];
}

/* Rows [begin, end) as a tile; at most TILE. */
static inline void prhs_cpu_range(const prhs_cpu_cache *c, int begin, int end, prhs_cpu_tile *t) {
    for (int j = begin; j < end; j++)
        t->row[j - begin] = prhs_cpu_cached(c, j);
    prhs_cpu_close_tile(t, end - begin);
}

/* --- chunks --- */

static inline int prhs_cpu_chunk(int n, int min, int chunks) {
    int chunk = ((n + chunks - 1) / chunks + 15) & ~15;
    return chunk > min ? chunk : min;
}

static inline int prhs_cpu_chunk_count(int n, int min, int chunks) {
    int chunk = prhs_cpu_chunk(n, min, chunks);
    return (n + chunk - 1) / chunk;
}

/* --- state and workspace --- */

static inline void *prhs_cpu_state(const prhs_k_state *st, char *state, int slot, prhs_i64 off) {
    return state + slot * st->slot_bytes + off;
}

static inline prhs_unit_state *prhs_cpu_unit(const prhs_k_state *st, char *state, int slot, int u) {
    return (prhs_unit_state *)prhs_cpu_state(st, state, slot, st->unit_off) + u;
}

/* The states of a unit's references in the pool. */
static inline prhs_unit_state *prhs_cpu_kept(const prhs_k_state *st, const prhs_k_pool *pool, char *state, int slot, int u) {
    return (prhs_unit_state *)prhs_cpu_state(st, state, slot, pool->unit_off) + (prhs_i64)u * pool->count;
}

static inline prhs_i32 *prhs_cpu_list(const prhs_k_state *st, char *state, int slot, int u) {
    return (prhs_i32 *)prhs_cpu_state(st, state, slot, st->list_off) + (prhs_i64)u * st->list_cap;
}

static inline prhs_head_ref *prhs_cpu_head(const prhs_k_state *st, char *state, int slot, int h) {
    return (prhs_head_ref *)prhs_cpu_state(st, state, slot, st->head_off) + h;
}

/* Of head h: the spread, and what was judged last. */
static inline float *prhs_cpu_spread(const prhs_k_state *st, char *state, int slot, int h) {
    return (float *)prhs_cpu_state(st, state, slot, st->spread_off) + 2 * h;
}

static inline prhs_unit_stat *prhs_cpu_unit_stat(const prhs_k_state *st, char *state, int slot, int u) {
    return (prhs_unit_stat *)(void *)(state + slot * st->stat_slot_bytes + st->unit_stat_off) + u;
}

static inline prhs_head_stat *prhs_cpu_head_stat(const prhs_k_state *st, char *state, int slot, int h) {
    return (prhs_head_stat *)(void *)(state + slot * st->stat_slot_bytes + st->head_stat_off) + h;
}

static inline float *prhs_cpu_qref(const prhs_k_state *st, char *state, int slot, int h, int dim) {
    return (float *)prhs_cpu_state(st, state, slot, st->qref_off) + h * dim;
}

static inline prhs_set *prhs_cpu_set(const prhs_k_work *w, const prhs_k_shape *shape, char *work, size_t b, int u) {
    return (prhs_set *)(void *)(work + w->set_off) + (prhs_i64)b * shape->units + u;
}

/* Work of row 0; that of row r is r * units further. */
static inline prhs_i32 *prhs_cpu_work(const prhs_k_work *w, const prhs_k_batch *batch, const prhs_k_shape *shape, char *work,
                                      size_t b, int u) {
    return (prhs_i32 *)(void *)(work + w->work_off) + (prhs_i64)b * batch->rows * shape->units + u;
}

static inline float *prhs_cpu_scores(const prhs_k_work *w, const prhs_k_shape *shape, char *work, size_t b, int h) {
    return (float *)(void *)(work + w->score_off) + ((prhs_i64)b * shape->heads + h) * w->score_stride;
}

static inline float *prhs_cpu_norms(const prhs_k_work *w, const prhs_k_shape *shape, char *work, size_t b, int h) {
    return (float *)(void *)(work + w->norm_off) + ((prhs_i64)b * shape->heads + h) * w->score_chunks * 4;
}

/* --- sets --- */

/* The linear index over a set, cut at a row's own position: ends of its parts, each a number of tokens. */
typedef struct prhs_cpu_span {
    const prhs_set *set;
    const prhs_i32 *list;
    int sinks, edge, runs, n; /* cumulative */
    int limit;                /* no position at or past it */
} prhs_cpu_span;

static inline int prhs_cpu_min(int a, int b) { return a < b ? a : b; }

static inline int prhs_cpu_max(int a, int b) { return a > b ? a : b; }

static inline prhs_cpu_span prhs_cpu_span_of(const prhs_set *set, const prhs_i32 *list, int list_cap, int limit) {
    prhs_cpu_span s = { .set = set, .list = list, .limit = limit };
    int end = prhs_cpu_min(set->end, limit);
    s.sinks = prhs_cpu_max(0, prhs_cpu_min(set->sink_end, end));
    s.edge = s.sinks + prhs_cpu_max(0, prhs_cpu_min(set->edge_end, end) - prhs_cpu_max(set->edge_begin, 0));
    s.runs = s.edge + prhs_cpu_max(0, prhs_cpu_min(set->count, list_cap)) * set->run;
    s.n = s.runs + prhs_cpu_max(0, end - prhs_cpu_max(set->win_begin, 0));
    return s;
}

/* The position at linear index i. */
static inline int prhs_cpu_span_at(const prhs_cpu_span *s, int i) {
    int j;
    if (i < s->sinks)
        return i;
    if (i < s->edge)
        return s->set->edge_begin + i - s->sinks;
    if (i >= s->runs)
        return s->set->win_begin + i - s->runs;
    if (s->set->run == 1)
        j = s->list[i - s->edge];
    else
        j = s->list[(i - s->edge) / s->set->run] + (i - s->edge) % s->set->run;
    return prhs_cpu_max(0, prhs_cpu_min(j, s->limit - 1)); /* a list of the engine's own may be wrong */
}

/* --- arithmetic --- */

static inline int prhs_cpu_psaw(prhs_u32 factor, int t) { return (int)((uint64_t)factor * (uint64_t)t >> 32); }

static inline float prhs_cpu_cosine(const float *a, const float *b, int dim) {
    float ab = 0.0f, aa = 0.0f, bb = 0.0f;
    for (int d = 0; d < dim; d++) {
        ab += a[d] * b[d];
        aa += a[d] * a[d];
        bb += b[d] * b[d];
    }
    return aa == 0.0f || bb == 0.0f ? 0.0f : ab / (sqrtf(aa) * sqrtf(bb));
}

static inline float prhs_cpu_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static inline float prhs_cpu_mass(float l) { return prhs_cpu_sigmoid(l > 20.0f ? 20.0f : l); }

/*
 * Dropped mass of query q by the second cumulant of what the reference dropped: moments are its keys' mean and variance, *spread
 * is the variance of their scores, which is what they vary by along the reference; across it, or where that is not known (NULL),
 * the channels speak. *by_channels (NULL: not wanted): where they speak alone, as they do where float32 is too small for the
 * rest.
 */
static inline float prhs_cpu_estimate(const float *q, const float *qref, const float *moments, const float *spread, int dim,
                                      float scale, float l_dropped, float lse, float *by_channels) {
    float mean = 0.0f, var = 0.0f, across = 0.0f, dot = 0.0f, square = 0.0f;
    for (int d = 0; d < dim; d++) {
        float delta = q[d] - qref[d];
        mean += delta * moments[d];
        var += delta * delta * moments[dim + d];
        dot += delta * qref[d];
        square += qref[d] * qref[d];
    }
    const float along = square == 0.0f ? 0.0f : dot / square;
    for (int d = 0; d < dim; d++) {
        float rest = q[d] - qref[d] - along * qref[d];
        across += rest * rest * moments[dim + d];
    }
    const float plain = 0.5f * scale * scale * var,
                known = spread ? 0.5f * (along * along * *spread + scale * scale * across) : plain;
    const float second = fabsf(known) < INFINITY || (spread && isnan(*spread)) ? known : plain;
    const bool none = l_dropped == -INFINITY;
    if (by_channels)
        *by_channels = none ? 0.0f : prhs_cpu_mass(l_dropped + (scale * mean + plain) - lse);
    return none ? 0.0f : prhs_cpu_mass(l_dropped + (scale * mean + second) - lse);
}

/* Parts with their log-sum-exps, `step` and `lse_step` floats apart, into o and the result. Empty parts weigh nothing. */
static inline float prhs_cpu_merge_parts(const float *part, prhs_i64 step, const float *lse, prhs_i64 lse_step, int n, int dim,
                                         float *o) {
    float max = -INFINITY, sum = 0.0f;
    for (int d = 0; d < dim; d++)
        o[d] = 0.0f;
    for (int i = 0; i < n; i++)
        max = lse[i * lse_step] > max ? lse[i * lse_step] : max;
    for (int i = 0; i < n; i++) {
        float l = lse[i * lse_step];
        if (l == -INFINITY)
            continue;
        float w = expf(l - max);
        sum += w;
        for (int d = 0; d < dim; d++)
            o[d] += w * part[i * step + d];
    }
    if (sum == 0.0f)
        return -INFINITY;
    for (int d = 0; d < dim; d++)
        o[d] = o[d] / sum;
    return max + logf(sum);
}

/* Sum of n <= 256 floats, 16 by 16. */
static inline float prhs_cpu_sum(const float *x, int n) {
    float lane[16] = { 0 };
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += x[i + l];
    for (int l = 0; i + l < n; l++)
        lane[l] += x[i + l];
    for (int m = 8; m >= 1; m /= 2)
        for (int l = 0; l < m; l++)
            lane[l] += lane[l + m];
    return lane[0];
}

#endif
