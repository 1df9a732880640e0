/* SPDX-License-Identifier: Apache-2.0 */
/*
 * audit: the exact dropped mass of row 0, from the scores of all cached tokens; statistics only. A block a unit; it marks what is attended,
 * then a thread takes every 128th quad of positions.
 */
#include "common.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)
#define HEADS 4 /* that share a look at the set */

/* Running log-sum-exp. */
struct tally {
    float top, sum;
    bool bad;
};

DEV void add_score(tally *t, float s)
{
    if (bad_score(s)) {
        t->bad = true;
    } else if (s > t->top) {
        t->sum = t->sum * expf(t->top - s) + 1.0f;
        t->top = s;
    } else if (s != NOTHING) {
        t->sum += expf(s - t->top);
    }
}

/* Positions that are looked at together: a bit each, in shared memory. */
#define SPAN 8192

/* The first of the set's runs that ends behind position p. */
DEV int first_behind(const prhs_set &s, const int *list, int p)
{
    int low = 0, high = s.count;
    while (low < high) {
        const int mid = (low + high) >> 1;
        if (list[mid] + s.run > p)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* Which of the positions [first, first + SPAN) the set attends, by the whole block. Ends with a barrier. */
DEV void mark_attended(const prhs_set &s, const int *list, int first, unsigned *marks)
{
    for (int w = threadIdx.x; w < SPAN / 32; w += THREADS) {
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const int q = first + w * 32 + i;
            bits |= (unsigned)(q < s.sink_end || q >= s.win_begin || (q >= s.edge_begin && q < s.edge_end)) << i;
        }
        marks[w] = bits;
    }
    __syncthreads();
    for (int k = (first ? first_behind(s, list, first) : 0) + (int)threadIdx.x; k < s.count && list[k] < first + SPAN; k += THREADS)
        for (int q = max(list[k], first); q < min(list[k] + s.run, first + SPAN); q++)
            atomicOr(&marks[(q - first) >> 5], 1u << ((q - first) & 31));
    __syncthreads();
}

/* The block's log-sum-exp of the threads' tallies. Ends with a barrier. */
DEV float block_lse(const tally &t)
{
    __shared__ float tops[WARPS], sums[WARPS];
    __shared__ int bads[WARPS];
    const float top = warp_max(t.top), sum = warp_sum(t.top == LOWEST ? 0.0f : t.sum * expf(t.top - top));
    const bool bad = __any_sync(FULL, t.bad);
    if (lane_id() == 0) {
        tops[warp_id()] = top;
        sums[warp_id()] = sum;
        bads[warp_id()] = bad;
    }
    __syncthreads();
    float m = LOWEST, z = 0.0f;
    bool any = false;
    for (int w = 0; w < WARPS; w++) {
        m = fmaxf(m, tops[w]);
        any |= bads[w];
    }
    for (int w = 0; w < WARPS; w++)
        z += tops[w] == LOWEST ? 0.0f : sums[w] * expf(tops[w] - m);
    __syncthreads();
    return any ? NEVER : m == LOWEST ? NOTHING : m + logf(z);
}

/* Up to four positions' scores, which rows are padded to; bits: which of them are attended. */
DEV void add_quad(tally (*t)[2], const float *scores, i64 stride, int heads, int n, unsigned bits)
{
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (h >= heads)
            break;
        const float4 y = *(const float4 *)(scores + h * stride);
        const float s[4] = { y.x, y.y, y.z, y.w };
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i >= n)
                break;
            if (bits >> i & 1)
                add_score(&t[h][0], s[i]);
            else
                add_score(&t[h][1], s[i]);
        }
    }
}

/* Log-sum-exps of the scores that are attended ([0]) and of those that are not ([1]), for heads [0, heads) of the rows at `scores`. */
DEV void split_scores(const prhs_set &set, const int *list, const float *scores, i64 stride, int heads, int n, float lse[HEADS][2])
{
    __shared__ unsigned marks[SPAN / 32];
    tally t[HEADS][2];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        t[h][0] = t[h][1] = tally{ LOWEST, 0.0f, false };
    for (int first = 0; first < n; first += SPAN) {
        if (first)
            __syncthreads(); /* the last marks are read */
        mark_attended(set, list, first, marks);
        for (int p = first + (int)threadIdx.x * 4; p < min(first + SPAN, n); p += THREADS * 4)
            add_quad(t, scores + p, stride, heads, n - p, marks[(p - first) >> 5] >> ((p - first) & 31));
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            lse[h][i] = block_lse(t[h][i]);
}

DEV i64 fixed(float mass) { return llrintf(mass * PRHS_MASS_ONE); }

DEV void book_sample(prhs_sample_stat *s, float mass, float worst)
{
    s->count++;
    s->sum += fixed(mass);
    s->square += fixed(mass * mass);
    s->worst_sum += fixed(worst);
    s->worst_square += fixed(worst * worst);
}

/* What a unit's heads leave for its own books. */
struct unit_audit {
    float mass, worst; /* sums; worst: of max(mass, the residual's weight) */
};

/* One head's audit. */
DEV void book_audit(const prhs_k_audit &a, byte *state, int slot, int h, int mode, const float lse[2], unit_audit *unit)
{
    prhs_head_stat *st = STAT_AT(state, a.state, head_stat_off, slot, prhs_head_stat) + h;
    prhs_head_ref *head = SLOT_AT(state, a.state, head_off, slot, prhs_head_ref) + h;
    const float mass = lse[1] == NOTHING ? 0.0f : 1.0f / (1.0f + expf(lse[0] - lse[1])), known = head->delta_last;
    const bool judged = mode == PRHS_MODE_SHARE && a.residual != PRHS_K_RESIDUAL_NONE;
    const float weight = judged ? SLOT_AT(state, a.state, spread_off, slot, float)[2 * h + 1] : known;
    const float worst = a.residual != PRHS_K_RESIDUAL_NONE && weight > mass ? weight : mass;
    head->audit_last = mass;
    unit->mass += mass;
    unit->worst += worst;
    if (isnan(mass)) {
        st->nan_count++;
        return;
    }
    st->audit_sum += fixed(mass);
    st->audit_count++;
    st->within += mass <= a.target;
    if (a.unknown >> mode & 1)
        book_sample(&st->sample, mass, worst);
    if (mode == PRHS_MODE_SHARE && !isnan(known)) {
        st->pair_count++;
        st->pair_exact += fixed(mass);
        st->pair_estimate += fixed(known);
        st->pair_off += fixed(fabsf(known - mass));
        st->pair_square += fixed((known - mass) * (known - mass));
    }
}

DEV void audit_unit(const prhs_k_audit &a, byte *const mem[], i64 b, int u)
{
    const entry e = entry_of(a.batch, mem[PRHS_R_SEQS], b);
    const prhs_set set = *set_at(mem[PRHS_R_WORK], a.work, a.shape, b, u);
    if (e.kind != DECODE || !(a.modes >> set.mode & 1) || !prhs_is_drawn(a.sample, e.slot, u, e.pos0))
        return;
    unit_audit unit = { 0.0f, 0.0f };
    byte *state = mem[PRHS_R_STATE];
    const int *list = a.state.list_off == PRHS_NONE ? nullptr : SLOT_AT(state, a.state, list_off, e.slot, int) + (i64)u * a.state.list_cap;
    for (int i = 0; i < a.shape.unit_heads; i += HEADS) {
        const int h = u * a.shape.unit_heads + i, heads = min(HEADS, a.shape.unit_heads - i);
        float lse[HEADS][2];
        split_scores(set, list, FLOATS(mem[PRHS_R_WORK], a.work.score_off) + (b * a.shape.heads + h) * a.work.score_stride,
                     a.work.score_stride, heads, e.pos0 + 1, lse);
#pragma unroll
        for (int k = 0; k < HEADS; k++)
            if (threadIdx.x == 0 && k < heads)
                book_audit(a, state, e.slot, h + k, set.mode, lse[k], &unit);
    }
    if (threadIdx.x == 0 && a.unknown >> set.mode & 1 && !isnan(unit.mass))
        book_sample(&STAT_AT(state, a.state, unit_stat_off, e.slot, prhs_unit_stat)[u].sample, unit.mass / a.shape.unit_heads,
                    unit.worst / a.shape.unit_heads);
}

KERNEL(prhs_audit, prhs_cu_audit, THREADS, 4)
{
    grid_begin(p);
    const int units = p.a.shape.units, items = seqs_of(p.a.batch, p.mem[PRHS_R_SEQS]) * units;
    for (int i = blockIdx.x; i < items; i += gridDim.x)
        audit_unit(p.a, p.mem, i / units, i % units);
}
