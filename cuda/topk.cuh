/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact top-k by a whole block: the best `want` of n keys as bits of a bitmap. A histogram brackets the threshold, one pass over the keys
 * sorts them into above, below and between, and the few between are ranked against each other. Every guess is checked by counting; where
 * one fails (ties, odd distributions), digit by digit of the keys, then of the positions, leads to the same bits.
 */
#ifndef PRHS_TOPK_CUH
#define PRHS_TOPK_CUH

#include "common.cuh"

#define DEV_MEMBER __device__ __forceinline__

#define BINS 2048
#define FEW (BINS / 2)            /* keys that are ranked against each other, at most */
#define SAMPLE 4096
#define BAD_KEY 0xffffffffu       /* NaN and +inf */
#define NOTHING_KEY 0x007fffffu   /* -inf; 0: no candidate */

/* Larger keys come first: NaN and +inf, then by value; -0 is +0. */
DEV unsigned order_key(float x)
{
    const unsigned b = __float_as_uint(x + 0.0f);
    return bad_score(x) ? BAD_KEY : b ^ ((unsigned)((int)b >> 31) | 0x80000000u);
}
DEV float key_value(unsigned k) { return __uint_as_float(k & 0x80000000u ? k ^ 0x80000000u : ~k); }

/* What the block's threads share. */
struct found_bin {
    int bin, before, count; /* keys in better bins, and in this one */
};
struct topk_shared {
    union {
        __align__(16) unsigned bins[BINS];
        struct {
            unsigned key[FEW];
            int at[FEW];
        } few;
    };
    int sums[32];
    found_bin found[2];
    unsigned top, low;  /* the largest number's key; the inverse of the smallest's */
    int above;
};

/* Keys above `high` are in, those below `low` are not. */
struct bracket {
    unsigned high, low;
    DEV_MEMBER bool above(unsigned k) const { return k > high; }
    DEV_MEMBER bool inside(unsigned k) const { return k >= low && k <= high; }
};

/* A source of keys has count(), key(i), at(i): the key's position, and some(i, word): the WIDE keys i, i + 32, ..., or what `limits`, made
   from a bracket, compares. Key 0: past the end, or no candidate. IN_ORDER: at(i) is i, and bit i of the bitmap stands for it. */
struct stored_keys {
    static const bool IN_ORDER = true;
    static const int WIDE = 4;
    typedef unsigned word;
    typedef bracket limits;
    const unsigned *keys;
    int n;
    DEV_MEMBER int count() const { return n; }
    DEV_MEMBER int at(int i) const { return i; }
    DEV_MEMBER unsigned key(int i) const { return keys[i]; }
    DEV_MEMBER void some(int i, unsigned k[WIDE]) const
    {
#pragma unroll
        for (int t = 0; t < WIDE; t++)
            k[t] = i + 32 * t < n ? keys[i + 32 * t] : 0;
    }
};
struct chosen_keys {
    static const bool IN_ORDER = false;
    static const int WIDE = 4;
    typedef unsigned word;
    typedef bracket limits;
    const unsigned *keys;
    const int *position;
    int n;
    DEV_MEMBER int count() const { return n; }
    DEV_MEMBER int at(int i) const { return position[i]; }
    DEV_MEMBER unsigned key(int i) const { return keys[i]; }
    DEV_MEMBER void some(int i, unsigned k[WIDE]) const
    {
#pragma unroll
        for (int t = 0; t < WIDE; t++)
            k[t] = i + 32 * t < n ? keys[i + 32 * t] : 0;
    }
};

/* Sum of x over the threads before this one; *total: over all. */
DEV int block_before(int x, int *sums, int *total)
{
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
    const int mine = lane < (int)(blockDim.x >> 5) ? sums[lane] : 0;
    *total = __reduce_add_sync(FULL, mine);
    s += __reduce_add_sync(FULL, lane < warp ? mine : 0) - x;
    __syncthreads();
    return s;
}

DEV void clear_bins(topk_shared *sh)
{
    for (int i = threadIdx.x; i < BINS; i += blockDim.x)
        sh->bins[i] = 0;
}

/* The bins of two ranks, counted from 1 in the order of the bins; the first and the last bin for ranks that nobody has. */
DEV void find_bins(topk_shared *sh, int rank0, int rank1)
{
    const int each = BINS / blockDim.x, first = threadIdx.x * each;
    int sum = 0, total;
    __syncthreads();
    for (int i = 0; i < each; i += 2) {
        const uint2 b = *(const uint2 *)(sh->bins + first + i);
        sum += b.x + b.y;
    }
    const int before = block_before(sum, sh->sums, &total);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int rank = r ? rank1 : rank0;
        if (threadIdx.x == 0 && (rank < 1 || rank > total))
            sh->found[r] = found_bin{ rank < 1 ? 0 : BINS - 1, 0, 0 };
        if (before < rank && rank <= before + sum) {
            int at = first, passed = before;
            for (; passed + (int)sh->bins[at] < rank; at++)
                passed += sh->bins[at];
            sh->found[r] = found_bin{ at, passed, (int)sh->bins[at] };
        }
    }
    __syncthreads();
}

/* Bins of even width between the largest number and the smallest: of scores by their value, of weights by their key (their exponent,
   mostly). Bin 0: NaN and +inf; the last ones: the smallest, and -inf. */
struct ruler {
    unsigned top;
    int shift;         /* < 0: by value */
    float zero, scale, step;
    DEV_MEMBER int bin(unsigned k) const
    {
        if (k == BAD_KEY)
            return 0;
        if (shift >= 0)
            return 1 + (int)min((top - k) >> shift, (unsigned)(BINS - 3));
        return 1 + (int)fminf((zero - key_value(k)) * scale, BINS - 3.0f);
    }
    /* About the largest key of bin b. */
    DEV_MEMBER unsigned edge(int b) const
    {
        if (b < 2)
            return b < 1 ? BAD_KEY : BAD_KEY - 1;
        if (b > BINS - 2)
            return 1;
        const unsigned down = shift >= 0 ? (unsigned)(b - 1) << shift : 0;
        return shift < 0 ? order_key(zero - (b - 1) * step) : top > down ? top - down : 1;
    }
};

DEV ruler ruler_of(unsigned top, unsigned low, bool by_value)
{
    ruler r = { top, -1, 0.0f, 0.0f, 0.0f };
    if (by_value && top > low) {
        r.zero = key_value(top);
        const float range = r.zero - key_value(low);
        r.scale = (BINS - 3) / range;
        r.step = range / (BINS - 3);
    }
    if (!by_value) {
        r.shift = max(21 - __clz((int)(top - low)), 0);
        r.shift += top > low && (top - low) >> r.shift > BINS - 3;
    }
    return r;
}

/* The largest key of a number among those that a thread has seen, and the inverse of the smallest. */
struct reach {
    unsigned top, low;
    DEV_MEMBER void add(unsigned k)
    {
        const bool number = k > NOTHING_KEY && k != BAD_KEY;
        top = max(top, number ? k : 0u);
        low = max(low, number ? ~k : 0u);
    }
};

/* The keys between which ranks rank0 to rank1 lie, with a bin to spare on either side. seen: a part a thread. */
template <class S> DEV bracket narrow(const S &s, const reach &seen, int rank0, int rank1, bool by_value, topk_shared *sh)
{
    const unsigned top = __reduce_max_sync(FULL, seen.top), low = __reduce_max_sync(FULL, seen.low);
    __syncthreads();
    if (threadIdx.x == 0)
        sh->top = sh->low = 0;
    clear_bins(sh);
    __syncthreads();
    if (lane_id() == 0) {
        atomicMax(&sh->top, top);
        atomicMax(&sh->low, low);
    }
    __syncthreads();
    const ruler r = ruler_of(sh->top, ~sh->low, by_value);
#pragma unroll 4
    for (int i = threadIdx.x; i < s.count(); i += blockDim.x) {
        const unsigned k = s.key(i);
        if (k)
            atomicAdd(&sh->bins[r.bin(k)], 1u);
    }
    find_bins(sh, rank0, rank1);
    return bracket{ r.edge(sh->found[0].bin - 1), r.edge(sh->found[1].bin + 2) };
}

/* Where the keys are: bits of `up` for those above the bracket, bits of `in` for those inside. */
template <class S> DEV void split(const S &s, const bracket &b, unsigned *up, unsigned *in)
{
    const int lane = lane_id(), n = s.count(), wide = 32 * S::WIDE;
    const typename S::limits limits = typename S::limits(b);
    for (int tile = warp_id() * wide; tile < n; tile += blockDim.x * S::WIDE) {
        typename S::word w[S::WIDE];
        unsigned mine_up = 0, mine_in = 0;
        s.some(tile + lane, w);
#pragma unroll
        for (int t = 0; t < S::WIDE; t++) {
            const unsigned bits_up = __ballot_sync(FULL, limits.above(w[t])), bits_in = __ballot_sync(FULL, limits.inside(w[t]));
            mine_up = lane == t ? bits_up : mine_up;
            mine_in = lane == t ? bits_in : mine_in;
        }
        if (lane < S::WIDE && tile + 32 * lane < n) {
            up[(tile >> 5) + lane] = mine_up;
            in[(tile >> 5) + lane] = mine_in;
        }
    }
}

/* Counts the bits of `up` into sh->above, and collects the keys of the bits of `in`, in order: at most `cap`. Returns their number. */
template <class S>
DEV int gather(const S &s, const unsigned *up, const unsigned *in, unsigned *keys, int *at, int cap, reach *seen, topk_shared *sh)
{
    const int words = (s.count() + 31) >> 5, each = (words + blockDim.x - 1) / blockDim.x, first = threadIdx.x * each;
    const int end = min(first + each, words);
    int above = 0, inside = 0, total;
    if (threadIdx.x == 0)
        sh->above = 0;
    __syncthreads();
    for (int w = first; w < end; w++) {
        above += __popc(up[w]);
        inside += __popc(in[w]);
    }
    above = __reduce_add_sync(FULL, above);
    if (lane_id() == 0)
        atomicAdd(&sh->above, above);
    int to = block_before(inside, sh->sums, &total);
    for (int w = first; w < end; w++)
        for (unsigned bits = in[w]; bits && to < cap; bits &= bits - 1, to++) {
            const int i = w * 32 + __ffs((int)bits) - 1;
            const unsigned k = s.key(i);
            keys[to] = k;
            at[to] = s.at(i);
            seen->add(k);
        }
    __syncthreads();
    return total;
}

DEV void mark(unsigned *marks, int at) { atomicOr(marks + (at >> 5), 1u << (at & 31)); }

/* Marks the best `want` of the few by counting who is better. */
DEV void rank_few(int n, int want, unsigned *marks, const topk_shared *sh)
{
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const unsigned key = sh->few.key[i];
        const int at = sh->few.at[i];
        int better = 0;
        for (int j = 0; j < n; j++)
            better += sh->few.key[j] > key || (sh->few.key[j] == key && sh->few.at[j] < at);
        if (better < want)
            mark(marks, at);
    }
}

/* Keys above `key` are in, and keys equal to it up to position `at`. */
struct limit {
    unsigned key;
    int at;
};

/* Digit by digit: three of the key, from the largest on, then three of the position, from the smallest on. */
template <class S> DEV limit find_limit(const S &s, int want, topk_shared *sh)
{
    unsigned fixed = 0, value = 0; /* the digits of the key, or of the position, that are known */
    limit l = { 0, 0 };
    for (int round = 0; round < 6; round++) {
        const bool places = round >= 3;
        const int shift = round % 3 == 0 ? 21 : round % 3 == 1 ? 10 : 0;
        const unsigned digit = round % 3 == 2 ? 1023 : 2047;
        __syncthreads();
        clear_bins(sh);
        __syncthreads();
        for (int i = threadIdx.x; i < s.count(); i += blockDim.x) {
            const unsigned k = s.key(i), x = places ? (unsigned)s.at(i) : k;
            if (k && (!places || k == l.key) && (x & fixed) == value)
                atomicAdd(&sh->bins[places ? x >> shift & digit : digit - (x >> shift & digit)], 1u);
        }
        find_bins(sh, want, want);
        const found_bin f = sh->found[0];
        want -= f.before;
        fixed |= digit << shift;
        value |= (places ? f.bin : digit - f.bin) << shift;
        if (!places)
            l = limit{ value, 0x7fffffff };
        else
            l.at = (int)(value | ~fixed);
        if (want == f.count) /* all that share these digits */
            break;
        if (round == 2)
            fixed = value = 0;
    }
    return l;
}

/* Marks what find_limit finds. */
template <class S> DEV_CALL void by_digits(const S s, int want, unsigned *marks, topk_shared *sh)
{
    const limit l = find_limit(s, want, sh);
    const int n = s.count();
    for (int tile = warp_id() * 32; tile < n; tile += blockDim.x) {
        const int i = tile + lane_id();
        const unsigned k = i < n ? s.key(i) : 0;
        const bool in = k && (k > l.key || (k == l.key && s.at(i) <= l.at));
        const unsigned bits = __ballot_sync(FULL, in);
        if (S::IN_ORDER && lane_id() == 0)
            marks[tile >> 5] = bits;
        if (!S::IN_ORDER && in)
            mark(marks, s.at(i));
    }
    __syncthreads();
}

/*
 * Marks the best `want` of keys in shared memory; not in order: beside those that are marked already. up, in: bitmaps of as many bits as
 * there are keys; in order, up is marks.
 */
template <class S>
DEV void settle(const S &s, const reach &seen, int want, bool by_value, unsigned *marks, unsigned *up, unsigned *in, topk_shared *sh)
{
    const bracket b = narrow(s, seen, want, want, by_value, sh);
    reach few_seen = { 0, 0 };
    split(s, b, up, in);
    const int few = gather(s, up, in, sh->few.key, sh->few.at, FEW, &few_seen, sh), left = want - sh->above;
    if (left < 0 || left > few || few > min(FEW, (int)blockDim.x)) {
        by_digits(s, want, marks, sh);
        return;
    }
    if (!S::IN_ORDER)
        for (int i = threadIdx.x; i < s.count(); i += blockDim.x)
            if (up[i >> 5] >> (i & 31) & 1)
                mark(marks, s.at(i));
    if (left > 0)
        rank_few(few, left, marks, sh);
    __syncthreads();
}

/* Samples the keys into room; returns how many are not 0. */
template <class S> DEV int take_sample(const S &s, unsigned *room, reach *seen, topk_shared *sh)
{
    const unsigned stride = s.count() / SAMPLE;
    int real = 0, total;
    for (int i = threadIdx.x; i < SAMPLE; i += 4 * blockDim.x) {
        unsigned k[4];
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const unsigned at = i + t * blockDim.x;
            k[t] = s.key((int)(at * stride + (at * 2654435769u >> 12) % stride));
        }
#pragma unroll
        for (int t = 0; t < 4; t++) {
            room[i + t * blockDim.x] = k[t];
            real += k[t] != 0;
            seen->add(k[t]);
        }
    }
    block_before(real, sh->sums, &total);
    return total;
}

/*
 * Marks the best `want` of keys that are computed anew each time, of which `valid` are not 0: a sample says where the threshold may be.
 * in: a bitmap like marks; room: shared memory of `words` words, SAMPLE and more.
 */
template <class S>
DEV void settle_many(const S &s, int want, int valid, bool by_value, unsigned *marks, unsigned *in, unsigned *room, int words,
                     topk_shared *sh)
{
    const int cap = words * 15 / 32, spare = words / 32; /* two words a key that may be it, and two bits */
    reach seen = { 0, 0 };
    const int sampled = take_sample(s, room, &seen, sh);
    const float rank = (float)want * ((float)sampled / (float)valid);
    const float doubt = 8.0f + 6.0f * sqrtf(rank * fmaxf(1.0f - rank / sampled, 0.0f));
    const bracket b = narrow(stored_keys{ room, SAMPLE }, seen, (int)floorf(rank - doubt), (int)ceilf(rank + doubt), by_value, sh);
    split(s, b, marks, in);
    seen = reach{ 0, 0 };
    const int few = gather(s, marks, in, room, (int *)room + cap, cap, &seen, sh), left = want - sh->above;
    if (left < 0 || left > few || few > cap || (b.high == BAD_KEY && sh->above)) {
        by_digits(s, want, marks, sh);
    } else if (left > 0) {
        unsigned *const up = room + 2 * cap;
        settle(chosen_keys{ room, (const int *)room + cap, few }, seen, left, by_value, marks, up, up + spare, sh);
    }
}

#endif
