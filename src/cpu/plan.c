/* SPDX-License-Identifier: Apache-2.0 */
/* plan: how each unit serves this step, its set as far as it is known, and the rows' first work. */
#include "policy.h"

enum { SEQS, Q, STATE, WORK };

typedef struct scratch {
    float q[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
    float ref[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "plan's scratch");

/* Whether row r of the caller's rows has a cosine above tau with ref (padded rows) for all heads of the unit. A NaN has not. */
static bool close_to(const prhs_op *op, int row, int u, const float *ref, scratch *x) {
    const prhs_k_plan *a = &op->args.plan;
    int heads = a->shape.unit_heads, pad = PRHS_CPU_PAD(a->shape.dim);
    prhs_cpu_load_q(&a->q, prhs_cpu_mem(op, Q), row, u * heads, heads, a->shape.dim, x->q);
    for (int j = 0; j < heads; j++)
        if (!(prhs_cpu_cosine(x->q + j * pad, ref + j * pad, a->shape.dim) > a->policy.tau))
            return false;
    return true;
}

/* The reference queries of a unit as padded rows. */
static void load_refs(const prhs_op *op, const prhs_seq *e, int u, float *ref) {
    const prhs_k_plan *a = &op->args.plan;
    int heads = a->shape.unit_heads, dim = a->shape.dim;
    const float *from = prhs_cpu_qref(&a->state, prhs_cpu_mem(op, STATE), e->slot, u * heads, dim);
    for (int j = 0; j < heads; j++)
        memcpy(ref + j * PRHS_CPU_PAD(dim), from + j * dim, (size_t)dim * sizeof *ref);
}

/* Whether the list is of an earlier step of t's block; another layer's may be of this step. */
static bool in_force(const prhs_k_policy *p, const prhs_unit_state *st, int t) {
    return st->ref_pos >= 0 && st->ref_pos < t + p->copies && (st->ref_pos + p->layer) / p->block == (t + p->layer) / p->block;
}

/* Without a gate the window of a list is fresh in every step. */
static void renew_window(const prhs_k_policy *p, int t, prhs_set *set) {
    set->mid_end = prhs_cpu_bounds_at(p, t).win;
    if (set->win_begin > set->mid_begin) /* the middle had a whole run: else all of it stays attended */
        set->win_begin = set->mid_end / p->run * p->run;
}

/* The list of an earlier step, where block and gate allow it. */
static bool try_share(const prhs_op *op, const prhs_seq *e, int u, int t, scratch *x, prhs_set *set) {
    const prhs_k_plan *a = &op->args.plan;
    const prhs_k_policy *p = &a->policy;
    char *state = prhs_cpu_mem(op, STATE);
    const prhs_unit_state *st = prhs_cpu_unit(&a->state, state, e->slot, u);
    if (e->flags & PRHS_SEQ_SEED || !in_force(p, st, t))
        return false;
    if (p->gate != PRHS_K_GATE_NONE) {
        load_refs(op, e, u, x->ref);
        if (!close_to(op, prhs_cpu_row_index(e, 0), u, x->ref, x)) {
            prhs_cpu_unit_stat(&a->state, state, e->slot, u)->cosine_failed++;
            return false;
        }
    }
    *set = st->set;
    set->mode = PRHS_MODE_SHARE;
    set->end = e->kv_len;
    if (p->gate == PRHS_K_GATE_NONE)
        renew_window(p, t, set);
    return true;
}

/* The list that another layer has in force in this step; where there is none all tokens. */
static prhs_set copied_set(const prhs_op *op, const prhs_seq *e, int u, int t) {
    const prhs_k_plan *a = &op->args.plan;
    const prhs_k_policy *p = &a->policy;
    const prhs_unit_state *st = prhs_cpu_unit(&a->state, prhs_cpu_mem(op, STATE), e->slot, u);
    prhs_set set = { .mode = PRHS_MODE_DENSE, .run = 1, .end = e->kv_len };
    if (!in_force(p, st, t))
        return set;
    set = st->set;
    set.mode = PRHS_MODE_COPY;
    set.end = e->kv_len;
    renew_window(p, t, &set);
    return set;
}

static prhs_set choose_set(const prhs_op *op, const prhs_seq *e, int u, int t, scratch *x) {
    const prhs_k_policy *p = &op->args.plan.policy;
    prhs_cpu_bounds at = prhs_cpu_bounds_at(p, t);
    prhs_set set = { .mode = PRHS_MODE_DENSE, .run = 1, .end = e->kv_len };
    bool fits = at.win - at.low <= (p->least > 0 ? p->least : p->k);
    if (p->dense || t + 1 < p->min_sparse_n || (fits && at.start <= p->sinks))
        return set;
    set.sink_end = p->sinks;
    if (fits) {
        set.mode = PRHS_MODE_WINDOW;
        set.win_begin = at.start;
    } else if (p->k == 0) {
        set.mode = PRHS_MODE_STREAM;
        set.win_begin = prhs_cpu_max(at.win, at.low);
        set.mid_begin = at.low;
        set.mid_end = at.win;
    } else if (p->copies) {
        set = copied_set(op, e, u, t);
    } else if (!try_share(op, e, u, t, x, &set)) {
        set = prhs_cpu_fresh(p, t, e->kv_len);
    }
    return set;
}

/* Row r >= 1 under the cosine gate: the list if its own query is close to the reference, which is row 0 on a retrieval. */
static prhs_i32 row_work(const prhs_op *op, const prhs_seq *e, int u, int r, const prhs_set *set, scratch *x) {
    const prhs_k_plan *a = &op->args.plan;
    if (set->mode == PRHS_MODE_SHARE)
        load_refs(op, e, u, x->ref);
    else
        prhs_cpu_load_q(&a->q, prhs_cpu_mem(op, Q), prhs_cpu_row_index(e, 0), u * a->shape.unit_heads, a->shape.unit_heads,
                        a->shape.dim, x->ref);
    if (close_to(op, prhs_cpu_row_index(e, r), u, x->ref, x))
        return PRHS_WORK_SET;
    prhs_cpu_unit_stat(&a->state, prhs_cpu_mem(op, STATE), e->slot, u)->rows_dense++;
    return PRHS_WORK_ALL;
}

static prhs_i32 first_work(const prhs_op *op, const prhs_seq *e, int u, int r, const prhs_set *set, scratch *x) {
    prhs_i32 gate = op->args.plan.policy.gate;
    if (r >= prhs_cpu_decode_rows(e) || set->mode == PRHS_MODE_IDLE)
        return PRHS_WORK_NONE;
    if (set->mode == PRHS_MODE_DENSE)
        return PRHS_WORK_ALL;
    if ((set->mode != PRHS_MODE_SHARE && set->mode != PRHS_MODE_RETRIEVE) || gate == PRHS_K_GATE_NONE)
        return PRHS_WORK_SET;
    if (gate == PRHS_K_GATE_MASS) /* finish hands out the rest */
        return set->mode == PRHS_MODE_SHARE && r == 0 ? PRHS_WORK_SET : PRHS_WORK_NONE;
    return r == 0 ? PRHS_WORK_SET : row_work(op, e, u, r, set, x);
}

static void plan_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_plan *a = &op->args.plan;
    char *work = prhs_cpu_mem(op, WORK);
    size_t b = item / (size_t)a->shape.units;
    int u = (int)(item % (size_t)a->shape.units);
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), b);
    bool idle = prhs_cpu_idle(&a->batch, e) || prhs_cpu_decode_rows(e) == 0;
    prhs_set set = { .mode = PRHS_MODE_IDLE, .run = 1 };
    if (!idle)
        set = choose_set(op, e, u, prhs_cpu_row_pos(e, 0), worker->scratch);
    if (!idle && e->flags & PRHS_SEQ_SEED && set.mode != PRHS_MODE_RETRIEVE)
        set.mode = PRHS_MODE_IDLE;
    *prhs_cpu_set(&a->work, &a->shape, work, b, u) = set;
    prhs_i32 *todo = prhs_cpu_work(&a->work, &a->batch, &a->shape, work, b, u);
    for (int r = 0; r < a->batch.rows; r++)
        todo[r * a->shape.units] = idle ? PRHS_WORK_NONE : first_work(op, e, u, r, &set, worker->scratch);
}

void prhs_cpu_plan(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_plan *a = &op->args.plan;
    size_t items = (size_t)a->batch.max_seqs * (size_t)a->shape.units;
    prhs_cpu_run(queue, op, items, (double)items * a->shape.unit_heads * a->shape.dim, plan_item);
}
