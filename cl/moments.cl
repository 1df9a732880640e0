/* SPDX-License-Identifier: Apache-2.0 */
/* moments: mean and variance of the dropped keys of one head, and the mean of their values: those of the whole middle, minus the attended
   rows. */
#include "common.clh"

#define GATHER 32 /* attended rows that are summed before they are added to those before: errors do not grow with their number */

typedef struct sums {
    vf m1[NV], m2[NV];
    vf value[NV]; /* where state.vhat_off is present */
} sums;

typedef struct job {
    const prhs_k_moments *a;
    const __global int *pages;
    const __global float *scores;
    int head;
    float top;
    vf pivot[NV];
    sums middle, gone, part; /* part: of `parts` attended rows that are not in gone yet */
    int parts;
} job;

void clear(sums *s)
{
    for (int v = 0; v < NV; v++)
        s->m1[v] = s->m2[v] = s->value[v] = 0.0f;
}

void gather(job *j)
{
    for (int v = 0; v < NV; v++) {
        j->gone.m1[v] += j->part.m1[v];
        j->gone.m2[v] += j->part.m2[v];
        j->gone.value[v] += j->part.value[v];
    }
    clear(&j->part);
    j->parts = 0;
}

/* Takes the rows [first, last) out. */
void take_out(job *j, int first, int last, mem k_mem, mem v_mem)
{
    for (int p = first; p < last; p++) {
        float s = j->scores[p], w = bad_score(s) ? NAN : exp(s - j->top);
        if (w == 0.0f)
            continue;
        const __global uchar *row = k_row(&j->a->kv, k_mem, j->pages, p, j->head);
        for (int v = 0; v < NV; v++) {
            vf x = load_vec(PRHS_KV, row, v) - j->pivot[v];
            j->part.m1[v] += w * x;
            j->part.m2[v] += w * (x * x);
        }
        row = v_row(&j->a->kv, v_mem, j->pages, p, j->head);
        for (int v = 0; v < NV && j->a->state.vhat_off != PRHS_NONE; v++)
            j->part.value[v] += w * load_vec(PRHS_KV, row, v);
        if (++j->parts == GATHER)
            gather(j);
    }
}

/* Merges the chunks' moments and weights; returns the middle's weight. */
float merge(job *j, long slot, int chunks, mem ws)
{
    const __global float *norm = FLOATS(ws, j->a->work.norm_off) + slot * 4;
    float total = 0.0f;
    j->top = LOWEST;
    for (int i = 0; i < chunks; i++)
        j->top = fmax(j->top, norm[i * 4 + 2]);
    clear(&j->middle);
    for (int i = 0; i < chunks; i++) {
        const __global float *m = FLOATS(ws, j->a->work.mom_off) + (slot + i) * 2 * PRHS_D;
        float scale = exp(norm[i * 4 + 2] - j->top);
        total += norm[i * 4 + 3] * scale;
        for (int v = 0; v < NV; v++) {
            j->middle.m1[v] += VLOAD(v, m) * scale;
            j->middle.m2[v] += VLOAD(v, m + PRHS_D) * scale;
        }
        m = FLOATS(ws, j->a->work.vmid_off) + (slot + i) * PRHS_D;
        for (int v = 0; v < NV && j->a->state.vhat_off != PRHS_NONE; v++)
            j->middle.value[v] += VLOAD(v, m) * scale;
    }
    return total;
}

void moments_item(const prhs_k_moments *a, long item, mem seqs, mem pages, mem k_mem, mem v_mem, mem state, mem ws)
{
    const prhs_k_shape *s = &a->shape;
    long b = item / s->heads;
    int h = (int)(item % s->heads), u = h / PRHS_UH;
    entry e = entry_of(&a->batch, seqs, b);
    const prhs_set set = *set_at(ws, &a->work, s, b, u);
    if (e.kind == IDLE || set.mode != PRHS_MODE_RETRIEVE)
        return;
    __global float *out = SLOT_AT(state, &a->state, moment_off, e.slot, float) + (long)h * 2 * PRHS_D;
    __global float *vhat = 0;
    if (a->state.vhat_off != PRHS_NONE)
        vhat = SLOT_AT(state, &a->state, vhat_off, e.slot, float) + (long)h * PRHS_D;
    float dropped = SLOT_AT(state, &a->state, head_off, e.slot, prhs_head_ref)[h].l_dropped;
    if (dropped == -INFINITY) {
        for (int v = 0; v < 2 * NV; v++)
            VSTORE((vf)(0.0f), v, out);
        for (int v = 0; v < NV && vhat; v++)
            VSTORE((vf)(0.0f), v, vhat);
        return;
    }
    job j;
    j.a = a;
    j.pages = pages_of(&a->batch, pages, b);
    j.head = h / PRHS_G;
    j.scores = FLOATS(ws, a->work.score_off) + (b * s->heads + h) * a->work.score_stride;
    const __global uchar *last = k_row(&a->kv, k_mem, j.pages, set.mid_end - 1, j.head);
    for (int v = 0; v < NV; v++)
        j.pivot[v] = load_vec(PRHS_KV, last, v);
    int chunks = chunk_count(e.pos0 + 1, a->work.score_chunk_min, a->work.score_chunks);
    float total = merge(&j, (b * s->heads + h) * a->work.score_chunks, chunks, ws);
    const __global int *list = SLOT_AT(state, &a->state, list_off, e.slot, int) + (long)u * a->state.list_cap;
    clear(&j.gone);
    clear(&j.part);
    j.parts = 0;
    take_out(&j, set.edge_begin, set.edge_end, k_mem, v_mem);
    for (int i = 0; i < set.count; i++)
        take_out(&j, list[i], list[i] + set.run, k_mem, v_mem);
    take_out(&j, set.win_begin, set.mid_end, k_mem, v_mem);
    gather(&j);
    float z = exp(dropped - j.top), least = total * 0x1p-20f;
    z = z < least ? least : z;
    for (int v = 0; v < NV; v++) {
        vf mean = (j.middle.m1[v] - j.gone.m1[v]) / z, var = (j.middle.m2[v] - j.gone.m2[v]) / z - mean * mean;
        VSTORE(j.pivot[v] + mean, v, out);
        VSTORE(select(var, (vf)(0.0f), var < 0.0f), v, out + PRHS_D);
        if (vhat)
            VSTORE((j.middle.value[v] - j.gone.value[v]) / z, v, vhat);
    }
}

KERNEL void prhs_moments(mem seqs, mem pages, mem k_mem, mem v_mem, mem state, mem ws, const prhs_k_moments args)
{
    prhs_k_moments a = args;
    long items = (long)a.batch.max_seqs * a.shape.heads;
    for (long item = get_global_id(0); item < items; item += get_global_size(0))
        moments_item(&a, item, seqs, pages, k_mem, v_mem, state, ws);
}
