/* SPDX-License-Identifier: Apache-2.0 */
/*
 * finish: merges a unit's rows, judges those after the first (mass gate), applies the residual, writes outputs, counts, and what the next
 * pass takes turns over. By a block of 128 threads: warps share heads and parts, threads share channels. What is read comes in together as
 * far as it can: first what tells how many parts there are, then the parts and all that the slot remembers.
 */
#ifndef PRHS_FINISH_CUH
#define PRHS_FINISH_CUH

#include "ending.cuh"
#include "gate.cuh"

#define FINISH_THREADS 128
#define FINISH_HEADS 64    /* of a unit, at most */
#define MERGE_FLOATS 512   /* channels that the block merges at a time, of as many heads as they are */
#define MERGE_UNROLL 8     /* parts in flight a thread */

struct finish_shared {
    float acc[4][MERGE_FLOATS]; /* each warp's parts */
    float mass[FINISH_HEADS], weight[FINISH_HEADS], lse[FINISH_HEADS], top[FINISH_HEADS], sum[FINISH_HEADS];
    int holds[4];
};

struct unit_job {
    const prhs_k_finish &a;
    byte *const *mem;
    finish_shared *sh;
    entry e;
    prhs_set set;
    i64 b;
    int u;
};

/* A row of the unit on its way to its end. */
struct row_job {
    int r, work, parts;
    bool judged;   /* by the mass gate, here */
    bool foreseen; /* has been judged by what plan foresaw */
    i64 at;        /* of the first head's parts */
};

/* Work of row 0; rows are units apart. */
DEV int *work_at(const unit_job &x)
{
    return INTS(x.mem[PRHS_R_WORK], x.a.work.work_off) + x.b * x.a.batch.rows * x.a.shape.units + x.u;
}

/* What the unit and its heads remember and count; dense layers have none of these. */
DEV prhs_unit_state *state_at(const unit_job &x)
{
    return SLOT_AT(x.mem[PRHS_R_STATE], x.a.state, unit_off, x.e.slot, prhs_unit_state) + x.u;
}
DEV prhs_head_ref *heads_at(const unit_job &x)
{
    return SLOT_AT(x.mem[PRHS_R_STATE], x.a.state, head_off, x.e.slot, prhs_head_ref) + x.u * x.a.shape.unit_heads;
}
DEV prhs_unit_stat *stat_at(const unit_job &x)
{
    return STAT_AT(x.mem[PRHS_R_STATE], x.a.state, unit_stat_off, x.e.slot, prhs_unit_stat) + x.u;
}
DEV prhs_head_stat *head_stats_at(const unit_job &x)
{
    return STAT_AT(x.mem[PRHS_R_STATE], x.a.state, head_stat_off, x.e.slot, prhs_head_stat) + x.u * x.a.shape.unit_heads;
}

/* --- parts --- */

/* What a thread merges: four channels of a head. */
struct quad {
    const float *o, *lse; /* of part 0 */
    bool real;
};

/* Heads [h0, h0 + merge_heads(dim)) are merged together. */
DEV int merge_heads(int dim) { return MERGE_FLOATS / dim; }

DEV quad quad_of(const unit_job &x, const row_job &row, int h0, int i)
{
    const prhs_k_work &w = x.a.work;
    const int dim = x.a.shape.dim, quads = dim / 4, h = h0 + i / quads;
    const i64 at = row.at + (i64)h * w.chunks;
    byte *ws = x.mem[PRHS_R_WORK];
    return quad{ FLOATS(ws, w.part_off) + at * dim + i % quads * 4, FLOATS(ws, w.part_lse_off) + at,
                 i < merge_heads(dim) * quads && h < x.a.shape.unit_heads };
}

/* A part of a quad; without tokens where there is none. */
struct part_in_flight {
    float4 o;
    float l;
};

DEV part_in_flight load_part(const quad &q, int dim, int part, int parts)
{
    if (!q.real || part >= parts)
        return part_in_flight{ make_float4(0.0f, 0.0f, 0.0f, 0.0f), NOTHING };
    return part_in_flight{ load_shared_result(q.o + (i64)part * dim), __ldcg(q.lse + part) };
}

DEV void add_quad(const part_in_flight &f, float top, float acc[4])
{
    const float w = part_weight(f.l, top);
    const bool counts = f.l != NOTHING;
    add_part(&acc[0], counts, w, f.o.x);
    add_part(&acc[1], counts, w, f.o.y);
    add_part(&acc[2], counts, w, f.o.z);
    add_part(&acc[3], counts, w, f.o.w);
}

/* A thread's first parts of its first quad: asked for early. */
struct first_parts {
    part_in_flight f[2];
};

DEV first_parts load_first_parts(const unit_job &x, const row_job &row)
{
    const quad q = quad_of(x, row, 0, lane_id());
    first_parts p;
#pragma unroll
    for (int k = 0; k < 2; k++)
        p.f[k] = load_part(q, x.a.shape.dim, warp_id() + 4 * k, row.parts);
    return p;
}

/* The warp's parts of heads from h0 on, into shared memory; p: the first ones of its first quad where h0 is 0. */
DEV void merge_parts(const unit_job &x, const row_job &row, int h0, const first_parts &p)
{
    const int dim = x.a.shape.dim, quads = dim / 4, n = min(merge_heads(dim), x.a.shape.unit_heads - h0) * quads;
#pragma unroll 1
    for (int i = lane_id(); i < n; i += 32) {
        const quad q = quad_of(x, row, h0, i);
        const float top = x.sh->top[h0 + i / quads];
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        int first = warp_id();
        if (h0 == 0 && i < 32) {
            add_quad(p.f[0], top, acc);
            add_quad(p.f[1], top, acc);
            first += 8;
        }
#pragma unroll 1
        for (; first < row.parts; first += 4 * MERGE_UNROLL) {
            part_in_flight g[MERGE_UNROLL];
#pragma unroll
            for (int k = 0; k < MERGE_UNROLL; k++)
                g[k] = load_part(q, dim, first + 4 * k, row.parts);
#pragma unroll
            for (int k = 0; k < MERGE_UNROLL; k++)
                add_quad(g[k], top, acc);
        }
        *(float4 *)&x.sh->acc[warp_id()][i * 4] = make_float4(acc[0], acc[1], acc[2], acc[3]);
    }
}

/* --- verdict --- */

/* A block of channels of what a warp judges head h of the row with. */
DEV evidence load_evidence(const unit_job &x, int r, int h, int base)
{
    const prhs_k_finish &a = x.a;
    const int dim = a.shape.dim;
    byte *state = x.mem[PRHS_R_STATE];
    evidence v;
    lane_channels(a.q, x.mem[PRHS_R_Q], x.e.row0 + r, h, dim, base, v.q);
    load_references(SLOT_AT(state, a.state, qref_off, x.e.slot, float) + (i64)h * dim,
                    SLOT_AT(state, a.state, moment_off, x.e.slot, float) + (i64)h * 2 * dim, dim, base, &v);
    return v;
}

/* Log-sum-exp and dropped mass of head i of the row, by a warp. False: it fails the mass gate. */
DEV bool judge_head(const unit_job &x, const row_job &row, int i)
{
    const prhs_k_finish &a = x.a;
    const int mode = x.set.mode;
    const bool sparse = mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE;
    const int h = x.u * a.shape.unit_heads + i;
    float dropped = NOTHING, known = NOTHING, delta = 0.0f, spread = 0.0f;
    if (row.foreseen) {
        const head_record record = records_at(x.mem[PRHS_R_WORK], a.work)[x.b * a.shape.heads + h];
        dropped = record.judged;
        known = record.known;
    } else if (sparse) {
        dropped = heads_at(x)[i].l_dropped;
        delta = heads_at(x)[i].delta;
        if (row.judged)
            spread = SLOT_AT(x.mem[PRHS_R_STATE], a.state, spread_off, x.e.slot, float)[2 * h];
    }
    const float *lse = FLOATS(x.mem[PRHS_R_WORK], a.work.part_lse_off) + row.at + (i64)i * a.work.chunks;
    const lse_parts parts = load_lse(lse, 1, row.parts);
    finding f = {};
    if (row.judged) {
#pragma unroll 1
        for (int base = 0; base < a.shape.dim; base += GATE_BLOCK)
            add_evidence(load_evidence(x, row.r, h, base), &f);
    }
    const weights w = merge_weights(parts, lse, 1, row.parts);
    float mass = 0.0f, weight = 0.0f;
    bool holds = true;
    if (row.judged) {
        f = sum_findings(f);
        const float cosine = cosine_of(f.cosine.ab, f.cosine.aa, f.cosine.bb);
        weight = dropped == NOTHING ? 0.0f : mass_of(dropped + channel_shift(f, a.shape.scale) - w.lse);
        mass = dropped == NOTHING ? 0.0f : mass_of(dropped + dropped_shift(f, spread, a.shape.scale) - w.lse);
        holds = weight - (a.policy.least > 0 ? 0.0f : delta) <= a.policy.eps && cosine > a.policy.tau;
    } else if (row.foreseen) {
        weight = dropped == NOTHING ? 0.0f : mass_of(dropped - w.lse);
        mass = known == NOTHING ? 0.0f : mass_of(known - w.lse);
    } else if (row.r == 0 && mode == PRHS_MODE_RETRIEVE) {
        mass = weight = dropped == NOTHING ? 0.0f : mass_of(dropped - w.lse);
    } else if (row.r == 0 && mode == PRHS_MODE_SHARE) {
        mass = weight = delta;
    }
    if (lane_id() == 0) {
        x.sh->mass[i] = mass;
        x.sh->weight[i] = weight;
        x.sh->lse[i] = w.lse;
        x.sh->top[i] = w.top;
        x.sh->sum[i] = w.sum;
        FLOATS(x.mem[PRHS_R_WORK], a.work.lse_off)[(x.b * a.batch.rows + row.r) * a.shape.heads + h] = w.lse;
    }
    return holds;
}

/* Judges the row, or only looks at it; ends with a barrier. */
DEV bool judge(const unit_job &x, const row_job &row)
{
    bool holds = true;
#pragma unroll 1
    for (int i = warp_id(); i < x.a.shape.unit_heads; i += 4)
        holds = judge_head(x, row, i) && holds;
    if (lane_id() == 0)
        x.sh->holds[warp_id()] = holds;
    __syncthreads();
    return x.sh->holds[0] && x.sh->holds[1] && x.sh->holds[2] && x.sh->holds[3];
}

/* --- output --- */

/* Four channels of the mean of the values, the thread's; the unit's heads share a KV head. */
DEV float4 mean_of(const unit_job &x)
{
    const prhs_k_finish &a = x.a;
    const int dim = a.shape.dim, hk = x.u * a.shape.unit_heads / a.shape.group;
    byte *state = x.mem[PRHS_R_STATE];
    const prhs_value_count count = SLOT_AT(state, a.state, vcount_off, x.e.slot, prhs_value_count)[hk];
    const i64 *sum = SLOT_AT(state, a.state, vsum_off, x.e.slot, i64) + (i64)hk * dim + threadIdx.x % (dim / 4) * 4;
    const float scale = count.nonfinite > 0 ? NEVER : 0x1p-24f / (float)count.rows;
    return make_float4((float)sum[0] * scale, (float)sum[1] * scale, (float)sum[2] * scale, (float)sum[3] * scale);
}

DEV void store_four(int dtype, byte *row, int d, const float y[4])
{
    if (dtype == PRHS_K_F32) {
        *(float4 *)(row + d * 4) = make_float4(y[0], y[1], y[2], y[3]);
        return;
    }
    unsigned long long bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        bits |= (unsigned long long)(dtype == PRHS_K_F16 ? float_half(y[i]) : bfloat_of(y[i])) << 16 * i;
    *(unsigned long long *)(row + d * 2) = bits;
}

/* Heads from h0 on: the warps' parts meet, the residual is added: the mean, or what the reference dropped. */
DEV void put_heads(const unit_job &x, const row_job &row, int h0, float4 mean)
{
    const prhs_k_finish &a = x.a;
    const int dim = a.shape.dim, quads = dim / 4, i = threadIdx.x, h = h0 + i / quads;
    if (i >= merge_heads(dim) * quads || h >= a.shape.unit_heads)
        return;
    const float one = 1.0f / x.sh->sum[h], d = a.policy.residual ? x.sh->weight[h] : 0.0f;
    if (a.policy.residual == PRHS_K_RESIDUAL_RETRIEVED && d != 0.0f)
        mean = *(const float4 *)(SLOT_AT(x.mem[PRHS_R_STATE], a.state, vhat_off, x.e.slot, float) +
                                 (i64)(x.u * a.shape.unit_heads + h) * dim + i % quads * 4);
    const float m[4] = { mean.x, mean.y, mean.z, mean.w };
    float y[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float o = (x.sh->acc[0][i * 4 + k] + x.sh->acc[1][i * 4 + k]) + (x.sh->acc[2][i * 4 + k] + x.sh->acc[3][i * 4 + k]);
        y[k] = isnan(one) ? NEVER : o * one;
        if (d != 0.0f)
            y[k] = (1.0f - d) * y[k] + d * m[k];
    }
    store_four(a.out.dtype, row_at(a.out, x.mem[PRHS_R_OUT], x.e.row0 + row.r, x.u * a.shape.unit_heads + h), i % quads * 4, y);
}

/* Writes the row; its log-sum-exps are in shared memory, and the thread's first parts are in `p`. */
DEV void output(const unit_job &x, const row_job &row, const first_parts &p, float4 mean)
{
    const prhs_k_finish &a = x.a;
    const int heads = a.shape.unit_heads, batch = merge_heads(a.shape.dim);
    if (a.lse_off != PRHS_NONE && (int)threadIdx.x < heads)
        FLOATS(x.mem[PRHS_R_LSE], a.lse_off)[(i64)(x.e.row0 + row.r) * a.shape.heads + x.u * heads + threadIdx.x] = x.sh->lse[threadIdx.x];
#pragma unroll 1
    for (int h0 = 0; h0 < heads; h0 += batch) {
        if (h0)
            __syncthreads();
        merge_parts(x, row, h0, p);
        __syncthreads();
        put_heads(x, row, h0, mean);
    }
}

/* --- counts --- */

/* Whether the unit retrieves because its shared list failed. */
DEV bool list_failed(const unit_job &x)
{
    const prhs_k_work &w = x.a.work;
    const i64 units = x.a.shape.units;
    return x.set.mode == PRHS_MODE_RETRIEVE && w.judge_off != PRHS_NONE &&
           INTS(x.mem[PRHS_R_WORK], w.score_count_off)[(x.a.batch.max_seqs + x.b) * units + x.u] < 0;
}

/* `reference`: the window at the reference. */
DEV void count_modes(const unit_job &x, int tokens, int reference)
{
    const prhs_set &s = x.set;
    prhs_unit_stat *st = stat_at(x);
    const int window = s.mode == PRHS_MODE_STREAM ? x.e.pos0 + 1 - s.win_begin : reference;
    add_count(&st->steps, 1);
    add_count(&st->attended, tokens);
    add_count(mode_count(st, s.mode), 1);
    if (s.mode != PRHS_MODE_DENSE)
        add_count(&st->kept, s.mode == PRHS_MODE_WINDOW || s.mode == PRHS_MODE_COPY ? tokens : set_fixed(s) + window);
}

/* Books row 0 of a sparse layer: a thread a head. */
DEV void book(const unit_job &x, int tokens, int reference)
{
    const int mode = x.set.mode, i = threadIdx.x;
    if (i == 0) {
        if (x.e.kind == SEED)
            add_count(&stat_at(x)->seed, 1);
        else
            count_modes(x, tokens, reference);
        if (list_failed(x))
            add_count(&stat_at(x)->mass_failed, 1);
        state_at(x)->set.mode = mode;
    }
    if (i >= x.a.shape.unit_heads)
        return;
    const float mass = x.sh->mass[i];
    prhs_head_ref *head = &heads_at(x)[i];
    head->delta_last = unknown_mass(mode) ? NEVER : mass;
    if (mode == PRHS_MODE_RETRIEVE)
        head->delta = mass;
    if (mode == PRHS_MODE_SHARE && x.a.policy.gate == PRHS_K_GATE_MASS)
        SLOT_AT(x.mem[PRHS_R_STATE], x.a.state, spread_off, x.e.slot, float)[2 * (x.u * x.a.shape.unit_heads + i) + 1] = x.sh->weight[i];
    if (x.e.kind != SEED && (mode == PRHS_MODE_RETRIEVE || mode == PRHS_MODE_SHARE))
        add_mass(&head_stats_at(x)[i], mode == PRHS_MODE_RETRIEVE, mass);
}

/* --- the unit --- */

DEV int row_chunks(const unit_job &x, int r, int work) { return attend_chunks(x.a.work, work_tokens(x.set, work, x.e.pos0 + r)); }

DEV row_job row_of(const unit_job &x, int r, int work)
{
    const prhs_k_finish &a = x.a;
    const int mode = x.set.mode;
    const bool listed = work == PRHS_WORK_SET && (mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE);
    const bool mass = a.policy.gate == PRHS_K_GATE_MASS;
    return row_job{ r, work, row_chunks(x, r, work), mass && listed && r > 0, mass && mode == PRHS_MODE_SHARE && r == 0,
                    ((x.b * a.batch.rows + r) * a.shape.heads + x.u * a.shape.unit_heads) * a.work.chunks };
}

/* The end of a row that has been attended: its output; or, of a row after the first, another pass. Returns the chunks of that. */
DEV int end_row(const unit_job &x, const row_job &row, float4 mean, int reference)
{
    const prhs_k_finish &a = x.a;
    const first_parts p = load_first_parts(x, row);
    int *work = work_at(x) + (i64)row.r * a.shape.units;
    if (!judge(x, row)) {
        if (threadIdx.x == 0) {
            *work = PRHS_WORK_ALL;
            add_count(&stat_at(x)->rows_dense, 1);
        }
        return row_chunks(x, row.r, PRHS_WORK_ALL);
    }
    if (row.r == 0 && !a.policy.dense)
        book(x, work_tokens(x.set, row.work, x.e.pos0), reference);
    if (x.e.kind != SEED)
        output(x, row, p, mean);
    if (threadIdx.x == 0)
        *work = PRHS_WORK_NONE;
    return 0;
}

/* `work`: of row 0. */
DEV void end_rows(const unit_job &x, int work)
{
    const prhs_k_finish &a = x.a;
    const int mode = x.set.mode;
    const bool sparse = mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE;
    const int reference = sparse ? state_at(x)->set.end - state_at(x)->set.win_begin : 0;
    float4 mean = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int next = 0;
    if (sparse && a.policy.residual == PRHS_K_RESIDUAL_MEAN)
        mean = mean_of(x);
#pragma unroll 1
    for (int r = 0; r < x.e.rows; r++) {
        if (r)
            work = work_at(x)[(i64)r * a.shape.units];
        if (work == PRHS_WORK_NONE)
            continue;
        next += end_row(x, row_of(x, r, work == PRHS_WORK_HELD ? PRHS_WORK_SET : work), mean, reference);
        __syncthreads();
    }
    /* Only the last attend of a step comes after a finish. */
    if (next && threadIdx.x == 0 && a.work.attend_count_off != PRHS_NONE)
        INTS(x.mem[PRHS_R_WORK], a.work.attend_count_off)[((PRHS_PASSES - 1) * a.batch.max_seqs + x.b) * a.shape.units + x.u] = next;
}

/* Unit u of entry b, by all threads of the block together. */
DEV void finish_unit(const prhs_k_finish &a, byte *const mem[], i64 b, int u)
{
    __shared__ __align__(16) finish_shared shared;
    const entry e = entry_of(a.batch, mem[PRHS_R_SEQS], b);
    const prhs_set set = *set_at(mem[PRHS_R_WORK], a.work, a.shape, b, u);
    const int work = INTS(mem[PRHS_R_WORK], a.work.work_off)[b * a.batch.rows * a.shape.units + u];
    if (e.kind != IDLE && set.mode != PRHS_MODE_IDLE)
        end_rows(unit_job{ a, mem, &shared, e, set, b, u }, work);
    __syncthreads();
}

/* All units, in turns. */
DEV_CALL void finish_units(const prhs_k_finish &a, byte *const mem[])
{
    const int units = a.shape.units, items = seqs_of(a.batch, mem[PRHS_R_SEQS]) * units;
    /* How many there are is on its way yet when the first one is looked at. */
    int ahead = min(PRHS_AHEAD, a.batch.max_seqs * units);
    for (int i = blockIdx.x; i < ahead || i < items; i += gridDim.x, ahead = 0)
        finish_unit(a, mem, i / units, i % units);
}

#endif
