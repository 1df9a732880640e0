/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aim: how many runs a list takes so that no head drops more than a given mass. A block takes a unit. Per head the runs are taken from the
 * end of select's order, as long as their weights allow: a search for the place of the first one that has to stay, by histograms of
 * weights. Weights are whole numbers, so that their sums are the same in any order.
 */
#include "keys.cuh"

#define AIM_THREADS PRHS_AIM_THREADS
#define AIM_BINS 2048
#define AIM_BITS 11
#define PLACE_BITS 56 /* of a key and a position */
#define AIM_EACH (AIM_BINS / AIM_THREADS)

typedef unsigned long long u64;

struct aim_shared {
    unsigned low[AIM_BINS], high[AIM_BINS]; /* masses; halves, so that no 64-bit atomics are asked for */
    int count[AIM_BINS];
    u64 parts[AIM_THREADS]; /* of AIM_EACH bins */
    float lse[64];
    int bin;
    u64 mass; /* of the bins before it */
};

/* A unit, the same for all threads of the block. */
struct aim_job {
    const prhs_k_aim &a;
    byte *const *mem;
    aim_shared *sh;
    int b, u;
    entry e;
    prhs_set set;
    candidates c;
    const float *scores; /* of the unit's first head, from bit 0's token on */
    unsigned *keys;
};

/* Where a run stands in the order, from its end: by key, then the lower position. */
DEV u64 place_of(const aim_job &j, int i) { return (u64)j.keys[i] << 24 | (u64)(0xffffff - i); }

/* The run's weight in head h; a score that is no number may be all there is. */
DEV u64 weight_of(const aim_job &j, int h, int i)
{
    const float *s = j.scores + h * j.a.work.score_stride + (i64)i * j.c.run;
    const float lse = j.sh->lse[h];
    u64 sum = 0;
    for (int r = 0; r < j.c.run; r++)
        sum += bad_score(s[r]) ? (u64)PRHS_MASS_ONE : (u64)llrintf(expf(s[r] - lse) * PRHS_MASS_ONE);
    return sum;
}

DEV void add_to_bin(aim_shared *sh, int bin, u64 mass)
{
    const unsigned low = (unsigned)mass;
    unsigned high = (unsigned)(mass >> 32);
    if (low)
        high += atomicAdd(&sh->low[bin], low) + low < low;
    if (high)
        atomicAdd(&sh->high[bin], high);
    atomicAdd(&sh->count[bin], 1);
}

DEV u64 mass_of_bin(const aim_shared *sh, int bin) { return (u64)sh->high[bin] << 32 | sh->low[bin]; }

/* The first bin with which the masses exceed `most`, AIM_BINS where they do not, and the mass of those before. Ends with a barrier. */
DEV void find_bin(aim_shared *sh, u64 most)
{
    u64 sum = 0;
    for (int i = 0; i < AIM_EACH; i++)
        sum += mass_of_bin(sh, threadIdx.x * AIM_EACH + i);
    sh->parts[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() == 0) {
        const int per_lane = AIM_THREADS / 32;
        int at = lane_id() * per_lane;
        u64 own = 0;
        for (int i = 0; i < per_lane; i++)
            own += sh->parts[at + i];
        u64 upto = own;
        for (int d = 1; d < 32; d *= 2) {
            const u64 other = __shfl_up_sync(FULL, upto, d);
            upto += lane_id() >= d ? other : 0;
        }
        const unsigned over = __ballot_sync(FULL, upto > most);
        if (!over && lane_id() == 0)
            sh->bin = AIM_BINS;
        if (over && lane_id() == __ffs((int)over) - 1) {
            u64 mass = upto - own;
            while (mass + sh->parts[at] <= most)
                mass += sh->parts[at++];
            for (at *= AIM_EACH; mass + mass_of_bin(sh, at) <= most; at++)
                mass += mass_of_bin(sh, at);
            sh->bin = at;
            sh->mass = mass;
        }
    }
    __syncthreads();
}

/* The place from which on head h needs all runs, to drop at most a.mass; by the whole block. */
DEV u64 needed_place(const aim_job &j, int h)
{
    aim_shared *const sh = j.sh;
    u64 prefix = 0, mass = 0;
    int above = PLACE_BITS; /* places that begin with `prefix` differ in so many bits */
    while (above > 0) {
        const int shift = max(above - AIM_BITS, 0);
        const unsigned mask = (1u << (above - shift)) - 1;
        for (int i = threadIdx.x; i < AIM_BINS; i += AIM_THREADS)
            sh->low[i] = sh->high[i] = sh->count[i] = 0;
        __syncthreads();
        for (int i = j.c.n - j.c.runs + threadIdx.x; i < j.c.n; i += AIM_THREADS) {
            const u64 place = place_of(j, i);
            if (place >> above == prefix)
                add_to_bin(sh, (int)((unsigned)(place >> shift) & mask), weight_of(j, h, i));
        }
        __syncthreads();
        find_bin(sh, (u64)j.a.mass - mass);
        if (sh->bin == AIM_BINS)
            return (u64)1 << PLACE_BITS;
        prefix = prefix << (above - shift) | (u64)sh->bin;
        mass += sh->mass;
        const bool alone = sh->count[sh->bin] == 1;
        __syncthreads();
        above = shift;
        if (alone)
            break;
    }
    return prefix << above;
}

/* Runs whose place is at least `place`. */
DEV int count_from(const aim_job &j, u64 place)
{
    __shared__ int sums[AIM_THREADS / 32];
    int n = 0, all = 0;
    for (int i = j.c.n - j.c.runs + threadIdx.x; i < j.c.n; i += AIM_THREADS)
        n += place_of(j, i) >= place;
    n = warp_sum_int(n);
    if (lane_id() == 0)
        sums[warp_id()] = n;
    __syncthreads();
    for (int w = 0; w < AIM_THREADS / 32; w++)
        all += sums[w];
    __syncthreads();
    return all;
}

/* No list would do: all of the unit's rows attend to everything; a seed has no rows. By one thread. */
DEV void miss(const aim_job &j)
{
    const prhs_k_aim &a = j.a;
    const bool seed = j.e.kind == SEED;
    byte *ws = j.mem[PRHS_R_WORK];
    const int unit = j.b * a.shape.units + j.u;
    prhs_unit_stat *st = STAT_AT(j.mem[PRHS_R_STATE], a.state, unit_stat_off, j.e.slot, prhs_unit_stat) + j.u;
    const prhs_set all = { seed ? PRHS_MODE_IDLE : PRHS_MODE_DENSE, 0, 0, 0, 0, 1, 0, j.e.kv_len, 0, 0, { 0, 0 } };
    int chunks = 0;
    *set_at(ws, a.work, a.shape, j.b, j.u) = all;
    for (int r = 0; r < j.e.rows; r++) {
        int *work = INTS(ws, a.work.work_off) + ((i64)j.b * a.batch.rows + r) * a.shape.units + j.u;
        if (r > 0 && *work == PRHS_WORK_ALL)
            st->rows_dense--; /* not by its own gate any more */
        *work = seed ? PRHS_WORK_NONE : PRHS_WORK_ALL;
        chunks += attend_chunks(a.work, work_tokens(all, *work, j.e.pos0 + r));
    }
    st->missed += !seed;
    /* finish counts those only that are still going to retrieve. */
    if (a.work.judge_off != PRHS_NONE && INTS(ws, a.work.score_count_off)[a.batch.max_seqs * a.shape.units + unit] < 0)
        st->mass_failed++;
    INTS(ws, a.work.score_count_off)[unit] = 0;
    INTS(ws, a.work.attend_count_off)[a.pass * a.batch.max_seqs * a.shape.units + unit] = chunks;
}

template <bool RAW> DEV void put_keys(const aim_job &j)
{
    const prhs_k_aim &a = j.a;
    const key_source<RAW> s = { j.scores, j.sh->lse, a.work.score_stride, j.c.n, j.c.n - j.c.runs, j.c.run, a.shape.unit_heads,
                                a.policy.join == PRHS_K_JOIN_MAX };
    s.each_key(0, j.c.n, [&](int i, unsigned k) {
        if (i < j.c.n)
            j.keys[i] = k;
    });
    __syncthreads();
}

DEV void aim_unit(const prhs_k_aim &a, byte *const mem[], aim_shared *sh, int b, int u)
{
    byte *ws = mem[PRHS_R_WORK];
    const entry e = entry_of(a.batch, mem[PRHS_R_SEQS], b);
    prhs_set *const to = set_at(ws, a.work, a.shape, b, u);
    const prhs_set set = *to;
    const int heads = a.shape.unit_heads;
    if (e.kind == IDLE || set.mode != PRHS_MODE_RETRIEVE)
        return;
    const candidates c = candidates_of(a, set, e.pos0 + 1);
    const i64 head = (i64)b * a.shape.heads + u * heads;
    const aim_job j = { a, mem, sh, b, u, e, set, c, FLOATS(ws, a.work.score_off) + head * a.work.score_stride + c.origin,
                        (unsigned *)(ws + a.work.aim_off) + (i64)(b * a.shape.units + u) * a.work.score_stride };
    merge_norms(a.work, heads, e.pos0 + 1, (const float4 *)(ws + a.work.norm_off) + head * a.work.score_chunks, sh->lse);
    if (heads == 1 && c.run == 1)
        put_keys<true>(j);
    else
        put_keys<false>(j);
    u64 place = (u64)1 << PLACE_BITS;
    for (int h = 0; h < heads; h++)
        place = min(place, needed_place(j, h));
    const int least = min(c.runs, a.policy.least / c.run), keep = max(least, count_from(j, place));
    if (threadIdx.x)
        return;
    to->reserved[1] = keep;
    if (keep > min(a.policy.k / c.run, a.state.list_cap))
        miss(j);
}

KERNEL(prhs_aim, prhs_cu_aim, AIM_THREADS, 1)
{
    __shared__ aim_shared sh;
    grid_begin();
    const int units = p.a.shape.units, items = seqs_of(p.a.batch, p.mem[PRHS_R_SEQS]) * units;
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
        aim_unit(p.a, p.mem, &sh, i / units, i % units);
        __syncthreads();
    }
}
