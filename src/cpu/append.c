/* SPDX-License-Identifier: Apache-2.0 */
/* append, range_sum, truncate: rows into the cache, exact integer sums of the cached values, references that a truncation voids.
 */
#include "rows.h"

#include <stdatomic.h>

enum { SEQS, PAGES, KIN, VIN, K, V, STATE };

/* Adds row j of V to the sums, or takes it away (sign -1): the same integers in any order. */
static void count_row(const prhs_cpu_cache *v, int dtype, int dim, int j, int sign, prhs_i64 *sum, prhs_value_count *count) {
    float row[PRHS_CPU_MAX_DIM];
    bool finite = true;
    prhs_cpu_load(dtype, prhs_cpu_cached(v, j), dim, row);
    for (int d = 0; d < dim; d++)
        finite = finite && isfinite(row[d]);
    if (!finite) {
        count->nonfinite += sign;
        return;
    }
    for (int d = 0; d < dim; d++) {
        float x = row[d] < -65536.0f ? -65536.0f : row[d] > 65536.0f ? 65536.0f : row[d];
        sum[d] += sign * (prhs_i64)llrintf(x * 16777216.0f);
    }
}

static void write_rows(const prhs_op *op, const prhs_seq *e, size_t b, int hk) {
    const prhs_k_append *a = &op->args.append;
    prhs_cpu_cache k = prhs_cpu_keys(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, K), b, hk);
    prhs_cpu_cache v = prhs_cpu_values(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, V), b, hk);
    float row[PRHS_CPU_MAX_DIM];
    for (int i = 0; i < e->row_count; i++) {
        int j = e->kv_len - e->row_count + i;
        prhs_cpu_load(a->k.dtype, prhs_cpu_row(&a->k, prhs_cpu_mem(op, KIN), e->row_begin + i, hk), a->shape.dim, row);
        prhs_cpu_store(a->kv.dtype, prhs_cpu_cached(&k, j), a->shape.dim, row);
        prhs_cpu_load(a->v.dtype, prhs_cpu_row(&a->v, prhs_cpu_mem(op, VIN), e->row_begin + i, hk), a->shape.dim, row);
        prhs_cpu_store(a->kv.dtype, prhs_cpu_cached(&v, j), a->shape.dim, row);
    }
}

static prhs_i32 page_faults(const prhs_k_append *a, const char *pages, const prhs_seq *e, size_t b) {
    const prhs_i32 *table = (const prhs_i32 *)(const void *)(pages + a->batch.pages_off) + (prhs_i64)b * a->batch.page_stride;
    int n = prhs_cpu_min(a->batch.page_stride, (e->kv_len + a->kv.page_size - 1) / a->kv.page_size);
    for (int i = 0; i < n; i++)
        if (table[i] < 0 || table[i] >= a->kv.pages)
            return PRHS_FAULT_PAGE;
    return 0;
}

static void append_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_append *a = &op->args.append;
    size_t b = item / (size_t)a->shape.kv_heads;
    int hk = (int)(item % (size_t)a->shape.kv_heads);
    char *state = prhs_cpu_mem(op, STATE);
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), b);
    (void)worker;
    if (e->slot < 0 || e->row_count <= 0)
        return;
    prhs_i32 faults = prhs_cpu_faults(&a->batch, e);
    if (!faults && a->validate)
        faults = page_faults(a, prhs_cpu_mem(op, PAGES), e, b);
    if (faults && a->validate && hk == 0)
        atomic_fetch_or((_Atomic prhs_i32 *)(void *)(state + a->state.fault_off), faults);
    if (faults)
        return;
    if (a->write && (e->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) != PRHS_SEQ_SEED)
        write_rows(op, e, b, hk);
    if (!state || a->state.vsum_off == PRHS_NONE)
        return;
    prhs_cpu_cache v = prhs_cpu_values(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, V), b, hk);
    prhs_i64 *sum = (prhs_i64 *)prhs_cpu_state(&a->state, state, e->slot, a->state.vsum_off) + hk * a->shape.dim;
    prhs_value_count *count = (prhs_value_count *)prhs_cpu_state(&a->state, state, e->slot, a->state.vcount_off) + hk;
    int target = prhs_cpu_decodes(e) ? prhs_cpu_row_pos(e, 0) + 1 : e->kv_len;
    for (int j = prhs_cpu_max(count->rows, 0); j < target; j++)
        count_row(&v, a->kv.dtype, a->shape.dim, j, 1, sum, count);
    count->rows = prhs_cpu_max(count->rows, target);
}

void prhs_cpu_append(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_append *a = &op->args.append;
    prhs_cpu_run(queue, op, (size_t)a->batch.max_seqs * (size_t)a->shape.kv_heads,
                 (double)a->batch.max_rows * a->shape.kv_heads * a->shape.dim, append_item);
}

/* An entry of range_sum or truncate: its rows do not matter. */
static bool slot_idle(const prhs_k_batch *batch, const prhs_seq *e) {
    return e->slot < 0 || e->slot >= batch->max_slots || e->kv_len < 0 || e->kv_len > batch->max_kv_len;
}

static void range_sum_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    enum { SUM_SEQS, SUM_PAGES, SUM_V, SUM_STATE };
    const prhs_k_range_sum *a = &op->args.range_sum;
    size_t b = item / (size_t)a->shape.kv_heads;
    int hk = (int)(item % (size_t)a->shape.kv_heads), dim = a->shape.dim;
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SUM_SEQS), b);
    (void)worker;
    if (slot_idle(&a->batch, e))
        return;
    char *state = prhs_cpu_mem(op, SUM_STATE);
    prhs_cpu_cache v = prhs_cpu_values(&a->kv, &a->batch, prhs_cpu_mem(op, SUM_PAGES), prhs_cpu_mem(op, SUM_V), b, hk);
    prhs_i64 *sum = (prhs_i64 *)prhs_cpu_state(&a->state, state, e->slot, a->state.vsum_off) + hk * dim;
    prhs_value_count *count = (prhs_value_count *)prhs_cpu_state(&a->state, state, e->slot, a->state.vcount_off) + hk;
    int begin = e->kv_len, end = prhs_cpu_min(count->rows, a->batch.max_kv_len);
    if (a->sign > 0) {
        memset(sum, 0, (size_t)dim * sizeof *sum);
        *count = (prhs_value_count){ 0, 0 };
        begin = 0, end = e->kv_len;
    }
    for (int j = begin; j < end; j++)
        count_row(&v, a->kv.dtype, dim, j, a->sign, sum, count);
    count->rows = a->sign > 0 ? end : prhs_cpu_min(count->rows, begin);
}

void prhs_cpu_range_sum(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_range_sum *a = &op->args.range_sum;
    size_t items = (size_t)a->batch.max_seqs * (size_t)a->shape.kv_heads;
    prhs_cpu_run(queue, op, items, a->sign > 0 ? 1e9 : 0.0, range_sum_item);
}

static void truncate_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    enum { CUT_SEQS, CUT_STATE };
    const prhs_k_truncate *a = &op->args.truncate;
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, CUT_SEQS), item / (size_t)a->shape.units);
    (void)worker;
    if (slot_idle(&a->batch, e))
        return;
    char *state = prhs_cpu_mem(op, CUT_STATE);
    const int u = (int)(item % (size_t)a->shape.units);
    prhs_unit_state *st = prhs_cpu_unit(&a->state, state, e->slot, u), *kept = prhs_cpu_kept(&a->state, &a->pool, state, e->slot, u);
    for (int i = -1; i < a->pool.count; i++) {
        prhs_unit_state *one = i < 0 ? st : &kept[i];
        if (a->all || one->ref_pos >= e->kv_len)
            one->ref_pos = one->used = -1;
    }
}

void prhs_cpu_truncate(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_truncate *a = &op->args.truncate;
    prhs_cpu_run(queue, op, (size_t)a->batch.max_seqs * (size_t)a->shape.units, 0.0, truncate_item);
}
