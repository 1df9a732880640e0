/* SPDX-License-Identifier: Apache-2.0 */
/*
 * select: exact top-k of the middle's runs, the list, and what later steps need of the retrieval; then the moments of the unit's heads
 * where the step has them. A block takes a unit.
 */
#include "moments.cuh"
#include "topk.cuh"

#define LISTED 2048              /* list entries that are written together */
#define HIGHEST 3.402823466e38f /* the largest number */
#define STRANDS 1024             /* the dropped scores are summed in so many strands, however many threads there are */

/* A unit, the same for all threads of the block. */
struct job {
    entry e;
    prhs_set set;
    i64 b;
    int u;
    int first, runs;  /* runs: positions first, first + run, ... */
    int origin, n;    /* bit i of a bitmap stands for the run at origin + i * run; n bits, the first of them may be none */
    int *list;
    const float *scores, *lse; /* of the unit's first head; heads are score_stride apart */
    unsigned *marks, *forced, *inside, *room;
    int cap;          /* words of room, less a few */
};

/* A bracket for scores. Inside are numbers only, unless the bracket holds +inf as well. */
struct score_limits {
    float high, low;
    DEV_MEMBER score_limits(const bracket &b)
        : high(b.high == BAD_KEY ? -NOTHING : b.high > order_key(HIGHEST) ? HIGHEST : key_value(b.high)),
          low(b.low > order_key(HIGHEST) ? -NOTHING : b.low <= NOTHING_KEY ? -HIGHEST : key_value(b.low))
    {
    }
    DEV_MEMBER bool above(float x) const { return !(x <= high); }
    DEV_MEMBER bool inside(float x) const { return x >= low && x <= high; }
};
template <bool RAW> struct words {
    typedef unsigned word;
    typedef bracket limits;
};
template <> struct words<true> {
    typedef float word;
    typedef score_limits limits;
};

/* Keys from the scores. RAW: a token's score; else a run's joint weight. */
template <bool RAW> struct score_keys {
    static const bool IN_ORDER = true;
    static const int WIDE = RAW ? 8 : 4;
    typedef typename words<RAW>::word word;
    typedef typename words<RAW>::limits limits;
    const float *scores, *lse; /* scores: from bit 0's token on */
    const unsigned *out;       /* bits of `out` are no candidates; may be null */
    i64 stride;
    int n, skew, run, heads;   /* the first `skew` bits are none either */
    bool largest;              /* the heads' largest weight, not their sum */
    DEV_MEMBER int count() const { return n; }
    DEV_MEMBER int at(int i) const { return i; }
    DEV_MEMBER bool none(int i) const { return i >= n || i < skew || (out && out[i >> 5] >> (i & 31) & 1); }
    DEV_MEMBER unsigned key(int i) const
    {
        unsigned k[1];
        keys<1>(i, k);
        return k[0];
    }
    DEV_MEMBER void some(int i, float x[WIDE]) const
    {
        const int tile = i - lane_id();
        const bool whole = tile >= skew && tile + 32 * WIDE <= n && !out;
#pragma unroll
        for (int t = 0; t < WIDE; t++)
            x[t] = whole || i + 32 * t < n ? __ldg(scores + i + 32 * t) : NOTHING;
        if (!whole) {
#pragma unroll
            for (int t = 0; t < WIDE; t++)
                x[t] = none(i + 32 * t) ? NOTHING : x[t];
        }
    }
    DEV_MEMBER void some(int i, unsigned k[WIDE]) const { keys<WIDE>(i, k); }
    /* Keys i, i + 32, ...: their loads are under way together. */
    template <int N> DEV_MEMBER void keys(int i, unsigned *k) const
    {
        float sum[N];
#pragma unroll
        for (int t = 0; t < N; t++)
            sum[t] = RAW && i + 32 * t < n ? __ldg(scores + i + 32 * t) : 0.0f;
        for (int r = 0; !RAW && r < run; r++)
            add_weights<N>(i, r, sum);
#pragma unroll
        for (int t = 0; t < N; t++)
            k[t] = none(i + 32 * t) ? 0 : order_key(sum[t]);
    }
    /* Token r of each run. */
    template <int N> DEV_MEMBER void add_weights(int i, int r, float *sum) const
    {
        float joint[N];
        bool bad[N];
#pragma unroll
        for (int t = 0; t < N; t++) {
            joint[t] = 0.0f;
            bad[t] = false;
        }
#pragma unroll 2
        for (int h = 0; h < heads; h++) {
            const float *s = scores + h * stride + r;
            const float l = lse[h];
            float x[N];
#pragma unroll
            for (int t = 0; t < N; t++)
                x[t] = i + 32 * t < n ? __ldg(s + (i + 32 * t) * run) : NOTHING;
#pragma unroll
            for (int t = 0; t < N; t++) {
                const float w = expf(x[t] - l);
                bad[t] |= bad_score(x[t]);
                joint[t] = largest ? fmaxf(joint[t], w) : joint[t] + w;
            }
        }
#pragma unroll
        for (int t = 0; t < N; t++)
            sum[t] += bad[t] ? NEVER : joint[t];
    }
};

/* All keys into room, then the best `want` of them. */
template <bool RAW> DEV void settle_stored(const score_keys<RAW> &s, int want, const job &j, topk_shared *sh)
{
    const int wide = RAW ? 16 : 4;
    unsigned *const room = j.room;
    reach seen = { 0, 0 };
    for (int tile = warp_id() * wide * 32; tile < s.n; tile += blockDim.x * wide) {
        const int i = tile + lane_id();
        unsigned k[wide];
        s.template keys<wide>(i, k);
#pragma unroll
        for (int t = 0; t < wide; t++) {
            seen.add(k[t]);
            if (i + 32 * t < s.n)
                room[i + 32 * t] = k[t];
        }
    }
    settle(stored_keys{ room, s.n }, seen, want, RAW, j.marks, j.marks, j.inside, sh);
}

/* Marks the best `want` runs, of which `valid` may be taken; bits of `out` may not. */
template <bool RAW> DEV void take_best(const prhs_k_select &a, const job &j, int want, int valid, const unsigned *out, topk_shared *sh)
{
    const score_keys<RAW> s = { j.scores + j.origin, j.lse, out, a.work.score_stride, j.n, j.n - j.runs, j.set.run, a.shape.unit_heads,
                                a.policy.join == PRHS_K_JOIN_MAX };
    __syncthreads();
    if (want <= 0) {
        for (int i = threadIdx.x; i <= (j.n - 1) >> 5; i += blockDim.x)
            j.marks[i] = 0;
        __syncthreads();
    } else if (j.n > j.cap) {
        settle_many(s, want, valid, RAW, j.marks, j.inside, j.room, j.cap, sh);
    } else {
        settle_stored<RAW>(s, want, j, sh);
    }
}

/* The neighbours of the marked runs, as far as there are such runs; returns their number. */
DEV int spread(const prhs_k_select &a, const job &j, topk_shared *sh)
{
    const int words = (j.n + 31) >> 5, skew = j.n - j.runs;
    const unsigned *marks = j.marks;
    int count = 0, total;
    for (int w = threadIdx.x; w < words; w += blockDim.x) {
        unsigned bits = 0;
        for (int d = -a.policy.dilate_back; d <= a.policy.dilate_ahead; d++) {
            /* bit i of the word: whether run 32 w + i - d is marked */
            const i64 from = (i64)w * 32 - d, at = from >> 5;
            const unsigned long long low = at >= 0 && at < words ? marks[at] : 0, high = at + 1 >= 0 && at + 1 < words ? marks[at + 1] : 0;
            bits |= (unsigned)((high << 32 | low) >> (from & 31));
        }
        if (w == 0)
            bits &= ~0u << skew;
        if (w == words - 1 && j.n & 31)
            bits &= (1u << (j.n & 31)) - 1;
        j.forced[w] = bits;
        count += __popc(bits);
    }
    block_before(count, sh->sums, &total);
    return total;
}

/* The marked runs' positions, ascending; returns their number, at most `most`. */
DEV int write_list(const job &j, int run, int most, topk_shared *sh)
{
    const int words = (j.n + 31) >> 5, each = (words + blockDim.x - 1) / blockDim.x, first = threadIdx.x * each;
    const int end = min(first + each, words), origin = j.origin;
    const unsigned *marks = j.marks;
    int *const staged = (int *)sh->bins, *const list = j.list;
    int count = 0, total;
    for (int w = first; w < end; w++)
        count += __popc(marks[w]);
    const int before = block_before(count, sh->sums, &total);
    total = min(total, most);
    for (int from = 0; from < total; from += LISTED) {
        int at = before - from;
        for (int w = first; w < end && at < LISTED && at + count > 0; w++)
            for (unsigned bits = marks[w]; bits; bits &= bits - 1, at++)
                if (at >= 0 && at < LISTED)
                    staged[at] = origin + (w * 32 + __ffs((int)bits) - 1) * run;
        __syncthreads();
        for (int i = threadIdx.x; i < min(LISTED, total - from); i += blockDim.x)
            list[from + i] = staged[i];
        __syncthreads();
    }
    return total;
}

/* The list of the best k runs. */
template <bool RAW> DEV int fill_list(const prhs_k_select &a, const job &j, topk_shared *sh)
{
    const prhs_k_policy &p = a.policy;
    const int keep = min(p.k / p.run, a.state.list_cap), m = min(p.dilate_m, keep);
    if (j.runs <= keep) {
        for (int i = threadIdx.x; i < j.runs; i += blockDim.x)
            j.list[i] = j.first + i * p.run;
        return j.runs;
    }
    const unsigned *out = nullptr;
    for (int want = m > 0 ? m : keep, valid = j.runs;;) {
        take_best<RAW>(a, j, want, valid, out, sh);
        if (out || m <= 0)
            break;
        const int forced = spread(a, j, sh);
        out = j.forced;
        want = keep - forced;
        valid = j.runs - forced;
    }
    for (int w = threadIdx.x; out && w < (j.n + 31) >> 5; w += blockDim.x)
        j.marks[w] |= out[w];
    __syncthreads();
    return write_list(j, p.run, keep, sh);
}

/* What tells the dropped positions. */
struct dropping {
    const unsigned *marks;
    int first, end, origin, run, runs;
    /* Which of the four positions from p on, a multiple of 4, are dropped: bits 0 to 3. */
    DEV_MEMBER unsigned four(int p) const
    {
        if (run == 1)
            return ~(marks[(p - origin) >> 5] >> (p - origin & 31)) & 15;
        unsigned out = 0;
        for (int t = 0; t < 4; t++) {
            const int i = p + t < first ? runs : (p + t - first) / run;
            out |= i < runs && !(marks[i >> 5] >> (i & 31) & 1) ? 1u << t : 0;
        }
        return out;
    }
};

/* sum: relative to top. A NaN makes it NaN, and so does +inf, less itself. */
struct strand {
    float top, sum;
};

/* The dropped scores of one head at p, p + 4 * STRANDS, ... */
DEV strand sum_strand(const dropping &d, const float *scores, int p)
{
    strand z = { LOWEST, 0.0f };
#pragma unroll 2
    for (; p < d.end; p += 4 * STRANDS) {
        const float4 s = __ldg((const float4 *)(scores + p));
        const unsigned out = d.four(p);
        const float x[4] = { out & 1 ? s.x : NOTHING, out & 2 ? s.y : NOTHING, out & 4 ? s.z : NOTHING, out & 8 ? s.w : NOTHING };
        const float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
        if (top > z.top) {
            z.sum *= exp_weight(z.top - top);
            z.top = top;
        }
        z.sum += (exp_weight(x[0] - z.top) + exp_weight(x[1] - z.top)) + (exp_weight(x[2] - z.top) + exp_weight(x[3] - z.top));
    }
    return z;
}

/* L_D of a head; all threads get it. NaN where a dropped score is NaN or +inf. */
DEV float dropped_lse(const dropping &d, const float *scores)
{
    __shared__ float tops[STRANDS / 32], sums[STRANDS / 32];
    for (int s = threadIdx.x; s < STRANDS; s += blockDim.x) {
        const strand z = sum_strand(d, scores, d.first / 4 * 4 + 4 * s);
        const float top = warp_max(z.top), sum = warp_sum(z.sum * expf(z.top - top));
        if (lane_id() == 0) {
            tops[s >> 5] = top;
            sums[s >> 5] = sum;
        }
    }
    __syncthreads();
    const float mine = tops[lane_id()], top = warp_max(mine), sum = warp_sum(sums[lane_id()] * expf(mine - top));
    __syncthreads();
    return sum == 0.0f ? NOTHING : top + logf(sum);
}

/* Log-sum-exps of the unit's heads over all scored tokens: a warp a head. */
DEV void merge_norms(const prhs_k_select &a, const job &j, const byte *ws, float *lse)
{
    const prhs_k_work &w = a.work;
    const int chunks = chunk_count(j.e.pos0 + 1, w.score_chunk_min, w.score_chunks), lane = lane_id();
    for (int h = warp_id(); h < a.shape.unit_heads; h += blockDim.x >> 5) {
        const float4 *norm = (const float4 *)(ws + w.norm_off) + (j.b * a.shape.heads + j.u * a.shape.unit_heads + h) * w.score_chunks;
        float top = LOWEST, sum = 0.0f;
        for (int i = lane; i < chunks; i += 32)
            top = fmaxf(top, norm[i].x);
        top = warp_max(top);
        for (int i = lane; i < chunks; i += 32)
            sum += norm[i].y * expf(norm[i].x - top);
        sum = warp_sum(sum);
        if (lane == 0)
            lse[h] = sum == 0.0f ? 0.0f : top + logf(sum);
    }
    __syncthreads();
}

/* What later steps need: the set, its position, the queries, and what was dropped. */
DEV void store_reference(const prhs_cu_retrieve &p, const job &j)
{
    const prhs_k_select &a = p.select;
    const prhs_k_state &st = a.state;
    const int heads = a.shape.unit_heads, head = j.u * heads, dim = a.shape.dim;
    byte *state = p.mem[PRHS_R_STATE];
    if (st.unit_off != PRHS_NONE && threadIdx.x == 0) {
        prhs_unit_state *unit = SLOT_AT(state, st, unit_off, j.e.slot, prhs_unit_state) + j.u;
        unit->set = j.set;
        unit->set.end = j.e.pos0 + 1;
        unit->ref_pos = j.e.pos0;
    }
    if (st.qref_off != PRHS_NONE) {
        float *to = SLOT_AT(state, st, qref_off, j.e.slot, float) + (i64)head * dim;
        for (int i = threadIdx.x; i < heads * dim; i += blockDim.x)
            to[i] = load_one(a.q.dtype, row_at(a.q, p.mem[PRHS_R_Q], j.e.row0, head + i / dim), i % dim);
    }
    if (threadIdx.x == 0 && j.set.count < j.runs) { /* before the first candidate and after the last one nothing is dropped */
        j.marks[0] |= (1u << (j.n - j.runs)) - 1;
        j.marks[(j.n - 1) >> 5] |= j.n & 31 ? ~0u << (j.n & 31) : 0;
    }
    __syncthreads();
    const dropping d = { j.marks, j.first, j.first + j.runs * j.set.run, j.origin, j.set.run, j.runs };
    for (int h = 0; h < heads && st.head_off != PRHS_NONE; h++) {
        const float l = j.set.count == j.runs ? NOTHING : dropped_lse(d, j.scores + h * a.work.score_stride);
        if (threadIdx.x == 0)
            SLOT_AT(state, st, head_off, j.e.slot, prhs_head_ref)[head + h].l_dropped = l;
    }
}

/* The chunks that the unit's rows have in the next attend. */
DEV void store_count(const prhs_cu_retrieve &p, const job &j)
{
    const prhs_k_select &a = p.select;
    byte *ws = p.mem[PRHS_R_WORK];
    int sum = 0;
    if (a.work.attend_count_off == PRHS_NONE)
        return;
    for (int r = 0; r < j.e.rows; r++) {
        const int work = a.work.work_off == PRHS_NONE ? PRHS_WORK_SET
                                                      : INTS(ws, a.work.work_off)[(j.b * a.batch.rows + r) * a.shape.units + j.u];
        sum += attend_chunks(a.work, work_tokens(j.set, work, j.e.pos0 + r));
    }
    INTS(ws, a.work.attend_count_off)[((i64)p.pass * a.batch.max_seqs + j.b) * a.shape.units + j.u] = max(sum, 1);
}

/* Cuts the middle into runs: what is no whole run joins the edge or the window. */
DEV void cut_runs(const prhs_k_select &a, job *j)
{
    prhs_set &set = j->set;
    const int low = max(set.mid_begin, 0), high = min(set.mid_end, j->e.pos0 + 1), run = max(a.policy.run, 1);
    j->first = (low + run - 1) / run * run;
    j->runs = max(high / run - j->first / run, 0);
    j->origin = run == 1 ? j->first & ~31 : j->first;
    j->n = j->runs + (j->first - j->origin);
    set.run = run;
    set.edge_begin = set.edge_end = 0;
    if (j->runs && j->first > low) {
        set.edge_begin = low;
        set.edge_end = j->first;
    }
    set.win_begin = j->runs ? j->first + j->runs * run : low;
}

/* By one thread. */
DEV void start_job(const prhs_cu_retrieve &p, i64 b, int u, const float *lse, unsigned *shared, job *j)
{
    const int longest = p.select.batch.max_kv_len;
    const prhs_k_select &a = p.select;
    byte *ws = p.mem[PRHS_R_WORK];
    const prhs_set set = *set_at(ws, a.work, a.shape, b, u);
    const entry e = entry_of(a.batch, p.mem[PRHS_R_SEQS], b);
    j->b = b;
    j->u = u;
    j->e = e;
    j->set = set;
    j->scores = FLOATS(ws, a.work.score_off) + (b * a.shape.heads + (i64)u * a.shape.unit_heads) * a.work.score_stride;
    j->lse = lse;
    j->list = SLOT_AT(p.mem[PRHS_R_STATE], a.state, list_off, j->e.slot, int) + (i64)u * a.state.list_cap;
    j->marks = a.work.mark_off == PRHS_NONE ? shared
                                            : (unsigned *)(ws + a.work.mark_off) + (b * a.shape.units + u) * 3 * PRHS_K_MARK_WORDS(longest);
    j->forced = j->marks + PRHS_K_MARK_WORDS(longest);
    j->inside = j->forced + PRHS_K_MARK_WORDS(longest);
    j->room = shared + PRHS_RETRIEVE_MARKS(longest);
    j->cap = PRHS_RETRIEVE_ROOM(longest);
    cut_runs(a, j);
}

DEV_CALL void put_unit_moments(const prhs_cu_retrieve &p, const job &j, float *scratch)
{
    for (int h = 0; h < p.select.shape.unit_heads; h++)
        moments_of_head(p.moments, p.mem, j.b, j.u * p.select.shape.unit_heads + h, j.e, j.set, scratch);
}

DEV void retrieve_unit(const prhs_cu_retrieve &p, i64 b, int u, unsigned *shared, topk_shared *sh)
{
    __shared__ float lse[64];
    __shared__ job j;
    const prhs_k_select &a = p.select;
    const bool raw = a.shape.unit_heads == 1 && a.policy.run == 1;
    if (threadIdx.x == 0)
        start_job(p, b, u, lse, shared, &j);
    __syncthreads();
    if (!raw)
        merge_norms(a, j, p.mem[PRHS_R_WORK], lse);
    const int count = raw ? fill_list<true>(a, j, sh) : fill_list<false>(a, j, sh);
    if (threadIdx.x == 0) {
        j.set.count = count;
        *set_at(p.mem[PRHS_R_WORK], a.work, a.shape, b, u) = j.set;
        store_count(p, j);
    }
    __syncthreads();
    store_reference(p, j);
    __syncthreads();
    if (p.has_moments)
        put_unit_moments(p, j, (float *)shared);
    __syncthreads();
}

DEV int retrieves(const prhs_k_select &a, const byte *seqs, byte *ws, int i)
{
    if (a.work.score_count_off != PRHS_NONE)
        return INTS(ws, a.work.score_count_off)[i] > 0;
    const i64 b = i / a.shape.units;
    return entry_of(a.batch, seqs, b).kind != IDLE && set_at(ws, a.work, a.shape, b, i % a.shape.units)->mode == PRHS_MODE_RETRIEVE;
}

KERNEL(prhs_retrieve, prhs_cu_retrieve, PRHS_RETRIEVE_MOST, 1)
{
    __shared__ int prefix[PRHS_RETRIEVE_MOST];
    __shared__ topk_shared sh;
    DYNAMIC_SHARED(shared);
    grid_begin();
    const prhs_k_select &a = p.select;
    take_turns(
        a.batch.max_seqs * a.shape.units, seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * a.shape.units, 1, prefix,
        [&](int i) { return retrieves(a, p.mem[PRHS_R_SEQS], p.mem[PRHS_R_WORK], i); },
        [&](int i, int) { retrieve_unit(p, i / a.shape.units, i % a.shape.units, (unsigned *)shared, &sh); });
}
