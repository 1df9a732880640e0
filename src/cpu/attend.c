/* SPDX-License-Identifier: Apache-2.0 */
/* attend: partial attention of a unit's heads over one chunk of its set. Each K and V row is read once for all its heads. */
#include "rows.h"

enum { SEQS, PAGES, Q, K, V, STATE, WORK };

typedef struct scratch {
    float q[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
    float acc[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
    float s[PRHS_CPU_MAX_GROUP * PRHS_CPU_TILE];
    float corr[PRHS_CPU_MAX_GROUP];
    prhs_cpu_norm norm[PRHS_CPU_MAX_GROUP];
    prhs_cpu_tile k[2], v[2];
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "attend's scratch");

/* The tile that starts at linear index i of the span, cut at `end`. */
static void gather(const prhs_cpu_span *span, const prhs_cpu_cache *k, const prhs_cpu_cache *v, int i, int end, prhs_cpu_tile *kt,
                   prhs_cpu_tile *vt) {
    int n = prhs_cpu_min(end - i, PRHS_CPU_TILE);
    for (int r = 0; r < n; r++) {
        prhs_cpu_place p = prhs_cpu_find(k, prhs_cpu_span_at(span, i + r));
        kt->row[r] = prhs_cpu_at(k, p);
        vt->row[r] = prhs_cpu_at(v, p);
    }
    prhs_cpu_close_tile(kt, n);
    prhs_cpu_close_tile(vt, n);
}

/* Online softmax over [begin, end) of the span; the next tile's rows are fetched while this one is computed. */
static void attend_chunk(const prhs_cpu_lanes *lanes, const prhs_cpu_span *span, const prhs_cpu_cache *k, const prhs_cpu_cache *v,
                         int begin, int end, int heads, float scale, scratch *x) {
    gather(span, k, v, begin, end, &x->k[0], &x->v[0]);
    for (int i = begin, now = 0; i < end; i += PRHS_CPU_TILE, now = 1 - now) {
        const prhs_cpu_tile *kt = &x->k[now], *vt = &x->v[now], *ahead[2] = { vt, NULL };
        if (i + PRHS_CPU_TILE < end) {
            gather(span, k, v, i + PRHS_CPU_TILE, end, &x->k[1 - now], &x->v[1 - now]);
            ahead[1] = &x->k[1 - now];
        }
        lanes->dot(kt, x->q, heads, scale, x->s, ahead);
        for (int h = 0; h < heads; h++) {
            lanes->soften(x->s + h * PRHS_CPU_TILE, kt->n, &x->norm[h]);
            x->corr[h] = x->norm[h].corr;
        }
        lanes->axpy(vt, x->s, PRHS_CPU_TILE, 1, heads, x->corr, x->acc);
    }
}

static void put_parts(const prhs_k_attend *a, char *work, prhs_i64 row, int first, int chunk, const scratch *x) {
    int dim = a->shape.dim, pad = PRHS_CPU_PAD(dim);
    for (int j = 0; j < a->shape.unit_heads; j++) {
        prhs_i64 at = (row * a->shape.heads + first + j) * a->work.chunks + chunk;
        float *part = (float *)(void *)(work + a->work.part_off) + at * dim;
        float *lse = (float *)(void *)(work + a->work.part_lse_off) + at;
        float sum = x->norm[j].sum;
        for (int d = 0; d < dim; d++)
            part[d] = sum == 0.0f ? 0.0f : x->acc[j * pad + d] / sum;
        *lse = sum == 0.0f ? -INFINITY : x->norm[j].max + logf(sum);
    }
}

/* One item, decoded; false: it has nothing to do. */
typedef struct task {
    const prhs_seq *e;
    prhs_cpu_span span;
    prhs_set all;
    size_t b;
    int r, u, begin, end, c;
} task;

static bool find_task(const prhs_op *op, size_t item, task *t) {
    const prhs_k_attend *a = &op->args.attend;
    char *state = prhs_cpu_mem(op, STATE), *work = prhs_cpu_mem(op, WORK);
    size_t units = (size_t)a->shape.units, rows = (size_t)a->batch.rows;
    t->u = (int)(item % units);
    t->r = (int)(item / units % rows);
    t->b = item / units / rows % (size_t)a->batch.max_seqs;
    t->c = (int)(item / units / rows / (size_t)a->batch.max_seqs);
    t->e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), t->b);
    if (prhs_cpu_idle(&a->batch, t->e) || t->r >= prhs_cpu_decode_rows(t->e))
        return false;
    const prhs_set *set = prhs_cpu_set(&a->work, &a->shape, work, t->b, t->u);
    int pos = prhs_cpu_row_pos(t->e, t->r);
    if (a->work.work_off != PRHS_NONE) {
        prhs_i32 todo = prhs_cpu_work(&a->work, &a->batch, &a->shape, work, t->b, t->u)[t->r * a->shape.units];
        if (todo == PRHS_WORK_NONE || set->mode == PRHS_MODE_IDLE)
            return false;
        if (todo == PRHS_WORK_ALL) {
            t->all = (prhs_set){ .run = 1, .end = pos + 1 };
            set = &t->all;
        }
    }
    const prhs_i32 *list = state ? prhs_cpu_list(&a->state, state, t->e->slot, t->u) : NULL;
    t->span = prhs_cpu_span_of(set, list, list ? a->state.list_cap : 0, t->e->flags & PRHS_SEQ_FULL ? t->e->kv_len : pos + 1);
    prhs_i64 chunk = prhs_cpu_chunk(t->span.n, a->work.chunk_min, a->work.chunks);
    if (t->c * chunk >= t->span.n)
        return false;
    t->begin = (int)(t->c * chunk);
    t->end = t->begin + prhs_cpu_min((int)chunk, t->span.n - t->begin);
    return true;
}

static void attend_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_attend *a = &op->args.attend;
    scratch *x = worker->scratch;
    task t;
    if (!find_task(op, item, &t))
        return;
    int heads = a->shape.unit_heads, first = t.u * heads, hk = first / a->shape.group, dim = a->shape.dim;
    prhs_cpu_cache k = prhs_cpu_keys(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, K), t.b, hk);
    prhs_cpu_cache v = prhs_cpu_values(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, V), t.b, hk);
    prhs_cpu_load_q(&a->q, prhs_cpu_mem(op, Q), prhs_cpu_row_index(t.e, t.r), first, heads, dim, x->q);
    memset(x->acc, 0, (size_t)(heads * PRHS_CPU_PAD(dim)) * sizeof *x->acc);
    for (int j = 0; j < heads; j++)
        x->norm[j] = (prhs_cpu_norm){ PRHS_CPU_LOWEST, 0.0f, 1.0f };
    for (int i = 0; i < 2; i++) {
        x->k[i].dtype = x->v[i].dtype = a->kv.dtype;
        x->k[i].dim = x->v[i].dim = dim;
    }
    attend_chunk(worker->lanes, &t.span, &k, &v, t.begin, t.end, heads, a->shape.scale, x);
    put_parts(a, prhs_cpu_mem(op, WORK), (prhs_i64)t.b * a->batch.rows + t.r, first, t.c, x);
}

void prhs_cpu_attend(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_attend *a = &op->args.attend;
    double tokens;
    int longest = prhs_cpu_longest(&a->batch, prhs_cpu_mem(op, SEQS), false, &tokens);
    int chunks = prhs_cpu_min(a->work.chunks, (longest + a->work.chunk_min - 1) / a->work.chunk_min); /* of any n <= longest */
    size_t items = (size_t)a->batch.max_seqs * (size_t)a->batch.rows * (size_t)a->shape.units * (size_t)chunks;
    prhs_cpu_run(queue, op, items, tokens * a->shape.heads * a->shape.dim, attend_item);
}
