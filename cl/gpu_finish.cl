/* SPDX-License-Identifier: Apache-2.0 */
/*
 * finish on GPUs: a group takes a unit, as cl/finish.cl does. Its work-items share the channels of the outputs; whatever there is once all of
 * them compute, from the same places, and the first one writes.
 */
#include "gpu.clh"

#include "finish.clh"

#define AHEAD 4 /* parts that are on their way before it is known what they weigh */

/* Merges parts in order: this work-item's channels. No barrier and no exit within the loop: loads are on their way together. */
float merge_channels(const __global float *o, const __global float *lse, int parts, float *out)
{
    float top = 0.0f, sum = 0.0f, first[AHEAD][CHANNELS];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        for (int c = 0; c < CHANNELS; c++)
            first[i][c] = i < parts && LID + c * GROUP < PRHS_D ? o[i * PRHS_D + LID + c * GROUP] : 0.0f;
    const float total = merged_lse(lse, 1, parts, &top);
    const bool some = !isnan(total) && total != -INFINITY;
    for (int c = 0; c < CHANNELS; c++)
        out[c] = isnan(total) ? NAN : 0.0f;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const bool empty = !some || i >= parts || lse[i] == -INFINITY;
        const float w = empty ? 0.0f : exp(lse[i] - top);
        sum += w;
        for (int c = 0; c < CHANNELS; c++)
            out[c] += w * (empty ? 0.0f : first[i][c]);
    }
#pragma unroll 4
    for (int i = AHEAD; i < (some ? parts : 0); i++) {
        const bool empty = lse[i] == -INFINITY;
        const float w = empty ? 0.0f : exp(lse[i] - top);
        sum += w;
        for (int c = 0; c < CHANNELS; c++)
            if (LID + c * GROUP < PRHS_D)
                out[c] += w * (empty ? 0.0f : o[i * PRHS_D + LID + c * GROUP]);
    }
    for (int c = 0; c < CHANNELS && some; c++)
        out[c] /= sum;
    return total;
}

/* Merges head i of row r into o; returns its log-sum-exp, which is also kept for judging. */
float merge_head(const unit *x, int r, int i, int work, float *o)
{
    const prhs_k_work *w = &x->a->work;
    const int n = work_tokens(&x->set, work, x->e.pos0 + r), parts = n > 0 ? chunk_count(n, w->chunk_min, w->chunks) : 0;
    const long row = (x->b * x->a->batch.rows + r) * x->a->shape.heads + x->u * PRHS_UH + i, at = row * w->chunks;
    const float l = merge_channels(FLOATS(x->ws, w->part_off) + at * PRHS_D, FLOATS(x->ws, w->part_lse_off) + at, parts, o);
    if (LID == 0)
        FLOATS(x->ws, w->lse_off)[row] = l;
    return l;
}

/* Writes row r; drops: the residual has the weights `mass`. */
void output(const unit *x, int r, int work, bool drops, const float *mass)
{
    const prhs_k_finish *a = x->a;
    for (int i = 0; i < PRHS_UH; i++) {
        float o[CHANNELS];
        const int h = x->u * PRHS_UH + i, hk = h / PRHS_G;
        const float l = merge_head(x, r, i, work, o), d = drops && a->policy.residual ? mass[i] : 0.0f;
        float scale = 0.0f;
        const __global long *sum = 0;
        const __global float *vhat = 0;
        if (d != 0.0f && a->policy.residual == PRHS_K_RESIDUAL_RETRIEVED)
            vhat = SLOT_AT(x->st, &a->state, vhat_off, x->e.slot, float) + (long)h * PRHS_D;
        if (d != 0.0f && a->policy.residual == PRHS_K_RESIDUAL_MEAN) {
            const __global prhs_value_count *count = SLOT_AT(x->st, &a->state, vcount_off, x->e.slot, prhs_value_count) + hk;
            sum = SLOT_AT(x->st, &a->state, vsum_off, x->e.slot, long) + (long)hk * PRHS_D;
            scale = count->nonfinite > 0 ? NAN : 0x1p-24f / (float)count->rows;
        }
        for (int c = 0; c < CHANNELS; c++) {
            const int k = LID + c * GROUP;
            float y = o[c];
            if (k >= PRHS_D)
                continue;
            if (sum)
                y = (1.0f - d) * y + d * ((float)sum[k] * scale);
            if (vhat)
                y = (1.0f - d) * y + d * vhat[k];
            store_one(PRHS_OUT, row_at(&a->out, x->out, x->e.row0 + r, h), k, y);
        }
        if (a->lse_off != PRHS_NONE && LID == 0)
            FLOATS(x->lse, a->lse_off)[(long)(x->e.row0 + r) * a->shape.heads + h] = l;
    }
    if (LID == 0)
        x->work[(long)r * a->shape.units] = PRHS_WORK_NONE;
}

void hand_on(const unit *x, int first, int work)
{
    for (int r = first; LID == 0 && r < x->e.rows; r++)
        x->work[(long)r * x->a->shape.units] = work;
}

/*
 * Books row 0 of a sparse layer: one work-item the unit, and others each a head, far enough away not to wait for it. After the row's output: nobody
 * waits for what is written.
 */
void book(const unit *x, int tokens, const float *mass, const float *weight)
{
    if (LID == 0)
        book_unit(x, tokens);
    for (int first = 0; first < PRHS_UH; first += GROUP / 2) {
        const int own = first + LID - GROUP / 2;
        float m = 0.0f, w = 0.0f;
        for (int i = 0; i < PRHS_UH; i++) {
            m = i == own ? mass[i] : m;
            w = i == own ? weight[i] : w;
        }
        if (own >= first && own < PRHS_UH)
            book_head(x, own, m, w);
    }
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
        if (LID == 0) {
            *x->out_set = x->set;
            x->stat->mass_failed++;
        }
        hand_on(x, 0, PRHS_WORK_SET);
        return false;
    }
    for (int i = 0; i < PRHS_UH && x->set.mode == PRHS_MODE_RETRIEVE; i++) {
        float o[CHANNELS];
        const float l = merge_head(x, 0, i, PRHS_WORK_SET, o), dropped = x->heads[i].l_dropped;
        mass[i] = dropped == -INFINITY ? 0.0f : mass_of(dropped - l);
        if (LID == 0)
            x->heads[i].delta = mass[i];
    }
    for (int i = 0; i < PRHS_UH && x->set.mode == PRHS_MODE_SHARE && !judged; i++)
        mass[i] = x->heads[i].delta;
    for (int i = 0; i < PRHS_UH && !judged; i++)
        weight[i] = mass[i];
    if (x->e.kind == DECODE)
        output(x, 0, PRHS_WORK_SET, x->set.mode == PRHS_MODE_RETRIEVE || x->set.mode == PRHS_MODE_SHARE, weight);
    else if (LID == 0)
        x->work[0] = PRHS_WORK_NONE;
    if (!a->policy.dense)
        book(x, set_tokens(&x->set, x->e.pos0 + 1), mass, weight);
    if (judged)
        hand_on(x, 1, PRHS_WORK_SET);
    return true;
}

/* Row r, whose work is given; false: those after it wait for the next pass. */
bool end_row(unit *x, int r, int work)
{
    const prhs_k_finish *a = x->a;
    const int mode = x->set.mode;
    float mass[PRHS_UH], weight[PRHS_UH];
    if (work == PRHS_WORK_NONE) {
        const bool retrieves = r == 0 && a->verify && mode == PRHS_MODE_RETRIEVE;
        if (retrieves)
            hand_on(x, 0, PRHS_WORK_SET);
        return !retrieves;
    }
    if (r == 0 && work == PRHS_WORK_SET) /* rows that a verdict has just handed on wait for the next pass */
        return end_row0(x, mass, weight) && !(mode == PRHS_MODE_SHARE && a->policy.gate == PRHS_K_GATE_MASS);
    for (int i = 0; i < PRHS_UH; i++)
        mass[i] = weight[i] = 0.0f;
    if (work == PRHS_WORK_SET && (mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE) && a->policy.gate == PRHS_K_GATE_MASS &&
        !gate_holds(x, r, mass, weight)) {
        if (LID == 0) {
            x->work[(long)r * a->shape.units] = PRHS_WORK_ALL;
            x->stat->rows_dense++;
        }
        return true;
    }
    output(x, r, work, true, weight);
    if (r == 0 && !a->policy.dense)
        book(x, x->e.pos0 + 1, mass, weight);
    return true;
}

KERNEL void prhs_finish(mem seqs, mem q, mem state, mem ws, mem out, mem lse, const prhs_k_finish args)
{
    prhs_k_finish a = args;
    const long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0)) {
        unit x;
        x.a = &a;
        x.b = item / a.shape.units;
        x.u = (int)(item % a.shape.units);
        x.e = entry_of(&a.batch, seqs, x.b);
        x.out_set = set_at(ws, &a.work, &a.shape, x.b, x.u);
        x.set = *x.out_set;
        const bool idle = x.e.kind == IDLE || x.set.mode == PRHS_MODE_IDLE;
        x.e.slot = idle ? 0 : x.e.slot;
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
        const int first = x.work[0]; /* asked for together with the set */
        int rows = idle ? 0 : x.e.rows;
        for (int r = 0; r < rows; r++) {
            const int work = r == 0 ? first : x.work[(long)r * a.shape.units];
            SYNC_ALL(); /* all have seen it */
            if (!end_row(&x, r, work))
                rows = 0;
        }
    }
}
