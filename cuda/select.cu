/* SPDX-License-Identifier: Apache-2.0 */
/*
 * select: exact top-k of the middle's runs, the list, and what later steps need of the retrieval; then the moments of the unit's heads
 * where the step has them. A block takes a unit. Of a long middle it takes a slice: it keeps the keys that a sample says may be listed,
 * and sums up the rest; the block that comes last at the unit chooses among what all have kept. Where the sample misled it does their work
 * anew, so that the list is exact in any case. Slices are cut by positions: bits do not depend on blocks.
 */
#include "held.cuh"
#include "moments.cuh"

/* What a unit's slices leave for each other, in the workspace. */
struct leavings {
    unsigned *inside, *keys; /* bitmap of the runs that may be listed; their keys, of each slice from its first bit on */
    int *counts;             /* by slice */
    float2 *parts;           /* what the other tokens sum up to: [group][head] */
};

/* A unit, the same for all threads of the block. */
struct job {
    entry e;
    prhs_set set;
    i64 b;
    int u;
    candidates c;
    int *list;
    const float *scores, *lse; /* of the unit's first head; heads are score_stride apart */
    bool raw;                  /* keys are scores, not weights */
    unsigned *marks, *forced;  /* bitmaps: the list; neighbours that dilation forces into it */
    int cap;                   /* keys that the room holds */
    leavings left;
    held_task held;
    bool wanted, holds;        /* it retrieves, and there is such a slice; a block may hold it in its registers */
};

/* Shared memory: a bitmap of the room, and the room for keys. Not in the job, so that the compiler knows it for what it is. */
struct space {
    unsigned *bits, *room;
};

/* Keys in the order of places. */
struct chosen_from {
    unsigned *keys;         /* in the room, or in the workspace */
    int n;
    const unsigned *inside; /* the bitmap of their places; null: every place has one */
    unsigned *chosen;       /* a bitmap of n bits; where every place has a key, the unit's marks */
    bool in_room;
};

template <bool RAW> DEV key_source<RAW> source_of(const prhs_k_select &a, const job &j)
{
    return key_source<RAW>{ j.scores + j.c.origin, j.lse, a.work.score_stride, j.c.n, j.c.n - j.c.runs, j.c.run, a.shape.unit_heads,
                            a.policy.join == PRHS_K_JOIN_MAX };
}

/* --- bitmaps --- */

/* A thread's words of a bitmap, and the bits of `count` before them. */
struct word_share {
    int first, end, before, total;
};
template <class Bits> DEV word_share share_words(int n, Bits bits)
{
    const int words = (n + 31) >> 5, each = (words + blockDim.x - 1) / blockDim.x;
    word_share s;
    s.first = min((int)threadIdx.x * each, words);
    s.end = min(s.first + each, words);
    int sum = 0;
    for (int w = s.first; w < s.end; w++)
        sum += __popc(bits(w));
    s.total = block_prefix(sum, &s.before);
    return s;
}

/* The chosen ones of the keys as the unit's marks. Ends with a barrier. */
DEV_CALL void mark_places(const job &j, const chosen_from &from)
{
    if (!from.inside)
        return;
    word_share s = share_words(j.c.n, [&](int w) { return from.inside[w]; });
    for (int w = s.first; w < s.end; w++) {
        unsigned marks = 0;
        for (unsigned in = from.inside[w]; in; in &= in - 1, s.before++)
            if (from.chosen[s.before >> 5] >> (s.before & 31) & 1)
                marks |= in & (0 - in);
        j.marks[w] = marks;
    }
    __syncthreads();
}

/* Keys at forced places become 0. Ends with a barrier. */
DEV_CALL void leave_out(const job &j, const chosen_from &from)
{
    word_share s = share_words(j.c.n, [&](int w) { return from.inside ? from.inside[w] : ~0u; });
    for (int w = s.first; w < s.end; w++) {
        const unsigned in = from.inside ? from.inside[w] : ~0u;
        for (unsigned bits = j.forced[w] & in; bits; bits &= bits - 1)
            from.keys[s.before + __popc(in & ((bits & (0 - bits)) - 1))] = 0;
        s.before += __popc(in);
    }
    __syncthreads();
}

/* The neighbours of the marked runs, as far as there are such runs; returns their number. Ends with a barrier. */
DEV_CALL int spread(const prhs_k_select &a, const job &j)
{
    const int words = (j.c.n + 31) >> 5, skew = j.c.n - j.c.runs;
    const unsigned *marks = j.marks;
    int count = 0, before;
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
        if (w == words - 1 && j.c.n & 31)
            bits &= (1u << (j.c.n & 31)) - 1;
        j.forced[w] = bits;
        count += __popc(bits);
    }
    const int total = block_prefix(count, &before);
    __syncthreads();
    return total;
}

/* Marks what the list takes. Ends with a barrier. */
DEV void mark_best(const prhs_k_select &a, const job &j, const space &mem, const chosen_from &from, const reach &seen, topk_shared *sh)
{
    const int m = min(a.policy.dilate_m, j.c.keep), words = (j.c.n + 31) >> 5;
    int want = j.c.keep;
#pragma unroll 1
    for (int pass = m > 0 ? 0 : 1; pass < 2; pass++) {
        const int best = pass ? want : m;
        if (best <= 0) {
            for (int w = threadIdx.x; w < words; w += blockDim.x)
                j.marks[w] = 0;
            __syncthreads();
        } else {
            if (from.in_room)
                choose(mem.room, from.n, best, j.raw, seen, mem.bits, sh);
            else
                choose_anywhere(from.keys, from.n, best, from.chosen, sh);
            mark_places(j, from);
        }
        if (pass == 0) {
            want -= spread(a, j);
            leave_out(j, from);
        }
    }
    if (m > 0) {
        for (int w = threadIdx.x; w < words; w += blockDim.x)
            j.marks[w] |= j.forced[w];
        __syncthreads();
    }
}

/* put(index, place) for the bits that `bits` says, ascending; returns their number. Ends with a barrier. */
template <class Bits> DEV int collect(const job &j, int *to, int cap, Bits bits)
{
    word_share s = share_words(j.c.n, bits);
    for (int w = s.first; w < s.end; w++)
        for (unsigned b = bits(w); b; b &= b - 1, s.before++)
            if (s.before < cap)
                to[s.before] = j.c.origin + (w * 32 + __ffs((int)b) - 1) * j.c.run;
    __syncthreads();
    return s.total;
}

/* The marked runs' positions, ascending; returns their number, at most the list's room. A barrier has to follow. */
DEV int write_list(const job &j, const space &mem)
{
    int *const staged = (int *)mem.room, *const list = j.list;
    const unsigned *marks = j.marks;
    if (j.c.keep > j.cap) /* straight to the list */
        return min(collect(j, list, j.c.keep, [&](int w) { return marks[w]; }), j.c.keep);
    const int total = min(collect(j, staged, j.c.keep, [&](int w) { return marks[w]; }), j.c.keep);
    for (int i = threadIdx.x; i < total; i += blockDim.x)
        list[i] = staged[i];
    return total;
}

/* --- keys --- */

/* Keys of bits [begin, end) and some more into the room, 0 where there is none. begin: a multiple of 32. Adds them to *seen. */
template <bool RAW> DEV void fill_room(const prhs_k_select &a, const job &j, int begin, int end, unsigned *room, reach *seen)
{
    source_of<RAW>(a, j).each_key(begin, end, [&](int i, unsigned k) {
        seen->add(k);
        room[i - begin] = k;
    });
}

/* --- slices --- */

/* Groups of dropped tokens in a slice. */
DEV int slice_groups(const candidates &c) { return (c.each * c.run + GROUP - 1) / GROUP; }

/* Keys of `samples` bits, in pairs of neighbours, into the room, and zeros after them. */
template <bool RAW> DEV void sample_keys(const prhs_k_select &a, const job &j, int samples, unsigned *room, reach *seen)
{
    const key_source<RAW> s = source_of<RAW>(a, j);
    const unsigned stride = j.c.n / (samples / 2);
    for (int pair = threadIdx.x; pair < (samples + PAST) / 2; pair += blockDim.x) {
        uint2 *const to = (uint2 *)room + pair;
        if (2 * pair >= samples) {
            *to = make_uint2(0, 0);
            continue;
        }
        const int first = (int)(pair * stride + ((unsigned)pair * 2654435769u >> 12) % (stride - 1));
        const int at[2] = { first, first + 1 };
        unsigned k[2];
        s.template keys<2, false>(at, k);
        *to = make_uint2(k[0], k[1]);
        seen->add(k[0]);
        seen->add(k[1]);
    }
}

/* What a sample is asked for, so that the best `keep` are hardly ever more; and how many keys of the unit that may be. */
struct guess {
    int samples, rank, most; /* rank: of the samples. most: 0 where all have to be kept */
};
DEV guess guess_of(const job &j)
{
    const int n = j.c.n;
    guess g = { PRHS_RETRIEVE_SAMPLE(j.c.run), 0, 0 };
    const float samples = (float)g.samples, rank = (float)j.c.keep * (samples / (float)n);
    const float wanted = rank + 8.0f + 6.0f * sqrtf(rank * fmaxf(1.0f - rank / samples, 0.0f));
    const float most = wanted * ((float)n / samples) / 0.95f;
    g.rank = (int)ceilf(wanted);
    if (n >= 4 * g.samples && wanted < samples && most <= (float)j.cap)
        g.most = (int)most;
    return g;
}

/* A key that more than the best `keep` of the unit reach, as far as a sample can tell; 1, that all reach, where few would not. */
DEV unsigned guess_low(const prhs_k_select &a, const job &j, const space &mem, const guess &g, topk_shared *sh)
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
DEV void keep_all(const job &j, int begin, int n, const unsigned *room)
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
DEV void leave_slice(const prhs_k_select &a, const job &j, const space &mem, int slice, unsigned low)
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

/* The same from registers. False: they do not hold a slice, or the rule is another. */
DEV bool leave_in_registers(const prhs_k_select &a, const job &j, int slice, unsigned low, topk_shared *sh)
{
    __shared__ held_task part;
    const int begin = slice * j.c.each, n = min(j.c.each, j.c.n - begin), groups = held_groups(j.c.each);
    if (low <= 1 || j.c.run > 1 || groups > 2)
        return false;
    if (threadIdx.x == 0)
        part = held_task{ j.scores + j.c.origin + begin, j.lse, a.work.score_stride, n, max(j.c.n - j.c.runs - begin, 0), 0, 0,
                          a.shape.unit_heads, j.c.each, a.policy.join == PRHS_K_JOIN_MAX, a.state.head_off != PRHS_NONE, nullptr,
                          j.left.parts + slice * slice_groups(j.c) * a.shape.unit_heads };
    __syncthreads();
    const kept_room to = { j.left.inside + (begin >> 5), j.left.keys + begin, j.left.counts + slice };
    if (j.raw)
        groups == 1 ? keep_held<true, 1>(part, low, to, sh) : keep_held<true, 2>(part, low, to, sh);
    else
        groups == 1 ? keep_held<false, 1>(part, low, to, sh) : keep_held<false, 2>(part, low, to, sh);
    return true;
}

/* All slices anew, with all places. Ends with a barrier. */
DEV_CALL void keep_everything(const prhs_k_select &a, const job &j, unsigned *room)
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
DEV int kept_before(const job &j, int slice)
{
    int sum = 0;
    for (int i = lane_id(); i < slice; i += 32)
        sum += j.left.counts[i];
    return __reduce_add_sync(FULL, sum);
}

/* What the slices have kept comes together in the room: warps share slices. */
DEV void fetch_kept(const job &j, unsigned *room, reach *seen)
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
DEV_CALL bool gather_kept(const prhs_k_select &a, const job &j, const space mem, unsigned low, int most, chosen_from *from, reach *seen)
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
DEV void sum_dilated(const prhs_k_select &a, const job &j)
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
        for (int h = 0; h < heads; h++) {
            const float2 z = sum_group(left, j.scores + h * a.work.score_stride, p);
            if (lane_id() == 0)
                j.left.parts[i * heads + h] = z;
        }
    }
}

/*
 * Sums up what the slices have kept and the list has not taken, beside what they have summed up. others: how many that are, where they are
 * in the room after the list already. Returns the number of all groups.
 */
DEV_CALL int sum_kept(const prhs_k_select &a, const job &j, unsigned *room, int others)
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
DEV const float2 *bring_parts(const job &j, const space &mem, int n)
{
    if (j.c.slices == 1 || 2 * n > j.cap)
        return nullptr;
    float2 *const to = (float2 *)mem.room;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        to[i] = __ldcg(j.left.parts + i);
    __syncthreads();
    return to;
}

/* --- a unit --- */

#define WORDS 4 /* of a bitmap, that a thread has on their way together */

/*
 * The list, and after it in the room the others of what the slices have kept, from what is chosen of it; returns how many are listed. Every
 * thread knows from the counts before its words where both go on. Ends with a barrier.
 */
DEV_CALL int list_kept(const job &j, unsigned *room, const unsigned *chosen)
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

/* What a block has come to. */
struct outcome {
    int count;   /* of the list; -1: another block does the rest */
    bool held;   /* the parts of L_D are in shared memory */
    bool summed; /* the slices have summed up what they did not keep */
    int others;  /* where >= 0: so many more that were kept are in the room, after the list */
};

/* Writes the list, or leaves a slice of the unit to who does. */
DEV_CALL outcome choose_in_memory(const prhs_cu_retrieve &p, const job &j, const space mem, int slice, topk_shared *sh)
{
    outcome out = { -1, false, false, -1 };
    const prhs_k_select &a = p.select;
    const int begin = slice * j.c.each, end = min(begin + j.c.each, j.c.n);
    chosen_from from = { mem.room, j.c.n, nullptr, mem.bits, true };
    const guess g = guess_of(j);
    unsigned low = 1;
    reach seen;
    if (j.c.slices > 1) {
        low = guess_low(a, j, mem, g, sh);
        __syncthreads();
    }
    if (j.c.slices == 1 || !leave_in_registers(a, j, slice, low, sh)) {
        if (j.raw)
            fill_room<true>(a, j, begin, end, mem.room, &seen);
        else
            fill_room<false>(a, j, begin, end, mem.room, &seen);
        if (j.c.slices > 1)
            leave_slice(a, j, mem, slice, low);
    }
    if (j.c.slices > 1) {
        if (!comes_last(&set_at(p.mem[PRHS_R_WORK], a.work, a.shape, j.b, j.u)->reserved[0], j.c.slices))
            return out;
        seen = reach();
        out.summed = gather_kept(a, j, mem, low, g.most, &from, &seen);
    }
    if (out.summed && from.in_room && a.policy.dilate_m <= 0) {
        choose(mem.room, from.n, j.c.keep, j.raw, seen, mem.bits, sh);
        out.count = list_kept(j, mem.room, mem.bits);
        out.others = from.n - out.count;
        return out;
    }
    mark_best(a, j, mem, from, seen, sh);
    out.count = write_list(j, mem);
    return out;
}

/* L_D of the unit's heads, and its queries. The list is written. */
DEV void store_heads(const prhs_cu_retrieve &p, const job &j, const space &mem, const outcome &got)
{
    const prhs_k_select &a = p.select;
    const prhs_k_state &st = a.state;
    const int heads = a.shape.unit_heads, head = j.u * heads, dim = a.shape.dim;
    const i64 stride = a.work.score_stride;
    const candidates &c = j.c;
    byte *state = p.mem[PRHS_R_STATE];
    const bool some = st.head_off != PRHS_NONE && got.count < c.runs;
    float2 *const parts = c.slices > 1 ? j.left.parts : (float2 *)mem.room;
    int groups = 0;
    if (some && got.summed) {
        groups = sum_kept(a, j, mem.room, got.others);
    } else if (some && got.held) {
        groups = (c.n + GROUP - 1) / GROUP;
    } else if (some) {
        const dropping d = { j.marks, nullptr, c.first, c.first + c.runs * c.run, c.origin, c.run };
        groups = (d.end - d.origin + GROUP - 1) / GROUP;
        sum_groups(d, j.scores, stride, heads, groups, parts);
    }
    if (st.qref_off != PRHS_NONE) {
        float *to = SLOT_AT(state, st, qref_off, j.e.slot, float) + (i64)head * dim;
        for (int i = threadIdx.x; i < heads * dim; i += blockDim.x)
            to[i] = load_one(a.q.dtype, row_at(a.q, p.mem[PRHS_R_Q], j.e.row0, head + i / dim), i % dim);
    }
    const float2 *near = some ? bring_parts(j, mem, groups * heads) : nullptr;
    __syncthreads();
    for (int h = warp_id(); h < heads && st.head_off != PRHS_NONE; h += blockDim.x >> 5) {
        const float l = some ? join_groups(near ? near : parts, groups, heads, h) : NOTHING;
        if (lane_id() == 0)
            SLOT_AT(state, st, head_off, j.e.slot, prhs_head_ref)[head + h].l_dropped = l;
    }
}

/* The set, for this step and as a reference, and the chunks that the unit's rows have in the next attend. By one thread. */
DEV void store_unit(const prhs_cu_retrieve &p, const job &j)
{
    const prhs_k_select &a = p.select;
    byte *ws = p.mem[PRHS_R_WORK];
    *set_at(ws, a.work, a.shape, j.b, j.u) = j.set;
    if (a.state.unit_off != PRHS_NONE) {
        prhs_unit_state *unit = SLOT_AT(p.mem[PRHS_R_STATE], a.state, unit_off, j.e.slot, prhs_unit_state) + j.u;
        unit->set = j.set;
        unit->set.end = j.e.pos0 + 1;
        unit->ref_pos = j.e.pos0;
    }
    if (a.work.attend_count_off == PRHS_NONE)
        return;
    int sum = 0;
    for (int r = 0; r < j.e.rows; r++) {
        const int work = a.work.work_off == PRHS_NONE ? PRHS_WORK_SET
                                                      : INTS(ws, a.work.work_off)[(j.b * a.batch.rows + r) * a.shape.units + j.u];
        sum += attend_chunks(a.work, work_tokens(j.set, work, j.e.pos0 + r));
    }
    INTS(ws, a.work.attend_count_off)[((i64)p.pass * a.batch.max_seqs + j.b) * a.shape.units + j.u] = max(sum, 1);
}

/* The set but for its count: what is no whole run joins the edge or the window. */
DEV void lay_out(prhs_set *set, const candidates &c)
{
    const int low = max(set->mid_begin, 0);
    set->run = c.run;
    set->edge_begin = set->edge_end = 0;
    if (c.runs && c.first > low) {
        set->edge_begin = low;
        set->edge_end = c.first;
    }
    set->win_begin = c.runs ? c.first + c.runs * c.run : low;
    set->reserved[0] = set->reserved[1] = 0;
}

/* Where what slices leave lies; and the bitmaps, which are in shared memory where a block takes a unit alone. */
DEV void place_leavings(const prhs_cu_retrieve &p, unsigned *shared, job *j)
{
    const prhs_k_select &a = p.select;
    const int longest = a.batch.max_kv_len;
    j->marks = shared;
    j->forced = shared + PRHS_RETRIEVE_BITS(p.room);
    j->cap = p.room;
    if (j->c.slices == 1)
        return;
    const int slices = PRHS_K_SLICES(longest), bitmap = slices * (PRHS_K_SLICE / 32);
    unsigned *at = (unsigned *)(p.mem[PRHS_R_WORK] + a.work.slice_off) +
                   (j->b * a.shape.units + j->u) * PRHS_K_SLICE_WORDS((i64)longest, a.shape.unit_heads);
    j->left.inside = at;
    j->marks = at + bitmap;
    j->forced = at + 2 * bitmap;
    j->left.keys = at + 3 * bitmap;
    j->left.counts = (int *)(j->left.keys + slices * PRHS_K_SLICE);
    j->left.parts = (float2 *)(j->left.counts + (slices + 1) / 2 * 2);
}

/* What registers may hold: single tokens, all of them the block's own, and no dilation. */
DEV void prepare_held(const prhs_k_select &a, const space &mem, job *j)
{
    const candidates &c = j->c;
    j->holds = c.slices == 1 && c.run == 1 && a.policy.dilate_m <= 0 && c.keep > 0 && c.runs > c.keep;
    j->held = held_task{ j->scores + c.origin, j->lse, a.work.score_stride, c.n, c.n - c.runs, c.keep, c.origin, a.shape.unit_heads, c.n,
                         a.policy.join == PRHS_K_JOIN_MAX, a.state.head_off != PRHS_NONE, j->list, (float2 *)mem.room };
}

/* The slices of unit u of entry b: none where it does not retrieve. */
DEV int slices_of(const prhs_k_select &a, bool kept, int count, const entry &e, const prhs_set &set)
{
    if (kept && count <= 0)
        return 0;
    if (kept && a.work.slice_off == PRHS_NONE)
        return 1;
    return e.kind == IDLE || set.mode != PRHS_MODE_RETRIEVE ? 0 : candidates_of(a, set, e.pos0 + 1).slices;
}

/* By one thread. What it reads is on its way together. */
DEV void start_job(const prhs_cu_retrieve &p, int i, int slice, const float *lse, unsigned *shared, const space &mem, job *j)
{
    const prhs_k_select &a = p.select;
    byte *ws = p.mem[PRHS_R_WORK];
    const bool kept = a.work.score_count_off != PRHS_NONE;
    const int u = i % a.shape.units;
    const i64 b = i / a.shape.units;
    const int count = kept ? INTS(ws, a.work.score_count_off)[i] : 0, seqs = seqs_of(a.batch, p.mem[PRHS_R_SEQS]);
    const prhs_set set = *set_at(ws, a.work, a.shape, b, u);
    const entry e = entry_of(a.batch, p.mem[PRHS_R_SEQS], b);
    j->wanted = b < seqs && slice < slices_of(a, kept, count, e, set);
    if (!j->wanted)
        return;
    j->b = b;
    j->u = u;
    j->e = e;
    j->set = set;
    j->c = candidates_of(a, set, e.pos0 + 1);
    j->scores = FLOATS(ws, a.work.score_off) + (b * a.shape.heads + (i64)u * a.shape.unit_heads) * a.work.score_stride;
    j->lse = lse;
    j->raw = a.shape.unit_heads == 1 && a.policy.run == 1;
    j->list = SLOT_AT(p.mem[PRHS_R_STATE], a.state, list_off, j->e.slot, int) + (i64)u * a.state.list_cap;
    lay_out(&j->set, j->c);
    place_leavings(p, shared, j);
    prepare_held(a, mem, j);
}

DEV_CALL void put_unit_moments(const prhs_cu_retrieve &p, const job &j, float *scratch)
{
    for (int h = 0; h < p.select.shape.unit_heads; h++)
        moments_of_head(p.moments, p.mem, j.b, j.u * p.select.shape.unit_heads + h, j.e, j.set, scratch);
}

/* The list from registers, where they hold the unit and it is not odd. */
DEV bool choose_in_registers(const job &j, topk_shared *sh)
{
    const int groups = held_groups(j.c.n);
    if (!j.holds || groups > 2)
        return false;
    if (j.raw)
        return groups == 1 ? choose_held<true, 1>(j.held, sh) : choose_held<true, 2>(j.held, sh);
    return groups == 1 ? choose_held<false, 1>(j.held, sh) : choose_held<false, 2>(j.held, sh);
}

/* Unit i, or a slice of it, if it retrieves. */
DEV void retrieve(const prhs_cu_retrieve &p, int i, int slice, unsigned *shared, topk_shared *sh)
{
    __shared__ float lse[64];
    __shared__ job j;
    const prhs_k_select &a = p.select;
    const space mem = { shared, shared + 3 * PRHS_RETRIEVE_BITS(p.room) };
    const int heads = a.shape.unit_heads;
    outcome got = { 0, false, false, -1 };
    if (threadIdx.x == 0)
        start_job(p, i, slice, lse, shared, mem, &j);
    clear_bins(sh);
    __syncthreads();
    if (!j.wanted)
        return;
    if (!j.raw) {
        const float4 *norms = (const float4 *)(p.mem[PRHS_R_WORK] + a.work.norm_off);
        merge_norms(a.work, heads, j.e.pos0 + 1, norms + (j.b * a.shape.heads + (i64)j.u * heads) * a.work.score_chunks, lse);
    }
    if (j.c.runs <= j.c.keep) {
        got.count = j.c.runs;
        for (int t = threadIdx.x; t < got.count; t += blockDim.x)
            j.list[t] = j.c.first + t * j.c.run;
    } else if (choose_in_registers(j, sh)) {
        got.held = true;
        got.count = j.c.keep;
    } else {
        __syncthreads();
        got = choose_in_memory(p, j, mem, slice, sh);
    }
    __syncthreads();
    if (got.count < 0)
        return;
    if (threadIdx.x == 0) {
        j.set.count = got.count;
        store_unit(p, j);
    }
    store_heads(p, j, mem, got);
    __syncthreads();
    if (p.has_moments) {
        put_unit_moments(p, j, (float *)shared);
        __syncthreads();
    }
}

/* The slices of unit i. */
DEV int count_slices(const prhs_k_select &a, const byte *seqs, byte *ws, int i)
{
    const bool kept = a.work.score_count_off != PRHS_NONE;
    const int count = kept ? INTS(ws, a.work.score_count_off)[i] : 0;
    if (kept && (count <= 0 || a.work.slice_off == PRHS_NONE))
        return count > 0;
    const i64 b = i / a.shape.units;
    return slices_of(a, kept, count, entry_of(a.batch, seqs, b), *set_at(ws, a.work, a.shape, b, i % a.shape.units));
}

KERNEL(prhs_retrieve, prhs_cu_retrieve, PRHS_RETRIEVE_MOST, 1)
{
    __shared__ int prefix[PRHS_RETRIEVE_MOST];
    __shared__ topk_shared sh;
    DYNAMIC_SHARED(shared);
    grid_begin();
    const prhs_k_select &a = p.select;
    const int units = a.batch.max_seqs * a.shape.units, threads = blockDim.x;
    const int slices = a.work.slice_off == PRHS_NONE ? 1 : PRHS_K_SLICES(a.batch.max_kv_len);
    const bool direct = (i64)gridDim.x >= (i64)units * slices; /* each has a block of its own */
    const int own = slices == 1 ? (int)blockIdx.x : (int)blockIdx.x / slices;
    if (direct && own >= units)
        return;
    const int real = direct ? 0 : seqs_of(a.batch, p.mem[PRHS_R_SEQS]) * a.shape.units;
    turns t = turns_begin(min(min(TURNS_EACH, PRHS_RETRIEVE_MOST / threads), (units + threads - 1) / threads), real);
    int i = own, slice = (int)blockIdx.x - own * slices;
    do {
        if (!direct &&
            !turns_next(&t, units, prefix, [&](int k) { return count_slices(a, p.mem[PRHS_R_SEQS], p.mem[PRHS_R_WORK], k); }, &i, &slice))
            return;
        retrieve(p, i, slice, (unsigned *)shared, &sh);
    } while (!direct);
}
