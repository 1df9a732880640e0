/* SPDX-License-Identifier: Apache-2.0 */
#include "layout.h"

static prhs_i64 align_up(prhs_i64 x, prhs_i64 to) { return (x + to - 1) / to * to; }

/* Takes `count` elements of `size` bytes at *end, 16-byte aligned; PRHS_NONE and nothing taken where `wanted` is false. */
static prhs_i64 take(prhs_i64 *end, bool wanted, prhs_i64 count, prhs_i64 size) {
    if (!wanted)
        return PRHS_NONE;
    prhs_i64 at = align_up(*end, 16);
    *end = at + count * size;
    return at;
}

/* Bytes of a reference in the pool: see prhs_k_pool. */
static prhs_i64 record_bytes(const prhs_extent *e) {
    const prhs_k_shape *s = &e->shape;
    const prhs_i64 row = (prhs_i64)s->unit_heads * s->dim * 4, rows = 1 + (e->moments ? 2 : 0) + (e->values ? 1 : 0);
    return align_up(PRHS_POOL_ROWS(s->unit_heads) + rows * row + (prhs_i64)e->list_cap * 4, 16);
}

/*
 * State: a header with the error word; one block a slot (first the unit states of all layers, those of the pools too, so that clearing
 * a slot is two fills; then each layer's arrays); then the statistics of all slots, apart, because a fork copies state but not counts.
 */
static bool make_state(const prhs_extent *e, prhs_layout *l) {
    const prhs_k_shape *s = &e->shape;
    prhs_k_state *k = &l->state;
    prhs_i64 end = 0;
    l->slots_off = PRHS_ALIGN;
    k->fault_off = 0;
    k->list_cap = e->list_cap;

    const prhs_i64 units = (prhs_i64)s->units * (prhs_i64)sizeof(prhs_unit_state);
    l->unit_layer = units * (1 + e->references);
    l->units_bytes = l->unit_layer * e->layers;
    k->unit_off = l->slots_off;
    l->pool = (prhs_k_pool){ .unit_off = k->unit_off + units, .record_bytes = record_bytes(e), .count = e->references };

    prhs_i64 first = align_up(l->units_bytes, 16);
    end = first;
    k->head_off = take(&end, true, s->heads, sizeof(prhs_head_ref));
    k->qref_off = take(&end, e->lists, (prhs_i64)s->heads * s->dim, 4);
    k->moment_off = take(&end, e->moments, (prhs_i64)s->heads * 2 * s->dim, 4);
    k->spread_off = take(&end, e->moments, s->heads, 8);
    k->vhat_off = take(&end, e->values, (prhs_i64)s->heads * s->dim, 4);
    k->vsum_off = take(&end, e->sums, (prhs_i64)s->kv_heads * s->dim, 8);
    k->vcount_off = take(&end, e->sums, s->kv_heads, sizeof(prhs_value_count));
    k->list_off = take(&end, e->lists, (prhs_i64)s->units * e->list_cap, 4);
    l->pool.record_off = take(&end, e->references > 0, (prhs_i64)s->units * e->references, l->pool.record_bytes);
    l->layer = align_up(end, 16) - first;
    k->slot_bytes = align_up(first + l->layer * e->layers, PRHS_ALIGN);
    if (k->slot_bytes > (INT64_C(1) << 60) / e->max_slots)
        return false;
    prhs_i64 *offs[] = { &k->head_off, &k->qref_off, &k->moment_off, &k->spread_off, &k->vhat_off, &k->vsum_off, &k->vcount_off, &k->list_off,
                         &l->pool.record_off };
    for (size_t i = 0; i < sizeof offs / sizeof offs[0]; i++)
        if (*offs[i] != PRHS_NONE)
            *offs[i] += l->slots_off;

    l->stats_off = l->slots_off + k->slot_bytes * e->max_slots;
    end = 0;
    k->unit_stat_off = take(&end, e->stats, s->units, sizeof(prhs_unit_stat));
    k->head_stat_off = take(&end, e->stats, s->heads, sizeof(prhs_head_stat));
    l->unit_stat_layer = end;
    k->stat_slot_bytes = align_up(end * e->layers, 16);
    if (e->stats) {
        k->unit_stat_off += l->stats_off;
        k->head_stat_off += l->stats_off;
    }
    l->state_bytes = align_up(l->stats_off + k->stat_slot_bytes * e->max_slots, PRHS_ALIGN);
    return true;
}

/* No more chunks than the capacity can fill; the cut of a given length stays the same (see chunking in docs/kernels.md). */
static prhs_i32 chunk_cap(prhs_i32 chunks, prhs_i32 chunk_min, prhs_i32 max_kv_len) {
    prhs_i32 need = (max_kv_len + chunk_min - 1) / chunk_min;
    return need < chunks ? (need > 0 ? need : 1) : chunks;
}

static void make_work(const prhs_extent *e, prhs_layout *l) {
    const prhs_k_shape *s = &e->shape;
    prhs_k_work *w = &l->work;
    prhs_i64 end = 0, seqs = e->max_seqs, wrows = seqs * e->rows;
    w->chunk_min = e->chunking.attend_min;
    w->chunks = chunk_cap(e->chunking.attend_chunks, w->chunk_min, e->max_kv_len);
    w->score_chunk_min = e->chunking.score_min;
    w->score_chunks = chunk_cap(e->chunking.score_chunks, w->score_chunk_min, e->max_kv_len);
    w->score_stride = align_up(e->max_kv_len, 16);

    w->set_off = take(&end, true, seqs * s->units, sizeof(prhs_set));
    w->work_off = take(&end, true, wrows * s->units, 4);
    end = align_up(end, 64);
    w->part_off = take(&end, true, wrows * s->heads * w->chunks * s->dim, 4);
    w->part_lse_off = take(&end, true, wrows * s->heads * w->chunks, 4);
    w->lse_off = take(&end, true, wrows * s->heads, 4);
    end = align_up(end, 64);
    w->score_off = take(&end, e->scores, seqs * s->heads * w->score_stride, 4);
    w->norm_off = take(&end, e->scores, seqs * s->heads * w->score_chunks * 4, 4);
    end = align_up(end, 64);
    w->mom_off = take(&end, e->moments, seqs * s->heads * w->score_chunks * 2 * s->dim, 4);
    w->vmid_off = take(&end, e->values, seqs * s->heads * w->score_chunks * s->dim, 4);
    w->aim_off = take(&end, e->aims, seqs * s->units * w->score_stride, 4);
    w->attend_count_off = take(&end, e->chunking.counts, PRHS_PASSES * seqs * s->units, 4);
    const bool judges = e->chunking.counts && e->verdicts;
    w->score_count_off = take(&end, e->chunking.counts, (judges ? 2 : 1) * seqs * s->units, 4);
    w->judge_off = take(&end, judges, seqs * s->heads * 4, 4);
    w->fresh_off = take(&end, judges, seqs * s->units, sizeof(prhs_set));
    w->active_off = take(&end, e->chunking.counts, PRHS_ACTIVE + seqs * (prhs_i64)sizeof(prhs_seq), 1);
    w->slice_off = take(&end, e->chunking.counts && e->scores && e->max_kv_len > PRHS_K_SLICE,
                        seqs * s->units * PRHS_K_SLICE_WORDS((prhs_i64)e->max_kv_len, s->unit_heads), 4);
    l->work_bytes = align_up(end, PRHS_ALIGN);
}

bool prhs_layout_make(const prhs_extent *extent, prhs_layout *layout) {
    *layout = (prhs_layout){ 0 };
    if (!make_state(extent, layout))
        return false;
    make_work(extent, layout);
    return true;
}

static void move(prhs_i64 *off, prhs_i64 by) {
    if (*off != PRHS_NONE)
        *off += by;
}

prhs_k_state prhs_layout_state(const prhs_layout *layout, prhs_i32 layer, uint64_t base) {
    prhs_k_state k = layout->state;
    prhs_i64 by = (prhs_i64)base + layer * layout->layer;
    move(&k.unit_off, (prhs_i64)base + layer * layout->unit_layer);
    move(&k.head_off, by);
    move(&k.qref_off, by);
    move(&k.moment_off, by);
    move(&k.spread_off, by);
    move(&k.vhat_off, by);
    move(&k.vsum_off, by);
    move(&k.vcount_off, by);
    move(&k.list_off, by);
    move(&k.unit_stat_off, (prhs_i64)base + layer * layout->unit_stat_layer);
    move(&k.head_stat_off, (prhs_i64)base + layer * layout->unit_stat_layer);
    move(&k.fault_off, (prhs_i64)base);
    return k;
}

prhs_k_pool prhs_layout_pool(const prhs_layout *layout, prhs_i32 layer, uint64_t base) {
    prhs_k_pool k = layout->pool;
    move(&k.unit_off, (prhs_i64)base + layer * layout->unit_layer);
    move(&k.record_off, (prhs_i64)base + layer * layout->layer);
    return k;
}

prhs_k_work prhs_layout_work(const prhs_layout *layout, uint64_t base) {
    prhs_k_work w = layout->work;
    prhs_i64 *offs[] = { &w.set_off, &w.work_off, &w.part_off, &w.part_lse_off, &w.lse_off, &w.score_off, &w.norm_off, &w.mom_off,
                         &w.vmid_off, &w.attend_count_off, &w.score_count_off, &w.judge_off, &w.fresh_off, &w.active_off, &w.slice_off, &w.aim_off };
    for (size_t i = 0; i < sizeof offs / sizeof offs[0]; i++)
        move(offs[i], (prhs_i64)base);
    return w;
}
