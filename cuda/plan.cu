/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prepare: which sequences are active, how each of their units is served in this step and what its rows do first; and in decode batches
 * append, which shares the launch because neither reads what the other writes. A warp a (sequence, unit), then a warp a (sequence, KV
 * head). Every warp looks at the whole batch, an entry a lane; what it could hold besides costs no more than that. What a step without further
 * rows does not need is called.
 */
#include "plan.cuh"

/* The work of all rows of a unit whose row 0 has been planned, and their chunks. */
DEV_CALL void put_rows(const prhs_k_plan &a, const prhs_quotient &by_block, byte *const mem[], int index, int b, int u)
{
    const entry e = entry_of(a.batch, mem[PRHS_R_SEQS], index);
    const plan_job j = { a, mem, e, b, u, by_block };
    __syncwarp(); /* the first lane wrote the set */
    const prhs_set set = *set_at(mem[PRHS_R_WORK], a.work, a.shape, b, u);
    const bool shares = set.mode == PRHS_MODE_SHARE;
    const bool own = a.policy.gate == PRHS_K_GATE_COSINE && (shares || set.mode == PRHS_MODE_RETRIEVE);
    const bool judged = a.policy.gate == PRHS_K_GATE_MASS && shares;
    const float *ref = shares ? SLOT_AT(mem[PRHS_R_STATE], a.state, qref_off, e.slot, float) : nullptr;
    int *work = INTS(mem[PRHS_R_WORK], a.work.work_off) + (i64)b * a.batch.rows * a.shape.units + u;
    int now = 0, later = 0; /* chunks in the first attend, and in that after the mass gate's verdict: only row 0 comes before it */
    for (int first = 0; first < a.batch.rows; first += 32) {
        const int r = first + lane_id();
        int w = first_work(j, set.mode, r);
        if (own && failed_rows(j, first, ref) >> lane_id() & 1)
            w = PRHS_WORK_ALL;
        if (r < a.batch.rows)
            work[(i64)r * a.shape.units] = w;
        const int chunks = attend_chunks(a.work, work_tokens(set, w, e.pos0 + r));
        now += judged && r > 0 ? 0 : chunks;
        later += judged && r > 0 ? chunks : 0;
    }
    now = warp_sum_int(now);
    later = warp_sum_int(later);
    if (lane_id())
        return;
    int *attend = INTS(mem[PRHS_R_WORK], a.work.attend_count_off) + b * a.shape.units + u;
    attend[0] = set.mode == PRHS_MODE_RETRIEVE ? 0 : now;
    attend[a.batch.max_seqs * a.shape.units] = later;
}

/* Unit i, of no active sequence. */
DEV void put_idle(const prhs_k_plan &a, byte *ws, int i, int b)
{
    const prhs_k_work &w = a.work;
    const int units = a.shape.units, all = a.batch.max_seqs * units, u = i - b * units;
    const prhs_seq none = { -1, 0, 0, 0, 0, 0, { 0, 0 } };
    int *attend = INTS(ws, w.attend_count_off) + i, *score = INTS(ws, w.score_count_off) + i;
    store_set((prhs_set *)(ws + w.set_off) + i, idle_set());
#pragma unroll 1
    for (int r = 0; r < a.batch.rows; r++)
        INTS(ws, w.work_off)[((i64)b * a.batch.rows + r) * units + u] = PRHS_WORK_NONE;
    for (int pass = 0; pass < PRHS_PASSES; pass++)
        attend[pass * all] = 0;
    score[0] = 0;
    if (w.judge_off != PRHS_NONE)
        score[all] = 0;
    if (u == 0)
        active_at(ws, w)[b] = none;
}

/* --- the batch --- */

/* The lane's entry of 32 from `first` on; idle past the last. */
DEV prhs_seq look_at(const prhs_k_batch &k, const byte *seqs, int first)
{
    prhs_seq s = { -1, 0, 0, 0, 0, 0, { 0, 0 } };
    if (first + lane_id() < k.max_seqs)
        s = *seq_at(k, seqs, first + lane_id());
    return s;
}

/* The index of bit n of those that are set; by a whole warp. */
DEV int find_bit(unsigned word, int n)
{
    const unsigned mine = 1u << lane_id();
    return __ffs((int)__ballot_sync(FULL, word & mine && __popc(word & (mine - 1)) == n)) - 1;
}

/* Lane `from`'s entry, which decodes or seeds, for the whole warp. */
DEV entry entry_at(const prhs_seq &s, int from, int first)
{
    entry e = { __shfl_sync(FULL, s.slot, from), __shfl_sync(FULL, s.flags, from), __shfl_sync(FULL, s.kv_len, from),
                __shfl_sync(FULL, s.row_count, from), 0, __shfl_sync(FULL, s.row_begin, from), DECODE, 1, first + from, 0, 0 };
    e.row0 = e.row_begin;
    e.pos0 = e.kv_len - e.row_count;
    if (e.flags & PRHS_SEQ_SEED) {
        e.kind = SEED;
        e.row0 += e.row_count - 1;
        e.pos0 = e.kv_len - 1;
    }
    return e;
}

/* What the batch holds. */
struct look {
    unsigned decoding, copied, rest; /* entries: active in what follows; whose only row append_one() copies; that append_rest() looks at */
};

DEV look look_around(const prhs_cu_prepare &p, const prhs_seq &s)
{
    const prhs_k_batch &k = p.plan.batch;
    const bool ok = seq_ok(k, &s), plain = !(s.flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED));
    const bool copied = ok && plain && s.row_count == 1 && p.copies == PRHS_COPIES_ONLY, seeds = s.flags & PRHS_SEQ_SEED;
    look l = { __ballot_sync(FULL, ok && (seeds || (plain && s.row_count <= k.rows))), 0, 0 };
    if (p.appends) {
        l.copied = __ballot_sync(FULL, copied);
        l.rest = __ballot_sync(FULL, s.slot >= 0 && s.row_count != 0 && !copied);
    }
    return l;
}

template <int T> DEV void append_item(const prhs_cu_prepare &p, const prhs_seq &s, int b, int hk)
{
    const prhs_k_append &a = p.append;
    const bool alone = seq_ok(a.batch, &s) && !(s.flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) && s.row_count == 1;
    if (T != PRHS_K_F32 && alone && p.copies == PRHS_COPIES_SUM && append_and_sum<T>(a, p.mem, b, s.slot, s.row_begin, s.kv_len - 1, hk))
        return;
    append_by_warp<T>(a, p.mem, b, hk);
}

/* All entries for which it does not, in turns; the warp's first item is `first`. */
DEV_CALL void append_rest(const prhs_cu_prepare &p, int first)
{
    const prhs_k_append &a = p.append;
    const int heads = a.shape.kv_heads;
#pragma unroll 1
    for (int i = first; i < a.batch.max_seqs * heads; i += gridDim.x * 4) {
        const int b = quotient_by{ p.by_kv_heads }.of(i), hk = i - b * heads;
        const prhs_seq s = *seq_at(a.batch, p.mem[PRHS_R_SEQS], b);
        if (s.slot < 0 || s.row_count == 0 || look_around(p, s).copied)
            continue;
        if (a.kv.dtype == PRHS_K_F32)
            append_item<PRHS_K_F32>(p, s, b, hk);
        else if (a.kv.dtype == PRHS_K_F16)
            append_item<PRHS_K_F16>(p, s, b, hk);
        else
            append_item<PRHS_K_BF16>(p, s, b, hk);
    }
}

KERNEL(prhs_prepare, prhs_cu_prepare, 128, 3)
{
    grid_begin(p);
    const prhs_k_plan &a = p.plan;
    const int units = a.shape.units, heads = a.shape.kv_heads, seqs = a.batch.max_seqs;
    const int warps = gridDim.x * 4, warp = blockIdx.x * 4 + warp_id();
    int active = 0, taken = 0, i = warp; /* i: counted from the items of the entries that are looked at */
    unsigned rest = 0;
    prhs_seq next = look_at(a.batch, p.mem[PRHS_R_SEQS], 0);
#pragma unroll 1
    for (int first = 0; first < seqs; first += 32) {
        const prhs_seq s = next;
        if (first + 32 < seqs)
            next = look_at(a.batch, p.mem[PRHS_R_SEQS], first + 32);
        const look l = look_around(p, s);
        const int plans = __popc(l.decoding) * units, items = plans + __popc(l.copied) * heads;
        rest |= l.rest;
#pragma unroll 1
        for (; i < items; i += warps) {
            const bool plan = i < plans;
            const int j = plan ? i : i - plans, nth = plan ? quotient_by{ p.by_units }.of(j) : quotient_by{ p.by_kv_heads }.of(j);
            const int from = find_bit(plan ? l.decoding : l.copied, nth);
            const entry e = entry_at(s, from, first);
            if (!plan) {
                append_one(p.append, p.mem, e, j - nth * heads);
                continue;
            }
            plan_unit(a, p.by_block, p.mem, e, active + nth, j - nth * units);
            if (a.batch.rows > 1)
                put_rows(a, p.by_block, p.mem, e.table, active + nth, j - nth * units);
        }
        i -= items;
        taken += items;
        active += __popc(l.decoding);
    }
    const int least = active * units, most = min(seqs * units, PRHS_AHEAD);
    /* By the last blocks first: the first ones have units to plan. */
#pragma unroll 1
    for (int k = least + (gridDim.x - 1 - blockIdx.x) * 128 + threadIdx.x; k < most; k += gridDim.x * 128)
        put_idle(a, p.mem[PRHS_R_WORK], k, quotient_by{ p.by_units }.of(k));
    if (blockIdx.x == 0 && threadIdx.x <= PRHS_TICKETS) /* after the number of active ones: the tickets */
        INTS(p.mem[PRHS_R_WORK], a.work.active_off)[threadIdx.x] = threadIdx.x ? 0 : active;
    if (rest) { /* first by the warps that had nothing to do so far */
        const int at = warp - taken % warps;
        append_rest(p, at < 0 ? at + warps : at);
    }
}
