/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cache whose pages lie 64 MiB apart, so that rows are past 2^31 elements and 2^32 bytes: the same bits as from a compact one.
 * Where buffers end at 4 GiB (PoCL), rows are at least past 2^31 bytes.
 */
#include <string.h>

#include "groups.h"
#include "world.h"

enum { PAGES = 66, PROMPT = 150, STEPS = 12 };
/* Elements between pages. */
#define STRIDE (INT64_C(1) << 25)
#define SHORT_STRIDE (INT64_C(31) << 20)

static const char *row_name(int row) {
    (void)row;
    return "rows past what 32 bits count";
}

/* Pages are taken from the far end. */
static void make(t_ctx *t, t_world *w, const t_setup *s) {
    t_world_make(t, w, s);
    for (uint32_t i = 0; i < PAGES; i++)
        w->pool.free[i] = (int32_t)i;
}

static void spread(t_world *w, prhs_buffer *buffer, int64_t stride) {
    prhs_kv *all = t_alloc(w->t, w->s.layers * sizeof *all);
    w->elsewhere = all;
    for (uint32_t l = 0; l < w->s.layers; l++) {
        prhs_kv *kv = &all[l];
        *kv = w->cache[l].kv;
        prhs_kv_strides_nhd(kv, w->s.shape->kv_heads, w->s.shape->dim);
        kv->k_page = kv->v_page = stride;
        kv->k = (prhs_mem){ buffer, l << 21 };
        kv->v = (prhs_mem){ buffer, (l << 21) + (1u << 20) };
    }
}

static void run(t_ctx *t, int row) {
    t_world *near = t_alloc(t, sizeof *near), *far = t_alloc(t, sizeof *far);
    t_setup s = t_setup_default(t, "cis-mass", &t_shapes[S_G3_D64]);
    const uint64_t page = PAGES * t_size(s.shape->kv), most = t->info.max_buffer ? t->info.max_buffer : UINT64_MAX;
    const int64_t stride = page * STRIDE <= most ? STRIDE : SHORT_STRIDE;
    prhs_buffer *buffer;
    (void)row;
    if (page * (uint64_t)stride > most || prhs_buffer_create(t->dev, page * (uint64_t)stride, &buffer) != PRHS_OK)
        t_skip(t, "the device has no buffers of 4 GiB");
    t_own(t, T_FOREIGN, buffer, 0);
    s.pages = PAGES;
    make(t, near, &s);
    make(t, far, &s);
    spread(far, buffer, stride);
    t_wseq *a = t_world_seq(near, 1, 0), *b = t_world_seq(far, 1, 0);
    t_world_prompt(near, a, PROMPT, 64);
    t_world_prompt(far, b, PROMPT, 64);
    T_CHECK(t, b->page[0] == PAGES - 1, "the first page is %d", b->page[0]);
    for (int i = 0; i < STEPS; i++) {
        t_world_one(near, a, 1, 0);
        t_world_one(far, b, 1, 0);
        for (uint32_t l = 0; l < s.layers; l++)
            T_CHECK(t, !memcmp(near->outs[l], far->outs[l], s.shape->heads * s.shape->dim * sizeof(float)), "step %d, layer %u: other bits",
                    i, l);
    }
    t_world_resize(near, a, W_TRUNCATE, PROMPT - 20);
    t_world_resize(far, b, W_TRUNCATE, PROMPT - 20);
    T_CHECK(t, !memcmp(t_world_export(near, 0), t_world_export(far, 0), near->sizes.slot), "the slot's state has other bits");
}

const t_group t_group_far = { "far", 1, 0, row_name, run };
