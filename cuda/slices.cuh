/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A long middle in slices, a block each: what every block does with its own, and how the one that comes last chooses among what all have
 * kept. Nothing waits for another block.
 */
#ifndef PRHS_SLICES_CUH
#define PRHS_SLICES_CUH

#include "unit.cuh"

/* Groups of dropped tokens in a slice. */
DEV int slice_groups(const candidates &c) { return (c.each * c.run + GROUP - 1) / GROUP; }

/* Keys of `samples` bits, in pairs of neighbours, into the room, and zeros after them. */
template <bool RAW> DEV void sample_keys(const prhs_k_select &a, const unit_task &j, int samples, unsigned *room, reach *seen)
{
    const key_source<RAW> s = source_of<RAW>(a, j);
    const unsigned stride = j.c.n / (samples / 2);
    for (int pair = threadIdx.x; pair < (samples + PAST) / 2; pair += blockDim.x) {
        uint2 *const to = (uint2 *)room + pair;
        if (2 * pair >= samples) {
            *to = make_uint2(0, 0);
            continue;
        }
        const int first = (int)(pair * stride + __umulhi((unsigned)pair * 2654435769u, stride - 1));
        const int at[2] = { first, first + 1 };
        unsigned k[2];
        s.template keys<2, false>(at, k);
        *to = make_uint2(k[0], k[1]);
        seen->add(k[0]);
        seen->add(k[1]);
    }
}

/*
 * What a sample is asked for, so that the best `keep` are hardly ever more; and how many keys of the unit that may be. Both are six
 * deviations from what is expected: the samples' key of rank r stands for r samples' worth of keys, give or take the root of r.
 */
struct guess {
    int samples, rank, most; /* rank: of the samples. most: 0 where all have to be kept */
};
DEV guess guess_of(const unit_task &j)
{
    const int n = j.c.n;
    guess g = { PRHS_RETRIEVE_SAMPLE(j.c.run), 0, 0 };
    const float samples = (float)g.samples, rank = (float)j.c.keep * (samples / (float)n);
    const float wanted = rank + 8.0f + 6.0f * sqrtf(rank * fmaxf(1.0f - rank / samples, 0.0f));
    const float most = (wanted + 8.0f + 6.0f * sqrtf(wanted)) * ((float)n / samples);
    g.rank = (int)ceilf(wanted);
    if (n >= 4 * g.samples && wanted < samples && most <= (float)j.cap)
        g.most = (int)most;
    return g;
}

/* A key that more than the best `keep` of the unit reach, as far as a sample can tell; 1, that all reach, where few would not. */
DEV unsigned guess_low(const prhs_k_select &a, const unit_task &j, const space &mem, const guess &g, topk_shared *sh)
{
    const int samples = g.samples;
    if (!g.most)
        return 1;
    reach seen;
    if (j.raw)
        sample_keys<true>(a, j, samples, mem.room, &seen);
    else
        sample_keys<false>(a, j, samples, mem.room, &seen);
    return key_of_rank(mem.room, samples, g.rank, j.raw, seen, sh);
}

/* Keeps all places of a slice, whose keys are in the room. */
DEV void keep_all(const unit_task &j, int begin, int n, const unsigned *room)
{
    for (int i = threadIdx.x; i < (n + 31) / 32 * 32; i += blockDim.x) {
        const unsigned in = __ballot_sync(FULL, i < n);
        if (lane_id() == 0)
            j.left.inside[(begin + i) >> 5] = in;
        if (i < n)
            j.left.keys[begin + i] = room[i];
    }
    if (threadIdx.x == 0)
        j.left.counts[begin / j.c.each] = n;
}

/* Keeps the keys of a slice from `low` on, all where it is 1, and sums up the tokens of the others. The keys are in the room. */
DEV void leave_slice(const prhs_k_select &a, const unit_task &j, const space &mem, int slice, unsigned low)
{
    const int begin = slice * j.c.each, n = min(j.c.each, j.c.n - begin), heads = a.shape.unit_heads;
    unsigned *const bits = mem.bits, *const inside = j.left.inside + (begin >> 5), *keys = j.left.keys + begin;
    const unsigned *const room = mem.room;
    __syncthreads();
    if (low <= 1) {
        keep_all(j, begin, n, room);
        return;
    }
    for (int i = threadIdx.x; i < (n + 31) / 32 * 32; i += blockDim.x) {
        const unsigned in = __ballot_sync(FULL, i < n && room[i] >= low);
        if (lane_id() == 0)
            bits[i >> 5] = inside[i >> 5] = in;
    }
    __syncthreads();
    word_share s = share_words(n, [&](int w) { return bits[w]; });
    if (threadIdx.x == 0)
        j.left.counts[slice] = s.total;
    for (int w = s.first; w < s.end; w++)
        for (unsigned b = bits[w]; b; b &= b - 1)
            keys[s.before++] = room[w * 32 + __ffs((int)b) - 1];
    if (a.state.head_off == PRHS_NONE)
        return;
    const int origin = j.c.origin + begin * j.c.run, groups = slice_groups(j.c);
    const dropping d = { bits, nullptr, max(j.c.first, origin), origin + n * j.c.run, origin, j.c.run };
    sum_groups(d, j.scores, a.work.score_stride, heads, groups, j.left.parts + slice * groups * heads);
}

/* The same from registers, of the slice that j.held is. False: they do not hold it, or the rule is another. */
DEV bool leave_in_registers(const unit_task &j, int slice, unsigned low, topk_shared *sh)
{
    const int begin = slice * j.c.each, groups = held_groups(j.c.each);
    if (low <= 1 || j.c.run > 1 || groups > 2)
        return false;
    const kept_room to = { j.left.inside + (begin >> 5), j.left.keys + begin, j.left.counts + slice };
    if (j.raw)
        groups == 1 ? keep_held<true, 1>(j.held, low, to, sh) : keep_held<true, 2>(j.held, low, to, sh);
    else
        groups == 1 ? keep_held<false, 1>(j.held, low, to, sh) : keep_held<false, 2>(j.held, low, to, sh);
    return true;
}

/* All slices anew, with all places. Ends with a barrier. */
DEV_CALL void keep_everything(const prhs_k_select &a, const unit_task &j, unsigned *room)
{
    reach seen;
    for (int begin = 0; begin < j.c.n; begin += j.c.each) {
        const int n = min(j.c.each, j.c.n - begin);
        if (j.raw)
            fill_room<true>(a, j, begin, begin + n, room, &seen);
        else
            fill_room<false>(a, j, begin, begin + n, room, &seen);
        __syncthreads();
        keep_all(j, begin, n, room);
        __syncthreads();
    }
}

/* Whether this block is the last one of the unit to come here. */
DEV bool comes_last(int *arrived, int slices)
{
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(arrived, 1) == slices - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

/* Keys that the slices before `slice` have kept; by a warp. */
DEV int kept_before(const unit_task &j, int slice)
{
    int sum = 0;
    for (int i = lane_id(); i < slice; i += 32)
        sum += j.left.counts[i];
    return __reduce_add_sync(FULL, sum);
}

/* What the slices have kept comes together in the room: warps share slices. */
DEV void fetch_kept(const unit_task &j, unsigned *room, reach *seen)
{
    const int warps = blockDim.x >> 5, slices = j.c.slices, each = max(warps / slices, 1), teams = warps / each;
    const int team = warp_id() / each, lane = warp_id() % each * 32 + lane_id();
    for (int s = team; s < slices && team < teams; s += teams) {
        const int to = kept_before(j, s), n = j.left.counts[s];
        const unsigned *keys = j.left.keys + s * j.c.each;
#pragma unroll 8
        for (int i = lane; i < n; i += 32 * each) {
            const unsigned k = keys[i];
            room[to + i] = k;
            seen->add(k);
        }
    }
}

/* Where the list is to be chosen from, when all slices are done. False: nothing is summed up, every place has a key. */
DEV_CALL bool gather_kept(const prhs_k_select &a, const unit_task &j, const space mem, unsigned low, int most, chosen_from *from, reach *seen)
{
    int total = kept_before(j, j.c.slices);
    if (low > 1 && (total < j.c.keep || total > most)) {
        keep_everything(a, j, mem.room);
        low = 1;
        total = j.c.n;
    }
    if (total <= j.cap) {
        fetch_kept(j, mem.room, seen);
        for (int i = threadIdx.x; i < PAST; i += blockDim.x)
            mem.room[total + i] = 0;
        *from = chosen_from{ mem.room, total, j.left.inside, mem.bits, true };
    } else {
        *from = chosen_from{ j.left.keys, j.c.n, nullptr, j.marks, false };
    }
    return low > 1;
}

/* The slices' groups in which dilation has taken something from what was summed up: anew. */
DEV void sum_dilated(const prhs_k_select &a, const unit_task &j)
{
    const int groups = slice_groups(j.c), heads = a.shape.unit_heads, run = j.c.run;
    for (int i = warp_id(); i < j.c.slices * groups; i += blockDim.x >> 5) {
        const int slice = i / groups, first = slice * j.c.each, end = min(first + j.c.each, j.c.n);
        const int p = j.c.origin + first * run + i % groups * GROUP;
        const dropping out = { j.left.inside, nullptr, j.c.first, j.c.origin + end * run, j.c.origin, run };
        const dropping left = { j.left.inside, j.marks, out.first, out.end, out.origin, run };
        bool other = false;
#pragma unroll 1
        for (int t = 0; t < GROUP / 32; t++)
            other |= out.holds(p + lane_id() + 32 * t) != left.holds(p + lane_id() + 32 * t);
        if (!__any_sync(FULL, other))
            continue;
        for (int h = 0; h < heads; h++)
            put_part(j.left.parts + i * heads + h, sum_group(left, j.scores + h * a.work.score_stride, p));
    }
}

/*
 * Sums up what the slices have kept and the list has not taken, beside what they have summed up. others: how many that are, where they are
 * in the room after the list already. Returns the number of all groups.
 */
DEV_CALL int sum_kept(const prhs_k_select &a, const unit_task &j, unsigned *room, int others)
{
    const unsigned *marks = j.marks, *inside = j.left.inside;
    const int groups = j.c.slices * slice_groups(j.c), heads = a.shape.unit_heads;
    const int *places = (const int *)room + (others < 0 ? 0 : j.c.keep);
    if (a.policy.dilate_m > 0)
        sum_dilated(a, j);
    if (others < 0)
        others = collect(j, (int *)room, j.cap, [&](int w) { return inside[w] & ~marks[w]; });
    sum_places(places, others, j.c.run, j.scores, a.work.score_stride, heads, j.left.parts + groups * heads);
    return groups + (others + GROUP - 1) / GROUP;
}

/* The slices' parts in the room, where it holds them. Has barriers. */
DEV const dropped_part *bring_parts(const unit_task &j, const space &mem, int n)
{
    if (j.c.slices == 1 || 4 * n > j.cap)
        return nullptr;
    float4 *const to = (float4 *)mem.room;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        to[i] = __ldcg((const float4 *)j.left.parts + i);
    __syncthreads();
    return (const dropped_part *)to;
}

#define WORDS 4 /* of a bitmap, that a thread has on their way together */

/*
 * The list, and after it in the room the others of what the slices have kept, from what is chosen of it; returns how many are listed. Every
 * thread knows from the counts before its words where both go on. Ends with a barrier.
 */
DEV_CALL int list_kept(const unit_task &j, unsigned *room, const unsigned *chosen)
{
    int *const listed = (int *)room, *const others = listed + j.c.keep;
    const int words = (j.c.n + 31) >> 5;
    int kept_base = 0, list_base = 0;
    for (int base = 0; base < words; base += WORDS * blockDim.x) {
        const int first = base + WORDS * threadIdx.x;
        unsigned in[WORDS], take[WORDS];
        int kept = 0, list = 0, before, ahead;
#pragma unroll
        for (int t = 0; t < WORDS; t++)
            in[t] = first + t < words ? j.left.inside[first + t] : 0;
#pragma unroll
        for (int t = 0; t < WORDS; t++)
            kept += __popc(in[t]);
        const int all = block_prefix(kept, &before);
        __syncthreads();
        int at = kept_base + before;
#pragma unroll
        for (int t = 0; t < WORDS; t++) {
            const int n = __popc(in[t]);
            const unsigned long long two = (unsigned long long)chosen[(at >> 5) + 1] << 32 | chosen[at >> 5];
            take[t] = (unsigned)(two >> (at & 31)) & (unsigned)((1ull << n) - 1);
            at += n;
            list += __popc(take[t]);
        }
        const int all_listed = block_prefix(list, &ahead);
        int to = list_base + ahead, other = kept_base + before - to;
#pragma unroll
        for (int t = 0; t < WORDS; t++)
            for (unsigned b = in[t], w = take[t]; b; b &= b - 1, w >>= 1) {
                const int position = j.c.origin + ((first + t) * 32 + __ffs((int)b) - 1) * j.c.run;
                *(w & 1 ? listed + to++ : others + other++) = position;
            }
        kept_base += all;
        list_base += all_listed;
        __syncthreads();
    }
    int *const list = j.list;
#pragma unroll 4
    for (int i = threadIdx.x; i < list_base; i += blockDim.x)
        list[i] = listed[i];
    return list_base;
}

#endif
