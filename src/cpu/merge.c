/* SPDX-License-Identifier: Apache-2.0 */
/* merge, combine, gate: the small ops that stand alone. */
#include "rows.h"

static void merge_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    enum { PARTS, PARTS_LSE, OUT, LSE };
    const prhs_k_merge *a = &op->args.merge;
    int row = (int)(item / (size_t)a->shape.heads), h = (int)(item % (size_t)a->shape.heads);
    const float *part = (float *)(void *)(prhs_cpu_mem(op, PARTS) + a->o_off) + row * a->o_row + h * a->o_head;
    const float *lse = (float *)(void *)(prhs_cpu_mem(op, PARTS_LSE) + a->lse_off) + item;
    float o[PRHS_CPU_MAX_DIM];
    (void)worker;
    float l = prhs_cpu_merge_parts(part, a->o_part, lse, (prhs_i64)a->rows * a->shape.heads, a->parts, a->shape.dim, o);
    prhs_cpu_store(a->out.dtype, prhs_cpu_row(&a->out, prhs_cpu_mem(op, OUT), row, h), a->shape.dim, o);
    if (a->out_lse_off != PRHS_NONE)
        ((float *)(void *)(prhs_cpu_mem(op, LSE) + a->out_lse_off))[item] = l;
}

void prhs_cpu_merge(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_merge *a = &op->args.merge;
    size_t items = (size_t)a->rows * (size_t)a->shape.heads;
    prhs_cpu_run(queue, op, items, (double)items * a->parts * a->shape.dim, merge_item);
}

static void combine_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    enum { SEQS, WORK, OUT, LSE };
    const prhs_k_combine *a = &op->args.combine;
    const prhs_k_work *w = &a->work;
    char *work = prhs_cpu_mem(op, WORK);
    int h = (int)(item % (size_t)a->shape.heads), dim = a->shape.dim;
    size_t wr = item / (size_t)a->shape.heads, b = wr / (size_t)a->batch.rows;
    int r = (int)(wr % (size_t)a->batch.rows);
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), b);
    float o[PRHS_CPU_MAX_DIM];
    (void)worker;
    if (prhs_cpu_idle(&a->batch, e) || !prhs_cpu_decodes(e) || r >= e->row_count)
        return;
    const prhs_set *set = prhs_cpu_set(w, &a->shape, work, b, h / a->shape.unit_heads);
    int limit = e->flags & PRHS_SEQ_FULL ? e->kv_len : prhs_cpu_row_pos(e, r) + 1, row = prhs_cpu_row_index(e, r);
    int n = prhs_cpu_span_of(set, NULL, set->count, limit).n;
    const float *part = (float *)(void *)(work + w->part_off) + (prhs_i64)item * w->chunks * dim;
    const float *lse = (float *)(void *)(work + w->part_lse_off) + (prhs_i64)item * w->chunks;
    float l = prhs_cpu_merge_parts(part, dim, lse, 1, prhs_cpu_chunk_count(n, w->chunk_min, w->chunks), dim, o);
    prhs_cpu_store(a->out.dtype, prhs_cpu_row(&a->out, prhs_cpu_mem(op, OUT), row, h), dim, o);
    if (a->lse_off != PRHS_NONE)
        ((float *)(void *)(prhs_cpu_mem(op, LSE) + a->lse_off))[(prhs_i64)row * a->shape.heads + h] = l;
}

void prhs_cpu_combine(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_combine *a = &op->args.combine;
    size_t items = (size_t)a->batch.max_seqs * (size_t)a->batch.rows * (size_t)a->shape.heads;
    prhs_cpu_run(queue, op, items, (double)items * a->shape.dim * 16, combine_item);
}

static const float *floats(const prhs_op *op, int mem, prhs_i64 off) {
    return (const float *)(void *)(prhs_cpu_mem(op, mem) + off);
}

static void gate_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    enum { Q, QREF, MOMENTS_IN, DROPPED, SPREADS, LSE, COSINE, DELTA };
    const prhs_k_gate *a = &op->args.gate;
    int row = (int)(item / (size_t)a->shape.heads), h = (int)(item % (size_t)a->shape.heads), dim = a->shape.dim;
    float q[PRHS_CPU_MAX_DIM];
    (void)worker;
    prhs_cpu_load(a->q.dtype, prhs_cpu_row(&a->q, prhs_cpu_mem(op, Q), row, h), dim, q);
    const float *ref = floats(op, QREF, a->qref_off) + (prhs_i64)item * dim;
    const float *moments = floats(op, MOMENTS_IN, a->moment_off) + (prhs_i64)item * 2 * dim;
    const float *spread = a->spread_off == PRHS_NONE ? NULL : floats(op, SPREADS, a->spread_off) + item;
    float dropped = floats(op, DROPPED, a->dropped_off)[item], lse = floats(op, LSE, a->lse_off)[item];
    ((float *)(void *)(prhs_cpu_mem(op, COSINE) + a->cosine_off))[item] = prhs_cpu_cosine(q, ref, dim);
    ((float *)(void *)(prhs_cpu_mem(op, DELTA) + a->delta_off))[item] =
        prhs_cpu_estimate(q, ref, moments, spread, dim, a->shape.scale, dropped, lse, NULL);
}

void prhs_cpu_gate(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_gate *a = &op->args.gate;
    size_t items = (size_t)a->rows * (size_t)a->shape.heads;
    prhs_cpu_run(queue, op, items, (double)items * a->shape.dim * 4, gate_item);
}
