/* SPDX-License-Identifier: Apache-2.0 */
/* A unit's retrieval by a block, once its keys are scored: the list, and what later steps need of it. */
#ifndef PRHS_SELECT_CUH
#define PRHS_SELECT_CUH

#include "slices.cuh"

/* --- a unit --- */

/* What a block has come to. */
struct outcome {
    int count;   /* of the list; -1: another block does the rest */
    bool held;   /* the parts of L_D are in shared memory */
    bool summed; /* the slices have summed up what they did not keep */
    int others;  /* where >= 0: so many more that were kept are in the room, after the list */
};

/* Writes the list, or leaves a slice of the unit to who does. */
DEV_CALL outcome choose_in_memory(const prhs_cu_retrieve &p, const unit_task &j, const space mem, int slice, topk_shared *sh)
{
    outcome out = { -1, false, false, -1 };
    const prhs_k_select &a = p.select;
    const int begin = slice * j.c.each, end = min(begin + j.c.each, j.c.n);
    chosen_from from = { mem.room, j.c.n, nullptr, mem.bits, true };
    const guess g = guess_of(j);
    unsigned low = 1;
    reach seen;
    if (j.c.slices > 1)
        low = guess_low(a, j, mem, g, sh);
    if (j.c.slices == 1 || !leave_in_registers(j, slice, low, sh)) {
        __syncthreads(); /* the room is free */
        if (j.raw)
            fill_room<true>(a, j, begin, end, mem.room, &seen);
        else
            fill_room<false>(a, j, begin, end, mem.room, &seen);
        if (j.c.slices > 1)
            leave_slice(a, j, mem, slice, low);
    }
    if (j.c.slices > 1) {
        if (!comes_last(&set_at(p.mem[PRHS_R_WORK], a.work, a.shape, j.b, j.u)->reserved[0], j.c.slices))
            return out;
        seen = reach();
        out.summed = gather_kept(a, j, mem, low, g.most, &from, &seen);
    }
    if (out.summed && from.in_room && a.policy.dilate_m <= 0) {
        choose(mem.room, from.n, j.c.keep, j.raw, seen, mem.bits, sh);
        out.count = list_kept(j, mem.room, mem.bits);
        out.others = from.n - out.count;
        return out;
    }
    mark_best(a, j, mem, from, seen, sh);
    out.count = write_list(j, mem);
    return out;
}

/* L_D of the unit's heads and what their scores vary by, and its queries. The list is written. */
DEV void store_heads(const prhs_cu_retrieve &p, const unit_task &j, const space &mem, const outcome &got)
{
    const prhs_k_select &a = p.select;
    const prhs_k_state &st = a.state;
    const int heads = a.shape.unit_heads, head = j.u * heads, dim = a.shape.dim;
    const i64 stride = a.work.score_stride;
    const candidates &c = j.c;
    byte *state = p.mem[PRHS_R_STATE];
    const bool some = st.head_off != PRHS_NONE && got.count < c.runs;
    dropped_part *const parts = c.slices > 1 ? j.left.parts : (dropped_part *)mem.room;
    int groups = 0;
    if (some && got.summed) {
        groups = sum_kept(a, j, mem.room, got.others);
    } else if (some && got.held) {
        groups = (c.n + GROUP - 1) / GROUP;
    } else if (some) {
        const dropping d = { j.marks, nullptr, c.first, c.first + c.runs * c.run, c.origin, c.run };
        groups = (d.end - d.origin + GROUP - 1) / GROUP;
        sum_groups(d, j.scores, stride, heads, groups, parts);
    }
    if (st.qref_off != PRHS_NONE) {
        float *to = SLOT_AT(state, st, qref_off, j.e.slot, float) + (i64)head * dim;
        for (int i = threadIdx.x; i < heads * dim; i += blockDim.x)
            to[i] = load_one(a.q.dtype, row_at(a.q, p.mem[PRHS_R_Q], j.e.row0, head + i / dim), i % dim);
    }
    const dropped_part *near = some ? bring_parts(j, mem, groups * heads) : nullptr;
    __syncthreads();
    for (int h = warp_id(); h < heads && st.head_off != PRHS_NONE; h += blockDim.x >> 5) {
        float spread = 0.0f;
        const float l = some ? join_groups(near ? near : parts, groups, heads, h, &spread) : NOTHING;
        if (lane_id() == 0)
            SLOT_AT(state, st, head_off, j.e.slot, prhs_head_ref)[head + h].l_dropped = l;
        if (lane_id() == 0 && st.spread_off != PRHS_NONE)
            SLOT_AT(state, st, spread_off, j.e.slot, float)[2 * (head + h)] = spread;
    }
}

/* The set, for this step and as a reference, and the chunks that the unit's rows have in the next attend. By one thread. */
DEV void store_unit(const prhs_cu_retrieve &p, const unit_task &j)
{
    const prhs_k_select &a = p.select;
    byte *ws = p.mem[PRHS_R_WORK];
    *set_at(ws, a.work, a.shape, j.b, j.u) = j.set;
    if (a.state.unit_off != PRHS_NONE) {
        prhs_unit_state *unit = SLOT_AT(p.mem[PRHS_R_STATE], a.state, unit_off, j.e.slot, prhs_unit_state) + j.u;
        unit->set = j.set;
        unit->set.end = j.e.pos0 + 1;
        unit->ref_pos = j.e.pos0;
    }
    if (a.work.attend_count_off == PRHS_NONE)
        return;
    int sum = 0;
    for (int r = 0; r < j.e.rows; r++) {
        const int work = a.work.work_off == PRHS_NONE ? PRHS_WORK_SET
                                                      : INTS(ws, a.work.work_off)[(j.b * a.batch.rows + r) * a.shape.units + j.u];
        sum += attend_chunks(a.work, work_tokens(j.set, work, j.e.pos0 + r));
    }
    INTS(ws, a.work.attend_count_off)[((i64)p.pass * a.batch.max_seqs + j.b) * a.shape.units + j.u] = max(sum, 1);
}

/* The set but for its count: what is no whole run joins the edge or the window. */
DEV void lay_out(prhs_set *set, const candidates &c)
{
    const int low = max(set->mid_begin, 0);
    set->run = c.run;
    set->edge_begin = set->edge_end = 0;
    if (c.runs && c.first > low) {
        set->edge_begin = low;
        set->edge_end = c.first;
    }
    set->win_begin = c.runs ? c.first + c.runs * c.run : low;
    set->reserved[0] = 0; /* [1], what aim found, stays: blocks may still count this unit's slices by it */
}

/* Where what slices leave lies; and the bitmaps, which are in shared memory where a block takes a unit alone. */
DEV void place_leavings(const prhs_cu_retrieve &p, unsigned *shared, unit_task *j)
{
    const prhs_k_select &a = p.select;
    const int longest = a.batch.max_kv_len;
    j->marks = shared;
    j->forced = shared + PRHS_RETRIEVE_BITS(p.room);
    j->cap = p.room;
    if (j->c.slices == 1)
        return;
    const int slices = PRHS_K_SLICES(longest), bitmap = slices * (PRHS_K_SLICE / 32);
    unsigned *at = (unsigned *)(p.mem[PRHS_R_WORK] + a.work.slice_off) +
                   (j->b * a.shape.units + j->u) * PRHS_K_SLICE_WORDS((i64)longest, a.shape.unit_heads);
    j->left.inside = at;
    j->marks = at + bitmap;
    j->forced = at + 2 * bitmap;
    j->left.keys = at + 3 * bitmap;
    j->left.counts = (int *)(j->left.keys + slices * PRHS_K_SLICE);
    j->left.parts = (dropped_part *)(j->left.counts + (slices + 3) / 4 * 4);
}

/* What registers may hold: single tokens, of a slice what it keeps; all of them the block's own, and no dilation, the list too. */
DEV void prepare_held(const prhs_k_select &a, const space &mem, int slice, unit_task *j)
{
    const candidates &c = j->c;
    const bool all = c.slices == 1;
    const int begin = slice * c.each, n = all ? c.n : min(c.each, c.n - begin), heads = a.shape.unit_heads;
    j->holds = all && c.run == 1 && a.policy.dilate_m <= 0 && c.keep > 0 && c.runs > c.keep;
    j->held = held_task{ j->scores + c.origin + begin, j->lse, a.work.score_stride, n, max(c.n - c.runs - begin, 0), c.keep, c.origin,
                         heads, all ? n : c.each, a.policy.join == PRHS_K_JOIN_MAX, a.state.head_off != PRHS_NONE, j->list,
                         all ? (dropped_part *)mem.room : j->left.parts + slice * slice_groups(c) * heads };
}

/* The slices of unit u of entry b: none where it does not retrieve. */
DEV int slices_of(const prhs_k_select &a, bool kept, int count, const entry &e, const prhs_set &set)
{
    if (kept && count <= 0)
        return 0;
    if (kept && a.work.slice_off == PRHS_NONE)
        return 1;
    return e.kind == IDLE || set.mode != PRHS_MODE_RETRIEVE ? 0 : candidates_of(a, set, e.pos0 + 1).slices;
}

/* By one thread. What it reads is on its way together. */
DEV void start_job(const prhs_cu_retrieve &p, int i, int slice, const float *lse, unsigned *shared, const space &mem, unit_task *j)
{
    const prhs_k_select &a = p.select;
    byte *ws = p.mem[PRHS_R_WORK];
    const bool kept = a.work.score_count_off != PRHS_NONE;
    const int u = i % a.shape.units;
    const i64 b = i / a.shape.units;
    const int count = kept ? INTS(ws, a.work.score_count_off)[i] : 0, seqs = seqs_of(a.batch, p.mem[PRHS_R_SEQS]);
    const prhs_set set = *set_at(ws, a.work, a.shape, b, u);
    const entry e = entry_of(a.batch, p.mem[PRHS_R_SEQS], b);
    j->wanted = b < seqs && slice < slices_of(a, kept, count, e, set);
    if (!j->wanted)
        return;
    j->b = b;
    j->u = u;
    j->e = e;
    j->set = set;
    j->c = candidates_of(a, set, e.pos0 + 1);
    j->scores = FLOATS(ws, a.work.score_off) + (b * a.shape.heads + (i64)u * a.shape.unit_heads) * a.work.score_stride;
    j->lse = lse;
    j->raw = a.shape.unit_heads == 1 && a.policy.run == 1;
    j->list = SLOT_AT(p.mem[PRHS_R_STATE], a.state, list_off, j->e.slot, int) + (i64)u * a.state.list_cap;
    lay_out(&j->set, j->c);
    place_leavings(p, shared, j);
    prepare_held(a, mem, slice, j);
}

/* The list from registers, where they hold the unit and it is not odd. */
DEV bool choose_in_registers(const unit_task &j, topk_shared *sh)
{
    const int groups = held_groups(j.c.n);
    if (!j.holds || groups > 2)
        return false;
    if (j.raw)
        return groups == 1 ? choose_held<true, 1>(j.held, sh) : choose_held<true, 2>(j.held, sh);
    return groups == 1 ? choose_held<false, 1>(j.held, sh) : choose_held<false, 2>(j.held, sh);
}

/* Unit i, or a slice of it, if it retrieves. */
DEV void retrieve(const prhs_cu_retrieve &p, int i, int slice, unsigned *shared, topk_shared *sh)
{
    __shared__ float lse[64];
    __shared__ unit_task j;
    const prhs_k_select &a = p.select;
    const space mem = { shared, shared + 3 * PRHS_RETRIEVE_BITS(p.room) };
    const int heads = a.shape.unit_heads;
    outcome got = { 0, false, false, -1 };
    if (threadIdx.x == 0)
        start_job(p, i, slice, lse, shared, mem, &j);
    clear_bins(sh);
    __syncthreads();
    if (!j.wanted) {
        __syncthreads(); /* before the job is another */
        return;
    }
    if (!j.raw) {
        const float4 *norms = (const float4 *)(p.mem[PRHS_R_WORK] + a.work.norm_off);
        merge_norms(a.work, heads, j.e.pos0 + 1, norms + (j.b * a.shape.heads + (i64)j.u * heads) * a.work.score_chunks, lse);
    }
    if (j.c.runs <= j.c.keep) {
        got.count = j.c.runs;
        for (int t = threadIdx.x; t < got.count; t += blockDim.x)
            j.list[t] = j.c.first + t * j.c.run;
    } else if (choose_in_registers(j, sh)) {
        got.held = true;
        got.count = j.c.keep;
    } else {
        if (j.holds)
            __syncthreads();
        got = choose_in_memory(p, j, mem, slice, sh);
    }
    __syncthreads();
    if (got.count < 0)
        return;
    store_heads(p, j, mem, got);
    if (threadIdx.x == blockDim.x - 1) { /* while the first warps join heads */
        j.set.count = got.count;
        store_unit(p, j);
    }
    __syncthreads();
}

#endif
