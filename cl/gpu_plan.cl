/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plan on GPUs: a group takes a unit, as cl/plan.cl does. All work-items come to the same conclusions, and the first one writes. The append
 * before it goes along, whose dtypes are no constants of the program.
 */
#include "gpu.clh"

#define CACHED(kv) ((kv).dtype)
#define GIVEN(rows) ((rows).dtype)
#include "gpu_append.clh"

/* cos(row r, reference) > tau for all heads of the unit; ref NULL: against row 0. */
bool cosines_hold(const prhs_k_plan *a, const entry *e, int r, int u, const __global float *ref, mem q, __local angles *m)
{
    return least_cosine(&a->q, e, r, u, ref ? ref + (long)u * PRHS_UH * PRHS_D : ref, q, m) > a->policy.tau;
}

/* Whether a unit that would retrieve may share its list, as far as positions tell; another layer's may be of this step. */
bool may_share(const prhs_k_policy *p, const entry *e, const __global prhs_unit_state *unit)
{
    const int t = e->pos0;
    return e->kind != SEED && unit->ref_pos >= 0 && unit->ref_pos < t + p->copies &&
           (unit->ref_pos + p->layer) / p->block == (t + p->layer) / p->block;
}

/* The reference's set as it is shared in this step; mid: where the middle ends now. */
prhs_set shared_set(const prhs_k_policy *p, const entry *e, const __global prhs_unit_state *unit, int mid)
{
    prhs_set set = unit->set;
    set.mode = p->copies ? PRHS_MODE_COPY : PRHS_MODE_SHARE;
    set.end = e->kv_len;
    if (p->gate == PRHS_K_GATE_NONE) {
        set.mid_end = mid;
        if (set.win_begin > set.mid_begin) /* the middle had a whole run: else all of it stays attended */
            set.win_begin = mid / p->run * p->run;
    }
    return set;
}

/* Work of a decode row; gate MASS attends row 0 first. holds: the row's cosines, where they were looked at. */
int work_of(const prhs_k_plan *a, int r, const prhs_set *set, bool holds)
{
    if (set->mode == PRHS_MODE_IDLE)
        return PRHS_WORK_NONE;
    if (set->mode == PRHS_MODE_DENSE)
        return PRHS_WORK_ALL;
    if (set->mode != PRHS_MODE_SHARE && set->mode != PRHS_MODE_RETRIEVE)
        return PRHS_WORK_SET;
    if (a->policy.gate == PRHS_K_GATE_MASS)
        return r == 0 && set->mode == PRHS_MODE_SHARE ? PRHS_WORK_SET : PRHS_WORK_NONE;
    return r == 0 || a->policy.gate == PRHS_K_GATE_NONE || holds ? PRHS_WORK_SET : PRHS_WORK_ALL;
}

void plan_item(const prhs_k_plan *a, long item, mem seqs, mem q, mem state, mem ws, __local angles *m)
{
    const prhs_k_policy *p = &a->policy;
    const long b = item / a->shape.units;
    const int u = (int)(item % a->shape.units);
    const entry e = entry_of(&a->batch, seqs, b);
    const prhs_set idle = { PRHS_MODE_IDLE, 0, 0, 0, 0, 1, 0, 0, 0, 0, { 0, 0 } };
    const prhs_set all = { PRHS_MODE_DENSE, 0, 0, 0, 0, 1, 0, e.kv_len, 0, 0, { 0, 0 } };
    const long slot = e.kind == IDLE ? 0 : e.slot;
    const __global prhs_unit_state *unit = SLOT_AT(state, &a->state, unit_off, slot, prhs_unit_state) + u;
    const __global float *ref = SLOT_AT(state, &a->state, qref_off, slot, float);
    __global prhs_unit_stat *stat = STAT_AT(state, &a->state, unit_stat_off, slot, prhs_unit_stat) + u;
    prhs_set set = e.kind == IDLE ? idle : fresh_set(p, e.pos0, e.kv_len);
    if (e.kind == SEED && (set.mode != PRHS_MODE_RETRIEVE || p->copies))
        set = idle;
    const bool shares = set.mode == PRHS_MODE_RETRIEVE && may_share(p, &e, unit);
    if (set.mode == PRHS_MODE_RETRIEVE && p->copies && !shares)
        set = all;
    for (int r = 0; r < a->batch.rows; r++) {
        const bool sparse = r < e.rows && (set.mode == PRHS_MODE_SHARE || set.mode == PRHS_MODE_RETRIEVE);
        const int looks = r == 0 ? shares && p->gate != PRHS_K_GATE_NONE : sparse && p->gate == PRHS_K_GATE_COSINE;
        bool holds = true;
        for (int i = 0; i < looks; i++)
            holds = cosines_hold(a, &e, r, u, r == 0 || set.mode == PRHS_MODE_SHARE ? ref : 0, q, m);
        if (r == 0 && shares && holds)
            set = shared_set(p, &e, unit, set.mid_end);
        const int work = r < e.rows ? work_of(a, r, &set, holds) : PRHS_WORK_NONE;
        if (LID == 0) {
            INTS(ws, a->work.work_off)[(b * a->batch.rows + r) * a->shape.units + u] = work;
            if (!holds && r == 0)
                stat->cosine_failed++;
            if (!holds && r > 0)
                stat->rows_dense++;
        }
    }
    if (LID == 0)
        *set_at(ws, &a->work, &a->shape, b, u) = set;
}

/* The mems and arguments of an append come last; one of no sequences appends nothing. Its items lie before plan's, and depend on none of these. */
KERNEL void prhs_plan(mem seqs, mem q, mem state, mem ws, const prhs_k_plan args, mem rows_seqs, mem pages, mem k_in, mem v_in, mem k_mem,
                      mem v_mem, mem sums, const prhs_k_append rows_args)
{
    __local union {
        angles plan;
        append_memory append;
    } m;
    prhs_k_plan a = args;
    prhs_k_append rows = rows_args;
    const long appends = (long)rows.batch.max_seqs * rows.shape.kv_heads, items = appends + (long)a.batch.max_seqs * a.shape.units;
    long item = get_group_id(0);
    for (; item < appends; item += get_num_groups(0))
        append_item(&rows, item, rows_seqs, pages, k_in, v_in, k_mem, v_mem, sums, &m.append);
    SYNC();
    for (; item < items; item += get_num_groups(0))
        plan_item(&a, item - appends, seqs, q, state, ws, &m.plan);
}
