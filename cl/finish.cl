/* SPDX-License-Identifier: Apache-2.0 */
/* finish: merges a unit's rows, judges shared lists (mass gate), applies the residual, writes outputs and counts. */
#include "common.clh"

#include "finish.clh"

/* Merges head i of row r into o; returns its log-sum-exp, which is also kept for judging. */
float merge_head(const unit *x, int r, int i, int work, vf *o)
{
    const prhs_k_work *w = &x->a->work;
    int n = work_tokens(&x->set, work, x->e.pos0 + r), parts = n > 0 ? chunk_count(n, w->chunk_min, w->chunks) : 0;
    long row = (x->b * x->a->batch.rows + r) * x->a->shape.heads + x->u * PRHS_UH + i, at = row * w->chunks;
    float l = merge_parts(FLOATS(x->ws, w->part_off) + at * PRHS_D, PRHS_D, FLOATS(x->ws, w->part_lse_off) + at, 1, parts, o);
    FLOATS(x->ws, w->lse_off)[row] = l;
    return l;
}

/* Writes row r; mass: the residual's weights. */
void output(const unit *x, int r, int work, const float *mass)
{
    const prhs_k_finish *a = x->a;
    for (int i = 0; i < PRHS_UH; i++) {
        vf o[NV];
        int h = x->u * PRHS_UH + i, hk = h / PRHS_G;
        float l = merge_head(x, r, i, work, o), d = a->policy.residual ? mass[i] : 0.0f, scale = 0.0f;
        const __global long *sum = 0;
        const __global float *vhat = 0;
        if (d != 0.0f && a->policy.residual == PRHS_K_RESIDUAL_RETRIEVED)
            vhat = SLOT_AT(x->st, &a->state, vhat_off, x->e.slot, float) + (long)h * PRHS_D;
        if (d != 0.0f && a->policy.residual == PRHS_K_RESIDUAL_MEAN) {
            const __global prhs_value_count *count = SLOT_AT(x->st, &a->state, vcount_off, x->e.slot, prhs_value_count) + hk;
            sum = SLOT_AT(x->st, &a->state, vsum_off, x->e.slot, long) + (long)hk * PRHS_D;
            scale = count->nonfinite > 0 ? NAN : 0x1p-24f / (float)count->rows;
        }
        for (int v = 0; v < NV; v++) {
            vf y = o[v];
            if (sum) {
                float mean[VW];
                for (int k = 0; k < VW; k++)
                    mean[k] = (float)sum[v * VW + k] * scale;
                y = (1.0f - d) * y + d * VLOAD(0, mean);
            }
            if (vhat)
                y = (1.0f - d) * y + d * VLOAD(v, vhat);
            store_vec(PRHS_OUT, row_at(&a->out, x->out, x->e.row0 + r, h), v, y);
        }
        if (a->lse_off != PRHS_NONE)
            FLOATS(x->lse, a->lse_off)[(long)(x->e.row0 + r) * a->shape.heads + h] = l;
    }
    x->work[(long)r * a->shape.units] = PRHS_WORK_NONE;
}

void hand_on(const unit *x, int first, int work)
{
    for (int r = first; r < x->e.rows; r++)
        x->work[(long)r * x->a->shape.units] = work;
}

/* Books row 0 of a sparse layer. */
void book(const unit *x, int tokens, const float *mass, const float *weight)
{
    book_unit(x, tokens);
    for (int i = 0; i < PRHS_UH; i++)
        book_head(x, i, mass[i], weight[i]);
}

/* Row 0 with the unit's set. false: the unit retrieves and attends again. */
bool end_row0(unit *x, float *mass, float *weight)
{
    const prhs_k_finish *a = x->a;
    const bool judged = x->set.mode == PRHS_MODE_SHARE && a->policy.gate == PRHS_K_GATE_MASS;
    for (int i = 0; i < PRHS_UH; i++)
        mass[i] = NAN;
    if (judged && !gate_holds(x, 0, mass, weight)) {
        x->set = fresh_set(&a->policy, x->e.pos0, x->e.kv_len);
        *x->out_set = x->set;
        x->stat->mass_failed++;
        hand_on(x, 0, PRHS_WORK_SET);
        return false;
    }
    for (int i = 0; i < PRHS_UH && x->set.mode == PRHS_MODE_RETRIEVE; i++) {
        vf o[NV];
        float l = merge_head(x, 0, i, PRHS_WORK_SET, o), dropped = x->heads[i].l_dropped;
        mass[i] = x->heads[i].delta = dropped == -INFINITY ? 0.0f : mass_of(dropped - l);
    }
    for (int i = 0; i < PRHS_UH && x->set.mode == PRHS_MODE_SHARE && !judged; i++)
        mass[i] = x->heads[i].delta;
    for (int i = 0; i < PRHS_UH && !judged; i++)
        weight[i] = mass[i];
    if (!a->policy.dense)
        book(x, set_tokens(&x->set, x->e.pos0 + 1), mass, weight);
    if (x->e.kind == SEED) {
        x->work[0] = PRHS_WORK_NONE;
        return true;
    }
    if (x->set.mode != PRHS_MODE_RETRIEVE && x->set.mode != PRHS_MODE_SHARE)
        for (int i = 0; i < PRHS_UH; i++)
            weight[i] = 0.0f;
    output(x, 0, PRHS_WORK_SET, weight);
    if (judged)
        hand_on(x, 1, PRHS_WORK_SET);
    return true;
}

void end_rows(unit *x)
{
    const prhs_k_finish *a = x->a;
    float mass[PRHS_UH], weight[PRHS_UH];
    for (int r = 0; r < x->e.rows; r++) {
        const int work = x->work[(long)r * a->shape.units], mode = x->set.mode;
        if (work == PRHS_WORK_NONE) {
            if (r == 0 && a->verify && mode == PRHS_MODE_RETRIEVE) {
                hand_on(x, 0, PRHS_WORK_SET);
                return;
            }
            continue;
        }
        if (r == 0 && work == PRHS_WORK_SET) {
            /* Rows that a verdict has just handed on wait for the next pass. */
            if (!end_row0(x, mass, weight) || (mode == PRHS_MODE_SHARE && a->policy.gate == PRHS_K_GATE_MASS))
                return;
            continue;
        }
        for (int i = 0; i < PRHS_UH; i++)
            mass[i] = weight[i] = 0.0f;
        if (work == PRHS_WORK_SET && (mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE) && a->policy.gate == PRHS_K_GATE_MASS &&
            !gate_holds(x, r, mass, weight)) {
            x->work[(long)r * a->shape.units] = PRHS_WORK_ALL;
            x->stat->rows_dense++;
            continue;
        }
        if (r == 0 && !a->policy.dense)
            book(x, x->e.pos0 + 1, mass, weight);
        output(x, r, work, weight);
    }
}

KERNEL void prhs_finish(mem seqs, mem q, mem state, mem ws, mem out, mem lse, const prhs_k_finish args)
{
    prhs_k_finish a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        unit x;
        x.a = &a;
        x.b = item / a.shape.units;
        x.u = (int)(item % a.shape.units);
        x.e = entry_of(&a.batch, seqs, x.b);
        x.out_set = set_at(ws, &a.work, &a.shape, x.b, x.u);
        x.set = *x.out_set;
        if (x.e.kind == IDLE || x.set.mode == PRHS_MODE_IDLE)
            continue;
        x.work = INTS(ws, a.work.work_off) + x.b * a.batch.rows * a.shape.units + x.u;
        x.q = q;
        x.st = state;
        x.ws = ws;
        x.out = out;
        x.lse = lse;
        x.state = SLOT_AT(state, &a.state, unit_off, x.e.slot, prhs_unit_state) + x.u;
        x.heads = SLOT_AT(state, &a.state, head_off, x.e.slot, prhs_head_ref) + x.u * PRHS_UH;
        x.stat = STAT_AT(state, &a.state, unit_stat_off, x.e.slot, prhs_unit_stat) + x.u;
        x.head_stats = STAT_AT(state, &a.state, head_stat_off, x.e.slot, prhs_head_stat) + x.u * PRHS_UH;
        end_rows(&x);
    }
}
