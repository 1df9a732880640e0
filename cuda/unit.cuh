/* SPDX-License-Identifier: Apache-2.0 */
/* A unit as select's blocks have it, and the bitmaps in which they mark what is listed. */
#ifndef PRHS_UNIT_CUH
#define PRHS_UNIT_CUH

#include "held.cuh"

/* What a unit's slices leave for each other, in the workspace. */
struct leavings {
    unsigned *inside, *keys; /* bitmap of the runs that may be listed; their keys, of each slice from its first bit on */
    int *counts;             /* by slice */
    dropped_part *parts;     /* what the other tokens sum up to: [group][head] */
};

/* A unit, the same for all threads of the block. */
struct unit_task {
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

template <bool RAW> DEV key_source<RAW> source_of(const prhs_k_select &a, const unit_task &j)
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
DEV_CALL void mark_places(const unit_task &j, const chosen_from &from)
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
DEV_CALL void leave_out(const unit_task &j, const chosen_from &from)
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
DEV_CALL int spread(const prhs_k_select &a, const unit_task &j)
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
DEV void mark_best(const prhs_k_select &a, const unit_task &j, const space &mem, const chosen_from &from, const reach &seen, topk_shared *sh)
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
template <class Bits> DEV int collect(const unit_task &j, int *to, int cap, Bits bits)
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
DEV int write_list(const unit_task &j, const space &mem)
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
template <bool RAW> DEV void fill_room(const prhs_k_select &a, const unit_task &j, int begin, int end, unsigned *room, reach *seen)
{
    source_of<RAW>(a, j).each_key(begin, end, [&](int i, unsigned k) {
        seen->add(k);
        room[i - begin] = k;
    });
}

#endif
