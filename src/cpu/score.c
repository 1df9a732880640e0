/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score: the decision row's scores by position, chunk by chunk, with what select and moments need of each chunk: softmax norms of
 * the scored tokens and of the middle, the middle's key moments about a pivot, and the weighted sum of its values.
 */
#include "rows.h"

enum { SEQS, PAGES, Q, K, V, WORK };

typedef struct scratch {
    float q[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
    float s[PRHS_CPU_MAX_GROUP * PRHS_CPU_TILE];
    float mom[PRHS_CPU_MAX_GROUP * 2 * PRHS_CPU_MAX_DIM];
    float val[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
    float corr[PRHS_CPU_MAX_GROUP];
    float pivot[PRHS_CPU_MAX_DIM];
    prhs_cpu_norm other[PRHS_CPU_MAX_GROUP], middle[PRHS_CPU_MAX_GROUP]; /* scored tokens outside the middle, and in it */
    prhs_cpu_tile k[2], v;
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "score's scratch");

typedef struct task {
    const prhs_seq *e;
    const prhs_set *set;
    prhs_cpu_cache k, v;
    size_t b;
    int u, c, begin, end;
} task;

static bool find_task(const prhs_op *op, size_t item, task *t) {
    const prhs_k_score *a = &op->args.score;
    size_t units = (size_t)a->shape.units;
    t->u = (int)(item % units);
    t->b = item / units % (size_t)a->batch.max_seqs;
    t->c = (int)(item / units / (size_t)a->batch.max_seqs);
    t->e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), t->b);
    if (prhs_cpu_idle(&a->batch, t->e) || prhs_cpu_decode_rows(t->e) == 0)
        return false;
    t->set = prhs_cpu_set(&a->work, &a->shape, prhs_cpu_mem(op, WORK), t->b, t->u);
    if (t->set->mode == PRHS_MODE_IDLE || !(a->modes >> t->set->mode & 1))
        return false;
    int n = prhs_cpu_row_pos(t->e, 0) + 1;
    if (!prhs_is_drawn(a->sample, t->e->slot, t->u, n - 1))
        return false;
    prhs_i64 chunk = prhs_cpu_chunk(n, a->work.score_chunk_min, a->work.score_chunks);
    if (t->c * chunk >= n)
        return false;
    t->begin = (int)(t->c * chunk);
    t->end = t->begin + prhs_cpu_min((int)chunk, n - t->begin);
    int hk = t->u * a->shape.unit_heads / a->shape.group;
    t->k = prhs_cpu_keys(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, K), t->b, hk);
    if (a->moments == PRHS_K_MOMENTS_VALUES)
        t->v = prhs_cpu_values(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, V), t->b, hk);
    return true;
}

/* Scores of rows [j, j + n) leave for the workspace; then they become weights: relative to the running maximum of `norm`, without
   NaN and +inf, which weigh 0 in the norm and NaN in the moments. */
static void weigh(const prhs_op *op, const prhs_cpu_lanes *lanes, const task *t, int j, int n, bool moments, prhs_cpu_norm *norm,
                  scratch *x) {
    const prhs_k_score *a = &op->args.score;
    for (int h = 0; h < a->shape.unit_heads; h++) {
        float *s = x->s + h * PRHS_CPU_TILE;
        float *out = prhs_cpu_scores(&a->work, &a->shape, prhs_cpu_mem(op, WORK), t->b, t->u * a->shape.unit_heads + h) + j;
        bool bad = false;
        memcpy(out, s, (size_t)n * sizeof *s);
        for (int r = 0; r < n; r++)
            bad |= !(s[r] < INFINITY);
        for (int r = 0; bad && r < n; r++)
            s[r] = s[r] < INFINITY ? s[r] : -INFINITY;
        lanes->soften(s, n, &norm[h]);
        x->corr[h] = norm[h].corr;
        for (int r = 0; bad && moments && r < n; r++)
            s[r] = out[r] < INFINITY ? s[r] : NAN;
    }
}

static void score_range(const prhs_op *op, const prhs_cpu_lanes *lanes, const task *t, int begin, int end, bool middle,
                        scratch *x) {
    const prhs_k_score *a = &op->args.score;
    bool moments = middle && a->moments, values = middle && a->moments == PRHS_K_MOMENTS_VALUES;
    if (begin < end)
        prhs_cpu_range(&t->k, begin, prhs_cpu_min(end, begin + PRHS_CPU_TILE), &x->k[0]);
    for (int j = begin, now = 0; j < end; j += PRHS_CPU_TILE, now = 1 - now) {
        const prhs_cpu_tile *k = &x->k[now], *ahead[2] = { NULL, NULL };
        if (j + PRHS_CPU_TILE < end) {
            prhs_cpu_range(&t->k, j + PRHS_CPU_TILE, prhs_cpu_min(end, j + 2 * PRHS_CPU_TILE), &x->k[1 - now]);
            ahead[0] = &x->k[1 - now];
        }
        if (values) {
            prhs_cpu_range(&t->v, j, j + k->n, &x->v);
            ahead[1] = &x->v;
        }
        lanes->dot(k, x->q, a->shape.unit_heads, a->shape.scale, x->s, ahead);
        weigh(op, lanes, t, j, k->n, moments, middle ? x->middle : x->other, x);
        if (moments)
            lanes->moments(k, x->s, a->shape.unit_heads, x->corr, x->pivot, x->mom);
        if (values)
            lanes->axpy(&x->v, x->s, PRHS_CPU_TILE, 1, a->shape.unit_heads, x->corr, x->val);
    }
}

static void put_chunk(const prhs_op *op, const task *t, const scratch *x) {
    const prhs_k_score *a = &op->args.score;
    char *work = prhs_cpu_mem(op, WORK);
    int dim = a->shape.dim, pad = PRHS_CPU_PAD(dim);
    for (int i = 0; i < a->shape.unit_heads; i++) {
        int h = t->u * a->shape.unit_heads + i;
        float *norm = prhs_cpu_norms(&a->work, &a->shape, work, t->b, h) + t->c * 4;
        const prhs_cpu_norm *m = &x->middle[i], *o = &x->other[i];
        norm[0] = m->max > o->max ? m->max : o->max;
        norm[1] = m->sum * expf(m->max - norm[0]) + o->sum * expf(o->max - norm[0]);
        norm[2] = m->max;
        norm[3] = m->sum;
        if (!a->moments)
            continue;
        prhs_i64 slot = ((prhs_i64)t->b * a->shape.heads + h) * a->work.score_chunks + t->c;
        float *mom = (float *)(void *)(work + a->work.mom_off) + slot * 2 * dim;
        memcpy(mom, x->mom + 2 * i * pad, (size_t)dim * sizeof *mom);
        memcpy(mom + dim, x->mom + (2 * i + 1) * pad, (size_t)dim * sizeof *mom);
        if (a->moments == PRHS_K_MOMENTS_VALUES)
            memcpy((float *)(void *)(work + a->work.vmid_off) + slot * dim, x->val + i * pad, (size_t)dim * sizeof *mom);
    }
}

static void score_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_score *a = &op->args.score;
    const prhs_cpu_lanes *lanes = worker->lanes;
    scratch *x = worker->scratch;
    task t;
    if (!find_task(op, item, &t))
        return;
    const prhs_set *set = t.set;
    int heads = a->shape.unit_heads, dim = a->shape.dim;
    int sinks = prhs_cpu_max(0, set->sink_end), low = prhs_cpu_max(sinks, set->mid_begin), high = prhs_cpu_max(low, set->mid_end);
    prhs_cpu_load_q(&a->q, prhs_cpu_mem(op, Q), prhs_cpu_row_index(t.e, 0), t.u * heads, heads, dim, x->q);
    memset(x->mom, 0, (size_t)(heads * 2 * PRHS_CPU_PAD(dim)) * sizeof *x->mom);
    memset(x->val, 0, (size_t)(heads * PRHS_CPU_PAD(dim)) * sizeof *x->val);
    memset(x->pivot, 0, sizeof x->pivot);
    x->k[0].dtype = x->k[1].dtype = x->v.dtype = a->kv.dtype;
    x->k[0].dim = x->k[1].dim = x->v.dim = dim;
    if (a->moments && set->mid_end > 0 && set->mid_end <= t.e->kv_len)
        prhs_cpu_load(a->kv.dtype, prhs_cpu_cached(&t.k, set->mid_end - 1), dim, x->pivot);
    for (int h = 0; h < heads; h++)
        x->other[h] = x->middle[h] = (prhs_cpu_norm){ PRHS_CPU_LOWEST, 0.0f, 1.0f };
    score_range(op, lanes, &t, t.begin, prhs_cpu_min(t.end, sinks), false, x);
    if (a->full)
        score_range(op, lanes, &t, prhs_cpu_max(t.begin, sinks), prhs_cpu_min(t.end, low), false, x);
    score_range(op, lanes, &t, prhs_cpu_max(t.begin, low), prhs_cpu_min(t.end, high), true, x);
    score_range(op, lanes, &t, prhs_cpu_max(t.begin, high), t.end, false, x);
    put_chunk(op, &t, x);
}

void prhs_cpu_score(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_score *a = &op->args.score;
    double tokens;
    int longest = prhs_cpu_longest(&a->batch, prhs_cpu_mem(op, SEQS), false, &tokens);
    int chunks = prhs_cpu_min(a->work.score_chunks, (longest + a->work.score_chunk_min - 1) / a->work.score_chunk_min);
    size_t items = (size_t)a->batch.max_seqs * (size_t)a->shape.units * (size_t)chunks;
    prhs_cpu_run(queue, op, items, tokens * a->shape.heads * a->shape.dim, score_item);
}
