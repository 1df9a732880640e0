/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recall: which of its references a unit has in hand when plan looks at it. A block takes a unit: warps share the cosines, a record each, and
 * all threads move words. All threads come to the same conclusions, from what the states of the unit's references said at the start.
 */
#include "gate.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)
#define MOST 16 /* references */

/* A unit, the same for all threads of the block. */
struct recall_job {
    const prhs_k_recall &a;
    byte *state;
    int u, t; /* t: row 0's position */
    i64 slot;
    prhs_unit_state *unit, *kept;
};

struct recall_shared {
    int pos[MOST], used[MOST]; /* of the pool's references; pos < 0: out of force */
    float near[MOST];
};

DEV bool in_force(const prhs_k_recall &a, int pos, int t)
{
    return pos >= 0 && pos < t && (pos + a.layer) / a.block == (t + a.layer) / a.block;
}

DEV unsigned *record_at(const recall_job &j, int i)
{
    const prhs_k_pool &p = j.a.pool;
    return (unsigned *)(j.state + p.record_off + j.a.state.slot_bytes * j.slot + ((i64)j.u * p.count + i) * p.record_bytes);
}

DEV void move_words(unsigned *record, unsigned *own, int words, bool save)
{
    unsigned *const to = save ? record : own;
    const unsigned *const from = save ? own : record;
    for (int i = threadIdx.x; i < words; i += THREADS)
        to[i] = from[i];
}

/* Between the unit's own arrays and record i; the unit states are the caller's. */
DEV_CALL void exchange(const recall_job &j, int i, int runs, bool save)
{
    const prhs_k_state &st = j.a.state;
    const int heads = j.a.shape.unit_heads, row = heads * j.a.shape.dim;
    byte *slot = j.state + st.slot_bytes * j.slot;
    unsigned *record = record_at(j, i);
    prhs_head_ref *head = (prhs_head_ref *)(slot + st.head_off) + j.u * heads;
    for (int h = threadIdx.x; h < heads; h += THREADS) { /* l_dropped and delta: the others are of the last step */
        float *own = (float *)&head[h], *kept = (float *)record + 3 * h, *spread = (float *)(slot + st.spread_off) + 2 * (j.u * heads + h);
        (save ? kept : own)[0] = (save ? own : kept)[0];
        (save ? kept : own)[1] = (save ? own : kept)[1];
        if (st.spread_off != PRHS_NONE)
            *(save ? kept + 2 : spread) = *(save ? spread : kept + 2);
    }
    record += PRHS_POOL_ROWS(heads) / 4;
    move_words(record, (unsigned *)(slot + st.qref_off) + (i64)j.u * row, row, save);
    record += row;
    if (st.moment_off != PRHS_NONE) {
        move_words(record, (unsigned *)(slot + st.moment_off) + (i64)j.u * 2 * row, 2 * row, save);
        record += 2 * row;
    }
    if (st.vhat_off != PRHS_NONE) {
        move_words(record, (unsigned *)(slot + st.vhat_off) + (i64)j.u * row, row, save);
        record += row;
    }
    move_words(record, (unsigned *)(slot + st.list_off) + (i64)j.u * st.list_cap, runs, save);
}

/*
 * What the last step says of the pool: its retrieval is saved, or the reference in hand has been of use. Returns where that one stands in the
 * pool, -1: it is not in force. Ends with a barrier.
 */
DEV int settle(const recall_job &j, recall_shared *sh)
{
    const int n = j.a.pool.count, pos = j.unit->ref_pos, used = j.unit->used, i = threadIdx.x;
    if (i < n) {
        const int at = j.kept[i].ref_pos;
        sh->pos[i] = in_force(j.a, at, j.t) ? at : -1;
        sh->used[i] = j.kept[i].used;
        if (at >= j.t) /* rows that were taken back without a word */
            j.kept[i].ref_pos = -1;
    }
    __syncthreads();
    if (!in_force(j.a, pos, j.t))
        return -1;
    int place = -1, empty = -1, oldest = 0;
    for (int k = 0; k < n; k++) {
        if (sh->pos[k] == pos)
            place = k;
        if (empty < 0 && sh->pos[k] < 0)
            empty = k;
        if (sh->used[k] < sh->used[oldest])
            oldest = k;
    }
    const bool fresh = place < 0;
    if (fresh) {
        place = empty >= 0 ? empty : oldest;
        exchange(j, place, j.unit->set.count, true);
    }
    __syncthreads(); /* all have looked */
    if (i == 0 && fresh) {
        j.kept[place] = *j.unit;
        j.kept[place].used = sh->pos[place] = pos;
    } else if (i == 0 && used < j.t) {
        j.kept[place].used = max(sh->used[place], used);
    }
    __syncthreads();
    return place;
}

/* How close record i is to row 0; by a warp. */
DEV float nearness(const recall_job &j, byte *q, int row0, int i)
{
    const prhs_k_recall &a = j.a;
    const int heads = a.shape.unit_heads;
    return least_cosine(a.q, q, row0, 0, j.u * heads, heads, a.shape.dim, (const float *)(record_at(j, i) + PRHS_POOL_ROWS(heads) / 4));
}

/* Takes the closest reference, if that is not the one in hand. */
DEV void take(const recall_job &j, byte *q, int row0, int own, recall_shared *sh)
{
    const int n = j.a.pool.count;
    int best = -1;
    float most = -3.0f;
    for (int i = warp_id(); i < n; i += WARPS) {
        if (sh->pos[i] < 0)
            continue;
        const float near = nearness(j, q, row0, i);
        if (lane_id() == 0)
            sh->near[i] = near;
    }
    __syncthreads();
    for (int i = 0; i < n; i++)
        if (sh->pos[i] >= 0 && sh->near[i] > most) {
            most = sh->near[i];
            best = i;
        }
    const bool takes = best >= 0 && best != own;
    if (takes)
        exchange(j, best, j.kept[best].set.count, false);
    if (threadIdx.x == 0) {
        if (takes)
            *j.unit = j.kept[best];
        j.unit->used = j.t;
    }
    __syncthreads(); /* the next unit's counts come to the same places */
}

KERNEL(prhs_recall, prhs_cu_recall, THREADS, 4)
{
    __shared__ recall_shared sh;
    grid_begin(p);
    const prhs_k_recall &a = p.a;
    const int items = a.batch.max_seqs * a.shape.units;
#pragma unroll 1
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const entry e = entry_of(a.batch, p.mem[PRHS_R_SEQS], item / a.shape.units);
        if (e.kind == IDLE)
            continue;
        byte *state = p.mem[PRHS_R_STATE];
        const int u = item % a.shape.units;
        const recall_job j = { a, state, u, e.pos0, e.slot, SLOT_AT(state, a.state, unit_off, e.slot, prhs_unit_state) + u,
                               kept_at(state, a.state, a.pool, e.slot, u) };
        const int own = settle(j, &sh);
        if (e.kind == DECODE)
            take(j, p.mem[PRHS_R_Q], e.row0, own, &sh);
        else
            __syncthreads();
    }
}
