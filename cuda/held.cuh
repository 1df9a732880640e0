/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The best of a unit's tokens where they are few enough for the block's registers: a thread holds what it orders, and a warp has whole
 * groups of L_D. The rule, the bins and the groups are those of topk.cuh and dropped.cuh, and so are the results, bit for bit. What makes
 * a unit odd (infinite keys at both ends, many keys in one bin) is left to these.
 */
#ifndef PRHS_HELD_CUH
#define PRHS_HELD_CUH

#include "dropped.cuh"
#include "keys.cuh"

#define OUTSIDE BINS /* the bin of what is no candidate */

/* What is asked for. Runs are of one token. */
struct held_task {
    const float *scores, *lse; /* scores: from bit 0's token on; of the first head */
    i64 stride;
    int n, skew, keep, origin; /* bits [skew, n) are candidates, more than keep */
    int heads, padded;         /* padded: up to where groups have parts */
    bool largest, sums;        /* sums: L_D's parts are wanted */
    int *list;
    dropped_part *parts;       /* [group][head] */
};

/* What a thread holds: of group g of its warp the bits 32 t + lane. */
template <int G> struct held_values {
    float v[G][8]; /* NaN where there is no candidate */
    int bin[G][8];
};

/* Bit 0 of the warp's first group. */
template <int G> DEV int held_base() { return warp_id() * G * GROUP; }

/* A head's scores of a group from bit `at` on; NaN past the end. */
DEV void held_scores(const held_task &j, const float *scores, int at, float x[8])
{
    const float *from = scores + at + lane_id();
    if (at + GROUP <= j.n) {
#pragma unroll
        for (int t = 0; t < 8; t++)
            x[t] = load_score(from + 32 * t);
    } else {
#pragma unroll
        for (int t = 0; t < 8; t++)
            x[t] = at + lane_id() + 32 * t < j.n ? load_score(from + 32 * t) : NEVER;
    }
}

/* use(t, score, log-sum-exp) for a lane's eight scores of each head, from bit `at` on. */
template <class Use> DEV void each_head(const held_task &j, int at, Use use)
{
#pragma unroll 2
    for (int h = 0; h < j.heads; h++) {
        const float l = j.lse[h];
        float x[8];
        held_scores(j, j.scores + h * j.stride, at, x);
#pragma unroll
        for (int t = 0; t < 8; t++)
            use(t, x[t], l);
    }
}

/* The largest of the heads' weights, into zeros; here a NaN would lose. */
DEV void held_largest(const held_task &j, int at, float v[8])
{
    unsigned bad = 0;
    each_head(j, at, [&](int t, float x, float l) {
        bad |= bad_score(x) ? 1u << t : 0u;
        v[t] = fmaxf(v[t], expf(x - l));
    });
    if (bad)
#pragma unroll
        for (int t = 0; t < 8; t++)
            v[t] = bad >> t & 1 ? NEVER : v[t];
}

/* Their joint weights: as key_source::add_weights(). */
DEV void held_weights(const held_task &j, int at, float v[8])
{
#pragma unroll
    for (int t = 0; t < 8; t++)
        v[t] = 0.0f;
    if (j.largest) {
        held_largest(j, at, v);
        return;
    }
    each_head(j, at, [&](int t, float x, float l) { v[t] += expf(x - l); });
#pragma unroll
    for (int t = 0; t < 8; t++)
        v[t] = bad_score(v[t]) ? NEVER : v[t]; /* as is a sum of weights if one of the scores is */
}

template <bool RAW, int G> DEV void hold(const held_task &j, held_values<G> *x)
{
#pragma unroll
    for (int g = 0; g < G; g++) {
        const int at = held_base<G>() + g * GROUP;
        if (RAW)
            held_scores(j, j.scores, at, x->v[g]);
        else if (at < j.n)
            held_weights(j, at, x->v[g]);
        else
#pragma unroll
            for (int t = 0; t < 8; t++)
                x->v[g][t] = NEVER;
    }
    if (held_base<G>() + lane_id() < j.skew) /* skew: less than 32 */
        x->v[0][0] = NEVER;
}

/* What the warp has outside the candidates, as bits 8 g + t. */
template <int G> DEV unsigned outside(const held_task &j)
{
    const int at = held_base<G>() + lane_id();
    unsigned out = 0;
    if (held_base<G>() < j.skew || held_base<G>() + G * GROUP > j.n)
#pragma unroll
        for (int i = 0; i < 8 * G; i++)
            out |= at + 32 * i < j.skew || at + 32 * i >= j.n ? 1u << i : 0u;
    return out;
}

/* Bins of numbers between low and top, in their order: scores by value, weights, none of them below 0, by their bits. Others: bin 0. */
template <bool RAW> struct held_rule {
    float zero, scale;
    int top, shift;
    DEV_MEMBER held_rule(unsigned high, unsigned low)
    {
        if (RAW) {
            zero = key_value(high);
            scale = fminf(fmaxf((BINS - 3) / (zero - key_value(low)), 1e-37f), HIGHEST);
        } else {
            const ruler r = ruler_of(high, low);
            top = (int)(high & 0x7fffffffu);
            shift = r.shift;
        }
    }
    DEV_MEMBER int bin(float v) const
    {
        if (RAW)
            return 1 + __float_as_int(fminf(fmaxf((zero - v) * scale, -1.0f), BINS - 3.0f) + ROUNDS) - __float_as_int(ROUNDS);
        return 1 + min(max((top - (int)(__float_as_uint(v) & 0x7fffffffu)) >> shift, -1), BINS - 3);
    }
};

/* The ends of numbers, as keys. */
struct key_ends {
    unsigned top, least;
    /* Of an infinite one BAD_KEY or NOTHING_KEY, which are the ends of all keys; or there is no number. */
    DEV_MEMBER bool odd() const { return top == BAD_KEY || least <= NOTHING_KEY || top < least; }
};

/* Those of the block's threads, each with a largest and a smallest. Has a barrier. */
DEV key_ends ends_of(float high, float low, topk_shared *sh)
{
    put_most(sh, 0, order_key(high));
    put_most(sh, 1, ~min(order_key(low), BAD_KEY - 1));
    __syncthreads();
    return key_ends{ get_most(sh, 0), ~get_most(sh, 1) };
}

/* Counts all by bins. False: there is an infinite one among them, or no number. */
template <bool RAW, int G> DEV bool count_held(const held_task &j, held_values<G> *x, topk_shared *sh)
{
    float high = NOTHING, low = -NOTHING;
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int t = 0; t < 8; t++) {
            high = fmaxf(high, x->v[g][t]);
            low = fminf(low, x->v[g][t]);
        }
    const key_ends ends = ends_of(high, low, sh);
    if (ends.odd())
        return false;
    const held_rule<RAW> rule(ends.top, ends.least);
    const unsigned out = outside<G>(j);
#pragma unroll
    for (int g = 0; g < G; g++) {
#pragma unroll
        for (int t = 0; t < 8; t++)
            x->bin[g][t] = rule.bin(x->v[g][t]);
        if (out)
#pragma unroll
            for (int t = 0; t < 8; t++)
                x->bin[g][t] = out >> (8 * g + t) & 1 ? OUTSIDE : x->bin[g][t];
        if (held_base<G>() + g * GROUP < j.n)
#pragma unroll
            for (int t = 0; t < 8; t++)
                atomicAdd(&sh->bins[x->bin[g][t]], 1u);
    }
    return true;
}

/* The last one of the n few that is taken: the one that want - 1 are better than. */
DEV void find_last(topk_shared *sh, int n, int want)
{
    for (int i = warp_id(); i < n; i += blockDim.x >> 5)
        if (better_than(sh, n, i) == want - 1 && lane_id() == 0) {
            sh->last_key = sh->few.key[i];
            sh->last_at = sh->few.at[i];
        }
}

/* The best of the last bin, as bits 8 g + t. */
template <int G> DEV unsigned best_of_bin(const held_values<G> &x, unsigned tied, const found_bin &f, int want, topk_shared *sh)
{
    if (f.count == want)
        return tied;
    if (tied) /* of few threads */
#pragma unroll
        for (int i = 0; i < 8 * G; i++)
            if (tied >> i & 1) {
                const int to = atomicAdd(&sh->fews, 1);
                sh->few.key[to] = order_key(x.v[i / 8][i % 8]);
                sh->few.at[to] = held_base<G>() + 32 * i + lane_id();
            }
    __syncthreads();
    find_last(sh, f.count, want);
    __syncthreads();
    const unsigned key = sh->last_key;
    const int at = sh->last_at - held_base<G>() - lane_id();
    unsigned best = 0;
    if (tied)
#pragma unroll
        for (int i = 0; i < 8 * G; i++) {
            const unsigned k = order_key(x.v[i / 8][i % 8]);
            best |= k > key || (k == key && 32 * i <= at) ? 1u << i : 0u;
        }
    return best & tied;
}

/* Parts of the warp's groups, of what is not `gone`. */
template <bool RAW, int G> DEV void sum_held(const held_task &j, const held_values<G> &x, unsigned gone)
{
#pragma unroll
    for (int g = 0; g < G; g++) {
        const int at = held_base<G>() + g * GROUP;
        if (at >= j.n) {
            if (at < j.padded)
                for (int h = lane_id(); h < j.heads; h += 32)
                    j.parts[at / GROUP * j.heads + h] = no_part();
            continue;
        }
#pragma unroll 1
        for (int h = 0; h < (RAW ? 1 : j.heads); h++) {
            float y[8];
            if (!RAW)
                held_scores(j, j.scores + h * j.stride, at, y);
#pragma unroll
            for (int t = 0; t < 8; t++)
                y[t] = gone >> (8 * g + t) & 1 ? NOTHING : RAW ? x.v[g][t] : y[t];
            put_part(j.parts + at / GROUP * (RAW ? 1 : j.heads) + h, sum_eight(y));
        }
    }
}

/* Where the warp's part of what the block's threads have `count` of begins; *total: of the warp. Has a barrier. */
DEV int warps_before(int count, int *total, topk_shared *sh)
{
    const int lane = lane_id(), warp = warp_id();
    *total = __reduce_add_sync(FULL, count);
    if (lane == 0)
        sh->most[2][warp] = *total;
    __syncthreads();
    return __reduce_add_sync(FULL, lane < warp ? (int)sh->most[2][lane] : 0);
}

/* Lists what of a group is taken, bits t, ascending from list[*to] on; position: the lane's first. By a warp. */
DEV void list_group(int *list, int *to, unsigned taken, int position)
{
    const unsigned below = (1u << lane_id()) - 1;
#pragma unroll
    for (int t = 0; t < 8; t++) {
        const bool mine = taken >> t & 1;
        const unsigned in = __ballot_sync(FULL, mine);
        if (mine)
            list[*to + __popc(in & below)] = position + 32 * t;
        *to += __popc(in);
    }
}

/* The taken ones' positions, ascending. Has a barrier. */
template <int G> DEV void list_held(const held_task &j, unsigned taken, topk_shared *sh)
{
    int total, to = warps_before(__popc(taken), &total, sh);
    if (total == 0)
        return;
#pragma unroll
    for (int g = 0; g < G; g++)
        list_group(j.list, &to, taken >> 8 * g, j.origin + held_base<G>() + g * GROUP + lane_id());
}

/* Writes the list and the parts; bins are empty. False: nothing is done. What was written is to be seen after a barrier. */
template <bool RAW, int G> DEV_CALL bool choose_held(const held_task &j, topk_shared *sh)
{
    held_values<G> x;
    hold<RAW>(j, &x);
    if (!count_held<RAW>(j, &x, sh))
        return false;
    const found_bin f = find_bin(sh, j.keep);
    const int want = j.keep - f.before;
    if (f.count > FEW && f.count != want)
        return false;
    unsigned taken = 0, tied = 0;
#pragma unroll
    for (int i = 0; i < 8 * G; i++) {
        taken |= x.bin[i / 8][i % 8] < f.bin ? 1u << i : 0u;
        tied |= x.bin[i / 8][i % 8] == f.bin ? 1u << i : 0u;
    }
    taken |= best_of_bin(x, tied, f, want, sh);
    if (j.sums)
        sum_held<RAW>(j, x, taken | outside<G>(j));
    list_held<G>(j, taken, sh);
    return true;
}

/* Where a slice leaves what it keeps. */
struct kept_room {
    unsigned *inside, *keys; /* of the slice's first bit on */
    int *count;
};

/* Of a slice, which is the task: keeps the keys from `low` on, more than 1, and writes the parts of the others. Has a barrier. */
template <bool RAW, int G> DEV_CALL void keep_held(const held_task &j, unsigned low, const kept_room to, topk_shared *sh)
{
    held_values<G> x;
    hold<RAW>(j, &x);
    const unsigned out = outside<G>(j), below = (1u << lane_id()) - 1;
    const int at = held_base<G>();
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 8 * G; i++)
        kept |= order_key(x.v[i / 8][i % 8]) >= low ? 1u << i : 0u;
    kept &= ~out;
    int total, before = warps_before(__popc(kept), &total, sh);
    if (threadIdx.x == blockDim.x - 1)
        *to.count = before + total;
#pragma unroll
    for (int i = 0; i < 8 * G; i++) {
        const bool mine = kept >> i & 1;
        const unsigned in = __ballot_sync(FULL, mine);
        const int place = before + __popc(in & below);
        if (mine)
            to.keys[place] = order_key(x.v[i / 8][i % 8]);
        if (lane_id() == i && at + 32 * i < j.n)
            to.inside[(at >> 5) + i] = in;
        before += __popc(in);
    }
    if (j.sums)
        sum_held<RAW>(j, x, kept | out);
}

/* Groups that a thread of the block would hold a part of; more than 2: too many. */
DEV int held_groups(int n) { return (n + GROUP * (blockDim.x >> 5) - 1) / (GROUP * (blockDim.x >> 5)); }

#endif
