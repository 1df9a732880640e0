/* SPDX-License-Identifier: Apache-2.0 */
/* recall: which of its references a unit has in hand when plan looks at it. */
#include "rows.h"

enum { SEQS, Q, STATE };

typedef struct scratch {
    float q[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "recall's scratch");

typedef struct task {
    const prhs_k_recall *a;
    char *state;
    int slot, u, t; /* t: position of row 0 */
    prhs_unit_state *unit, *kept;
} task;

static bool in_force(const task *k, const prhs_unit_state *st) {
    const prhs_k_recall *a = k->a;
    return st->ref_pos >= 0 && st->ref_pos < k->t && (st->ref_pos + a->layer) / a->block == (k->t + a->layer) / a->block;
}

static char *record_of(const task *k, int i) {
    const prhs_k_pool *pool = &k->a->pool;
    return (char *)prhs_cpu_state(&k->a->state, k->state, k->slot, pool->record_off) + ((prhs_i64)k->u * pool->count + i) * pool->record_bytes;
}

static void transfer(char *record, void *own, size_t size, bool save) {
    if (save)
        memcpy(record, own, size);
    else
        memcpy(own, record, size);
}

/* Between the unit's own arrays and record i: masses, rows and list; the unit states are the caller's. */
static void exchange(const task *k, int i, bool save) {
    const prhs_k_recall *a = k->a;
    const prhs_k_state *st = &a->state;
    const int heads = a->shape.unit_heads;
    const size_t row = (size_t)heads * (size_t)a->shape.dim * sizeof(float);
    const struct {
        prhs_i64 off;
        size_t size;
    } rows[] = { { st->qref_off, row }, { st->moment_off, 2 * row }, { st->vhat_off, row } };
    char *record = record_of(k, i);
    for (int j = 0; j < heads; j++) {
        prhs_head_ref *head = prhs_cpu_head(st, k->state, k->slot, k->u * heads + j);
        transfer(record + 12 * j, &head->l_dropped, 4, save);
        transfer(record + 12 * j + 4, &head->delta, 4, save);
        if (st->spread_off != PRHS_NONE)
            transfer(record + 12 * j + 8, prhs_cpu_spread(st, k->state, k->slot, k->u * heads + j), 4, save);
    }
    record += PRHS_POOL_ROWS(heads);
    for (size_t j = 0; j < sizeof rows / sizeof rows[0]; j++) {
        if (rows[j].off == PRHS_NONE)
            continue;
        transfer(record, (char *)prhs_cpu_state(st, k->state, k->slot, rows[j].off) + (size_t)k->u * rows[j].size, rows[j].size, save);
        record += rows[j].size;
    }
    const prhs_i32 count = save ? k->unit->set.count : k->kept[i].set.count;
    transfer(record, prhs_cpu_list(st, k->state, k->slot, k->u), (size_t)count * sizeof(prhs_i32), save);
}

/* The place of a new reference: one that is out of force, else the one unused for longest. */
static int victim(const task *k) {
    int best = -1;
    for (int i = 0; i < k->a->pool.count; i++) {
        if (!in_force(k, &k->kept[i]))
            return i;
        if (best < 0 || k->kept[i].used < k->kept[best].used)
            best = i;
    }
    return best;
}

/* What the last step says of the pool: its retrieval, or that the one in hand was of use. Returns that one's place, -1: it is not in force. */
static int settle(const task *k) {
    prhs_unit_state *unit = k->unit;
    for (int i = 0; i < k->a->pool.count; i++)
        if (k->kept[i].ref_pos >= k->t) /* rows that were taken back without a word */
            k->kept[i].ref_pos = -1;
    if (!in_force(k, unit))
        return -1;
    for (int i = 0; i < k->a->pool.count; i++) {
        if (k->kept[i].ref_pos != unit->ref_pos)
            continue;
        if (unit->used > k->kept[i].used && unit->used < k->t)
            k->kept[i].used = unit->used;
        return i;
    }
    const int i = victim(k);
    exchange(k, i, true);
    k->kept[i] = *unit;
    k->kept[i].used = unit->ref_pos;
    return i;
}

/* The smallest cosine of row 0's heads with a record's; a NaN counts as the farthest. */
static float nearness(const task *k, int i, const scratch *x) {
    const prhs_k_shape *s = &k->a->shape;
    const float *ref = (const float *)(const void *)(record_of(k, i) + PRHS_POOL_ROWS(s->unit_heads));
    float least = 2.0f;
    for (int j = 0; j < s->unit_heads; j++) {
        const float cosine = prhs_cpu_cosine(x->q + j * PRHS_CPU_PAD(s->dim), ref + j * s->dim, s->dim);
        least = !(cosine >= -2.0f) ? -2.0f : cosine < least ? cosine : least;
    }
    return least;
}

/* Takes the closest reference, if that is not the one in hand. */
static void take(const task *k, int own, const scratch *x) {
    float most = -3.0f;
    int best = -1;
    for (int i = 0; i < k->a->pool.count; i++) {
        const float near = in_force(k, &k->kept[i]) ? nearness(k, i, x) : -3.0f;
        if (near > most) {
            most = near;
            best = i;
        }
    }
    if (best >= 0 && best != own) {
        exchange(k, best, false);
        *k->unit = k->kept[best];
    }
    k->unit->used = k->t;
}

static void recall_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_recall *a = &op->args.recall;
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), item / (size_t)a->shape.units);
    if (prhs_cpu_idle(&a->batch, e) || prhs_cpu_decode_rows(e) == 0)
        return;
    task k = { .a = a, .state = prhs_cpu_mem(op, STATE), .slot = e->slot, .u = (int)(item % (size_t)a->shape.units),
               .t = prhs_cpu_row_pos(e, 0) };
    k.unit = prhs_cpu_unit(&a->state, k.state, k.slot, k.u);
    k.kept = prhs_cpu_kept(&a->state, &a->pool, k.state, k.slot, k.u);
    const int own = settle(&k);
    if (e->flags & PRHS_SEQ_SEED)
        return;
    scratch *x = worker->scratch;
    prhs_cpu_load_q(&a->q, prhs_cpu_mem(op, Q), prhs_cpu_row_index(e, 0), k.u * a->shape.unit_heads, a->shape.unit_heads, a->shape.dim, x->q);
    take(&k, own, x);
}

void prhs_cpu_recall(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_recall *a = &op->args.recall;
    const size_t items = (size_t)a->batch.max_seqs * (size_t)a->shape.units;
    prhs_cpu_run(queue, op, items, (double)items * a->shape.unit_heads * a->shape.dim * a->pool.count, recall_item);
}
