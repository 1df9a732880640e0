/* SPDX-License-Identifier: Apache-2.0 */
/* moments: mean and variance of the dropped keys, and their values' mean: what score summed over the middle, minus what is attended. */
#include "rows.h"

enum { SEQS, PAGES, K, V, STATE, WORK };

typedef struct scratch {
    float mom[2 * PRHS_CPU_MAX_DIM], gone[2 * PRHS_CPU_MAX_DIM], pivot[PRHS_CPU_MAX_DIM];
    float val[PRHS_CPU_MAX_DIM], gone_val[PRHS_CPU_MAX_DIM];
    float w[PRHS_CPU_TILE];
    prhs_cpu_tile k, v;
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "moments' scratch");

/* The chunks' moments, brought to one maximum; returns the middle's sum of weights. Rows of mom are padded. */
static float merge_chunks(const prhs_k_moments *a, char *work, size_t b, int h, int n, float *mom, float *max) {
    int chunks = prhs_cpu_chunk_count(n, a->work.score_chunk_min, a->work.score_chunks), dim = a->shape.dim,
        pad = PRHS_CPU_PAD(dim);
    const float *norm = prhs_cpu_norms(&a->work, &a->shape, work, b, h);
    const float *from =
        (float *)(void *)(work + a->work.mom_off) + ((prhs_i64)b * a->shape.heads + h) * a->work.score_chunks * 2 * dim;
    float sum = 0.0f;
    *max = PRHS_CPU_LOWEST;
    for (int c = 0; c < chunks; c++)
        *max = norm[4 * c + 2] > *max ? norm[4 * c + 2] : *max;
    memset(mom, 0, 2 * (size_t)pad * sizeof *mom);
    for (int c = 0; c < chunks; c++, from += 2 * dim) {
        float f = expf(norm[4 * c + 2] - *max);
        sum += norm[4 * c + 3] * f;
        for (int d = 0; d < dim; d++) {
            mom[d] += from[d] * f;
            mom[pad + d] += from[dim + d] * f;
        }
    }
    return sum;
}

/* The chunks' sums of values, likewise. */
static void merge_values(const prhs_k_moments *a, char *work, size_t b, int h, int n, float max, float *val) {
    int chunks = prhs_cpu_chunk_count(n, a->work.score_chunk_min, a->work.score_chunks), dim = a->shape.dim;
    const float *norm = prhs_cpu_norms(&a->work, &a->shape, work, b, h);
    const float *from = (float *)(void *)(work + a->work.vmid_off) + ((prhs_i64)b * a->shape.heads + h) * a->work.score_chunks * dim;
    memset(val, 0, (size_t)dim * sizeof *val);
    for (int c = 0; c < chunks; c++, from += dim) {
        float f = expf(norm[4 * c + 2] - max);
        for (int d = 0; d < dim; d++)
            val[d] += from[d] * f;
    }
}

/* Sums the same over the attended tokens of the middle, in the order of the set; v NULL: of keys alone. */
static void sum_attended(const prhs_cpu_lanes *lanes, const prhs_cpu_span *span, const prhs_cpu_cache *k, const prhs_cpu_cache *v,
                         const float *s, float max, scratch *x) {
    const float keep = 1.0f;
    memset(x->gone, 0, sizeof x->gone);
    memset(x->gone_val, 0, sizeof x->gone_val);
    for (int i = span->sinks; i < span->n;) {
        int n = 0;
        for (; i < span->n && n < PRHS_CPU_TILE; i++) {
            int j = prhs_cpu_span_at(span, i);
            if (j < span->set->mid_begin || j >= span->set->mid_end)
                continue;
            x->k.row[n] = prhs_cpu_cached(k, j);
            if (v)
                x->v.row[n] = prhs_cpu_cached(v, j);
            x->w[n++] = s[j] < INFINITY ? s[j] - max : NAN;
        }
        if (n == 0)
            continue;
        prhs_cpu_close_tile(&x->k, n);
        lanes->exps(x->w, n);
        lanes->moments(&x->k, x->w, 1, &keep, x->pivot, x->gone);
        if (!v)
            continue;
        prhs_cpu_close_tile(&x->v, n);
        lanes->axpy(&x->v, x->w, PRHS_CPU_TILE, 1, 1, &keep, x->gone_val);
    }
}

static void moments_head(const prhs_op *op, const prhs_cpu_worker *worker, const prhs_seq *e, const prhs_set *set, size_t b,
                         int h) {
    const prhs_k_moments *a = &op->args.moments;
    char *state = prhs_cpu_mem(op, STATE), *work = prhs_cpu_mem(op, WORK);
    scratch *x = worker->scratch;
    int dim = a->shape.dim, pad = PRHS_CPU_PAD(dim), n = prhs_cpu_row_pos(e, 0) + 1;
    float *out = (float *)prhs_cpu_state(&a->state, state, e->slot, a->state.moment_off) + h * 2 * dim, max;
    float l_dropped = prhs_cpu_head(&a->state, state, e->slot, h)->l_dropped, *vhat = NULL;
    if (a->state.vhat_off != PRHS_NONE)
        vhat = (float *)prhs_cpu_state(&a->state, state, e->slot, a->state.vhat_off) + h * dim;
    if (l_dropped == -INFINITY) {
        memset(out, 0, 2 * (size_t)dim * sizeof *out);
        if (vhat)
            memset(vhat, 0, (size_t)dim * sizeof *vhat);
        return;
    }
    prhs_cpu_cache v = { 0 }, k = prhs_cpu_keys(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, K), b, h / a->shape.group);
    prhs_cpu_span span = prhs_cpu_span_of(set, prhs_cpu_list(&a->state, state, e->slot, h / a->shape.unit_heads),
                                          a->state.list_cap, prhs_cpu_min(n, set->mid_end));
    x->k.dtype = x->v.dtype = a->kv.dtype;
    x->k.dim = x->v.dim = dim;
    memset(x->pivot, 0, sizeof x->pivot);
    prhs_cpu_load(a->kv.dtype, prhs_cpu_cached(&k, prhs_cpu_max(0, prhs_cpu_min(set->mid_end, n) - 1)), dim, x->pivot);
    float sum = merge_chunks(a, work, b, h, n, x->mom, &max);
    if (vhat) {
        v = prhs_cpu_values(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, V), b, h / a->shape.group);
        merge_values(a, work, b, h, n, max, x->val);
    }
    sum_attended(worker->lanes, &span, &k, vhat ? &v : NULL, prhs_cpu_scores(&a->work, &a->shape, work, b, h), max, x);
    float z = expf(l_dropped - max), least = sum * 0x1p-20f;
    z = z < least ? least : z;
    for (int d = 0; d < dim; d++) {
        float mean = (x->mom[d] - x->gone[d]) / z, var = (x->mom[pad + d] - x->gone[pad + d]) / z - mean * mean;
        out[d] = x->pivot[d] + mean;
        out[dim + d] = var < 0.0f ? 0.0f : var;
        if (vhat)
            vhat[d] = (x->val[d] - x->gone_val[d]) / z;
    }
}

static void moments_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_moments *a = &op->args.moments;
    size_t b = item / (size_t)a->shape.heads;
    int h = (int)(item % (size_t)a->shape.heads);
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), b);
    if (prhs_cpu_idle(&a->batch, e) || prhs_cpu_decode_rows(e) == 0)
        return;
    const prhs_set *set = prhs_cpu_set(&a->work, &a->shape, prhs_cpu_mem(op, WORK), b, h / a->shape.unit_heads);
    if (set->mode == PRHS_MODE_RETRIEVE)
        moments_head(op, worker, e, set, b, h);
}

void prhs_cpu_moments(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_moments *a = &op->args.moments;
    double tokens;
    prhs_cpu_longest(&a->batch, prhs_cpu_mem(op, SEQS), false, &tokens);
    prhs_cpu_run(queue, op, (size_t)a->batch.max_seqs * (size_t)a->shape.heads, tokens * a->shape.heads * a->shape.dim / 8,
                 moments_item);
}
