/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefill: causal attention of prompt rows, with PSAW's window, without ETF's frozen rows. Query rows times the group's heads are
 * the lanes of a matrix product; keys come in blocks cut at absolute multiples of TILE, so that a row's bits depend on its
 * position only. A block that some row may not see in full goes row by row through the values: a masked value may be NaN. FOLD
 * blocks are gathered in sums of their own before they are added to the rest: so that errors do not grow with the number of blocks.
 */
#include "rows.h"

#include <stdatomic.h>

enum { SEQS, PAGES, Q, K, V, STATE, OUT, LSE };
enum { T = PRHS_CPU_TILE, FOLD = 8 };

typedef struct scratch {
    float k[T * PRHS_CPU_MAX_DIM], v[T * PRHS_CPU_MAX_DIM];
    float qt[PRHS_CPU_MAX_DIM * T]; /* queries, [channel][lane] */
    float acc[T * PRHS_CPU_MAX_DIM];
    float s[T * T]; /* [key][lane] */
    float p[T * T]; /* of one row's heads: [head][seen key] */
    float max[T], sum[T], corr[T]; /* max: of q.k, not scaled: the difference to it is exact where it matters */
    float all[T * PRHS_CPU_MAX_DIM], all_max[T], all_sum[T]; /* of the folded blocks */
    prhs_cpu_mask mask;
    prhs_cpu_tile rows, values, seen; /* cached rows; the values as floats; those of them that a row sees */
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "prefill's scratch");

/* Query rows [row, row + rows) of an entry, counted from its first. */
typedef struct task {
    const prhs_op *op;
    const prhs_k_prefill *a;
    const prhs_cpu_lanes *lanes;
    const prhs_seq *e;
    prhs_cpu_cache k, v;
    scratch *x;
    int hk, row, rows, lanes_used;
    int first_pos, last_pos, low, high; /* positions of the rows; smallest and largest window start */
} task;

static int window_start(const prhs_k_prefill *a, int pos) {
    int p = prhs_cpu_psaw(a->psaw, pos);
    return p <= a->sinks ? 0 : p;
}

/* Lane i*G + g is head g of row i. Lanes past the last one are zero queries that see nothing. */
static void load_lanes(task *t) {
    const prhs_k_prefill *a = t->a;
    scratch *x = t->x;
    int group = a->shape.group, dim = a->shape.dim, used = t->rows * group;
    float q[PRHS_CPU_MAX_DIM];
    t->lanes_used = (used + 15) & ~15;
    x->mask.sinks = a->sinks;
    for (int l = 0; l < t->lanes_used; l++) {
        int pos = t->first_pos + l / group;
        x->mask.start[l] = l < used ? window_start(a, pos) : 0;
        x->mask.pos[l] = l < used ? pos : -1;
        x->max[l] = x->all_max[l] = PRHS_CPU_LOWEST;
        x->sum[l] = x->all_sum[l] = 0.0f;
        memset(q, 0, sizeof q);
        if (l < used)
            prhs_cpu_load(
                a->q.dtype,
                prhs_cpu_row(&a->q, prhs_cpu_mem(t->op, Q), t->e->row_begin + t->row + l / group, t->hk * group + l % group), dim,
                q);
        for (int d = 0; d < dim; d++)
            x->qt[d * T + l] = q[d];
    }
    t->low = x->mask.start[0];
    t->high = x->mask.start[used - 1];
    memset(x->acc, 0, (size_t)(used * PRHS_CPU_PAD(dim)) * sizeof *x->acc);
    memset(x->all, 0, (size_t)(used * PRHS_CPU_PAD(dim)) * sizeof *x->all);
}

/* Keys and values of block [j, j + T) as floats, up to the last row's position. */
static void load_block(const task *t, int j) {
    scratch *x = t->x;
    int end = prhs_cpu_min(j + T, t->last_pos + 1), pad = PRHS_CPU_PAD(t->a->shape.dim);
    x->rows.dtype = t->a->kv.dtype;
    x->rows.dim = t->a->shape.dim;
    prhs_cpu_range(&t->k, j, end, &x->rows);
    t->lanes->expand(&x->rows, x->k);
    memset(x->k + (end - j) * pad, 0, (size_t)((T - (end - j)) * pad) * sizeof *x->k);
    prhs_cpu_range(&t->v, j, end, &x->rows);
    t->lanes->expand(&x->rows, x->v);
    x->values.dtype = PRHS_K_F32;
    x->values.dim = t->a->shape.dim;
    for (int r = 0; r < end - j; r++)
        x->values.row[r] = (const char *)(x->v + r * pad);
    prhs_cpu_close_tile(&x->values, end - j);
}

/* Values of a block that not every row sees in full: each row's heads take the rows that it does see. */
static void add_seen(const task *t, int j) {
    scratch *x = t->x;
    int group = t->a->shape.group, pad = PRHS_CPU_PAD(t->a->shape.dim);
    x->seen.dtype = PRHS_K_F32;
    x->seen.dim = t->a->shape.dim;
    for (int i = 0; i < t->rows; i++) {
        int l = i * group, n = 0;
        for (int r = 0; r < x->values.n && j + r <= x->mask.pos[l]; r++) {
            if (j + r >= x->mask.sinks && j + r < x->mask.start[l])
                continue;
            x->seen.row[n] = x->values.row[r];
            for (int g = 0; g < group; g++)
                x->p[g * T + n] = x->s[r * T + l + g];
            n++;
        }
        if (n == 0)
            continue;
        prhs_cpu_close_tile(&x->seen, n);
        t->lanes->axpy(&x->seen, x->p, T, 1, group, x->corr + l, x->acc + l * pad);
    }
}

static void add_block(const task *t, int j) {
    scratch *x = t->x;
    int sinks = t->a->sinks, dim = t->a->shape.dim;
    bool full = j + T - 1 <= t->first_pos && (j >= t->high || j + T <= sinks);
    load_block(t, j);
    t->lanes->qk(x->k, x->qt, t->lanes_used, dim, x->s);
    t->lanes->soften_lanes(x->s, t->lanes_used, t->a->shape.scale, j, full ? NULL : &x->mask, x->max, x->sum, x->corr);
    if (full)
        t->lanes->axpy(&x->values, x->s, 1, T, t->rows * t->a->shape.group, x->corr, x->acc);
    else
        add_seen(t, j);
}

/* Changes no bit of a row for which nothing was added since the last time. */
static void fold(const task *t) {
    scratch *x = t->x;
    int pad = PRHS_CPU_PAD(t->a->shape.dim);
    for (int l = 0; l < t->rows * t->a->shape.group; l++) {
        float *all = x->all + l * pad, *acc = x->acc + l * pad, f = expf((x->all_max[l] - x->max[l]) * t->a->shape.scale);
        for (int d = 0; d < pad; d++) {
            all[d] = all[d] * f + acc[d];
            acc[d] = 0.0f;
        }
        x->all_sum[l] = x->all_sum[l] * f + x->sum[l];
        x->all_max[l] = x->max[l];
        x->sum[l] = 0.0f;
    }
}

static void put_rows(const task *t) {
    const prhs_k_prefill *a = t->a;
    int group = a->shape.group, dim = a->shape.dim, pad = PRHS_CPU_PAD(dim);
    for (int l = 0; l < t->rows * group; l++) {
        int row = t->e->row_begin + t->row + l / group, h = t->hk * group + l % group;
        float *o = t->x->all + l * pad, sum = t->x->all_sum[l];
        for (int d = 0; d < dim; d++)
            o[d] = sum == 0.0f ? 0.0f : o[d] / sum;
        prhs_cpu_store(a->out.dtype, prhs_cpu_row(&a->out, prhs_cpu_mem(t->op, OUT), row, h), dim, o);
        if (a->lse_off != PRHS_NONE)
            ((float *)(void *)(prhs_cpu_mem(t->op, LSE) + a->lse_off))[(prhs_i64)row * a->shape.heads + h] =
                sum == 0.0f ? -INFINITY : t->x->max[l] * a->shape.scale + logf(sum);
    }
}

static void attend_rows(task *t) {
    t->first_pos = t->e->kv_len - t->e->row_count + t->row;
    t->last_pos = t->first_pos + t->rows - 1;
    load_lanes(t);
    for (int j = 0; j <= t->last_pos; j += T) {
        if (j < t->a->sinks || j + T > t->low)
            add_block(t, j);
        if (j / T % FOLD == FOLD - 1)
            fold(t);
    }
    fold(t);
    put_rows(t);
}

/* Position from which on rows are computed: ETF's frozen ones come before it. */
static int first_live(const prhs_op *op, const prhs_seq *e) {
    const prhs_k_prefill *a = &op->args.prefill;
    if (a->etf == 0)
        return 0;
    if (e->prompt_len > 0)
        return prhs_cpu_psaw(a->etf, e->prompt_len - 1);
    if (a->fault_off != PRHS_NONE)
        atomic_fetch_or((_Atomic prhs_i32 *)(void *)(prhs_cpu_mem(op, STATE) + a->fault_off), PRHS_FAULT_PROMPT);
    return 0;
}

static void prefill_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_prefill *a = &op->args.prefill;
    size_t kv_heads = (size_t)a->shape.kv_heads, b = item / kv_heads % (size_t)a->batch.max_seqs;
    prhs_i64 begin = (prhs_i64)(item / kv_heads / (size_t)a->batch.max_seqs) * a->tile;
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), b);
    if (prhs_cpu_idle(&a->batch, e) || !(e->flags & PRHS_SEQ_PREFILL) || begin >= e->row_count)
        return;
    task t = { .op = op, .a = a, .lanes = worker->lanes, .e = e, .x = worker->scratch, .hk = (int)(item % kv_heads) };
    int end = (int)begin + prhs_cpu_min(a->tile, e->row_count - (int)begin), step = T;
    int live = first_live(op, e) - (e->kv_len - e->row_count);
    while (step * a->shape.group > T) /* a power of two of rows, whose heads fill the lanes */
        step /= 2;
    t.k = prhs_cpu_keys(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, K), b, t.hk);
    t.v = prhs_cpu_values(&a->kv, &a->batch, prhs_cpu_mem(op, PAGES), prhs_cpu_mem(op, V), b, t.hk);
    for (t.row = prhs_cpu_max((int)begin, live); t.row < end; t.row += step) {
        t.rows = prhs_cpu_min(step, end - t.row);
        attend_rows(&t);
    }
}

void prhs_cpu_prefill(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_prefill *a = &op->args.prefill;
    double work = 0.0;
    int most = 0;
    for (int b = 0; b < a->batch.max_seqs; b++) {
        const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), (size_t)b);
        if (prhs_cpu_idle(&a->batch, e) || !(e->flags & PRHS_SEQ_PREFILL))
            continue;
        most = prhs_cpu_max(most, e->row_count);
        work += (double)e->row_count * e->kv_len * a->shape.heads * a->shape.dim;
    }
    size_t tiles = ((size_t)most + (size_t)a->tile - 1) / (size_t)a->tile;
    prhs_cpu_run(queue, op, tiles * (size_t)a->batch.max_seqs * (size_t)a->shape.kv_heads, work, prefill_item);
}
