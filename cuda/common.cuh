/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels share: rows of every dtype, the batch, the cache, sets and chunks, merging, and how blocks take turns over work. The
 * rules are those of docs/kernels.md. Work is spread over a grid of the device's size, never of the capacity's.
 */
#ifndef PRHS_COMMON_CUH
#define PRHS_COMMON_CUH

#include <device.cuh>

#include "launch.h"

typedef unsigned char byte;
typedef long long i64;

#define LOWEST (-3e38f) /* where running maxima start: finite, so that -inf - max is -inf and no NaN */
#define NEVER __int_as_float(0x7fc00000) /* NaN */
#define NOTHING __int_as_float(0xff800000) /* -inf */

DEV bool bad_score(float s) { return !(s < __int_as_float(0x7f800000)); } /* NaN or +inf */
DEV int lane_id() { return threadIdx.x & 31; }
DEV int warp_id() { return threadIdx.x >> 5; }

/* --- rows --- */

DEV int element(int dtype) { return dtype == PRHS_K_F32 ? 4 : 2; }

/* Eight channels as they lie in memory: one 16-byte word, two for float32. */
template <int T> struct raw8 {
    uint4 w[T == PRHS_K_F32 ? 2 : 1];
};

template <int T> DEV raw8<T> load_raw(const byte *p)
{
    raw8<T> r;
    r.w[0] = load_stream(p);
    if (T == PRHS_K_F32)
        r.w[T == PRHS_K_F32 ? 1 : 0] = load_stream(p + 16);
    return r;
}

/* The same where `real`, zeros otherwise; p is not read then. */
template <int T> DEV raw8<T> load_raw_or_zero(const byte *p, bool real)
{
    raw8<T> r;
    r.w[0] = load_stream_or_zero(p, real);
    if (T == PRHS_K_F32)
        r.w[T == PRHS_K_F32 ? 1 : 0] = load_stream_or_zero(p + 16, real);
    return r;
}

template <int T> DEV raw8<T> zero_raw()
{
    raw8<T> r;
    for (unsigned i = 0; i < sizeof r.w / sizeof r.w[0]; i++)
        r.w[i] = make_uint4(0, 0, 0, 0);
    return r;
}

template <int T> DEV void floats_of(const raw8<T> &r, float x[8])
{
    const unsigned w[4] = { r.w[0].x, r.w[0].y, r.w[0].z, r.w[0].w };
    if constexpr (T == PRHS_K_F32) {
        const unsigned v[8] = { w[0], w[1], w[2], w[3], r.w[1].x, r.w[1].y, r.w[1].z, r.w[1].w };
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = __uint_as_float(v[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 f = T == PRHS_K_F16 ? half2_floats(w[i]) : bf162_floats(w[i]);
            x[2 * i] = f.x;
            x[2 * i + 1] = f.y;
        }
    }
}

/* Eight channels of a row whose dtype is known at run time. */
DEV void load_eight(int dtype, const byte *p, float x[8])
{
    if (dtype == PRHS_K_F32)
        floats_of(load_raw<PRHS_K_F32>(p), x);
    else if (dtype == PRHS_K_F16)
        floats_of(load_raw<PRHS_K_F16>(p), x);
    else
        floats_of(load_raw<PRHS_K_BF16>(p), x);
}

/* The same in shared memory. */
DEV void shared_eight(int dtype, const byte *p, float x[8])
{
    raw8<PRHS_K_F32> r;
    r.w[0] = *(const uint4 *)p;
    if (dtype == PRHS_K_F32) {
        r.w[1] = *(const uint4 *)(p + 16);
        floats_of(r, x);
        return;
    }
    const unsigned w[4] = { r.w[0].x, r.w[0].y, r.w[0].z, r.w[0].w };
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 f = dtype == PRHS_K_F16 ? half2_floats(w[i]) : bf162_floats(w[i]);
        x[2 * i] = f.x;
        x[2 * i + 1] = f.y;
    }
}

/* One element, its dtype known at run time. */
DEV float load_one(int dtype, const byte *row, int d)
{
    if (dtype == PRHS_K_F32)
        return ((const float *)row)[d];
    const unsigned short x = ((const unsigned short *)row)[d];
    return dtype == PRHS_K_F16 ? half_float(x) : __uint_as_float((unsigned)x << 16);
}

DEV unsigned short bfloat_of(float x)
{
    const unsigned b = __float_as_uint(x);
    return (unsigned short)((b & 0x7fffffffu) > 0x7f800000u ? b >> 16 | 0x40 : (b + 0x7fff + (b >> 16 & 1)) >> 16);
}

DEV void store_one(int dtype, byte *row, int d, float x)
{
    if (dtype == PRHS_K_F32)
        ((float *)row)[d] = x;
    else
        ((unsigned short *)row)[d] = dtype == PRHS_K_F16 ? float_half(x) : bfloat_of(x);
}

/* --- the batch --- */

#define IDLE 0
#define DECODE 1
#define SEED 2

struct entry {
    int slot, flags, kv_len, row_count, prompt_len, row_begin;
    int kind;       /* of the decision row: IDLE (also for prompts that do not seed), DECODE or SEED */
    int rows;       /* work rows: decode rows, 1 for a seed */
    int table;      /* index of its page table */
    int row0, pos0; /* index and position of work row 0 */
};

DEV const prhs_seq *seq_at(const prhs_k_batch &k, const byte *seqs, i64 b) { return (const prhs_seq *)(seqs + k.seqs_off) + b; }

DEV bool seq_ok(const prhs_k_batch &k, const prhs_seq *s)
{
    return s->slot >= 0 && s->slot < k.max_slots && s->row_count > 0 && s->kv_len >= s->row_count && s->kv_len <= k.max_kv_len &&
           s->row_begin >= 0 && s->row_begin <= k.max_rows - s->row_count;
}

DEV entry entry_from(const prhs_k_batch &k, const prhs_seq &s, int table)
{
    entry e = { s.slot, s.flags, s.kv_len, s.row_count, s.prompt_len, s.row_begin, IDLE, 0, table, 0, 0 };
    if (!seq_ok(k, &s))
        return e;
    if (e.flags & PRHS_SEQ_SEED) {
        e.kind = SEED;
        e.rows = 1;
        e.row0 = e.row_begin + e.row_count - 1;
        e.pos0 = e.kv_len - 1;
    } else if (!(e.flags & PRHS_SEQ_PREFILL) && e.row_count <= k.rows) {
        e.kind = DECODE;
        e.rows = e.row_count;
        e.row0 = e.row_begin;
        e.pos0 = e.kv_len - e.row_count;
    }
    return e;
}

DEV entry entry_of(const prhs_k_batch &k, const byte *seqs, i64 b)
{
    const prhs_seq s = *seq_at(k, seqs, b);
    return entry_from(k, s, k.active_off == PRHS_NONE ? (int)b : s.reserved[0]);
}

/* Sequences of the batch; of the caller's some may be idle. */
DEV int seqs_of(const prhs_k_batch &k, const byte *seqs)
{
    return k.active_off == PRHS_NONE ? k.max_seqs : *(const int *)(seqs + k.active_off);
}

/* Counters of tickets, which plan or count has set to 0: of the attend number `pass` of the step; PRHS_PASSES: of score. */
DEV int *tickets_at(byte *ws, const prhs_k_work &w, int pass)
{
    return (int *)(ws + w.active_off) + 1 + pass * PRHS_TICKET_WINDOWS;
}

DEV const int *pages_of(const prhs_k_batch &k, const byte *pages, i64 b)
{
    return (const int *)(pages + k.pages_off) + b * k.page_stride;
}

/* Byte offsets of a token's K and V row of KV head `head`. */
struct place {
    i64 k, v;
};

/* The same from a KV head's first rows on, in 16 bytes: caches of up to 64 GiB a layer. */
struct __align__(8) row_place {
    unsigned k, v;
};

/* A page's id, clamped into the cache. */
DEV unsigned page_id(const prhs_k_kv &kv, int id) { return (unsigned)min(max(id, 0), kv.pages - 1); }

/* j / kv.page_size, by multiplication. */
DEV unsigned page_index(const prhs_k_kv &kv, int j) { return __umulhi(2u * (unsigned)j, kv.page_inverse) >> kv.page_shift; }

/* x * stride, for x >= 0: cheaper than with a sign. */
DEV i64 steps(unsigned x, prhs_i64 stride) { return (i64)((unsigned long long)x * (unsigned long long)stride); }

/* The same from the first row of the same KV head on; size: bytes an element. */
DEV place place_in(const prhs_k_kv &kv, const int *pages, int j, int size)
{
    const unsigned page = page_index(kv, j), in = (unsigned)j - page * (unsigned)kv.page_size;
    const unsigned id = page_id(kv, pages[page]);
    place p;
    p.k = (steps(id, kv.k_page) + steps(in, kv.k_token)) * size;
    p.v = (steps(id, kv.v_page) + steps(in, kv.v_token)) * size;
    return p;
}

DEV place place_of(const prhs_k_kv &kv, const int *pages, int j, int head)
{
    const int size = element(kv.dtype);
    place p = place_in(kv, pages, j, size);
    p.k += kv.k_off + head * kv.k_head * size;
    p.v += kv.v_off + head * kv.v_head * size;
    return p;
}

DEV byte *row_at(const prhs_k_rows &r, byte *base, i64 row, int head)
{
    return base + r.off + (row * r.row + head * r.head) * element(r.dtype);
}

#define FLOATS(base, off) ((float *)((base) + (off)))
#define INTS(base, off) ((int *)((base) + (off)))
#define SLOT_AT(base, st, off, slot, type) ((type *)((base) + (st).off + (st).slot_bytes * (i64)(slot)))
#define STAT_AT(base, st, off, slot, type) ((type *)((base) + (st).off + (st).stat_slot_bytes * (i64)(slot)))

/* The states of unit u's references in the pool. */
DEV prhs_unit_state *kept_at(byte *state, const prhs_k_state &st, const prhs_k_pool &pool, int slot, int u)
{
    return (prhs_unit_state *)(state + pool.unit_off + st.slot_bytes * (i64)slot) + u * pool.count;
}

DEV prhs_set *set_at(byte *work, const prhs_k_work &w, const prhs_k_shape &s, i64 b, int u)
{
    return (prhs_set *)(work + w.set_off) + b * s.units + u;
}

/* Division by a number that the host has looked at, for 0 <= x < 2^31: umulhi() is at most one too low. */
struct quotient_by {
    const prhs_quotient &q;
    __device__ __forceinline__ int of(int x) const
    {
        const int y = (int)__umulhi((unsigned)x, q.inverse);
        return y + (x - y * q.divisor >= q.divisor);
    }
};

/* x / by where that is less than 2^20: what is approximated is at most one off. */
DEV int small_quotient(int x, int by)
{
    const int q = (int)__fdividef((float)x, (float)by), rest = x - q * by;
    return q + (rest >= by) - (rest < 0);
}

/* --- sets and chunks --- */

DEV int set_fixed(const prhs_set &s) { return s.sink_end + (s.edge_end - s.edge_begin) + s.count * s.run; }
DEV int set_tokens(const prhs_set &s, int end) { return set_fixed(s) + max(min(s.end, end) - s.win_begin, 0); }

/* Position of the set's token i. */
DEV int set_position(const prhs_set &s, const int *list, int i)
{
    if (i < s.sink_end)
        return i;
    i -= s.sink_end;
    if (i < s.edge_end - s.edge_begin)
        return s.edge_begin + i;
    i -= s.edge_end - s.edge_begin;
    if (i < s.count * s.run)
        return s.run == 1 ? list[i] : list[i / s.run] + i % s.run;
    return s.win_begin + i - s.count * s.run;
}

/*
 * `least` is a power of two, and 16 at least. From 16 such chunks on they are twice as long, from 128 on four times, so that there is less
 * to merge; as long as that is enough, nothing is divided. `chunks` may be as few as the capacity needs: nothing follows from it then.
 */
DEV int chunk_tokens(int n, int least, int chunks)
{
    if (n <= 4 * least * chunks)
        return n < 16 * least ? least : n < 128 * least ? 2 * least : 4 * least;
    const int c = (n + chunks - 1) / chunks;
    return max((c + 15) / 16 * 16, least);
}

DEV int chunk_count(int n, int least, int chunks)
{
    const int c = chunk_tokens(n, least, chunks);
    if (n <= 4 * least * chunks)
        return (int)((unsigned)(n + c - 1) >> (31 - __clz(c)));
    return small_quotient(n + c - 1, c);
}

DEV int work_tokens(const prhs_set &s, int work, int pos)
{
    return work == PRHS_WORK_ALL ? pos + 1 : work == PRHS_WORK_SET ? set_tokens(s, pos + 1) : 0;
}

/*
 * Units are a power of 2, mostly. Where their chunks are one too, the last of these leave two thirds of the warps of 132 multiprocessors
 * idle; three times a power of 2 fill them. Where a chunk is a power of 2, that was measured to be no worse. Every part is written and read
 * once more, so that chunks of long rows are longer.
 */
DEV int attend_chunk_tokens(const prhs_k_work &w, int n)
{
    const int size = n < 512 ? w.chunk_min : n < 2048 ? 96 : n < 4096 ? 64 : n < 8192 ? 128 : 176;
    return n <= size * w.chunks ? size : (n + 16 * w.chunks - 1) / (16 * w.chunks) * 16;
}
DEV int attend_chunks(const prhs_k_work &w, int n) { return n > 0 ? small_quotient(n - 1, attend_chunk_tokens(w, n)) + 1 : 0; }
DEV int score_chunks(const prhs_k_work &w, int n) { return n > 0 ? chunk_count(n, w.score_chunk_min, w.score_chunks) : 0; }

/* The set of a unit at position t before any selection: mode DENSE, WINDOW, STREAM, or RETRIEVE with an empty list. */
DEV prhs_set fresh_set(const prhs_k_policy &p, int t, int kv_len)
{
    const int n = t + 1, w = max(n - p.local_tokens, 0);
    const int start = (int)(((unsigned long long)p.psaw * (unsigned long long)t) >> 32), lo = max(p.sinks, start);
    const bool fits = w - lo <= (p.least > 0 ? p.least : p.k);
    prhs_set s = { PRHS_MODE_DENSE, 0, 0, 0, 0, 1, 0, kv_len, 0, 0, { 0, 0 } };
    if (p.dense || n < p.min_sparse_n || (fits && start <= p.sinks))
        return s;
    s.sink_end = p.sinks;
    if (fits) {
        s.mode = PRHS_MODE_WINDOW;
        s.win_begin = start;
        return s;
    }
    s.mode = p.k == 0 ? PRHS_MODE_STREAM : PRHS_MODE_RETRIEVE;
    s.win_begin = max(w, lo);
    s.mid_begin = lo;
    s.mid_end = w;
    s.run = p.k == 0 ? 1 : p.run;
    return s;
}

/* --- verdicts --- */

/*
 * A verdict on a shared list is whether sum over row 0's parts of exp(their log-sum-exp - limit) reaches 1 for every head. Whoever attends to
 * a part adds to the sum, in whole numbers, so that it does not depend on the order.
 */
#define VERDICT_ONE 1048576        /* a part adds two of these at most */
#define VERDICT_BAD (-1073741824)  /* a part is no number: no sum of others makes up for that */

/* What a head's verdict rests on: judge_off. */
struct __align__(16) head_record {
    float judged, known;  /* the dropped keys' log-sum-exp, for verdicts and the residual; and to be reported. -inf: none is dropped */
    float limit;          /* -inf: holds in any case; +inf: in none */
    int sum;
};

DEV head_record *records_at(byte *ws, const prhs_k_work &w) { return (head_record *)(ws + w.judge_off); }

/* mass_of(l - lse) <= most, as a limit of lse. */
DEV float limit_of(float l, float most)
{
    const float never = __int_as_float(0x7f800000);
    if (l == NOTHING)
        return most >= 0.0f ? NOTHING : never;
    if (isnan(l) || isnan(most) || most < 0.0f)
        return never;
    return most >= 1.0f ? NOTHING : l + logf((1.0f - most) / fmaxf(most, 1e-38f));
}

DEV void add_verdict(head_record *r, float limit, float lse)
{
    if (isnan(lse))
        atomicMin(&r->sum, VERDICT_BAD);
    else
        atomicAdd(&r->sum, limit == NOTHING ? VERDICT_ONE : __float2int_rn(fminf(exp_weight(lse - limit), 2.0f) * (float)VERDICT_ONE));
}

/* --- numbers --- */

/* 1 / (1 + exp(-l)) with l capped at 20; NaN stays. */
DEV float mass_of(float l) { return 1.0f / (1.0f + expf(-(l > 20.0f ? 20.0f : l))); }

DEV float cosine_of(float ab, float aa, float bb) { return aa == 0.0f || bb == 0.0f ? 0.0f : ab / (sqrtf(aa) * sqrtf(bb)); }

/* Lane `lane`'s address, of each `width` lanes. */
DEV const byte *address_of_lane(const byte *x, int lane, int width = 32)
{
    const unsigned long long p = (unsigned long long)x;
    const unsigned low = __shfl_sync(FULL, (unsigned)p, lane, width), high = __shfl_sync(FULL, (unsigned)(p >> 32), lane, width);
    return (const byte *)((unsigned long long)high << 32 | low);
}

DEV float warp_sum(float x)
{
#pragma unroll
    for (int w = 16; w; w >>= 1)
        x += __shfl_xor_sync(FULL, x, w);
    return x;
}

/*
 * N sums over the lanes (a power of two), v[i] the lane's part of sum i: lane l gets that of index l / (32 / N). As many additions as
 * lanes, in the order of warp_sum(), with a fraction of its exchanges.
 */
template <int N, int W = 16> DEV float scattered_sums(float v[N])
{
    if constexpr (N == 1) {
#pragma unroll
        for (int w = W; w; w >>= 1)
            v[0] += __shfl_xor_sync(FULL, v[0], w);
        return v[0];
    } else {
        const bool high = lane_id() & W;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float other = __shfl_xor_sync(FULL, high ? v[i] : v[i + N / 2], W);
            v[i] = (high ? v[i + N / 2] : v[i]) + other;
        }
        return scattered_sums<N / 2, W / 2>(v);
    }
}

DEV int warp_sum_int(int x)
{
#pragma unroll
    for (int w = 16; w; w >>= 1)
        x += __shfl_xor_sync(FULL, x, w);
    return x;
}

/* fmaxf: NaN loses. */
DEV float warp_max(float x)
{
#pragma unroll
    for (int w = 16; w; w >>= 1)
        x = fmaxf(x, __shfl_xor_sync(FULL, x, w));
    return x;
}

/* The largest of the lanes' numbers; none is NaN. */
DEV float warp_top(float x)
{
    const int b = __float_as_int(x), key = b ^ ((b >> 31) & 0x7fffffff), top = __reduce_max_sync(FULL, key);
    return __int_as_float(top ^ ((top >> 31) & 0x7fffffff));
}

/* --- turns --- */

/* The sum over the threads before this one; returns that over all. Between two calls there must be a barrier. */
DEV int block_prefix(int x, int *before)
{
    __shared__ int sums[32];
    const int lane = lane_id(), warp = warp_id();
    int s = x;
#pragma unroll
    for (int w = 1; w < 32; w <<= 1) {
        const int y = __shfl_up_sync(FULL, s, w);
        s += lane >= w ? y : 0;
    }
    if (lane == 31)
        sums[warp] = s;
    __syncthreads();
    const int mine = lane < (int)((blockDim.x + 31) >> 5) ? sums[lane] : 0;
    *before = s - x + __reduce_add_sync(FULL, lane < warp ? mine : 0);
    return __reduce_add_sync(FULL, mine);
}

/* The first of 32 * n ascending numbers in shared memory that is above x, of which there is one; by a whole warp, n <= 32. */
DEV int first_above(const int *ascending, int n, int x)
{
    const int lane = lane_id(), part = (__ffs((int)__ballot_sync(FULL, ascending[(lane + 1) * n - 1] > x)) - 1) * n;
    return part + __ffs((int)__ballot_sync(FULL, lane < n && ascending[part + min(lane, n - 1)] > x)) - 1;
}

#define TURNS_EACH 4 /* counts that a thread looks at together, where they lie in memory */

/*
 * Where a block stands among items of which count(read(i)) belong to index i of [0, n): it takes items b, b + gridDim.x, ... of them all.
 * A thread reads for all its indices at once; counting may be work.
 */
struct turns {
    i64 next, base;   /* base: items before the indices from `first` on */
    int first, total;
    int each;         /* counts a thread: TURNS_EACH at most */
    int real;         /* indices from here on have no items. Those that are counted first are not asked for it: it may be on its way yet */
};

DEV turns turns_begin(int each, int real) { return turns{ blockIdx.x, 0, -each * (int)blockDim.x, 0, each, real }; }

struct read_index {
    __device__ __forceinline__ int operator()(int i) const { return i; }
};

/*
 * Counts the next window of indices; total: its items. False: no index is left. All threads of the block call it together; it has barriers.
 * prefix: shared, `each` ints a thread.
 */
template <class Count, class Read> DEV bool turns_window(turns *t, int n, int *prefix, Count count, Read read)
{
    const int each = t->each;
    t->base += t->total;
    t->first += each * blockDim.x;
    t->total = 0;
    const int end = t->first ? min(t->real, n) : n;
    if (t->first >= end)
        return false;
    const int mine = t->first + each * threadIdx.x;
    int sums[TURNS_EACH], sum = 0, before;
    decltype(read(0)) seen[TURNS_EACH];
#pragma unroll
    for (int k = 0; k < TURNS_EACH; k++)
        seen[k] = read(min(mine + (k < each ? k : 0), end - 1));
#pragma unroll
    for (int k = 0; k < TURNS_EACH; k++)
        sums[k] = k < each && mine + k < end ? count(seen[k]) : 0;
#pragma unroll
    for (int k = 0; k < TURNS_EACH; k++)
        sums[k] = sum += sums[k];
    if (!__syncthreads_or(sum))
        return true;
    t->total = block_prefix(sum, &before);
#pragma unroll
    for (int k = 0; k < TURNS_EACH; k++)
        if (k < each)
            prefix[each * threadIdx.x + k] = before + sums[k];
    __syncthreads();
    return true;
}

/* Item `at` of the window, by a whole warp: of index *i the item *item. */
DEV void turns_find(const turns &t, const int *prefix, int at, int *i, int *item)
{
    const int low = first_above(prefix, t.each * blockDim.x / 32, at);
    *i = t.first + low;
    *item = at - (low ? prefix[low - 1] : 0);
}

/* The block's next item: index *i, the index's item *item. All threads of the block call it together; see turns_window(). takers: who take turns. */
template <class Count> DEV bool turns_next(turns *t, int n, int *prefix, Count count, int *i, int *item, unsigned takers = gridDim.x)
{
    while (t->next >= t->base + t->total)
        if (!turns_window(t, n, prefix, count, read_index()))
            return false;
    turns_find(*t, prefix, (int)(t->next - t->base), i, item);
    t->next += takers;
    return true;
}

/* Share `mine` of `total` items among so many warps: [*first, *end). least: total / warps. */
DEV void take_share(int total, unsigned warps, unsigned least, unsigned mine, int *first, int *end)
{
    const unsigned more = (unsigned)total - least * warps;
    *first = (int)(mine * least + min(mine, more));
    *end = *first + (int)(least + (mine < more));
}

/*
 * The same for warps: the block counts a window of indices together, then each of the grid's warps walks items of its own, one after the
 * other and without a barrier. They are neighbours, so that many belong to the same index, and so are a block's; where there are few, the
 * first warps of all blocks come before the second ones.
 */
struct walk {
    turns t;
    int at, end;       /* the warp's items in the window: the next one, and where they end */
    int index, passed; /* the index of the last one, and where that one's items end */
    int *counters;     /* of tickets, one a window */
    int window;
    bool dynamic;      /* the items past the first ones belong to who comes first: see walk_ticket() */
};

/* counters: PRHS_TICKET_WINDOWS of them, 0 when the grid begins. */
DEV walk walk_begin(int n, int real, int *counters)
{
    const int each = n <= (int)blockDim.x ? 1 : n <= 2 * (int)blockDim.x ? 2 : TURNS_EACH;
    return walk{ { 0, 0, -each * (int)blockDim.x, 0, each, real }, 0, 0, 0, 0, counters, -1, false };
}

/*
 * Blocks whose warps have an item of their own where the others go by tickets. The last blocks have none: other kernels' blocks may still be in
 * their way, and who begins late must not keep anything from being done.
 */
DEV unsigned owners() { return gridDim.x - gridDim.x / 3; }

/* The next window that has items. False: there is none. All threads of the block call it together, as often as it says true. */
template <class Count, class Read> DEV bool walk_window(walk *w, int n, int *prefix, Count count, Read read)
{
    turns *t = &w->t;
    if (t->total) {
        if (t->first + t->each * (int)blockDim.x >= min(t->real, n))
            return false; /* at once: no warp waits for the others' last items */
        __syncthreads();  /* the last window's items are found */
    }
    do {
        w->window++;
        if (!turns_window(t, n, prefix, count, read))
            return false;
    } while (!t->total);
    const unsigned each = blockDim.x >> 5, warps = gridDim.x * each, least = (unsigned)t->total / warps;
    const unsigned mine = least > 1 ? blockIdx.x * each + warp_id() : warp_id() * gridDim.x + blockIdx.x;
    w->dynamic = w->window < PRHS_TICKET_WINDOWS && least > 0; /* fewer items are spread over multiprocessors */
    if (w->dynamic) {
        w->at = (int)(blockIdx.x * each) + warp_id();
        w->end = w->at + (blockIdx.x < owners());
    } else {
        take_share(t->total, warps, least, mine, &w->at, &w->end);
    }
    w->passed = 0;
    return true;
}

/* A ticket for lane 0: asked for only. */
DEV int ask_ticket(const walk &w) { return lane_id() ? 0 : atomicAdd(w.counters + w.window, 1); }

/* Takes the item of ticket number `ticket`: warps are not equally fast, and so those that are behind get fewer. False: there is none. */
DEV bool walk_ticket(walk *w, int ticket)
{
    w->at = (int)(owners() * (blockDim.x >> 5)) + ticket;
    w->end = min(w->at + 1, w->t.total);
    w->passed = 0;
    return w->at < w->end;
}

/* The warp's next item in the window: of index w->index the item *item. *same: of the same index as the last one, and next to it. */
DEV bool walk_next(walk *w, const int *prefix, int *item, bool *same)
{
    const int at = w->at++;
    if (at >= w->end)
        return false;
    *same = at < w->passed;
    if (!*same) {
        turns_find(w->t, prefix, at, &w->index, item);
        w->passed = prefix[w->index - w->t.first];
    }
    return true;
}

/* work(i, item of i) for each of the block's items. */
template <class Count, class Work> DEV void take_turns(int n, int real, int each, int *prefix, Count count, Work work)
{
    turns t = turns_begin(each, real);
    int i, item;
    while (turns_next(&t, n, prefix, count, &i, &item))
        work(i, item);
}

#endif
