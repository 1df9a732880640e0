/* SPDX-License-Identifier: Apache-2.0 */
/*
 * finish where no sequence has more than a row: a block a query head, which is all that its output rests on. Nothing is judged there: row
 * 0's verdict came before. The warps share the parts and meet once; the last one books. What is read comes in two goes: what tells how many
 * parts there are, then these and all that the slot remembers.
 */
#ifndef PRHS_ENDING_CUH
#define PRHS_ENDING_CUH

#include "parts.cuh"

#define BOOKS 3      /* the warp that counts */

struct ending_shared {
    float acc[4][256]; /* each warp's parts */
};

/* Row 0 of a head of the batch. */
struct ending {
    const prhs_k_finish &a;
    byte *const *mem;
    int item, unit, u, h; /* the head and its unit among the batch's; in the sequence */
    bool seed;
    int slot, row, pos;
    int work, tokens, parts;
    prhs_set set;
};

/* --- what the slot remembers --- */

/*
 * The dropped mass is `known`, or follows from the dropped keys' log-sum-exp, as it is judged and as it is reported. As it was read: nothing
 * waits for it before it is used.
 */
struct memory {
    float known, judged, reported;
    uint4 values;           /* two sums of the values, in the thread's channels; or two floats, what stands in for dropped ones */
    prhs_value_count count;
};

DEV memory nothing_remembered() { return memory{ 0.0f, NOTHING, NOTHING, make_uint4(0, 0, 0, 0), { 0, 0 } }; }

DEV byte *slot_at(const ending &x) { return x.mem[PRHS_R_STATE] + steps(x.slot, x.a.state.slot_bytes); }

DEV void load_residual(const ending &x, int c, memory *m)
{
    const prhs_k_state &st = x.a.state;
    const int dim = x.a.shape.dim;
    if (x.a.policy.residual == PRHS_K_RESIDUAL_RETRIEVED) {
        const uint2 v = *(const uint2 *)(slot_at(x) + st.vhat_off + (size_t)((unsigned)(x.h * dim + c) * 4u));
        m->values = make_uint4(v.x, v.y, 0, 0);
    } else if (x.a.policy.residual == PRHS_K_RESIDUAL_MEAN) {
        const unsigned hk = small_quotient(x.h, x.a.shape.group);
        m->count = ((const prhs_value_count *)(slot_at(x) + st.vcount_off))[hk];
        m->values = *(const uint4 *)(slot_at(x) + st.vsum_off + (size_t)((hk * (unsigned)dim + (unsigned)c) * 8u));
    }
}

/* The residual's value in the thread's channel k. */
DEV float residual_of(const ending &x, const memory &m, int k)
{
    if (x.a.policy.residual == PRHS_K_RESIDUAL_RETRIEVED)
        return __uint_as_float(k ? m.values.y : m.values.x);
    const i64 sum = (i64)((unsigned long long)(k ? m.values.w : m.values.y) << 32 | (k ? m.values.z : m.values.x));
    return (float)sum * (m.count.nonfinite > 0 ? NEVER : 0x1p-24f / (float)m.count.rows);
}

/* c: the thread's channels. */
DEV memory remember(const ending &x, int c)
{
    const prhs_k_finish &a = x.a;
    memory m = nothing_remembered();
    if (x.set.mode != PRHS_MODE_SHARE && x.set.mode != PRHS_MODE_RETRIEVE)
        return m;
    const prhs_head_ref *head = (const prhs_head_ref *)(slot_at(x) + a.state.head_off) + x.h;
    if (x.set.mode == PRHS_MODE_RETRIEVE) {
        m.judged = m.reported = head->l_dropped;
    } else if (a.policy.gate == PRHS_K_GATE_MASS) {
        const head_record record = records_at(x.mem[PRHS_R_WORK], a.work)[x.item];
        m.judged = record.judged;
        m.reported = record.known;
    } else {
        m.known = head->delta;
    }
    if (a.policy.residual && c < a.shape.dim)
        load_residual(x, c, &m);
    return m;
}

/* dropped: one of its two. */
DEV float lost_mass(const memory &m, float dropped, float lse) { return dropped == NOTHING ? m.known : mass_of(dropped - lse); }

/* --- counts --- */

DEV void add_count(prhs_i64 *count, i64 n) { atomicAdd((unsigned long long *)count, (unsigned long long)n); }

/* The unit's count of steps that it was served so. */
DEV prhs_i64 *mode_count(prhs_unit_stat *st, int mode)
{
    return mode == PRHS_MODE_DENSE    ? &st->dense
           : mode == PRHS_MODE_WINDOW ? &st->window
           : mode == PRHS_MODE_STREAM ? &st->stream
           : mode == PRHS_MODE_SHARE  ? &st->share
           : mode == PRHS_MODE_COPY   ? &st->copy
                                      : &st->retrieve;
}

/* Nobody has scored what such a step drops. */
DEV bool unknown_mass(int mode) { return mode == PRHS_MODE_WINDOW || mode == PRHS_MODE_STREAM || mode == PRHS_MODE_COPY; }

/* A head's mass of row 0; exact or an estimate. */
DEV void add_mass(prhs_head_stat *s, bool exact, float mass)
{
    if (isnan(mass)) {
        add_count(&s->nan_count, 1);
        return;
    }
    add_count(exact ? &s->exact_sum : &s->estimate_sum, llrintf(mass * PRHS_MASS_ONE));
    add_count(exact ? &s->exact_count : &s->estimate_count, 1);
}

/* Whether the unit retrieves because its shared list failed. */
DEV bool fell(const ending &x)
{
    const prhs_k_work &w = x.a.work;
    return x.set.mode == PRHS_MODE_RETRIEVE && w.judge_off != PRHS_NONE &&
           INTS(x.mem[PRHS_R_WORK], w.score_count_off)[x.a.batch.max_seqs * x.a.shape.units + x.unit] < 0;
}

DEV void book_unit(const ending &x)
{
    const prhs_set &s = x.set;
    const prhs_k_state &at = x.a.state;
    prhs_unit_stat *st = (prhs_unit_stat *)(x.mem[PRHS_R_STATE] + at.unit_stat_off + steps(x.slot, at.stat_slot_bytes)) + x.u;
    prhs_unit_state *unit = (prhs_unit_state *)(slot_at(x) + at.unit_off) + x.u;
    const bool listed = s.mode == PRHS_MODE_SHARE || s.mode == PRHS_MODE_RETRIEVE;
    if (fell(x))
        add_count(&st->mass_failed, 1);
    unit->set.mode = s.mode;
    if (x.seed) {
        add_count(&st->seed, 1);
        return;
    }
    add_count(&st->steps, 1);
    add_count(&st->attended, x.tokens);
    add_count(mode_count(st, s.mode), 1);
    if (s.mode == PRHS_MODE_DENSE)
        return;
    /* The window at the reference. */
    const int window = listed ? unit->set.end - unit->set.win_begin : x.pos + 1 - s.win_begin;
    add_count(&st->kept, s.mode == PRHS_MODE_WINDOW || s.mode == PRHS_MODE_COPY ? x.tokens : set_fixed(s) + window);
}

DEV void book_head(const ending &x, float mass, float weight)
{
    const prhs_k_state &at = x.a.state;
    const int mode = x.set.mode;
    const bool exact = mode == PRHS_MODE_RETRIEVE;
    prhs_head_ref *head = (prhs_head_ref *)(slot_at(x) + at.head_off) + x.h;
    prhs_head_stat *s = (prhs_head_stat *)(x.mem[PRHS_R_STATE] + at.head_stat_off + steps(x.slot, at.stat_slot_bytes)) + x.h;
    head->delta_last = unknown_mass(mode) ? NEVER : mass;
    if (exact)
        head->delta = mass;
    if (mode == PRHS_MODE_SHARE && x.a.policy.gate == PRHS_K_GATE_MASS)
        ((float *)(slot_at(x) + at.spread_off))[2 * x.h + 1] = weight;
    if (!x.seed && (exact || mode == PRHS_MODE_SHARE))
        add_mass(s, exact, mass);
}

/* --- merging --- */

/* The warp's parts, into shared memory; what else is read comes with them. */
DEV weights merge_all(const ending &x, float *acc_at, memory *m)
{
    const prhs_k_work &w = x.a.work;
    byte *ws = x.mem[PRHS_R_WORK];
    const float *o = FLOATS(ws, w.part_off) + steps(x.item, w.chunks * x.a.shape.dim);
    const float *lse = FLOATS(ws, w.part_lse_off) + steps(x.item, w.chunks);
    return merge_share(o, lse, x.a.shape.dim, x.parts, acc_at, [&] {
        *m = remember(x, threadIdx.x * 2);
        /* The unit's first head's block books for the unit. */
        if (threadIdx.x == BOOKS * 32 && x.h == x.u * x.a.shape.unit_heads && !x.a.policy.dense)
            book_unit(x);
    });
}

/* --- output --- */

/* The warps' parts have met; the residual is added: the mean, or what the reference dropped. */
DEV void put_channels(const ending &x, const float acc[4][256], int c, const weights &all, const memory &m)
{
    const prhs_k_rows &out = x.a.out;
    const float one = 1.0f / all.sum, d = x.a.policy.residual ? lost_mass(m, m.judged, all.lse) : 0.0f;
    float2 o[4];
#pragma unroll
    for (int w = 0; w < 4; w++)
        o[w] = *(const float2 *)&acc[w][c];
    float y[2] = { (o[0].x + o[1].x) + (o[2].x + o[3].x), (o[0].y + o[1].y) + (o[2].y + o[3].y) };
#pragma unroll
    for (int k = 0; k < 2; k++) {
        y[k] = isnan(one) ? NEVER : y[k] * one;
        if (d != 0.0f)
            y[k] = (1.0f - d) * y[k] + d * residual_of(x, m, k);
    }
    const int size = element(out.dtype);
    put_two(out.dtype, x.mem[PRHS_R_OUT] + out.off + (steps(x.row, out.row) + steps(x.h, out.head)) * size, c, y);
}

/* By the thread that counts, at last. */
DEV void book_ending(const ending &x, const memory &m, const weights &all)
{
    const prhs_k_finish &a = x.a;
    FLOATS(x.mem[PRHS_R_WORK], a.work.lse_off)[x.item] = all.lse;
    if (a.lse_off != PRHS_NONE && !x.seed)
        FLOATS(x.mem[PRHS_R_LSE], a.lse_off)[(i64)x.row * a.shape.heads + x.h] = all.lse;
    if (!a.policy.dense)
        book_head(x, lost_mass(m, m.reported, all.lse), lost_mass(m, m.judged, all.lse));
}

/* By all threads of the block together; has a barrier. */
DEV void end_head(const ending &x, ending_shared *sh)
{
    const prhs_k_finish &a = x.a;
    const int c = threadIdx.x * 2;
    memory m = nothing_remembered();
    const weights all = merge_all(x, sh->acc[warp_id()], &m);
    __syncthreads();
    if (c < a.shape.dim && !x.seed)
        put_channels(x, sh->acc, c, all, m);
    if (threadIdx.x == BOOKS * 32)
        book_ending(x, m, all);
}

/* Head `item` of the active sequences' by all threads of the block; false: it has nothing to end. */
DEV bool find_ending(ending *x, quotient_by by_heads, quotient_by by_unit_heads)
{
    const prhs_k_finish &a = x->a;
    byte *ws = x->mem[PRHS_R_WORK];
    const int b = by_heads.of(x->item);
    x->unit = by_unit_heads.of(x->item);
    x->h = x->item - b * a.shape.heads;
    x->u = x->unit - b * a.shape.units;
    /* All at once, before it is known whether any of it matters. */
    const uint4 *set = (const uint4 *)(ws + a.work.set_off) + x->unit * 3u;
    const uint4 *seq = (const uint4 *)(ws + a.batch.seqs_off) + b * 2u;
    const uint4 s0 = set[0], s1 = set[1], e = seq[0], f = seq[1];
    x->work = INTS(ws, a.work.work_off)[x->unit];
    x->set = prhs_set{ (int)s0.x, (int)s0.y, (int)s0.z, (int)s0.w, (int)s1.x, (int)s1.y, (int)s1.z, (int)s1.w, 0, 0, { 0, 0 } };
    /* Idle units have no end and their sequences no slot; asked for as well, so that all of it is read before the branch. */
    if ((s0.x == PRHS_MODE_IDLE) | (x->work == PRHS_WORK_NONE) | (s1.w == 0) | ((int)e.x < 0))
        return false;
    x->slot = (int)e.x;
    x->row = (int)(e.y + e.z) - 1;
    x->pos = (int)e.w - 1;
    x->seed = f.x & PRHS_SEQ_SEED;
    x->tokens = work_tokens(x->set, x->work == PRHS_WORK_ALL ? PRHS_WORK_ALL : PRHS_WORK_SET, x->pos);
    x->parts = attend_chunks(a.work, x->tokens);
    return true;
}

#endif
