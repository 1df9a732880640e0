/* SPDX-License-Identifier: Apache-2.0 */
/* How a unit is served in a step, and what a row that comes alone is appended by: each by a warp. */
#ifndef PRHS_PLAN_CUH
#define PRHS_PLAN_CUH

#include "append.cuh"
#include "gate.cuh"

#define HEADS GATE_HEADS
#define FORESEEN 2 /* whose rows are in flight together with what a verdict rests on */

struct plan_job {
    const prhs_k_plan &a;
    byte *const *mem;
    const entry &e;
    int b; /* the sequence's place among the active ones */
    int u;
    const prhs_quotient &by_block;
};

/* cos(row r, reference) > tau for all heads of the unit; ref null: against row 0. */
DEV bool cosines_hold(const plan_job &j, int r, const float *ref)
{
    const prhs_k_plan &a = j.a;
    const int heads = a.shape.unit_heads, h0 = j.u * heads;
    return least_cosine(a.q, j.mem[PRHS_R_Q], j.e.row0 + r, j.e.row0, h0, heads, a.shape.dim, ref ? ref + (i64)h0 * a.shape.dim : ref) > a.policy.tau;
}

/* Four floats of the state, which are aligned, where the lane has channels; else zeros. */
DEV void state_channels(const byte *p, bool real, float x[4])
{
    float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (real)
        y = *(const float4 *)p;
    x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
}

/* Four channels of N rows as they lie in memory; rows are `step` bytes apart, those after row `last` are that one. */
template <int N> struct raw_rows {
    uint2 w[N][2];
};

template <int N> DEV raw_rows<N> load_rows(int dtype, const byte *p, i64 step, int last, bool real)
{
    raw_rows<N> r;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const uint2 *at = (const uint2 *)(p + steps((unsigned)min(k, last), step));
        r.w[k][0] = r.w[k][1] = make_uint2(0, 0);
        if (real)
            r.w[k][0] = at[0];
        if (real && dtype == PRHS_K_F32)
            r.w[k][1] = at[1];
    }
    return r;
}

template <int N> DEV void floats_of_rows(int dtype, const raw_rows<N> &r, evidence v[N])
{
#pragma unroll
    for (int k = 0; k < N; k++) {
        const unsigned x = r.w[k][0].x, y = r.w[k][0].y;
        if (dtype == PRHS_K_F32) {
            v[k].q[0] = __uint_as_float(x), v[k].q[1] = __uint_as_float(y);
            v[k].q[2] = __uint_as_float(r.w[k][1].x), v[k].q[3] = __uint_as_float(r.w[k][1].y);
        } else {
            const float2 a = dtype == PRHS_K_F16 ? half2_floats(x) : bf162_floats(x);
            const float2 b = dtype == PRHS_K_F16 ? half2_floats(y) : bf162_floats(y);
            v[k].q[0] = a.x, v[k].q[1] = a.y, v[k].q[2] = b.x, v[k].q[3] = b.y;
        }
    }
}

/* What a head's verdict will rest on; f: of all lanes. */
DEV head_record foreseen(const prhs_k_plan &a, const finding &f, float l_dropped, float delta, float spread)
{
    const float judged = l_dropped + channel_shift(f, a.shape.scale), known = l_dropped + dropped_shift(f, spread, a.shape.scale);
    const bool none = l_dropped == NOTHING;
    return head_record{ none ? NOTHING : judged, none ? NOTHING : known,
                        limit_of(judged, a.policy.eps + (a.policy.least > 0 ? 0.0f : delta)), 0 };
}

/*
 * cos(row 0, its reference) > tau for heads [i, i + N) of the unit, as far as it has them (the last one stands for those it has not).
 * FORESEE: with what the mass gate's verdicts will rest on.
 */
template <int N, bool FORESEE> DEV bool heads_hold(const plan_job &j, const byte *slot, int i)
{
    const int S = FORESEE ? 8 : 4, APART = 32 / (N * S), lane = lane_id(), EACH_HEAD = 32 / N, first = lane & (32 - EACH_HEAD);
    const prhs_k_plan &a = j.a;
    const int heads = a.shape.unit_heads, dim = a.shape.dim, h0 = j.u * heads, mine = h0 + min(i + first / EACH_HEAD, heads - 1);
    const unsigned row = (unsigned)dim * 4u;
    const int size = element(a.q.dtype), last = heads - 1 - i;
    const byte *ref = slot + a.state.qref_off + steps((unsigned)(h0 + i), row);
    const byte *moments = slot + a.state.moment_off + steps((unsigned)(h0 + i), 2 * row);
    const byte *q = j.mem[PRHS_R_Q] + a.q.off + (steps((unsigned)j.e.row0, a.q.row) + steps((unsigned)(h0 + i), a.q.head)) * size;
    float sums[N * S], l_dropped = 0.0f, delta = 0.0f, spread = 0.0f;
#pragma unroll
    for (int k = 0; k < N * S; k++)
        sums[k] = 0.0f;
    if (FORESEE) {
        const float2 known = *(const float2 *)(slot + a.state.head_off + (unsigned)mine * (unsigned)sizeof(prhs_head_ref));
        l_dropped = known.x, delta = known.y;
        spread = *(const float *)(slot + a.state.spread_off + (unsigned)mine * 8u);
    }
#pragma unroll 1
    for (int base = 0; base < dim; base += GATE_BLOCK) {
        evidence v[N];
        const int c = base + lane * 4;
        const bool real = c < dim;
        const raw_rows<N> raw = load_rows<N>(a.q.dtype, q + c * size, a.q.head * size, last, real);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const size_t at = (size_t)(unsigned)min(k, last) * row + (unsigned)c * 4u;
            state_channels(ref + at, real, v[k].ref);
            if (FORESEE) {
                const byte *m = moments + (size_t)(unsigned)min(k, last) * (2 * row) + (unsigned)c * 4u;
                state_channels(m, real, v[k].mean);
                state_channels(m + row, real, v[k].var);
            }
        }
        floats_of_rows<N>(a.q.dtype, raw, v);
#pragma unroll
        for (int k = 0; k < N; k++) {
            finding f = { { sums[k * S], sums[k * S + 1], sums[k * S + 2] } };
            if (FORESEE) {
                f.linear = sums[k * S + 3 % S], f.square = sums[k * S + 4 % S], f.cross = sums[k * S + 5 % S];
                f.whole = sums[k * S + 6 % S];
                add_evidence(v[k], &f);
                sums[k * S + 3 % S] = f.linear, sums[k * S + 4 % S] = f.square, sums[k * S + 5 % S] = f.cross;
                sums[k * S + 6 % S] = f.whole;
            } else {
                add_angle(v[k].q, v[k].ref, &f.cosine);
            }
            sums[k * S] = f.cosine.ab, sums[k * S + 1] = f.cosine.aa, sums[k * S + 2] = f.cosine.bb;
        }
    }
    const float sum = scattered_sums<N * S>(sums);
    /* Every other lane has a root of its own to take. */
    const float ab = __shfl_sync(FULL, sum, first), root = sqrtf(__shfl_sync(FULL, sum, first + (1 + (lane & 1)) * APART));
    const float other = __shfl_xor_sync(FULL, root, 1), cosine = root == 0.0f || other == 0.0f ? 0.0f : ab / (root * other);
    if (FORESEE) {
        finding f = { { ab, 0.0f, __shfl_sync(FULL, sum, first + 2 * APART) } };
        f.linear = __shfl_sync(FULL, sum, first + 3 * APART), f.square = __shfl_sync(FULL, sum, first + 4 * APART);
        f.cross = __shfl_sync(FULL, sum, first + 5 * APART), f.whole = __shfl_sync(FULL, sum, first + 6 * APART);
        if (lane == first && (N == 1 || i + first / EACH_HEAD < heads))
            records_at(j.mem[PRHS_R_WORK], a.work)[j.b * a.shape.heads + mine] = foreseen(a, f, l_dropped, delta, spread);
    }
    return __all_sync(FULL, cosine > a.policy.tau);
}

/* The same for all heads of the unit. */
template <bool FORESEE> DEV bool unit_holds(const plan_job &j, const byte *slot)
{
    if (j.a.shape.unit_heads == 1)
        return heads_hold<1, FORESEE>(j, slot, 0);
    const int N = FORESEE ? FORESEEN : HEADS;
    bool holds = true;
#pragma unroll 1
    for (int i = 0; i < j.a.shape.unit_heads; i += N)
        holds = heads_hold<N, FORESEE>(j, slot, i) && holds;
    return holds;
}

DEV void add_one(prhs_i64 *count, int n) { atomicAdd((u64 *)count, (u64)n); }

DEV prhs_unit_stat *unit_stat(const plan_job &j)
{
    return STAT_AT(j.mem[PRHS_R_STATE], j.a.state, unit_stat_off, j.e.slot, prhs_unit_stat) + j.u;
}

DEV prhs_set all_of(const entry &e) { return prhs_set{ PRHS_MODE_DENSE, 0, 0, 0, 0, 1, 0, e.kv_len, 0, 0, { 0, 0 } }; }

/* SHARE or RETRIEVE, of another layer's list COPY or DENSE: *set holds the fresh set and becomes the shared one. */
DEV void decide(const plan_job &j, prhs_set *set)
{
    const prhs_k_policy &p = j.a.policy;
    const byte *slot = j.mem[PRHS_R_STATE] + steps(j.e.slot, j.a.state.slot_bytes);
    const byte *unit = slot + j.a.state.unit_off + (unsigned)j.u * (unsigned)sizeof(prhs_unit_state);
    /* The cosine before it is known whether it matters: its rows come together with the state. */
    const uint4 s0 = ((const uint4 *)unit)[0], s1 = ((const uint4 *)unit)[1], s2 = ((const uint4 *)unit)[2];
    const int ref_pos = ((const prhs_unit_state *)unit)->ref_pos;
    const bool holds = p.gate == PRHS_K_GATE_NONE || (p.gate == PRHS_K_GATE_MASS ? unit_holds<true>(j, slot) : unit_holds<false>(j, slot));
    const int t = j.e.pos0, mid = set->mid_end;
    /* The set's own numbers are never below zero: they are looked at so that they, too, are read above. */
    if (p.copies)
        *set = all_of(j.e);
    if (((int)(s0.y | s1.x | s2.y) < 0) | (ref_pos < 0) | (ref_pos >= t + p.copies))
        return;
    const quotient_by block = { j.by_block };
    if (block.of(ref_pos + p.layer) != block.of(t + p.layer))
        return;
    if (!holds) {
        if (lane_id() == 0)
            add_one(&unit_stat(j)->cosine_failed, 1);
        return;
    }
    /* attend looks at the list next. */
    const int *list = (const int *)(slot + j.a.state.list_off) + steps((unsigned)j.u, j.a.state.list_cap);
    for (int i = lane_id() * 32; i < (int)s1.x; i += 1024)
        bring_closer(list + i);
    *set = prhs_set{ p.copies ? PRHS_MODE_COPY : PRHS_MODE_SHARE, (int)s0.y, (int)s0.z, (int)s0.w, (int)s1.x, (int)s1.y, (int)s1.z, j.e.kv_len, (int)s2.x, (int)s2.y,
                     { (int)s2.z, (int)s2.w } };
    if (p.gate == PRHS_K_GATE_NONE) {
        set->mid_end = mid;
        if (set->win_begin > set->mid_begin) /* the middle had a whole run: else all of it stays attended */
            set->win_begin = mid / p.run * p.run;
    }
}

/* Rows [first, first + 32) whose own cosine fails, a bit each. Row 0 has been judged. */
DEV unsigned failed_rows(const plan_job &j, int first, const float *ref)
{
    unsigned failed = 0;
    for (int r = max(first, 1); r < min(first + 32, j.e.rows); r++)
        failed |= cosines_hold(j, r, ref) ? 0 : 1u << (r - first);
    if (failed && lane_id() == 0)
        add_one(&unit_stat(j)->rows_dense, __popc(failed));
    return failed;
}

DEV prhs_set idle_set() { return prhs_set{ PRHS_MODE_IDLE, 0, 0, 0, 0, 1, 0, 0, 0, 0, { 0, 0 } }; }

DEV prhs_seq *active_at(byte *ws, const prhs_k_work &w) { return (prhs_seq *)(ws + w.active_off + PRHS_ACTIVE); }

/* What row r does, its cosine apart. */
DEV int first_work(const plan_job &j, int mode, int r)
{
    if (r >= j.e.rows || mode == PRHS_MODE_IDLE)
        return PRHS_WORK_NONE;
    return mode == PRHS_MODE_DENSE ? PRHS_WORK_ALL : PRHS_WORK_SET;
}

/* Work and chunks of row 0, as if there were no others. */
DEV int put_work(const plan_job &j, const prhs_set &set)
{
    const prhs_k_plan &a = j.a;
    const int w = first_work(j, set.mode, 0);
    if (lane_id() == 0)
        INTS(j.mem[PRHS_R_WORK], a.work.work_off)[(unsigned)(j.b * a.batch.rows * a.shape.units + j.u)] = w;
    return attend_chunks(a.work, work_tokens(set, w, j.e.pos0));
}

/* Three words of 16 bytes. */
DEV void store_set(prhs_set *to, const prhs_set &s)
{
    uint4 *w = (uint4 *)to;
    w[0] = make_uint4((unsigned)s.mode, (unsigned)s.sink_end, (unsigned)s.edge_begin, (unsigned)s.edge_end);
    w[1] = make_uint4((unsigned)s.count, (unsigned)s.run, (unsigned)s.win_begin, (unsigned)s.end);
    w[2] = make_uint4((unsigned)s.mid_begin, (unsigned)s.mid_end, (unsigned)s.reserved[0], (unsigned)s.reserved[1]);
}

/* What the kernels that follow take turns over. */
DEV void put_counts(const plan_job &j, const prhs_set &set, const prhs_set &fresh, int chunks)
{
    const prhs_k_work &w = j.a.work;
    byte *ws = j.mem[PRHS_R_WORK];
    const int units = j.a.batch.max_seqs * j.a.shape.units, i = j.b * j.a.shape.units + j.u;
    const bool retrieves = set.mode == PRHS_MODE_RETRIEVE, judged = set.mode == PRHS_MODE_SHARE && j.a.policy.gate == PRHS_K_GATE_MASS;
    const int candidates = retrieves || judged ? score_chunks(w, j.e.pos0 + 1) : 0;
    int *attend = INTS(ws, w.attend_count_off) + i, *score = INTS(ws, w.score_count_off) + i;
    attend[0] = retrieves ? 0 : chunks; /* a unit that retrieves is counted when its list is known */
    for (int pass = 1; pass < PRHS_PASSES; pass++)
        attend[pass * units] = 0;
    score[0] = retrieves ? candidates : 0;
    if (w.judge_off == PRHS_NONE)
        return;
    score[units] = judged ? -candidates : candidates;
    if (candidates)
        store_set((prhs_set *)(ws + w.fresh_off) + i, fresh);
}

/* The unit's set, work and counts; returns the set. */
DEV prhs_set put_plan(const plan_job &j)
{
    const prhs_k_plan &a = j.a;
    prhs_set set = fresh_set(a.policy, j.e.pos0, j.e.kv_len);
    if (j.e.kind == SEED && (set.mode != PRHS_MODE_RETRIEVE || a.policy.copies))
        set = idle_set();
    const prhs_set fresh = set;
    if (j.e.kind == DECODE && set.mode == PRHS_MODE_RETRIEVE)
        decide(j, &set);
    const int chunks = put_work(j, set);
    if (lane_id() == 0) {
        store_set((prhs_set *)(j.mem[PRHS_R_WORK] + a.work.set_off) + (unsigned)(j.b * a.shape.units + j.u), set);
        put_counts(j, set, fresh, chunks);
    }
    return set;
}

/* Unit u of the sequence that has place b among the active ones. */
DEV void plan_unit(const prhs_k_plan &a, const prhs_quotient &by_block, byte *const mem[], const entry &e, int b, int u)
{
    put_plan(plan_job{ a, mem, e, b, u, by_block });
    byte *ws = mem[PRHS_R_WORK];
    if (u == 0 && lane_id() == 0) {
        uint4 *to = (uint4 *)(active_at(ws, a.work) + b);
        const int prompt_len = seq_at(a.batch, mem[PRHS_R_SEQS], e.table)->prompt_len;
        to[0] = make_uint4((unsigned)e.slot, (unsigned)e.row_begin, (unsigned)e.row_count, (unsigned)e.kv_len);
        to[1] = make_uint4((unsigned)e.flags, (unsigned)prompt_len, (unsigned)e.table, 0);
    }
}

/* --- append --- */

/* A row's K by half of the warp, its V by the other one. */
DEV void append_one(const prhs_k_append &a, byte *const mem[], const entry &e, int hk)
{
    const prhs_k_kv &kv = a.kv;
    const bool v = lane_id() >= 16;
    const int size = element(kv.dtype), bytes = a.shape.dim * size;
    const int *pages = pages_of(a.batch, mem[PRHS_R_PAGES], e.table);
    const unsigned page = page_index(kv, e.pos0), in = (unsigned)e.pos0 - page * (unsigned)kv.page_size;
    const int id = pages[page];
    const byte *from = v ? row_at(a.v, mem[PRHS_R_VIN], e.row0, hk) : row_at(a.k, mem[PRHS_R_KIN], e.row0, hk);
    byte *to = v ? mem[PRHS_R_V] + kv.v_off : mem[PRHS_R_K] + kv.k_off;
    if (hk == 0) /* attend looks at the pages next */
        for (unsigned i = lane_id() * 32; i < page; i += 1024)
            bring_closer(pages + i);
    const unsigned clamped = page_id(kv, id);
    to += (steps(clamped, v ? kv.v_page : kv.k_page) + steps(in, v ? kv.v_token : kv.k_token) +
           steps((unsigned)hk, v ? kv.v_head : kv.k_head)) *
          size;
#pragma unroll 1
    for (int c = (lane_id() & 15) * 16; c < bytes; c += 256)
        *(uint4 *)(to + c) = load_stream(from + c);
}

/* The same, and V into the sums. False: these have missed rows, which append_by_warp() makes up for. */
template <int T> DEV bool append_and_sum(const prhs_k_append &a, byte *const mem[], int table, int slot, int row, int pos, int hk)
{
    const prhs_k_kv &kv = a.kv;
    const bool v = lane_id() >= 16;
    const lanes l = { 2, lane_id() >> 4, (lane_id() & 15) * 8, (lane_id() & 15) * 8 < a.shape.dim };
    prhs_value_count *count = SLOT_AT(mem[PRHS_R_STATE], a.state, vcount_off, slot, prhs_value_count) + hk;
    i64 *sum = SLOT_AT(mem[PRHS_R_STATE], a.state, vsum_off, slot, i64) + (i64)hk * a.shape.dim + l.channel;
    const int *pages = pages_of(a.batch, mem[PRHS_R_PAGES], table);
    /* What is there already comes together with the row and its page. */
    const int counted = count->rows, nonfinite = count->nonfinite;
    kept_sums kept = {};
    if (v && l.real)
        kept = load_sums(sum);
    const byte *from = v ? row_at(a.v, mem[PRHS_R_VIN], row, hk) : row_at(a.k, mem[PRHS_R_KIN], row, hk);
    const raw8<T> raw = l.real ? load_raw<T>(from + l.channel * 2) : zero_raw<T>();
    const place to = place_of(kv, pages, pos, hk);
    if (hk == 0) /* attend looks at the pages next */
        for (unsigned i = lane_id() * 32; i < page_index(kv, pos); i += 1024)
            bring_closer(pages + i);
    if (l.real)
        store_raw<T>((v ? mem[PRHS_R_V] + to.v : mem[PRHS_R_K] + to.k) + l.channel * 2, raw);
    if (counted != pos)
        return counted > pos;
    summed s = nothing_summed();
    sum_row<T>(l, raw, v, &s);
    if (v && l.real)
        store_sums(sum, kept, s);
    if (v && l.channel == 0)
        *count = prhs_value_count{ pos + 1, nonfinite + s.nonfinite };
    return true;
}

#endif
