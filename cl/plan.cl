/* SPDX-License-Identifier: Apache-2.0 */
/* plan: how each unit is served in this step. */
#include "common.clh"

/* cos(row r, reference) > tau for all heads of the unit; ref NULL: against row 0. */
bool cosines_hold(const prhs_k_plan *a, const entry *e, int r, int u, const __global float *ref, mem q)
{
    return least_cosine(&a->q, e, r, u, ref ? ref + (long)u * PRHS_UH * PRHS_D : ref, q) > a->policy.tau;
}

/* Whether the list is of an earlier step of t's block; another layer's may be of this step. */
bool in_force(const prhs_k_policy *p, const __global prhs_unit_state *unit, int t)
{
    return unit->ref_pos >= 0 && unit->ref_pos < t + p->copies && (unit->ref_pos + p->layer) / p->block == (t + p->layer) / p->block;
}

/* *set holds the fresh set and becomes the one that has been retrieved. */
void take_list(const prhs_k_policy *p, const __global prhs_unit_state *unit, int mode, int kv_len, prhs_set *set)
{
    const int mid = set->mid_end;
    *set = unit->set;
    set->mode = mode;
    set->end = kv_len;
    if (p->gate == PRHS_K_GATE_NONE) {
        set->mid_end = mid;
        if (set->win_begin > set->mid_begin) /* the middle had a whole run: else all of it stays attended */
            set->win_begin = mid / p->run * p->run;
    }
}

/* SHARE or RETRIEVE: *set holds the fresh set and becomes the shared one. Returns the reference in force, NULL: row 0. */
const __global float *decide(const prhs_k_plan *a, const entry *e, int u, prhs_set *set, mem q, mem state)
{
    const prhs_k_policy *p = &a->policy;
    const __global prhs_unit_state *unit = SLOT_AT(state, &a->state, unit_off, e->slot, prhs_unit_state) + u;
    const __global float *ref = SLOT_AT(state, &a->state, qref_off, e->slot, float);
    if (e->kind == SEED || !in_force(p, unit, e->pos0))
        return 0;
    if (p->gate != PRHS_K_GATE_NONE && !cosines_hold(a, e, 0, u, ref, q)) {
        (STAT_AT(state, &a->state, unit_stat_off, e->slot, prhs_unit_stat) + u)->cosine_failed++;
        return 0;
    }
    take_list(p, unit, PRHS_MODE_SHARE, e->kv_len, set);
    return ref;
}

/* COPY: *set holds the fresh set and becomes that of the layer whose lists are read; DENSE where it has none in force. */
void copy_list(const prhs_k_plan *a, const entry *e, int u, prhs_set *set, mem state)
{
    const prhs_k_policy *p = &a->policy;
    const __global prhs_unit_state *unit = SLOT_AT(state, &a->state, unit_off, e->slot, prhs_unit_state) + u;
    prhs_set all = { PRHS_MODE_DENSE, 0, 0, 0, 0, 1, 0, e->kv_len, 0, 0, { 0, 0 } };
    if (in_force(p, unit, e->pos0))
        take_list(p, unit, PRHS_MODE_COPY, e->kv_len, set);
    else
        *set = all;
}

/* Work of a decode row; gate MASS attends row 0 first. */
int work_of(const prhs_k_plan *a, const entry *e, int r, int u, const prhs_set *set, const __global float *ref, mem q, mem state)
{
    if (set->mode == PRHS_MODE_DENSE)
        return PRHS_WORK_ALL;
    if (set->mode != PRHS_MODE_SHARE && set->mode != PRHS_MODE_RETRIEVE)
        return PRHS_WORK_SET;
    if (a->policy.gate == PRHS_K_GATE_MASS)
        return r == 0 && set->mode == PRHS_MODE_SHARE ? PRHS_WORK_SET : PRHS_WORK_NONE;
    if (r == 0 || a->policy.gate == PRHS_K_GATE_NONE || cosines_hold(a, e, r, u, ref, q))
        return PRHS_WORK_SET;
    (STAT_AT(state, &a->state, unit_stat_off, e->slot, prhs_unit_stat) + u)->rows_dense++;
    return PRHS_WORK_ALL;
}

void plan_item(const prhs_k_plan *a, long item, mem seqs, mem q, mem state, mem ws)
{
    long b = item / a->shape.units;
    int u = (int)(item % a->shape.units);
    entry e = entry_of(&a->batch, seqs, b);
    __global prhs_set *out = set_at(ws, &a->work, &a->shape, b, u);
    __global int *work = INTS(ws, a->work.work_off) + b * a->batch.rows * a->shape.units + u;
    prhs_set idle = { PRHS_MODE_IDLE, 0, 0, 0, 0, 1, 0, 0, 0, 0, { 0, 0 } };
    for (int r = 0; r < a->batch.rows; r++)
        work[(long)r * a->shape.units] = PRHS_WORK_NONE;
    *out = idle;
    if (e.kind == IDLE)
        return;
    prhs_set set = fresh_set(&a->policy, e.pos0, e.kv_len);
    if (e.kind == SEED && (set.mode != PRHS_MODE_RETRIEVE || a->policy.copies))
        return;
    const __global float *ref = 0;
    if (set.mode == PRHS_MODE_RETRIEVE && a->policy.copies)
        copy_list(a, &e, u, &set, state);
    else if (set.mode == PRHS_MODE_RETRIEVE)
        ref = decide(a, &e, u, &set, q, state);
    for (int r = 0; r < e.rows; r++)
        work[(long)r * a->shape.units] = work_of(a, &e, r, u, &set, ref, q, state);
    *out = set;
}

KERNEL void prhs_plan(mem seqs, mem q, mem state, mem ws, const prhs_k_plan args)
{
    prhs_k_plan a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0))
        plan_item(&a, item, seqs, q, state, ws);
}
