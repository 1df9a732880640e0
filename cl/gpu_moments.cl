/* SPDX-License-Identifier: Apache-2.0 */
/* moments on GPUs: a group takes a head. Its work-items merge the chunks channel by channel, its teams take the attended rows out. */
#include "gpu.clh"

#define LOADED 4 /* rows that a team has under way */

typedef struct memory {
    float scales[GROUP], parts[TEAMS * PRHS_D];
} memory;

typedef struct job {
    const prhs_k_moments *a;
    const __global int *pages, *list;
    const __global float *scores;
    prhs_set set;
    int head, values; /* KV head; whether the dropped values' mean is wanted */
    float top;
    int team, lane;
    bool busy;
} job;

/* The i-th attended position of the middle. */
int attended(const prhs_set *s, const __global int *list, int i)
{
    const int edge = s->edge_end - s->edge_begin;
    if (i < edge)
        return s->edge_begin + i;
    i -= edge;
    if (i < s->count * s->run)
        return list[i / s->run] + i % s->run;
    return s->win_begin + i - s->count * s->run;
}

/* The chunks' sums at `from`, `step` floats apart, relative to the middle's largest score. */
void merge_chunks(const __global float *from, long step, int first, int n, float *out, const __local memory *m)
{
    for (int c = 0; c < CHANNELS; c++)
        if (LID + c * GROUP < PRHS_D)
            for (int i = 0; i < n; i++)
                out[c] += from[(first + i) * step + LID + c * GROUP] * m->scales[i];
}

/* The sum of the teams' x: this work-item's channels. */
void sum_teams(const job *j, vf x, float *out, __local memory *m)
{
    SYNC();
    if (j->busy)
        vstore8(x, 0, m->parts + j->team * PRHS_D + j->lane * 8);
    SYNC();
    for (int c = 0; c < CHANNELS; c++) {
        out[c] = 0.0f;
        if (LID + c * GROUP < PRHS_D)
            for (int t = 0; t < TEAMS; t++)
                out[c] += m->parts[t * PRHS_D + LID + c * GROUP];
    }
}

/* A team's sums over its attended rows. */
typedef struct gone {
    vf m1, m2, value;
} gone;

void take_out(const job *j, vf pivot, mem k_mem, mem v_mem, gone *x)
{
    const int n = j->set.edge_end - j->set.edge_begin + j->set.count * j->set.run + max(j->set.mid_end - j->set.win_begin, 0);
    for (int first = j->team; first < n; first += TEAMS * LOADED) {
        raw k[LOADED], v[LOADED];
        float w[LOADED];
#pragma unroll
        for (int i = 0; i < LOADED; i++) {
            const int at = first + i * TEAMS;
            const int p = at < n ? attended(&j->set, j->list, at) : 0;
            const float s = at < n ? j->scores[p] : -INFINITY;
            const int off = j->lane * 8 * element(PRHS_KV);
            w[i] = bad_score(s) ? NAN : exp(s - j->top);
            k[i] = at < n ? load_raw(k_row(&j->a->kv, k_mem, j->pages, p, j->head) + off) : (raw)(0);
            v[i] = at < n && j->values ? load_raw(v_row(&j->a->kv, v_mem, j->pages, p, j->head) + off) : (raw)(0);
        }
#pragma unroll
        for (int i = 0; i < LOADED; i++)
            if (w[i] != 0.0f) {
                const vf y = unpack(k[i]) - pivot;
                x->m1 += w[i] * y;
                x->m2 += w[i] * (y * y);
                x->value += w[i] * unpack(v[i]);
            }
    }
}

float load_one(int dtype, const __global uchar *row, int d)
{
    if (dtype == PRHS_K_F32)
        return ((const __global float *)row)[d];
    if (dtype == PRHS_K_F16)
        return vload_half(d, (const __global half *)row);
    return as_float((uint)((const __global ushort *)row)[d] << 16);
}

/* Merges the chunks' normalisers and sums; returns the middle's weight. */
float merge_middle(job *j, long slot, int chunks, float *m1, float *m2, float *value, mem ws, __local memory *m)
{
    const prhs_k_work *w = &j->a->work;
    const __global float *norm = FLOATS(ws, w->norm_off) + slot * 4;
    float total = 0.0f;
    j->top = LOWEST;
    for (int i = 0; i < chunks; i++)
        j->top = fmax(j->top, norm[i * 4 + 2]);
    for (int c = 0; c < CHANNELS; c++)
        m1[c] = m2[c] = value[c] = 0.0f;
    for (int first = 0; first < chunks; first += GROUP) {
        const int n = min(GROUP, chunks - first);
        SYNC();
        if (LID < n)
            m->scales[LID] = exp(norm[(first + LID) * 4 + 2] - j->top);
        SYNC();
        for (int i = 0; i < n; i++)
            total += norm[(first + i) * 4 + 3] * m->scales[i];
        const __global float *sums = FLOATS(ws, w->mom_off) + slot * 2 * PRHS_D;
        merge_chunks(sums, 2 * PRHS_D, first, n, m1, m);
        merge_chunks(sums + PRHS_D, 2 * PRHS_D, first, n, m2, m);
        if (j->values)
            merge_chunks(FLOATS(ws, w->vmid_off) + slot * PRHS_D, PRHS_D, first, n, value, m);
    }
    return total;
}

void moments_item(const prhs_k_moments *a, long item, mem seqs, mem pages, mem k_mem, mem v_mem, mem state, mem ws, __local memory *m)
{
    const prhs_k_shape *s = &a->shape;
    const long b = item / s->heads;
    const int h = (int)(item % s->heads), u = h / PRHS_UH;
    const entry e = entry_of(&a->batch, seqs, b);
    job j;
    j.set = *set_at(ws, &a->work, s, b, u);
    const bool retrieves = e.kind != IDLE && j.set.mode == PRHS_MODE_RETRIEVE;
    const int slot = retrieves ? e.slot : 0;
    j.values = a->state.vhat_off != PRHS_NONE;
    __global float *out = SLOT_AT(state, &a->state, moment_off, slot, float) + (long)h * 2 * PRHS_D;
    __global float *vhat = j.values ? SLOT_AT(state, &a->state, vhat_off, slot, float) + (long)h * PRHS_D : 0;
    const float dropped = SLOT_AT(state, &a->state, head_off, slot, prhs_head_ref)[h].l_dropped;
    j.a = a;
    j.pages = pages_of(&a->batch, pages, b);
    j.list = SLOT_AT(state, &a->state, list_off, slot, int) + (long)u * a->state.list_cap;
    j.scores = FLOATS(ws, a->work.score_off) + (b * s->heads + h) * a->work.score_stride;
    j.head = h / PRHS_G;
    j.team = min(LID / TEAM, TEAMS - 1);
    j.lane = LID % TEAM;
    j.busy = LID < TEAMS * TEAM;
    const bool none = !retrieves || dropped == -INFINITY;
    float m1[CHANNELS], m2[CHANNELS], value[CHANNELS], g1[CHANNELS], g2[CHANNELS], gv[CHANNELS];
    gone x = { 0.0f, 0.0f, 0.0f };
    const __global uchar *last = k_mem;
    if (!none)
        last = k_row(&a->kv, k_mem, j.pages, j.set.mid_end - 1, j.head);
    const int chunks = none ? 0 : chunk_count(e.pos0 + 1, a->work.score_chunk_min, a->work.score_chunks);
    const float least = merge_middle(&j, item * a->work.score_chunks, chunks, m1, m2, value, ws, m) * 0x1p-20f;
    float z = exp(dropped - j.top);
    z = z < least ? least : z;
    if (!none)
        take_out(&j, load_vec(PRHS_KV, last, j.lane), k_mem, v_mem, &x);
    sum_teams(&j, x.m1, g1, m);
    sum_teams(&j, x.m2, g2, m);
    sum_teams(&j, x.value, gv, m);
    for (int c = 0; c < CHANNELS && retrieves; c++) {
        const int d = LID + c * GROUP;
        if (d < PRHS_D) {
            const float mean = none ? 0.0f : (m1[c] - g1[c]) / z, var = none ? 0.0f : (m2[c] - g2[c]) / z - mean * mean;
            out[d] = none ? 0.0f : load_one(PRHS_KV, last, d) + mean;
            out[PRHS_D + d] = var < 0.0f ? 0.0f : var;
            if (vhat)
                vhat[d] = none ? 0.0f : (value[c] - gv[c]) / z;
        }
    }
}

KERNEL void prhs_moments(mem seqs, mem pages, mem k_mem, mem v_mem, mem state, mem ws, const prhs_k_moments args)
{
    __local memory m;
    prhs_k_moments a = args;
    const long items = (long)a.batch.max_seqs * a.shape.heads;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0))
        moments_item(&a, item, seqs, pages, k_mem, v_mem, state, ws, &m);
}
