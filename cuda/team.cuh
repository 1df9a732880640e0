/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A unit's list by a team of blocks that the hardware starts together: each holds a part of the candidates, the bins of all are
 * added up by each, and so is who ranks where among the few of the last bin. Bins and groups are those of held.cuh and
 * dropped.cuh. What a unit is odd by (see held.cuh), and one of more tokens than the blocks hold, is left to slices (slices.cuh),
 * which the team shares.
 */
#ifndef PRHS_TEAM_CUH
#define PRHS_TEAM_CUH

#include "select.cuh"

#define TEAM_FEW PRHS_TEAM_FEW /* keys of the last bin that are ranked, at most */

/* Keys and their places, which count from the unit's first bit. */
struct ranked_keys {
    unsigned key[TEAM_FEW];
    int at[TEAM_FEW];
};

/* What a block shows to the others of its team, besides its bins. */
struct team_desk {
    key_ends ends;
    int sure, few; /* tokens of better bins than the last one, and those of it that have to be ranked */
};

/* In the room for keys. */
struct team_room {
    ranked_keys own, all; /* what has to be ranked: the block's, which the others see; the team's */
    float held[1];        /* what the block orders, from its first bit on; more than one */
};

/* A block's part of a unit: of a warp `each` groups of L_D, one after the other. A thread has bits 32 i + lane_id() of these from
 * `base` on. */
struct team_part {
    int first;              /* bit, of the unit */
    int each, base, groups; /* groups: those that the warp has */
};

/* Groups of a block's part. */
DEV int team_groups(const candidates &c) { return ((c.n + GROUP - 1) / GROUP + PRHS_TEAM - 1) / PRHS_TEAM; }

/* Whether the blocks of a team hold the unit. Two slices are done sooner. */
DEV bool team_holds(const prhs_k_select &a, const candidates &c, int room)
{
    const int warps = blockDim.x >> 5, groups = team_groups(c);
    return c.slices > 2 && c.run == 1 && c.keep > 0 && a.policy.dilate_m <= 0 && groups <= 8 * warps && PRHS_TEAM_ROOM(groups * GROUP) <= room;
}

DEV team_part part_of(const candidates &c)
{
    const int warps = blockDim.x >> 5, groups = team_groups(c);
    team_part p;
    p.first = (int)team_rank() * groups * GROUP;
    p.each = (groups + warps - 1) / warps;
    p.base = warp_id() * p.each * GROUP;
    const int n = min(groups * GROUP, c.n - p.first) - p.base;
    p.groups = min(max((n + GROUP - 1) / GROUP, 0), p.each);
    return p;
}

/* The block's part as a task. */
DEV void take_part(unit_task *j)
{
    const int groups = team_groups(j->c), first = (int)team_rank() * groups * GROUP;
    held_task *const h = &j->held;
    h->scores = j->scores + j->c.origin + first;
    h->n = min(groups * GROUP, j->c.n - first);
    h->skew = max(j->c.n - j->c.runs - first, 0);
    h->origin = j->c.origin + first;
    h->parts = j->left.parts + first / GROUP * h->heads;
    h->list = j->list;
}

/* What the warp has of group g outside the candidates, as bits t. */
DEV unsigned outside_of(const held_task &j, const team_part &p, int g)
{
    const int at = p.base + g * GROUP, mine = at + lane_id();
    unsigned out = 0;
    if (at < j.skew || at + GROUP > j.n)
#pragma unroll
        for (int t = 0; t < 8; t++)
            out |= mine + 32 * t < j.skew || mine + 32 * t >= j.n ? 1u << t : 0u;
    return out;
}

/* Brings the part to the room; its ends. Each thread looks at its own later. Has a barrier. */
template <bool RAW> DEV key_ends hold_part(const held_task &j, const team_part &p, float *held, topk_shared *sh)
{
    float high = NOTHING, low = -NOTHING;
#pragma unroll 1
    for (int g = 0; g < p.groups; g++) {
        const int at = p.base + g * GROUP;
        float v[8];
        if (RAW)
            held_scores(j, j.scores, at, v);
        else
            held_weights(j, at, v);
        if (at + lane_id() < j.skew) /* skew: less than 32 */
            v[0] = NEVER;
#pragma unroll
        for (int t = 0; t < 8; t++) {
            high = fmaxf(high, v[t]);
            low = fminf(low, v[t]);
            held[at + 32 * t + lane_id()] = v[t];
        }
    }
    return ends_of(high, low, sh);
}

/* The ends of all blocks' numbers. */
DEV key_ends ends_of_team(const key_ends &own, team_desk *desk)
{
    if (threadIdx.x == 0)
        desk->ends = own;
    team_sync();
    const key_ends seen = of_member(desk, lane_id() % PRHS_TEAM)->ends;
    return key_ends{ __reduce_max_sync(FULL, seen.top), __reduce_min_sync(FULL, seen.least) };
}

/* The bin of a rank, of all blocks' bins. */
DEV found_bin find_bin_of_team(topk_shared *sh, int rank)
{
    team_sync();
    return find_rank(sh, rank, [&](int i) {
        uint2 seen[PRHS_TEAM], sum = make_uint2(0, 0);
#pragma unroll
        for (int m = 0; m < PRHS_TEAM; m++)
            seen[m] = *(const uint2 *)(of_member(sh->bins, m) + i);
#pragma unroll
        for (int m = 0; m < PRHS_TEAM; m++)
            sum = make_uint2(sum.x + seen[m].x, sum.y + seen[m].y);
        return sum;
    });
}

/* Shows how many tokens of this block are listed in any case, and what has to be ranked: bits of `tied`. Ends with a barrier of
 * the team. */
DEV void show_few(const team_part &p, const float *held, unsigned long long sure, unsigned long long tied, team_desk *desk, ranked_keys *own)
{
    const int count = __reduce_add_sync(FULL, __popcll(sure));
    if (lane_id() == 0 && count)
        atomicAdd(&desk->sure, count);
    for (; tied; tied &= tied - 1) { /* of few threads */
        const int at = p.base + 32 * (__ffsll((long long)tied) - 1) + lane_id(), to = atomicAdd(&desk->few, 1);
        own->key[to] = order_key(held[at]);
        own->at[to] = p.first + at;
    }
    team_sync();
}

/* All blocks' few come together; *before: what is sure of the blocks before this one. Ends with a barrier. */
DEV void gather_few(const team_desk *desk, team_room *room, int *before)
{
    const int lane = lane_id(), warp = warp_id(), rank = (int)team_rank();
    const team_desk *const shown = of_member(desk, lane % PRHS_TEAM);
    const int sure = lane < PRHS_TEAM ? shown->sure : 0, few = lane < PRHS_TEAM ? shown->few : 0;
    *before = __reduce_add_sync(FULL, lane < rank ? sure : 0);
    for (int m = warp; m < PRHS_TEAM; m += blockDim.x >> 5) {
        const int to = __reduce_add_sync(FULL, lane < m ? few : 0), n = __shfl_sync(FULL, few, m);
        const ranked_keys *const keys = of_member(&room->own, m);
        for (int i = lane; i < n; i += 32) {
            room->all.key[to + i] = keys->key[i];
            room->all.at[to + i] = keys->at[i];
        }
    }
    __syncthreads();
}

/* Whether so many of the n few as `rank` are better than number i; by a warp. */
DEV bool ranks_at(const ranked_keys &few, int n, int i, int rank)
{
    const unsigned key = few.key[i];
    const int at = few.at[i];
    int better = 0;
    for (int j = lane_id(); j < n; j += 32)
        better += few.key[j] > key || (few.key[j] == key && few.at[j] < at);
    return __reduce_add_sync(FULL, better) == rank;
}

/* A ruler of bins for the few, whose keys are counted by them. Has barriers. */
DEV ruler count_few(const ranked_keys &few, int n, topk_shared *sh)
{
    unsigned high = 0, low = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        high = max(high, few.key[i]);
        low = max(low, ~few.key[i]);
    }
    put_most(sh, 0, high);
    put_most(sh, 1, low);
    clear_bins(sh);
    __syncthreads();
    const ruler r = ruler_of(get_most(sh, 0), ~get_most(sh, 1));
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        atomicAdd(&sh->bins[r.bin(few.key[i])], 1u);
    return r;
}

#define TEAM_FEWER 64 /* so few are compared at once */

/* The last one of the n few that is taken into sh, `want` being taken: of those that share its bin, where the few are cut into
 * bins anew. */
DEV void find_last_of_team(const ranked_keys &few, int n, int want, topk_shared *sh)
{
    ruler r = { 0, 0 };
    int bin = 0;
    if (n > TEAM_FEWER) {
        r = count_few(few, n, sh);
        bin = find_bin(sh, want).bin;
    }
    for (int base = warp_id(); base < n; base += blockDim.x) { /* a warp's are warps apart: neighbours may be alike */
        const int mine = base + lane_id() * (blockDim.x >> 5);
        unsigned some = __ballot_sync(FULL, mine < n && (n <= TEAM_FEWER || r.bin(few.key[min(mine, n - 1)]) == bin));
        for (; some; some &= some - 1) {
            const int i = base + (__ffs((int)some) - 1) * (int)(blockDim.x >> 5);
            if (ranks_at(few, n, i, want - 1) && lane_id() == 0) {
                sh->last_key = few.key[i];
                sh->last_at = few.at[i];
            }
        }
    }
    __syncthreads();
}

/* Of the n few those at places before `end` that are taken; by a warp. */
DEV int taken_before(const ranked_keys &few, int n, int end, const topk_shared *sh)
{
    int count = 0;
    for (int i = lane_id(); i < n; i += 32)
        count += few.at[i] < end && (few.key[i] > sh->last_key || (few.key[i] == sh->last_key && few.at[i] <= sh->last_at));
    return __reduce_add_sync(FULL, count);
}

/* Counts the part by bins. */
template <bool RAW> DEV void count_part(const held_task &j, const team_part &p, const float *held, const held_rule<RAW> &rule, topk_shared *sh)
{
#pragma unroll 1
    for (int g = 0; g < p.groups; g++) {
        const unsigned out = outside_of(j, p, g);
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const int bin = rule.bin(held[p.base + g * GROUP + 32 * t + lane_id()]);
            atomicAdd(&sh->bins[out >> t & 1 ? OUTSIDE : bin], 1u);
        }
    }
}

/* What is in better bins than `bin`, and what is in it; as bits 8 g + t. */
template <bool RAW>
DEV void sort_part(const held_task &j, const team_part &p, const float *held, const held_rule<RAW> &rule, int bin, unsigned long long *better,
                   unsigned long long *equal)
{
    *better = *equal = 0;
#pragma unroll 1
    for (int g = 0; g < p.groups; g++) {
        const unsigned out = outside_of(j, p, g);
        unsigned above = 0, here = 0;
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const int b = rule.bin(held[p.base + g * GROUP + 32 * t + lane_id()]);
            above |= b < bin ? 1u << t : 0u;
            here |= b == bin ? 1u << t : 0u;
        }
        *better |= (unsigned long long)(above & ~out) << 8 * g;
        *equal |= (unsigned long long)(here & ~out) << 8 * g;
    }
}

/* Those of `tied` that are no worse than the last one that is taken. */
DEV unsigned long long taken_of(const team_part &p, const float *held, unsigned long long tied, const topk_shared *sh)
{
    unsigned long long best = 0;
    for (unsigned long long some = tied; some; some &= some - 1) {
        const int at = p.base + 32 * (__ffsll((long long)some) - 1) + lane_id();
        const unsigned key = order_key(held[at]);
        if (key > sh->last_key || (key == sh->last_key && p.first + at <= sh->last_at))
            best |= some & (0 - some);
    }
    return best;
}

/* Parts of the warp's groups, of what is not taken. */
template <bool RAW> DEV void sum_part(const held_task &j, const team_part &p, const float *held, unsigned long long taken)
{
#pragma unroll 1
    for (int g = 0; g < p.groups; g++) {
        const int at = p.base + g * GROUP;
        const unsigned gone = (unsigned)(taken >> 8 * g & 255) | outside_of(j, p, g);
#pragma unroll 1
        for (int h = 0; h < (RAW ? 1 : j.heads); h++) {
            float y[8];
            if (!RAW)
                held_scores(j, j.scores + h * j.stride, at, y);
#pragma unroll
            for (int t = 0; t < 8; t++)
                y[t] = gone >> t & 1 ? NOTHING : RAW ? held[at + 32 * t + lane_id()] : y[t];
            put_part(j.parts + at / GROUP * (RAW ? 1 : j.heads) + h, sum_eight(y));
        }
    }
}

/* The taken ones' positions, ascending, from `before` of the list on. Has a barrier. */
DEV void list_part(const held_task &j, const team_part &p, unsigned long long taken, int before, topk_shared *sh)
{
    int total, to = before + warps_before(__popcll(taken), &total, sh);
    if (total == 0)
        return;
#pragma unroll 1
    for (int g = 0; g < p.groups; g++)
        list_group(j.list, &to, (unsigned)(taken >> 8 * g), j.origin + p.base + g * GROUP + lane_id());
}

/* Writes the block's part of the list and of L_D's parts. False, in all blocks: the unit is odd, and nothing is done. */
template <bool RAW> DEV_CALL bool choose_together(const held_task &j, const team_part p, team_desk *desk, team_room *room, topk_shared *sh)
{
    float *const held = room->held;
    const key_ends ends = ends_of_team(hold_part<RAW>(j, p, held, sh), desk);
    if (ends.odd())
        return false;
    const held_rule<RAW> rule(ends.top, ends.least);
    count_part(j, p, held, rule, sh);
    const found_bin f = find_bin_of_team(sh, j.keep);
    const int want = j.keep - f.before;
    const bool all = f.count == want; /* of the last bin */
    if (f.count > TEAM_FEW && !all)
        return false;
    unsigned long long taken, tied;
    sort_part(j, p, held, rule, f.bin, &taken, &tied);
    if (all) {
        taken |= tied;
        tied = 0;
    }
    show_few(p, held, taken, tied, desk, &room->own);
    int before;
    gather_few(desk, room, &before);
    if (!all) {
        find_last_of_team(room->all, f.count, want, sh);
        taken |= taken_of(p, held, tied, sh);
        before += taken_before(room->all, f.count, p.first, sh);
    }
    if (j.sums)
        sum_part<RAW>(j, p, held, taken);
    list_part(j, p, taken, before, sh);
    return true;
}

/* L_D of the heads, which the blocks share, and the unit's queries, by the last block. What all have written is to be seen. */
DEV void store_heads_of_team(const prhs_cu_retrieve &p, const unit_task &j, const space &mem)
{
    const prhs_k_select &a = p.select;
    const prhs_k_state &st = a.state;
    const int heads = a.shape.unit_heads, groups = (j.c.n + GROUP - 1) / GROUP, dim = a.shape.dim;
    byte *state = p.mem[PRHS_R_STATE];
    float4 *const near = (float4 *)mem.room;
    for (int h = (int)team_rank(); h < heads && st.head_off != PRHS_NONE; h += PRHS_TEAM) {
        __syncthreads();
        for (int i = threadIdx.x; i < groups; i += blockDim.x)
            near[i] = __ldcg((const float4 *)j.left.parts + i * heads + h);
        __syncthreads();
        if (warp_id())
            continue;
        float spread = 0.0f;
        const float l = join_groups((const dropped_part *)near, groups, 1, 0, &spread);
        if (lane_id() == 0)
            SLOT_AT(state, st, head_off, j.e.slot, prhs_head_ref)[j.u * heads + h].l_dropped = l;
        if (lane_id() == 0 && st.spread_off != PRHS_NONE)
            SLOT_AT(state, st, spread_off, j.e.slot, float)[2 * (j.u * heads + h)] = spread;
    }
    if (st.qref_off == PRHS_NONE || team_rank() != PRHS_TEAM - 1) /* one that has no head, mostly */
        return;
    float *const to = SLOT_AT(state, st, qref_off, j.e.slot, float) + (i64)j.u * heads * dim;
    for (int i = threadIdx.x; i < heads * dim; i += blockDim.x)
        to[i] = load_one(a.q.dtype, row_at(a.q, p.mem[PRHS_R_Q], j.e.row0, j.u * heads + i / dim), i % dim);
}

/* Unit i, if it retrieves; by a team. */
DEV void retrieve_together(const prhs_cu_retrieve &p, int i, unsigned *shared, team_desk *desk, topk_shared *sh)
{
    __shared__ float lse[64];
    __shared__ unit_task j;
    const prhs_k_select &a = p.select;
    const space mem = { shared, shared + 3 * PRHS_RETRIEVE_BITS(p.room) };
    if (threadIdx.x == 0) {
        start_job(p, i, 0, lse, shared, mem, &j);
        if (j.wanted)
            take_part(&j);
        desk->sure = desk->few = 0;
    }
    clear_bins(sh);
    __syncthreads();
    const bool held = j.wanted && team_holds(a, j.c, p.room);
    team_room *const room = (team_room *)mem.room;
    bool done = false;
    if (held && j.raw) {
        done = choose_together<true>(j.held, part_of(j.c), desk, room, sh);
    } else if (held) {
        const float4 *norms = (const float4 *)(p.mem[PRHS_R_WORK] + a.work.norm_off);
        merge_norms(a.work, a.shape.unit_heads, j.e.pos0 + 1, norms + (j.b * a.shape.heads + (i64)j.u * a.shape.unit_heads) * a.work.score_chunks,
                    lse);
        done = choose_together<false>(j.held, part_of(j.c), desk, room, sh);
    }
    if (held)
        team_sync(); /* what all have written is to be seen, and nobody looks at the others' memory any more */
    if (done) {
        store_heads_of_team(p, j, mem);
        if (threadIdx.x == blockDim.x - 1 && team_rank() == 0) {
            j.set.count = j.c.keep;
            store_unit(p, j);
        }
    } else if (j.wanted) {
        const int slices = j.c.slices;
        for (int slice = (int)team_rank(); slice < slices; slice += PRHS_TEAM)
            retrieve(p, i, slice, shared, sh);
    }
    __syncthreads(); /* before the unit is another */
}

#endif
