/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prepare: which sequences are active, how each of their units is served in this step and what its rows do first; and in decode batches
 * append, which shares the launch because neither reads what the other writes. A warp a (sequence, unit), then a warp a (sequence, KV head).
 * Every block looks at the whole batch; what it could hold besides costs no more than that.
 */
#include "append.cuh"
#include "gate.cuh"

#define HEADS 4    /* whose rows are in flight together */
#define FORESEEN 2 /* the same with what a verdict rests on */

/* What the batch holds: a bit an entry of LOOK of them. */
#define LOOKS 4 /* entries a thread */
#define LOOK (128 * LOOKS)
struct look {
    unsigned decoding[LOOK / 32], arriving[LOOK / 32]; /* active in what follows; with rows that append has to look at */
};

struct plan_job {
    const prhs_k_plan &a;
    byte *const *mem;
    const entry &e;
    i64 b; /* the sequence's place among the active ones */
    int u;
};

/* cos(row r, reference) > tau for all heads of the unit; ref null: against row 0. */
DEV bool cosines_hold(const plan_job &j, int r, const float *ref)
{
    const prhs_k_plan &a = j.a;
    const int heads = a.shape.unit_heads, dim = a.shape.dim, h0 = j.u * heads;
    bool holds = true;
    for (int i = 0; i < heads; i += HEADS) {
        angle sums[HEADS] = {};
        for (int base = 0; base < dim; base += GATE_BLOCK) {
            float x[HEADS][4], y[HEADS][4];
#pragma unroll
            for (int k = 0; k < HEADS; k++) {
                const int h = h0 + i + k;
                if (i + k >= heads)
                    break;
                lane_channels(a.q, j.mem[PRHS_R_Q], j.e.row0 + r, h, dim, base, x[k]);
                if (ref)
                    lane_floats(ref + (i64)h * dim, dim, base, y[k]);
                else
                    lane_channels(a.q, j.mem[PRHS_R_Q], j.e.row0, h, dim, base, y[k]);
            }
#pragma unroll
            for (int k = 0; k < HEADS && i + k < heads; k++)
                add_angle(x[k], y[k], &sums[k]);
        }
#pragma unroll
        for (int k = 0; k < HEADS && i + k < heads; k++)
            holds = whole_cosine(sums[k]) > a.policy.tau && holds;
    }
    return holds;
}

/* The same of row 0 and its reference, with what the mass gate's verdicts will rest on. */
DEV bool foresee(const plan_job &j)
{
    const prhs_k_plan &a = j.a;
    const int heads = a.shape.unit_heads, dim = a.shape.dim, h0 = j.u * heads;
    const float *ref = SLOT_AT(j.mem[PRHS_R_STATE], a.state, qref_off, j.e.slot, float);
    const float *moments = SLOT_AT(j.mem[PRHS_R_STATE], a.state, moment_off, j.e.slot, float);
    const prhs_head_ref *refs = SLOT_AT(j.mem[PRHS_R_STATE], a.state, head_off, j.e.slot, prhs_head_ref) + h0;
    float4 *record = (float4 *)(j.mem[PRHS_R_WORK] + a.work.judge_off) + j.b * a.shape.heads + h0;
    bool holds = true;
    for (int i = 0; i < heads; i += FORESEEN) {
        finding f[FORESEEN] = {};
        prhs_head_ref known[FORESEEN];
        for (int base = 0; base < dim; base += GATE_BLOCK) {
            evidence v[FORESEEN];
#pragma unroll
            for (int k = 0; k < FORESEEN; k++) {
                const int h = h0 + i + k;
                if (i + k >= heads)
                    break;
                lane_channels(a.q, j.mem[PRHS_R_Q], j.e.row0, h, dim, base, v[k].q);
                load_references(ref + (i64)h * dim, moments + (i64)h * 2 * dim, dim, base, &v[k]);
                known[k] = refs[i + k];
            }
#pragma unroll
            for (int k = 0; k < FORESEEN && i + k < heads; k++)
                add_evidence(v[k], &f[k]);
        }
#pragma unroll
        for (int k = 0; k < FORESEEN && i + k < heads; k++) {
            const float shift = dropped_shift(f[k], a.shape.scale);
            holds = whole_cosine(f[k].cosine) > a.policy.tau && holds;
            if (lane_id() == 0)
                record[i + k] = make_float4(known[k].l_dropped, shift, known[k].delta, a.policy.eps);
        }
    }
    return holds;
}

DEV void add_one(prhs_i64 *count, int n) { atomicAdd((u64 *)count, (u64)n); }

DEV prhs_unit_stat *unit_stat(const plan_job &j)
{
    return STAT_AT(j.mem[PRHS_R_STATE], j.a.state, unit_stat_off, j.e.slot, prhs_unit_stat) + j.u;
}

/* SHARE or RETRIEVE: *set holds the fresh set and becomes the shared one. Returns the reference in force, null: row 0. */
DEV const float *decide(const plan_job &j, prhs_set *set)
{
    const prhs_k_policy &p = j.a.policy;
    const prhs_unit_state *unit = SLOT_AT(j.mem[PRHS_R_STATE], j.a.state, unit_off, j.e.slot, prhs_unit_state) + j.u;
    const float *ref = SLOT_AT(j.mem[PRHS_R_STATE], j.a.state, qref_off, j.e.slot, float);
    /* The cosine before it is known whether it matters: its rows come together with the state. */
    const prhs_unit_state st = *unit;
    const bool holds = p.gate == PRHS_K_GATE_NONE || (p.gate == PRHS_K_GATE_MASS ? foresee(j) : cosines_hold(j, 0, ref));
    const int t = j.e.pos0, mid = set->mid_end;
    if (st.ref_pos < 0 || st.ref_pos >= t || (st.ref_pos + p.layer) / p.block != (t + p.layer) / p.block)
        return nullptr;
    if (!holds) {
        if (lane_id() == 0)
            add_one(&unit_stat(j)->cosine_failed, 1);
        return nullptr;
    }
    *set = st.set;
    set->mode = PRHS_MODE_SHARE;
    set->end = j.e.kv_len;
    if (p.gate == PRHS_K_GATE_NONE) {
        set->mid_end = mid;
        if (set->win_begin > set->mid_begin) /* the middle had a whole run: else all of it stays attended */
            set->win_begin = mid / p.run * p.run;
    }
    return ref;
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

DEV prhs_seq *active_at(byte *ws, const prhs_k_work &w) { return (prhs_seq *)(ws + w.active_off + 16); }

/* What row r does, its cosine apart. */
DEV int first_work(const plan_job &j, int mode, int r)
{
    if (r >= j.e.rows || mode == PRHS_MODE_IDLE)
        return PRHS_WORK_NONE;
    return mode == PRHS_MODE_DENSE ? PRHS_WORK_ALL : PRHS_WORK_SET;
}

/* Chunks of the unit's rows in the first attend, and in that after the mass gate's verdict: only row 0 comes before it. */
struct counted {
    int first, later;
};

/* Writes the work of all rows. */
DEV counted put_work(const plan_job &j, const prhs_set &set, const float *ref)
{
    const prhs_k_plan &a = j.a;
    const bool listed = set.mode == PRHS_MODE_SHARE || set.mode == PRHS_MODE_RETRIEVE, own = a.policy.gate == PRHS_K_GATE_COSINE && listed;
    const bool judged = a.policy.gate == PRHS_K_GATE_MASS && set.mode == PRHS_MODE_SHARE;
    int *work = INTS(j.mem[PRHS_R_WORK], a.work.work_off) + j.b * a.batch.rows * a.shape.units + j.u;
    counted c = { 0, 0 };
    for (int first = 0; first < a.batch.rows; first += 32) {
        const int r = first + lane_id();
        int w = first_work(j, set.mode, r);
        if (own && failed_rows(j, first, ref) >> lane_id() & 1)
            w = PRHS_WORK_ALL;
        if (r < a.batch.rows)
            work[(i64)r * a.shape.units] = w;
        const int chunks = attend_chunks(a.work, work_tokens(set, w, j.e.pos0 + r));
        c.first += judged && r > 0 ? 0 : chunks;
        c.later += judged && r > 0 ? chunks : 0;
    }
    return counted{ warp_sum_int(c.first), judged ? warp_sum_int(c.later) : 0 };
}

/* What the kernels that follow take turns over. */
DEV void put_counts(const plan_job &j, const prhs_set &set, const prhs_set &fresh, const counted &c)
{
    const prhs_k_work &w = j.a.work;
    byte *ws = j.mem[PRHS_R_WORK];
    const i64 units = (i64)j.a.batch.max_seqs * j.a.shape.units, i = j.b * j.a.shape.units + j.u;
    const bool retrieves = set.mode == PRHS_MODE_RETRIEVE, judged = set.mode == PRHS_MODE_SHARE && j.a.policy.gate == PRHS_K_GATE_MASS;
    const int candidates = retrieves || judged ? score_chunks(w, j.e.pos0 + 1) : 0;
    int *attend = INTS(ws, w.attend_count_off) + i, *score = INTS(ws, w.score_count_off) + i;
    attend[0] = retrieves ? 0 : c.first; /* a unit that retrieves is counted when its list is known */
    attend[units] = c.later;
    for (int pass = 2; pass < PRHS_PASSES; pass++)
        attend[pass * units] = 0;
    score[0] = retrieves ? candidates : 0;
    if (w.judge_off == PRHS_NONE)
        return;
    score[units] = judged ? -candidates : candidates;
    if (candidates)
        ((prhs_set *)(ws + w.fresh_off))[i] = fresh;
}

/* Unit u of entry `index` of the caller's batch, which has place b among the active ones. */
DEV void plan_unit(const prhs_k_plan &a, byte *const mem[], int index, i64 b, int u)
{
    const entry e = entry_of(a.batch, mem[PRHS_R_SEQS], index);
    const plan_job j = { a, mem, e, b, u };
    const float *ref = nullptr;
    prhs_set set = fresh_set(a.policy, e.pos0, e.kv_len);
    if (e.kind == SEED && set.mode != PRHS_MODE_RETRIEVE)
        set = idle_set();
    const prhs_set fresh = set;
    if (e.kind == DECODE && set.mode == PRHS_MODE_RETRIEVE)
        ref = decide(j, &set);
    const counted c = put_work(j, set, ref);
    if (lane_id())
        return;
    byte *ws = mem[PRHS_R_WORK];
    *set_at(ws, a.work, a.shape, b, u) = set;
    put_counts(j, set, fresh, c);
    if (u == 0) {
        prhs_seq *to = active_at(ws, a.work) + b;
        *to = *seq_at(a.batch, mem[PRHS_R_SEQS], index);
        to->reserved[0] = index;
    }
}

/* Unit i, of no active sequence. */
DEV void put_idle(const prhs_k_plan &a, byte *ws, int i)
{
    const prhs_k_work &w = a.work;
    const int units = a.shape.units, all = a.batch.max_seqs * units, b = i / units, u = i % units;
    const prhs_seq none = { -1, 0, 0, 0, 0, 0, { 0, 0 } };
    int *attend = INTS(ws, w.attend_count_off) + i, *score = INTS(ws, w.score_count_off) + i;
    *set_at(ws, w, a.shape, b, u) = idle_set();
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

/* The block looks at the entries from `first` on. Ends with a barrier. */
DEV void look_around(const prhs_k_batch &k, const byte *seqs, int first, look *l)
{
#pragma unroll
    for (int i = 0; i < LOOKS; i++) {
        const int b = first + i * 128 + threadIdx.x;
        prhs_seq s = { -1, 0, 0, 0, 0, 0, { 0, 0 } };
        if (b < k.max_seqs)
            s = *seq_at(k, seqs, b);
        const unsigned decoding = __ballot_sync(FULL, entry_from(k, s, b).kind != IDLE);
        const unsigned arriving = __ballot_sync(FULL, s.slot >= 0 && s.row_count != 0);
        if (lane_id() == 0) {
            l->decoding[i * 4 + warp_id()] = decoding;
            l->arriving[i * 4 + warp_id()] = arriving;
        }
    }
    __syncthreads();
}

DEV int count_bits(const unsigned words[LOOK / 32])
{
    int n = 0;
#pragma unroll
    for (int i = 0; i < LOOK / 32; i++)
        n += __popc(words[i]);
    return n;
}

/* The index of bit n of those that are set; by a whole warp. */
DEV int find_bit(const unsigned words[LOOK / 32], int n)
{
    int w = 0;
    for (int c; n >= (c = __popc(words[w])); w++)
        n -= c;
    const unsigned word = words[w], mine = 1u << lane_id();
    return w * 32 + __ffs((int)__ballot_sync(FULL, word & mine && __popc(word & (mine - 1)) == n)) - 1;
}

DEV void append_heads(const prhs_k_append &a, byte *const mem[], i64 b, int hk)
{
    if (a.kv.dtype == PRHS_K_F32)
        append_by_warp<PRHS_K_F32>(a, mem, b, hk);
    else if (a.kv.dtype == PRHS_K_F16)
        append_by_warp<PRHS_K_F16>(a, mem, b, hk);
    else
        append_by_warp<PRHS_K_BF16>(a, mem, b, hk);
}

KERNEL(prhs_prepare, prhs_cu_prepare, 128, 3)
{
    __shared__ __align__(16) look l;
    grid_begin();
    const prhs_k_plan &a = p.plan;
    const int units = a.shape.units, heads = a.shape.kv_heads, warps = gridDim.x * 4, all = a.batch.max_seqs * units;
    int active = 0;
    for (int first = 0; first < a.batch.max_seqs; first += LOOK) {
        if (first)
            __syncthreads();
        look_around(a.batch, p.mem[PRHS_R_SEQS], first, &l);
        const int decoding = count_bits(l.decoding), plans = decoding * units, appends = p.appends ? count_bits(l.arriving) * heads : 0;
        for (int i = blockIdx.x * 4 + warp_id(); i < plans + appends; i += warps) {
            if (i < plans)
                plan_unit(a, p.mem, first + find_bit(l.decoding, i / units), active + i / units, i % units);
            else
                append_heads(p.append, p.mem, first + find_bit(l.arriving, (i - plans) / heads), (i - plans) % heads);
        }
        active += decoding;
    }
    for (int i = active * units + blockIdx.x * 128 + threadIdx.x; i < min(all, PRHS_AHEAD); i += gridDim.x * 128)
        put_idle(a, p.mem[PRHS_R_WORK], i);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        INTS(p.mem[PRHS_R_WORK], a.work.active_off)[0] = active;
}
