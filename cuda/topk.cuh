/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact top-k by a whole block: the best `want` of n keys as bits of a bitmap. A histogram of all keys tells the bin of the last one that
 * is taken; better bins are in, and the few keys of that bin are ranked against each other. Where they are many (ties, odd distributions)
 * the bin is cut into bins anew, by keys and at last by places. Counts are exact, so that nothing is guessed and nothing has to be undone.
 */
#ifndef PRHS_TOPK_CUH
#define PRHS_TOPK_CUH

#include "common.cuh"

#define DEV_MEMBER __device__ __forceinline__

/* Scores, which an earlier launch wrote; or (ONE_LAUNCH) this block itself, so that they must not be taken for read-only. */
DEV float load_score(const float *p)
{
#ifdef ONE_LAUNCH
    return *p;
#else
    return __ldg(p);
#endif
}

#define BINS 2048
#define PAST 128                  /* keys that are looked at past the end, at most */
#define FEW 512                   /* keys that are ranked against each other, at most */
#define ROUNDS 12582912.0f        /* a small number added to it becomes an integer, in its last bits: cheaper than a conversion */
#define BAD_KEY 0xffffffffu       /* NaN and +inf */
#define HIGHEST 3.402823466e38f   /* the largest number */
#define NOTHING_KEY 0x007fffffu   /* -inf; 0: no candidate */

/* Larger keys come first: NaN and +inf, then by value; -0 is +0. */
DEV unsigned order_key(float x)
{
    const unsigned b = __float_as_uint(x + 0.0f);
    return bad_score(x) ? BAD_KEY : b ^ ((unsigned)((int)b >> 31) | 0x80000000u);
}
DEV float key_value(unsigned k) { return __uint_as_float(k & 0x80000000u ? k ^ 0x80000000u : ~k); }

struct found_bin {
    int bin, before, count; /* keys in better bins, and in this one */
};

struct few_keys {
    unsigned key[FEW];
    int at[FEW];
};

/* What the block's threads share. */
struct topk_shared {
    union {
        __align__(16) unsigned bins[BINS + 4]; /* the last ones take what has no bin */
        few_keys few;
    };
    unsigned most[4][32]; /* the warps' largest */
    found_bin found;
    int fews;
    unsigned last_key; /* of the few, the last one that is taken */
    int last_at;
};

DEV void put_most(topk_shared *sh, int which, unsigned x)
{
    x = __reduce_max_sync(FULL, x);
    if (lane_id() == 0)
        sh->most[which][warp_id()] = x;
}
/* After a barrier: the block's largest. */
DEV unsigned get_most(const topk_shared *sh, int which)
{
    return __reduce_max_sync(FULL, lane_id() < (int)(blockDim.x >> 5) ? sh->most[which][lane_id()] : 0u);
}

/* The numbers among the keys that a thread has seen: the largest, plus 1, and the smallest, less FIRST_NUMBER. Others do no harm. */
#define FIRST_NUMBER (NOTHING_KEY + 1)
struct reach {
    unsigned top, low;
    DEV_MEMBER reach() : top(0), low(~0u) {}
    DEV_MEMBER void add(unsigned k)
    {
        top = max(top, k + 1);
        low = min(low, k - FIRST_NUMBER);
    }
};

/* Bins of even width between two keys, counted from 1 down from the larger one; smaller keys share the last one. */
struct ruler {
    unsigned top;
    int shift;
    DEV_MEMBER int bin(unsigned k) const { return 1 + (int)min((top - k) >> shift, (unsigned)(BINS - 3)); }
};
DEV ruler ruler_of(unsigned top, unsigned low)
{
    ruler r = { top, max(21 - __clz((int)(top - low)), 0) };
    r.shift += top > low && (top - low) >> r.shift > BINS - 3;
    return r;
}

/*
 * Rules of a round: bin(key, place) of a candidate is BINS for what comes after all bins, and -1 for what is in already. At first all keys
 * are cut: scores by their value, weights by their key (their exponent, mostly). Bin 0: NaN and +inf, whose key has a NaN's bits.
 */
struct by_value {
    static const int WIDE = PAST / 32;
    float zero, scale; /* scale: neither 0 nor infinite */
    DEV_MEMBER int bin(unsigned k, int) const
    {
        return 1 + __float_as_int(fminf(fmaxf((zero - key_value(k)) * scale, -1.0f), BINS - 3.0f) + ROUNDS) - __float_as_int(ROUNDS);
    }
};
struct by_key {
    static const int WIDE = PAST / 32;
    ruler r;
    DEV_MEMBER int bin(unsigned k, int) const { return k == BAD_KEY ? 0 : r.bin(k); }
};
/* Later only keys in [low, high], or these keys at places in [from, to], are cut. */
struct by_range {
    static const int WIDE = 1;
    unsigned high, low;
    int from, to;
    ruler r;
    bool places;
    DEV_MEMBER int bin(unsigned k, int i) const
    {
        if (k > high || (k >= low && i < from))
            return -1;
        return k < low || i > to ? BINS : r.bin(places ? ~(unsigned)i : k);
    }
};

DEV void clear_bins(topk_shared *sh)
{
    for (int i = threadIdx.x; i < BINS; i += blockDim.x)
        sh->bins[i] = 0;
}

/*
 * use(place, key, bin) for all keys, by whole warps, and for some past the end, which are 0: in memory, where a rule takes several at a
 * time. Their loads are under way together.
 */
template <class Rule, class Use> DEV void each_bin(const unsigned *keys, int n, const Rule &rule, Use use)
{
    const int wide = Rule::WIDE;
#pragma unroll 1
    for (int tile = warp_id() * 32 * wide; tile < n; tile += blockDim.x * wide) {
        const int i = tile + lane_id();
        unsigned k[wide];
        int b[wide];
#pragma unroll
        for (int t = 0; t < wide; t++)
            k[t] = wide > 1 || i < n ? keys[i + 32 * t] : 0;
#pragma unroll
        for (int t = 0; t < wide; t++)
            b[t] = max(rule.bin(k[t], i + 32 * t), k[t] ? -1 : BINS);
#pragma unroll
        for (int t = 0; t < wide; t++)
            use(i + 32 * t, k[t], b[t]);
    }
}

template <class Rule> DEV void count_keys(const unsigned *keys, int n, const Rule &rule, topk_shared *sh)
{
    each_bin(keys, n, rule, [&](int, unsigned, int b) { atomicAdd(&sh->bins[min((unsigned)b, (unsigned)BINS)], 1u); });
}

#ifndef LEAST_THREADS
#define LEAST_THREADS PRHS_RETRIEVE_LEAST /* of a block */
#endif
#define EACH (BINS / LEAST_THREADS) /* bins of a thread, at most */

/* The bin of a rank, counted from 1 in the order of the bins; of the last key where there are fewer. pair(i): what bins i and i + 1 count. */
template <class Pair> DEV found_bin find_rank(topk_shared *sh, int rank, Pair pair)
{
    const int each = BINS >> (31 - __clz((int)blockDim.x)), first = threadIdx.x * each; /* blocks are powers of 2 */
    uint2 pairs[EACH / 2];
    int sum = 0, before;
#pragma unroll
    for (int i = 0; i < EACH / 2; i++) {
        pairs[i] = 2 * i < each ? pair(first + 2 * i) : make_uint2(0, 0);
        sum += pairs[i].x + pairs[i].y;
    }
    rank = min(rank, block_prefix(sum, &before));
    if (before < rank && rank <= before + sum) {
        found_bin f = { first, before, 0 };
        int passed = before;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int n = (int)(i % 2 ? pairs[i / 2].y : pairs[i / 2].x);
            if (passed < rank && rank <= passed + n)
                f = found_bin{ first + i, passed, n };
            passed += n;
        }
        sh->found = f;
    }
    if (threadIdx.x == 0)
        sh->fews = 0;
    __syncthreads();
    return sh->found;
}

/* The same of the block's own bins. */
DEV found_bin find_bin(topk_shared *sh, int rank)
{
    __syncthreads();
    return find_rank(sh, rank, [&](int i) { return *(const uint2 *)(sh->bins + i); });
}

/* What all have seen, and empty bins. */
DEV reach meet(const reach &seen, topk_shared *sh)
{
    reach all;
    put_most(sh, 0, seen.top);
    put_most(sh, 1, ~seen.low);
    clear_bins(sh);
    __syncthreads();
    const unsigned top = get_most(sh, 0);
    all.top = top ? top - 1 : 0;
    all.low = ~get_most(sh, 1) + FIRST_NUMBER;
    return all;
}
DEV by_value cut_values(const reach &all)
{
    by_value rule = { 0.0f, 1.0f };
    if (all.top >= all.low) {
        rule.zero = key_value(all.top);
        rule.scale = fminf(fmaxf((BINS - 3) / (rule.zero - key_value(all.low)), 1e-37f), HIGHEST);
    }
    return rule;
}

/* A rule for what `last` has put into one bin. */
template <class Rule> DEV by_range cut_bin(const unsigned *keys, int n, const Rule &last, int bin, topk_shared *sh)
{
    by_range next;
    unsigned high = 0, low = 0, to = 0, from = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const unsigned k = keys[i];
        if (k && last.bin(k, i) == bin) {
            high = max(high, k);
            low = max(low, ~k);
            to = max(to, (unsigned)i);
            from = max(from, ~(unsigned)i);
        }
    }
    put_most(sh, 0, high);
    put_most(sh, 1, low);
    put_most(sh, 2, to);
    put_most(sh, 3, from);
    clear_bins(sh);
    __syncthreads();
    next.high = get_most(sh, 0);
    next.low = ~get_most(sh, 1);
    next.places = next.high == next.low;
    next.to = next.places ? (int)get_most(sh, 2) : n - 1;
    next.from = next.places ? (int)~get_most(sh, 3) : 0;
    next.r = next.places ? ruler_of(~(unsigned)next.from, ~(unsigned)next.to) : ruler_of(next.high, next.low);
    return next;
}

/* Marks what is in; of the last bin all, or none: then its keys are left in sh->few. */
template <class Rule>
DEV void mark_better(const unsigned *keys, int n, const Rule &rule, int bin, bool all, unsigned *chosen, topk_shared *sh)
{
    const int lane = lane_id(), in = all ? bin + 1 : bin, undecided = all ? -2 : bin;
    each_bin(keys, n, rule, [&](int i, unsigned k, int b) {
        const unsigned better = __ballot_sync(FULL, b < in), equal = __ballot_sync(FULL, b == undecided);
        if (lane == 0)
            chosen[i >> 5] = better;
        if (equal) {
            int to = 0;
            if (lane == 0)
                to = atomicAdd(&sh->fews, __popc(equal));
            to = __shfl_sync(FULL, to, 0) + __popc(equal & ((1u << lane) - 1));
            if (equal >> lane & 1) {
                sh->few.key[to] = k;
                sh->few.at[to] = i;
            }
        }
    });
}

/* How many of the n few are better than number i; by a warp. */
DEV int better_than(const topk_shared *sh, int n, int i)
{
    const unsigned key = sh->few.key[i];
    const int at = sh->few.at[i];
    int better = 0;
    for (int j = lane_id(); j < n; j += 32)
        better += sh->few.key[j] > key || (sh->few.key[j] == key && sh->few.at[j] < at);
    return __reduce_add_sync(FULL, better);
}

/* Marks the best `want` of the few by counting who is better. */
DEV void rank_few(int n, int want, unsigned *chosen, const topk_shared *sh)
{
    for (int i = warp_id(); i < n; i += blockDim.x >> 5) {
        const int at = sh->few.at[i];
        if (better_than(sh, n, i) < want && lane_id() == 0)
            atomicOr(chosen + (at >> 5), 1u << (at & 31));
    }
}

/* As many rounds as it takes, from `rule` on. */
DEV_CALL void choose_later(const unsigned *keys, int n, int want, by_range rule, unsigned *chosen, topk_shared *sh)
{
    found_bin f;
#pragma unroll 1
    for (;;) {
        count_keys(keys, n, rule, sh);
        f = find_bin(sh, want);
        want -= f.before;
        if (f.count <= FEW || f.count == want)
            break;
        rule = cut_bin(keys, n, rule, f.bin, sh);
    }
    mark_better(keys, n, rule, f.bin, f.count == want, chosen, sh);
    __syncthreads();
    if (f.count != want)
        rank_few(f.count, want, chosen, sh);
    __syncthreads();
}

/* The first round, and the others where it leaves too many. */
template <class Rule> DEV void choose_by(const unsigned *keys, int n, int want, const Rule &rule, unsigned *chosen, topk_shared *sh)
{
    count_keys(keys, n, rule, sh);
    const found_bin f = find_bin(sh, want);
    want -= f.before;
    if (f.count > FEW && f.count != want) {
        choose_later(keys, n, want, cut_bin(keys, n, rule, f.bin, sh), chosen, sh);
        return;
    }
    mark_better(keys, n, rule, f.bin, f.count == want, chosen, sh);
    __syncthreads();
    if (f.count != want)
        rank_few(f.count, want, chosen, sh);
    __syncthreads();
}

/*
 * Makes `chosen` the bitmap of the best `want` of n keys, at least one, of which as many are not 0. Both have room for PAST more; these
 * keys are 0. values: keys are of scores. seen: a part a thread. What threads wrote to keys need not be visible yet; ends with a barrier.
 */
DEV void choose(const unsigned *keys, int n, int want, bool values, const reach &seen, unsigned *chosen, topk_shared *sh)
{
    const reach all = meet(seen, sh);
    if (values)
        choose_by(keys, n, want, cut_values(all), chosen, sh);
    else
        choose_by(keys, n, want, by_key{ ruler_of(all.top, all.low) }, chosen, sh);
}

/* The same of keys in any memory, slowly. */
DEV void choose_anywhere(const unsigned *keys, int n, int want, unsigned *chosen, topk_shared *sh)
{
    clear_bins(sh);
    __syncthreads();
    choose_later(keys, n, want, by_range{ BAD_KEY, 1, 0, n - 1, ruler_of(BAD_KEY, 1), false }, chosen, sh);
}

/* The smallest key in the bins down to that of rank `rank`. */
template <class Rule> DEV unsigned smallest_by(const unsigned *keys, int n, int rank, const Rule &rule, topk_shared *sh)
{
    count_keys(keys, n, rule, sh);
    const found_bin f = find_bin(sh, rank);
    unsigned low = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (keys[i] && rule.bin(keys[i], i) <= f.bin)
            low = max(low, ~keys[i]);
    put_most(sh, 3, low);
    __syncthreads();
    return ~get_most(sh, 3);
}

/* A key that about the best `rank` of n keys reach, or more. As choose(), but that sh->most[3] may be read yet. */
DEV unsigned key_of_rank(const unsigned *keys, int n, int rank, bool values, const reach &seen, topk_shared *sh)
{
    const reach all = meet(seen, sh);
    return values ? smallest_by(keys, n, rank, cut_values(all), sh) : smallest_by(keys, n, rank, by_key{ ruler_of(all.top, all.low) }, sh);
}

#endif
