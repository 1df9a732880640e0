/* SPDX-License-Identifier: Apache-2.0 */
/* The small engine: its pages, its contents, and looks into the session. */
#include <math.h>
#include <string.h>

#include "world.h"

t_wseq *t_world_seq(t_world *w, uint64_t root, int32_t slot) {
    t_wseq *seq = t_alloc(w->t, sizeof *seq);
    seq->root = root;
    seq->slot = slot;
    seq->version = t_alloc(w->t, w->s.max_kv_len * sizeof *seq->version);
    seq->page = t_alloc(w->t, w->batch.b.page_stride * sizeof *seq->page);
    return seq;
}

/* Copies a page, image and device, all layers. */
static void copy_page(t_world *w, int32_t dst, int32_t src) {
    for (uint32_t l = 0; l < w->s.layers; l++) {
        t_cache *c = &w->cache[l];
        size_t size = t_size(c->kv.dtype), ps = w->s.layout.page - 1, h = c->kv_heads - 1;
        size_t kn = (ps * (size_t)c->kv.k_token + h * (size_t)c->kv.k_head + c->dim) * size;
        size_t vn = (ps * (size_t)c->kv.v_token + h * (size_t)c->kv.v_head + c->dim) * size;
        size_t kp = (size_t)c->kv.k_page * size, vp = (size_t)c->kv.v_page * size;
        memcpy(c->kimg + (size_t)dst * kp, c->kimg + (size_t)src * kp, kn);
        memcpy(c->vimg + (size_t)dst * vp, c->vimg + (size_t)src * vp, vn);
        t_put(w->t, t_at(c->kv.k, (size_t)dst * kp), c->kimg + (size_t)dst * kp, kn);
        t_put(w->t, t_at(c->kv.v, (size_t)dst * vp), c->vimg + (size_t)dst * vp, vn);
    }
}

static void give_page(t_world *w, int32_t page) {
    if (--w->refs[page] == 0)
        t_pool_give(&w->pool, page);
}

void t_world_reserve(t_world *w, t_wseq *seq, int32_t rows) {
    int32_t ps = (int32_t)w->s.layout.page, end = seq->len + rows;
    T_CHECK(w->t, end <= (int32_t)w->s.max_kv_len, "the test's sequence grows to %d", end);
    int32_t first = seq->len / ps;
    if (first < seq->pages && w->refs[seq->page[first]] > 1) {
        int32_t fresh = t_pool_take(w->t, &w->pool);
        copy_page(w, fresh, seq->page[first]);
        w->refs[fresh] = 1;
        give_page(w, seq->page[first]);
        seq->page[first] = fresh;
    }
    while (seq->pages * ps < end) {
        int32_t page = t_pool_take(w->t, &w->pool);
        w->refs[page] = 1;
        seq->page[seq->pages++] = page;
    }
}

void t_world_cut(t_world *w, t_wseq *seq, int32_t len) {
    int32_t ps = (int32_t)w->s.layout.page, keep = (len + ps - 1) / ps;
    while (seq->pages > keep)
        give_page(w, seq->page[--seq->pages]);
    seq->len = len;
}

t_wseq *t_world_share(t_world *w, const t_wseq *seq, int32_t slot) {
    t_wseq *child = t_world_seq(w, seq->root, slot);
    child->len = seq->len;
    child->pages = seq->pages;
    memcpy(child->version, seq->version, (size_t)seq->len * sizeof *seq->version);
    memcpy(child->page, seq->page, (size_t)seq->pages * sizeof *seq->page);
    for (int32_t i = 0; i < seq->pages; i++)
        w->refs[seq->page[i]]++;
    return child;
}

void t_world_query(const t_world *w, const t_wseq *seq, uint32_t layer, int32_t pos, float *q) {
    const t_shape *sh = w->s.shape;
    float noise[256];
    const uint32_t stretch = (uint32_t)pos / w->s.stretch, direction = w->s.cycle ? stretch % w->s.cycle : stretch;
    for (uint32_t h = 0; h < sh->heads; h++) {
        t_normals(q + h * sh->dim, sh->dim, t_key(w->s.seed ^ seq->root, 2, layer * 64u + h, direction));
        t_normals(noise, sh->dim, t_key(w->s.seed ^ seq->version[pos], 3, layer * 64u + h, (uint64_t)pos));
        for (uint32_t d = 0; d < sh->dim; d++)
            q[h * sh->dim + d] = w->s.sharp * (q[h * sh->dim + d] + w->s.drift * noise[d]);
    }
    if (w->edit)
        w->edit(layer, pos, q, NULL, NULL);
    for (uint32_t i = 0; i < sh->heads * sh->dim; i++)
        q[i] = t_round(sh->q, q[i]);
}

void t_world_row(const t_world *w, const t_wseq *seq, uint32_t layer, int32_t pos, float *k, float *v) {
    size_t n = w->s.shape->kv_heads * w->s.shape->dim;
    t_normals(k, n, t_key(w->s.seed ^ seq->version[pos], 4, layer, (uint64_t)pos));
    t_normals(v, n, t_key(w->s.seed ^ seq->version[pos], 5, layer, (uint64_t)pos));
    if (w->edit)
        w->edit(layer, pos, NULL, k, v);
}

void t_world_gather(const t_world *w, const t_wseq *seq, uint32_t layer, int32_t n, float *k, float *v) {
    const t_cache *c = &w->cache[layer];
    int32_t ps = (int32_t)w->s.layout.page;
    for (int32_t j = 0; j < n; j++)
        for (uint32_t h = 0; h < c->kv_heads; h++)
            for (uint32_t d = 0; d < c->dim; d++) {
                int64_t page = seq->page[j / ps], tok = j % ps;
                size_t at = ((size_t)j * c->kv_heads + h) * c->dim + d;
                k[at] = t_load(c->kv.dtype, c->kimg, (size_t)(page * c->kv.k_page + tok * c->kv.k_token + h * c->kv.k_head + d));
                v[at] = t_load(c->kv.dtype, c->vimg, (size_t)(page * c->kv.v_page + tok * c->kv.v_token + h * c->kv.v_head + d));
            }
}

void t_world_poison(t_world *w, t_wseq *const *seqs, int n) {
    int32_t ps = (int32_t)w->s.layout.page;
    size_t cells = (size_t)w->s.pages * w->s.layout.page;
    uint8_t *live = t_alloc(w->t, cells);
    for (int i = 0; i < n; i++)
        for (int32_t j = 0; j < seqs[i]->len; j++)
            live[seqs[i]->page[j / ps] * ps + j % ps] = 1;
    for (uint32_t l = 0; l < w->s.layers; l++) {
        for (size_t cell = 0; cell < cells; cell++)
            if (!live[cell])
                t_cache_void(&w->cache[l], (int32_t)(cell / w->s.layout.page), (uint32_t)(cell % w->s.layout.page));
        t_cache_upload(w->t, &w->cache[l]);
    }
    t_drop(w->t, live);
}

void *t_world_export(t_world *w, int32_t slot) {
    T_OK(w->t, prhs_session_export(w->session, w->t->queue, (uint32_t)slot, w->blob.mem));
    return t_fetch(w->t, w->blob.mem, w->sizes.slot);
}

/* Statistics as they are now; t_drop() it. */
static prhs_stats_request *request_of(t_world *w) {
    t_ctx *t = w->t;
    prhs_stats_request *request;
    T_OK(t, prhs_stats_request_create(w->session, &request));
    t_own(t, T_REQUEST, request, 0);
    T_OK(t, prhs_stats_request_enqueue(request, t->queue));
    T_OK(t, prhs_queue_finish(t->queue));
    return request;
}

void t_world_stats(t_world *w, uint32_t slot, uint32_t layer, prhs_stats *stats) {
    prhs_stats_request *request = request_of(w);
    stats->size = sizeof *stats;
    T_OK(w->t, prhs_stats_request_get(request, slot, layer, stats));
    t_drop(w->t, request);
}

void t_world_audit(t_world *w, uint32_t slot, uint32_t layer, uint32_t head, prhs_audit_report *report) {
    prhs_stats_request *request = request_of(w);
    *report = (prhs_audit_report){ .size = sizeof *report, .confidence = 0.95 };
    T_OK(w->t, prhs_stats_request_get_audit(request, slot, layer, head, report));
    t_drop(w->t, request);
}

void t_world_head_stats(t_world *w, uint32_t slot, uint32_t layer, uint32_t head, prhs_head_stats *stats) {
    prhs_stats_request *request = request_of(w);
    stats->size = sizeof *stats;
    T_OK(w->t, prhs_stats_request_get_head(request, slot, layer, head, stats));
    t_drop(w->t, request);
}

prhs_unit_view t_world_view(t_world *w, const void *blob, uint32_t layer, uint32_t unit) {
    prhs_unit_view view;
    T_OK(w->t, prhs_session_view(w->session, blob, layer, unit, &view));
    return view;
}
