/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A decode step in one launch: a block takes a unit, of one query head with rows of its own, from its plan to its output. What several
 * kernels would leave for each other in the workspace the block leaves there for itself, cut and summed up as they do it, so that bits are
 * the same. No block waits for another one: units that retrieve hold up nobody. Blocks have 4 or 8 warps.
 */
#define ONE_LAUNCH
#define LEAST_THREADS 128
#define WARPS 8  /* at most */
#define COUNTS 4 /* so that a window of score's is of 1024 units, of which all but one are none */
#include "append.cuh"
#include "plan.cuh"
#include "serve_tile.cuh"
#include "score_mma.cuh"
#include "select.cuh"
#include "moments.cuh"
#include "ending.cuh"

#define STAGES 3 /* of a warp's ring: K of a tile, V of it, K of the next one, ... */

DEV int warps() { return (int)(blockDim.x >> 5); }

/* The unit in hand. */
struct whole_shared {
    entry e;
    prhs_set set;
    int b, u, i; /* i: b * units + u */
};

/* --- arguments --- */

/* What is known of every step that comes here is written out, so that code for anything else is left out. M: with the mass gate. */
DEV prhs_k_shape shape_of(const prhs_cu_whole &p)
{
    prhs_k_shape s = p.shape;
    s.unit_heads = s.group = 1;
    s.units = s.kv_heads = s.heads;
    return s;
}

DEV prhs_k_batch batch_of(const prhs_cu_whole &p)
{
    prhs_k_batch k = p.batch;
    k.rows = 1;
    k.active_off = PRHS_NONE;
    return k;
}

template <int T> DEV prhs_k_kv kv_of(const prhs_cu_whole &p)
{
    prhs_k_kv kv = p.kv;
    kv.dtype = T;
    return kv;
}

template <bool M> DEV prhs_k_policy policy_of(const prhs_cu_whole &p)
{
    prhs_k_policy y = p.policy;
    y.dense = y.least = y.copies = 0;
    y.gate = M ? PRHS_K_GATE_MASS : p.policy.gate == PRHS_K_GATE_COSINE ? PRHS_K_GATE_COSINE : PRHS_K_GATE_NONE;
    y.residual = p.policy.residual ? PRHS_K_RESIDUAL_MEAN : PRHS_K_RESIDUAL_NONE;
    return y;
}

template <bool M> DEV prhs_k_work work_of(const prhs_cu_whole &p)
{
    prhs_k_work w = p.work;
    if (!M)
        w.judge_off = PRHS_NONE;
    return w;
}

/* --- plan --- */

/* By a warp: how the unit is served. */
template <bool M> DEV void plan_here(const prhs_cu_whole &p, const entry &e, int b, int u, whole_shared *sh)
{
    const prhs_k_plan a = { batch_of(p), shape_of(p), p.q, p.state, work_of<M>(p), policy_of<M>(p) };
    const prhs_set set = put_plan(plan_job{ a, p.mem, e, b, u, p.by_block });
    if (lane_id() == 0)
        sh->set = set;
}

/* By a warp: the entry's rows of KV head hk. */
template <int T> DEV void append_here(const prhs_cu_whole &p, const entry &e, int b, int hk)
{
    const prhs_k_append a = { kv_of<T>(p), batch_of(p), shape_of(p), p.k, p.v, p.state, p.write, p.validate };
    const prhs_seq s = *seq_at(a.batch, p.mem[PRHS_R_SEQS], b);
    const bool alone = seq_ok(a.batch, &s) && !(s.flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) && s.row_count == 1;
    if (s.slot < 0 || s.row_count == 0)
        return;
    if (alone && p.copies == PRHS_COPIES_ONLY)
        append_one(a, p.mem, e, hk);
    else if (!alone || p.copies != PRHS_COPIES_SUM || !append_and_sum<T>(a, p.mem, b, s.slot, s.row_begin, s.kv_len - 1, hk))
        append_by_warp<T>(a, p.mem, b, hk);
}

DEV void bring_all_near(const int *p, int n)
{
    for (int i = lane_id() * 8; i < n; i += 256)
        bring_near(p + i);
}

DEV const int *list_of(const prhs_cu_whole &p, const entry &e, int u)
{
    return SLOT_AT(p.mem[PRHS_R_STATE], p.state, list_off, e.slot, int) + (i64)u * p.state.list_cap;
}

/* A warp each: what the unit does, its new row, and what attend looks at next. A barrier has to follow. */
template <int T, bool M> DEV void begin_unit(const prhs_cu_whole &p, const entry &e, int b, int u, whole_shared *sh)
{
    const int warp = warp_id();
    if (warp == 1 && p.appends)
        append_here<T>(p, e, b, u);
    if (e.kind == IDLE)
        return;
    if (warp == 0) {
        plan_here<M>(p, e, b, u, sh);
    } else if (warp == 2) {
        bring_all_near(pages_of(p.batch, p.mem[PRHS_R_PAGES], b), page_index(p.kv, e.pos0) + 1);
    } else if (warp == 3) {
        bring_all_near(list_of(p, e, u), min(p.state.list_cap, p.policy.k));
        if (lane_id() == 0) {
            sh->e = e;
            sh->b = b;
            sh->u = u;
            sh->i = b * p.shape.units + u;
        }
    }
}

/* --- attend --- */

/* Places of the tokens [first, last) of what is attended to, by the whole block. */
DEV void find_places(const prhs_cu_whole &p, const whole_shared &x, bool all, int first, int last, row_place *at)
{
    const prhs_k_kv &kv = p.kv;
    const int *pages = pages_of(p.batch, p.mem[PRHS_R_PAGES], x.b), *list = list_of(p, x.e, x.u);
    for (int i = first + (int)threadIdx.x; i < last; i += blockDim.x) {
        const int token = all ? i : set_position(x.set, list, i);
        const unsigned page = page_index(kv, token), in = (unsigned)token - page * (unsigned)kv.page_size, id = page_id(kv, pages[page]);
        at[i - first] = row_place{ sixteens(kv, id, in, kv.k_page, kv.k_token), sixteens(kv, id, in, kv.v_page, kv.v_token) };
    }
}

/* A tile of the warp's: its first token, and how many its chunk has from there on. 0: there is no tile. */
struct tile_at {
    int chunk, token, left;
};

/* The warp's chunks: every so many, as the block has warps, before `end`. */
struct chunk_walk {
    int end, size, tokens;
};

template <int TOKENS> DEV tile_at next_tile(const chunk_walk &w, const tile_at &t)
{
    if (t.left > TOKENS)
        return tile_at{ t.chunk, t.token + TOKENS, t.left - TOKENS };
    const int c = t.chunk + warps();
    return tile_at{ c, c * w.size, c < w.end ? min(w.size, w.tokens - c * w.size) : 0 };
}

/* What a warp attends with: rows come through its ring, each lane's own pieces of 16 bytes of them. */
struct attend_space {
    const byte *keys, *values; /* of the KV head */
    const row_place *at;       /* of token 0, whether or not that one is there */
    float *scores;
    byte *ring;
};

template <int T, int L> DEV constexpr int stage_bytes() { return 512 * loads<T, 1>(); }

/* K, or V, of a tile on its way to a stage; an empty group of copies where there is no tile. */
template <int T, int L, bool V> DEV void send_tile(const attend_space &x, int stage, const tile_at &t, int dim)
{
    const int LOADS = loads<T, 1>(), lane = lane_id(), c = lane % L * 8;
    const byte *base = (V ? x.values : x.keys) + c * 2;
    const row_place *at = x.at + t.token + lane / L;
    byte *to = x.ring + __shfl_sync(FULL, stage, 0) * stage_bytes<T, L>() + lane * 16; /* see copy_once() */
    if (t.left >= LOADS * (32 / L) && dim == L * 8) {
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            copy_once(to + i * 512, base + (unsigned long long)(V ? at[i * (32 / L)].v : at[i * (32 / L)].k) * 16);
    } else if (t.left > 0) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const bool real = i * (32 / L) + lane / L < t.left && c < dim;
            const unsigned place = !real ? 0 : V ? at[i * (32 / L)].v : at[i * (32 / L)].k;
            copy_once_or_zero(to + i * 512, real ? base + (unsigned long long)place * 16 : x.keys, real);
        }
    }
    copy_commit();
}

/* What the lane has sent to a stage. */
template <int T, int L> DEV void take_tile(const attend_space &x, int stage, raw8<T> *r)
{
    copy_wait<STAGES - 1>();
#pragma unroll
    for (int i = 0; i < loads<T, 1>(); i++)
        r[i].w[0] = *(const uint4 *)(x.ring + stage * stage_bytes<T, L>() + i * 512 + lane_id() * 16);
}

/* The warp's chunks from `first` on. s: of the unit's first chunk. */
template <int T, int L>
DEV void serve_chunks(const prhs_k_attend &a, byte *ws, const tile_at &before, const chunk_walk &w, segment s, const float (&q)[1][8], const attend_space &x)
{
    const int LOADS = loads<T, 1>(), TOKENS = tile<T, L, 1, LOADS>::TOKENS, dim = a.shape.dim;
    const i64 part = s.part;
    running<1> r;
    tile_at now = next_tile<TOKENS>(w, before), next = next_tile<TOKENS>(w, now);
    int stage = 0;
    if (now.left <= 0)
        return;
    send_tile<T, L, false>(x, 0, now, dim);
    send_tile<T, L, true>(x, 1, now, dim);
    send_tile<T, L, false>(x, 2, next, dim);
    start(&r);
#pragma unroll 1
    while (now.left > 0) {
        raw8<T> rows[LOADS];
        take_tile<T, L>(x, stage, rows);
        score_rows<T, L, 1, LOADS>(rows, q, x.scores);
        __syncwarp();
        send_tile<T, L, true>(x, stage, next, dim);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        soften<TOKENS, 1>(&r, x.scores, now.left);
        __syncwarp();
        const tile_at then = next_tile<TOKENS>(w, next);
        take_tile<T, L>(x, stage, rows);
        add_values<T, L, 1>(&r, rows, x.scores);
        send_tile<T, L, false>(x, stage, then, dim);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        if (now.left <= TOKENS) {
            s.part = part + now.chunk;
            put_part<L, 1>(a, r, s, ws);
            start(&r);
        }
        __syncwarp();
        now = next;
        next = then;
    }
    copy_wait<0>();
}

/* The head's query, 8 channels a lane, times the scale. */
template <int L> DEV void load_scaled(const prhs_cu_whole &p, const whole_shared &x, float q[8])
{
    const int c = lane_id() % L * 8;
    const bool real = c < p.shape.dim;
    load_eight(p.q.dtype, row_at(p.q, p.mem[PRHS_R_Q], x.e.row0, x.u) + (real ? c : 0) * element(p.q.dtype), q);
#pragma unroll
    for (int i = 0; i < 8; i++)
        q[i] = real ? q[i] * p.shape.scale : 0.0f;
}

/* The unit's parts, by the whole block. judged: what the mass gate's verdict rests on, too. Begins and ends with a barrier. */
template <int T, int L, bool M> DEV void attend_unit(const prhs_cu_whole &p, bool judged, const whole_shared &x, byte *shared)
{
    const prhs_k_attend a = { kv_of<T>(p), batch_of(p), shape_of(p), p.q, p.state, work_of<M>(p) };
    const int places = PRHS_WHOLE_PLACES(warps()), warp = warp_id();
    row_place *const at = (row_place *)(shared + warps() * PRHS_WHOLE_RING);
    __syncthreads();
    const bool all = x.set.mode == PRHS_MODE_DENSE;
    const int tokens = all ? x.e.pos0 + 1 : set_tokens(x.set, x.e.pos0 + 1);
    const int size = attend_chunk_tokens(p.work, tokens), chunks = attend_chunks(p.work, tokens), each = tokens <= places ? chunks : places / size;
    segment s = {};
    s.part = (i64)x.i * p.work.chunks;
    s.record = judged ? x.i : -1;
    s.heads = 1;
    attend_space mem = { p.mem[PRHS_R_K] + (p.kv.k_off + x.u * p.kv.k_head * 2), p.mem[PRHS_R_V] + (p.kv.v_off + x.u * p.kv.v_head * 2), nullptr,
                         (float *)(at + places) + warp * tile<T, L, 1, loads<T, 1>()>::TOKENS, shared + warp * PRHS_WHOLE_RING };
    float q[1][8];
    load_scaled<L>(p, x, q[0]);
#pragma unroll 1
    for (int c = 0; c < chunks; c += each) {
        if (c)
            __syncthreads();
        find_places(p, x, all, c * size, min((c + each) * size, tokens), at);
        __syncthreads();
        mem.at = at - c * size;
        serve_chunks<T, L>(a, p.mem[PRHS_R_WORK], tile_at{ c + warp - warps(), 0, 0 }, chunk_walk{ min(c + each, chunks), size, tokens }, s, q, mem);
    }
    __syncthreads();
}

/* The mass gate's verdict on the list that was attended; false: the unit retrieves. Ends with a barrier. */
DEV bool list_holds(const prhs_cu_whole &p, const whole_shared &x)
{
    byte *ws = p.mem[PRHS_R_WORK];
    const bool holds = __ldcg(&records_at(ws, p.work)[x.i].sum) >= VERDICT_ONE;
    if (!holds && threadIdx.x == 0)
        ((prhs_set *)(ws + p.work.set_off))[x.i] = ((const prhs_set *)(ws + p.work.fresh_off))[x.i];
    __syncthreads();
    return holds;
}

/* --- retrieval --- */

/* Scores, the list, what later steps need of it; by the whole block. Begins after a barrier. Seldom: called. */
template <int DP, int T, bool M> DEV_CALL void retrieve_unit(const prhs_cu_whole &p, whole_shared *x, byte *shared)
{
    const prhs_k_score &a = p.score.a;
    byte *ws = p.mem[PRHS_R_WORK];
    const int total = score_chunks(a.work, x->e.pos0 + 1), warp = warp_id();
    byte *const ring = shared + warp * keys_ring<DP>::BYTES;
    int *const prefix = (int *)(shared + warps() * keys_ring<DP>::BYTES);
    order *const orders = (order *)(prefix + WINDOW) + 2 * warp;
    clear_rings<DP>(shared, warps() * keys_ring<DP>::BYTES, a.shape.dim);
    for (int k = threadIdx.x; k < WINDOW; k += blockDim.x)
        prefix[k] = total;
    if (threadIdx.x == 0)
        INTS(ws, a.work.score_count_off)[x->i] = total;
    __syncthreads();
    warp_turns t = { 0, 0, 0, 0, 0, x->i, 0, 0, false };
    take_share(total, warps(), (unsigned)(total / warps()), warp, &t.next, &t.stop);
    score_window<T, DP, 1, M>(p.score, prefix, orders, ring, &t);
    __syncthreads();
    retrieve(p.retrieve, x->i, 0, (unsigned *)(shared + (sizeof(topk_shared) + 15) / 16 * 16), (topk_shared *)shared);
    if (M)
        moments_of_head(p.moments, p.mem, x->b, x->u, x->e, ((const prhs_set *)(ws + a.work.set_off))[x->i], (float *)shared);
    __syncthreads();
    if (threadIdx.x == 0)
        x->set = ((const prhs_set *)(ws + a.work.set_off))[x->i];
}

/* --- finish --- */

#define FEW_PARTS 16 /* that the block asks for together: a warp's are every fourth */

/* Parts first, first + 4, ... of 16, as far as there are `parts`, from `o` on. */
DEV void load_few(const float *o, int dim, int first, int parts, float4 (&f)[FEW_PARTS / 4])
{
#pragma unroll
    for (int i = 0; i < FEW_PARTS / 4; i++) {
        f[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + 4 * i < parts)
            f[i] = load_shared_result(o + 4 * i * dim);
    }
}

/* As merge_share(), of rows of at most 128 channels, with fewer parts in flight and so in fewer registers. By the first four warps. */
template <class Meanwhile> DEV weights merge_few(const float *o, const float *lse, int dim, int parts, float *acc_at, Meanwhile meanwhile)
{
    const int warp = warp_id(), c = min(lane_id() * 4, dim - 4);
    float4 f[FEW_PARTS / 4];
    lse_parts l = load_lse(lse, 1, parts);
    load_few(o + warp * dim + c, dim, warp, parts, f);
    meanwhile();
    const weights all = merge_weights(l, lse, 1, parts);
    float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll 1
    for (int p = 0; p < parts; p += FEW_PARTS) {
        if (p)
            load_few(o + (i64)(p + warp) * dim + c, dim, warp, parts - p, f);
        if (p && p % 64 == 0)
            l = load_lse(lse + p, 1, parts - p);
        const float mine = p & 32 ? l.l[1] : l.l[0];
#pragma unroll
        for (int i = 0; i < FEW_PARTS / 4; i++) {
            const float li = __shfl_sync(FULL, mine, (p & 16) + warp + 4 * i), weight = part_weight(li, all.top);
            const bool counts = li != NOTHING;
            add_part(&acc[0], counts, weight, f[i].x);
            add_part(&acc[1], counts, weight, f[i].y);
            add_part(&acc[2], counts, weight, f[i].z);
            add_part(&acc[3], counts, weight, f[i].w);
        }
    }
    if (lane_id() * 4 < dim)
        *(float4 *)(acc_at + c) = make_float4(acc[0], acc[1], acc[2], acc[3]);
    return all;
}

/* The unit's output and what is counted; has a barrier. */
template <bool M> DEV void end_unit(const prhs_cu_whole &p, const whole_shared &y, byte *shared)
{
    const prhs_k_finish a = { batch_of(p), shape_of(p), p.q, p.out, p.lse_off, p.state, work_of<M>(p), policy_of<M>(p), 0, 0 };
    const int work = y.set.mode == PRHS_MODE_DENSE ? PRHS_WORK_ALL : PRHS_WORK_SET, tokens = work_tokens(y.set, work, y.e.pos0);
    const ending x = { a, p.mem, y.i, y.i, y.u, y.u, y.e.kind == SEED, y.e.slot, y.e.row0, y.e.pos0, work, tokens, attend_chunks(p.work, tokens), y.set };
    ending_shared *const sh = (ending_shared *)shared;
    byte *ws = p.mem[PRHS_R_WORK];
    const i64 part = (i64)y.i * p.work.chunks;
    const int c = threadIdx.x * 2;
    memory m = nothing_remembered();
    weights all = { 0.0f, 0.0f, 0.0f };
    if (warp_id() < 4)
        all = merge_few(FLOATS(ws, p.work.part_off) + part * p.shape.dim, FLOATS(ws, p.work.part_lse_off) + part, p.shape.dim, x.parts, sh->acc[warp_id()], [&] {
            m = remember(x, c);
            if (threadIdx.x == BOOKS * 32)
                book_unit(x);
        });
    __syncthreads();
    if (c < p.shape.dim && !x.seed)
        put_channels(x, sh->acc, c, all, m);
    if (threadIdx.x == BOOKS * 32)
        book_ending(x, m, all);
}

/* --- a unit --- */

template <int T, int L, int DP, bool M> DEV void take_unit(const prhs_cu_whole &p, whole_shared *x, byte *shared)
{
    bool retrieves = x->set.mode == PRHS_MODE_RETRIEVE, judged = M && x->set.mode == PRHS_MODE_SHARE;
#pragma unroll 1
    for (;;) {
        if (retrieves)
            retrieve_unit<DP, T, M>(p, x, shared);
        attend_unit<T, L, M>(p, judged, *x, shared);
        if (!judged || list_holds(p, *x))
            break;
        judged = false;
        retrieves = true;
    }
    end_unit<M>(p, *x, shared);
}

template <int T, int L, int DP, bool M> DEV void serve_whole(const prhs_cu_whole &p)
{
    DYNAMIC_SHARED(shared);
    __shared__ whole_shared x;
    grid_begin(p);
    const int units = p.shape.units, most = p.batch.max_seqs * units;
#pragma unroll 1
    for (int i = blockIdx.x; i < most; i += gridDim.x) {
        const int b = quotient_by{ p.by_units }.of(i), u = i - b * units;
        const entry e = entry_of(batch_of(p), p.mem[PRHS_R_SEQS], b);
        begin_unit<T, M>(p, e, b, u, &x);
        if (e.kind == IDLE)
            continue;
        __syncthreads();
        if (x.set.mode != PRHS_MODE_IDLE)
            take_unit<T, L, DP, M>(p, &x, shared);
        __syncthreads();
    }
}

#define WHOLE(t, T)                                                                                              \
    KERNEL(prhs_whole_##t##_d128, prhs_cu_whole, 32 * WARPS, 2) { serve_whole<T, 16, 128, false>(p); }           \
    KERNEL(prhs_whole_##t##_d128_m, prhs_cu_whole, 32 * WARPS, 2) { serve_whole<T, 16, 128, true>(p); }
WHOLE(f16, PRHS_K_F16)
WHOLE(bf16, PRHS_K_BF16)
