// SPDX-License-Identifier: Apache-2.0
/* A reference session: parameters, cached rows, and the life of slots. Nothing is incremental: sums are taken when read. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

static int bad_params(const oracle_params *p) {
    if (p->L < 1 || p->H_kv < 1 || p->H < p->H_kv || p->H % p->H_kv || p->D < 1 || p->slots < 1)
        return 1;
    if (p->c_sink < 0 || p->c_local < 1 || p->k < 0 || p->block < 1 || p->granularity < 1 || p->dense_layers < 0)
        return 1;
    if (p->m < 0 || p->back < 0 || p->ahead < 0)
        return 1;
    if (p->references < 0 || (p->references > 1 && p->gate == ORACLE_GATE_NONE))
        return 1;
    int64_t top = p->k / p->granularity - (int64_t)p->m * ((int64_t)p->back + p->ahead);
    if (p->m > 0 && top < p->m)
        return 1;
    return (p->never_retrieve || p->k == 0) && p->residual != ORACLE_RESIDUAL_NONE;
}

static void make_refs(const oracle_session *s, oracle_ref **refs, int n) {
    size_t heads = (size_t)s->unit_heads, rows = heads * (size_t)s->p.D;
    *refs = oracle_alloc((size_t)n, sizeof **refs);
    for (int i = 0; i < n; i++) {
        oracle_ref *r = &(*refs)[i];
        r->pos = r->used = -1;
        r->q = oracle_alloc(rows, sizeof *r->q);
        r->mu = oracle_alloc(rows, sizeof *r->mu);
        r->var = oracle_alloc(rows, sizeof *r->var);
        r->mu_bar = oracle_alloc(rows, sizeof *r->mu_bar);
        r->var_bar = oracle_alloc(rows, sizeof *r->var_bar);
        r->value = oracle_alloc(rows, sizeof *r->value);
        r->value_bar = oracle_alloc(rows, sizeof *r->value_bar);
        r->L_D = oracle_alloc(heads, sizeof *r->L_D);
        r->delta = oracle_alloc(heads, sizeof *r->delta);
        r->top = oracle_alloc(heads, sizeof *r->top);
        r->Z_middle = oracle_alloc(heads, sizeof *r->Z_middle);
        r->Z_f = oracle_alloc(heads, sizeof *r->Z_f);
        r->V = oracle_alloc(heads, sizeof *r->V);
        r->V_bar = oracle_alloc(heads, sizeof *r->V_bar);
    }
}

static void make_cache(const oracle_session *s, oracle_cache *c) {
    c->K = oracle_alloc((size_t)s->p.H_kv, sizeof *c->K);
    c->V = oracle_alloc((size_t)s->p.H_kv, sizeof *c->V);
    c->row0 = -1;
    make_refs(s, &c->ref, s->units);
    make_refs(s, &c->pool, s->units * oracle_pool(s));
}

oracle_session *oracle_session_new(const oracle_params *params) {
    if (bad_params(params))
        return NULL;
    oracle_session *s = oracle_alloc(1, sizeof *s);
    s->p = *params;
    if (s->p.scale == 0)
        s->p.scale = 1 / sqrt((double)s->p.D);
    if (s->p.floor == 0)
        s->p.floor = ORACLE_FLOOR;
    s->group = s->p.H / s->p.H_kv;
    s->units = s->p.join == ORACLE_JOIN_PER_HEAD ? s->p.H : s->p.H_kv;
    s->unit_heads = s->p.H / s->units;
    size_t n = (size_t)s->p.slots * (size_t)s->p.L;
    s->cache = oracle_alloc(n, sizeof *s->cache);
    for (size_t i = 0; i < n; i++)
        make_cache(s, &s->cache[i]);
    return s;
}

void oracle_ref_clear(oracle_ref *r) {
    r->pos = r->used = -1;
    free(r->list);
    r->list = NULL;
    r->n_list = 0;
}

static void free_refs(oracle_ref *refs, int n) {
    for (int i = 0; i < n; i++) {
        oracle_ref *r = &refs[i];
        oracle_ref_clear(r);
        free(r->q);
        free(r->mu);
        free(r->var);
        free(r->mu_bar);
        free(r->var_bar);
        free(r->value);
        free(r->value_bar);
        free(r->L_D);
        free(r->delta);
        free(r->top);
        free(r->Z_middle);
        free(r->Z_f);
        free(r->V);
        free(r->V_bar);
    }
    free(refs);
}

static void free_cache(const oracle_session *s, oracle_cache *c) {
    for (int h = 0; h < s->p.H_kv; h++) {
        free(c->K[h]);
        free(c->V[h]);
    }
    free(c->K);
    free(c->V);
    free_refs(c->ref, s->units);
    free_refs(c->pool, s->units * oracle_pool(s));
}

void oracle_session_free(oracle_session *s) {
    if (!s)
        return;
    for (size_t i = 0; i < (size_t)s->p.slots * (size_t)s->p.L; i++)
        free_cache(s, &s->cache[i]);
    free(s->cache);
    free(s);
}

int oracle_units(const oracle_session *s) { return s->units; }

int oracle_unit_heads(const oracle_session *s) { return s->unit_heads; }

oracle_cache *oracle_cache_at(const oracle_session *s, int layer, int slot) {
    if (layer < 0 || layer >= s->p.L || slot < 0 || slot >= s->p.slots)
        return NULL;
    return oracle_cache_of(s, layer, slot);
}

int oracle_length(const oracle_session *s, int layer, int slot) {
    const oracle_cache *c = oracle_cache_at(s, layer, slot);
    return c ? c->n : -1;
}

int oracle_psaw(const oracle_params *p, int layer, int t) {
    if (!p->psaw || layer < p->dense_layers)
        return 0;
    return oracle_start(oracle_factor(p->L, layer, p->psaw_layer, p->phi, p->alpha), t);
}

/* Rule taken: dense_layers turns PSAW off in these layers, as method.md says, and not ETF, which it does not name. */
int oracle_frozen(const oracle_params *p, int layer, int prompt_len) {
    if (!p->etf || prompt_len < 1)
        return 0;
    return oracle_start(oracle_factor(p->L, layer, p->etf_layer, p->psi, p->gamma), prompt_len - 1);
}

oracle_moments oracle_ref_moments(const oracle_ref *r, int g, int D) {
    size_t row = (size_t)g * (size_t)D;
    return (oracle_moments){ r->L_D[g],   r->top[g],   r->Z_middle[g], r->Z_f[g],       r->V[g],
                             r->V_bar[g], r->mu + row, r->var + row,   r->mu_bar + row, r->var_bar + row };
}

static double *grow(double *old, int n, int capacity, int D) {
    double *rows = oracle_alloc((size_t)capacity * (size_t)D, sizeof *rows);
    if (n > 0)
        memcpy(rows, old, (size_t)n * (size_t)D * sizeof *rows);
    free(old);
    return rows;
}

static void reserve(const oracle_session *s, oracle_cache *c, int n) {
    if (n <= c->capacity)
        return;
    c->capacity = n > 2 * c->capacity ? n + 64 : 2 * c->capacity;
    for (int h = 0; h < s->p.H_kv; h++) {
        c->K[h] = grow(c->K[h], c->n, c->capacity, s->p.D);
        c->V[h] = grow(c->V[h], c->n, c->capacity, s->p.D);
    }
}

void oracle_append(oracle_session *s, int layer, int slot, int rows, const double *K, const double *V) {
    oracle_cache *c = oracle_cache_at(s, layer, slot);
    if (!c || rows < 1)
        return;
    size_t D = (size_t)s->p.D;
    reserve(s, c, c->n + rows);
    for (int i = 0; i < rows; i++)
        for (int h = 0; h < s->p.H_kv; h++) {
            size_t from = ((size_t)i * (size_t)s->p.H_kv + (size_t)h) * D, to = (size_t)(c->n + i) * D;
            memcpy(c->K[h] + to, K + from, D * sizeof *K);
            memcpy(c->V[h] + to, V + from, D * sizeof *V);
        }
    c->n += rows;
}

static void clear(const oracle_session *s, oracle_cache *c) {
    c->n = 0;
    c->row0 = -1;
    for (int u = 0; u < s->units; u++)
        oracle_ref_clear(&c->ref[u]);
    for (int i = 0; i < s->units * oracle_pool(s); i++)
        oracle_ref_clear(&c->pool[i]);
}

void oracle_reset(oracle_session *s, int slot) {
    for (int l = 0; l < s->p.L; l++)
        if (oracle_cache_at(s, l, slot))
            clear(s, oracle_cache_of(s, l, slot));
}

static void copy(double *to, const double *from, int n) { memcpy(to, from, (size_t)n * sizeof *to); }

void oracle_ref_copy(const oracle_session *s, oracle_ref *to, const oracle_ref *from) {
    int heads = s->unit_heads, rows = heads * s->p.D;
    oracle_ref_clear(to);
    to->pos = from->pos;
    to->set = from->set;
    to->n_list = from->n_list;
    to->list = oracle_alloc((size_t)from->n_list, sizeof *to->list);
    if (from->n_list > 0)
        memcpy(to->list, from->list, (size_t)from->n_list * sizeof *to->list);
    copy(to->q, from->q, rows);
    copy(to->mu, from->mu, rows);
    copy(to->var, from->var, rows);
    copy(to->mu_bar, from->mu_bar, rows);
    copy(to->var_bar, from->var_bar, rows);
    copy(to->value, from->value, rows);
    copy(to->value_bar, from->value_bar, rows);
    copy(to->L_D, from->L_D, heads);
    copy(to->delta, from->delta, heads);
    copy(to->top, from->top, heads);
    copy(to->Z_middle, from->Z_middle, heads);
    copy(to->Z_f, from->Z_f, heads);
    copy(to->V, from->V, heads);
    copy(to->V_bar, from->V_bar, heads);
}

void oracle_fork(oracle_session *s, int dst, int src) {
    if (dst == src || !oracle_cache_at(s, 0, dst) || !oracle_cache_at(s, 0, src))
        return;
    for (int l = 0; l < s->p.L; l++) {
        const oracle_cache *from = oracle_cache_of(s, l, src);
        oracle_cache *to = oracle_cache_of(s, l, dst);
        clear(s, to);
        reserve(s, to, from->n);
        for (int h = 0; h < s->p.H_kv && from->n > 0; h++) {
            copy(to->K[h], from->K[h], from->n * s->p.D);
            copy(to->V[h], from->V[h], from->n * s->p.D);
        }
        to->n = from->n;
        to->row0 = from->row0;
        to->rows = from->rows;
        for (int u = 0; u < s->units; u++) {
            oracle_ref_copy(s, &to->ref[u], &from->ref[u]);
            to->ref[u].used = from->ref[u].used;
        }
        for (int i = 0; i < s->units * oracle_pool(s); i++) {
            oracle_ref_copy(s, &to->pool[i], &from->pool[i]);
            to->pool[i].used = from->pool[i].used;
        }
    }
}

void oracle_move(oracle_session *s, int dst, int src) {
    if (dst == src)
        return;
    oracle_fork(s, dst, src);
    oracle_reset(s, src);
}

static void cut(const oracle_session *s, oracle_cache *c, int length) {
    if (length >= c->n)
        return;
    c->n = length;
    for (int u = 0; u < s->units; u++)
        if (c->ref[u].pos >= length)
            oracle_ref_clear(&c->ref[u]);
    for (int i = 0; i < s->units * oracle_pool(s); i++)
        if (c->pool[i].pos >= length)
            oracle_ref_clear(&c->pool[i]);
}

/* A truncation ends the speculation of the last step: there is nothing left to commit. */
void oracle_truncate(oracle_session *s, int layer, int slot, int length) {
    for (int l = layer < 0 ? 0 : layer; l <= (layer < 0 ? s->p.L - 1 : layer); l++)
        if (oracle_cache_at(s, l, slot) && length >= 0) {
            cut(s, oracle_cache_of(s, l, slot), length);
            oracle_cache_of(s, l, slot)->row0 = -1;
        }
}

/* Row 0 is the reference's at most, and stays: the state is that of the same step with c rows. */
int oracle_commit(oracle_session *s, int layer, int slot, int c) {
    int result = 0;
    for (int l = layer < 0 ? 0 : layer; l <= (layer < 0 ? s->p.L - 1 : layer); l++) {
        oracle_cache *cache = oracle_cache_at(s, l, slot);
        if (!cache || cache->row0 < 0 || c < 1 || c > cache->rows) {
            result = -1;
            continue;
        }
        cut(s, cache, cache->row0 + c);
        cache->rows = c;
    }
    return result;
}

void oracle_attach(oracle_session *s, int layer, int slot, int rows, const double *K, const double *V) {
    size_t stride = (size_t)s->p.H_kv * (size_t)s->p.D;
    for (int l = layer < 0 ? 0 : layer; l <= (layer < 0 ? s->p.L - 1 : layer); l++) {
        oracle_cache *c = oracle_cache_at(s, l, slot);
        if (!c)
            continue;
        int n = c->n;
        clear(s, c);
        c->n = K ? 0 : n;
        /* For all layers at once the rows come layer by layer. */
        size_t at = layer < 0 ? (size_t)l * (size_t)rows * stride : 0;
        if (K)
            oracle_append(s, l, slot, rows, K + at, V + at);
    }
}
