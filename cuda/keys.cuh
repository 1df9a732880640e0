/* SPDX-License-Identifier: Apache-2.0 */
/* A unit's candidates and their keys: what select orders. */
#ifndef PRHS_KEYS_CUH
#define PRHS_KEYS_CUH

#include "topk.cuh"

/* The middle as candidates: runs at first, first + run, ... Bit i stands for the run at origin + i * run; the first bits may be none. */
struct candidates {
    int first, runs, run;
    int origin, n;
    int keep;          /* runs that the list takes */
    int each, slices;  /* bits of a slice, a multiple of 32. One slice: a block does the unit alone */
};

/* Op: prhs_k_select, or prhs_k_aim, which finds out how many the list takes. */
template <class Op> DEV candidates candidates_of(const Op &a, const prhs_set &set, int end)
{
    const int low = max(set.mid_begin, 0), high = min(set.mid_end, end), run = max(a.policy.run, 1);
    candidates c;
    c.run = run;
    c.first = run == 1 ? low : (low + run - 1) / run * run;
    c.runs = max(run == 1 ? high - low : high / run - c.first / run, 0);
    c.origin = run == 1 ? c.first & ~31 : c.first;
    c.n = c.runs + (c.first - c.origin);
    c.keep = min(a.policy.least > 0 ? set.reserved[1] : run == 1 ? a.policy.k : a.policy.k / run, a.state.list_cap);
    c.each = run == 1 ? PRHS_K_SLICE : (PRHS_K_SLICE / run + 31) / 32 * 32;
    c.slices = c.n <= c.each || c.runs <= c.keep ? 1 : run == 1 ? PRHS_K_SLICES(c.n) : (c.n + c.each - 1) / c.each;
    return c;
}

/* Keys from the scores. RAW: a token's score; else a run's joint weight. */
template <bool RAW> struct key_source {
    const float *scores, *lse; /* scores: from bit 0's token on */
    i64 stride;
    int n, skew, run, heads;   /* bits [skew, n) are candidates */
    bool largest;              /* the heads' largest weight, not their sum */

    DEV_MEMBER bool is_candidate(int i) const { return (unsigned)(i - skew) < (unsigned)(n - skew); }
    /* Keys of bits at[]: their loads are under way together, and so are unconditional. WHOLE: of candidates, each 32 after the last. */
    template <int N, bool WHOLE> DEV_MEMBER void keys(const int at[N], unsigned k[N]) const
    {
        float sum[N];
        int from[N];
#pragma unroll
        for (int t = 0; t < N; t++) {
            from[t] = WHOLE ? at[t] : min(at[t], n - 1);
            sum[t] = !RAW ? 0.0f : WHOLE ? load_score(scores + at[0] + 32 * t) : load_score(scores + from[t]);
        }
        for (int r = 0; !RAW && r < run; r++)
            add_weights<N>(from, r, sum);
#pragma unroll
        for (int t = 0; t < N; t++)
            k[t] = WHOLE || is_candidate(at[t]) ? order_key(sum[t]) : 0;
    }
    /* Token r of each run. */
    template <int N> DEV_MEMBER void add_weights(const int from[N], int r, float sum[N]) const
    {
        float joint[N];
        bool bad[N];
#pragma unroll
        for (int t = 0; t < N; t++) {
            joint[t] = 0.0f;
            bad[t] = false;
        }
#pragma unroll(N > 2 ? 2 : 4)
        for (int h = 0; h < heads; h++) {
            const float *s = scores + h * stride + r;
            const float l = lse[h];
            float x[N];
#pragma unroll
            for (int t = 0; t < N; t++)
                x[t] = load_score(s + from[t] * run);
#pragma unroll
            for (int t = 0; t < N; t++) {
                const float w = expf(x[t] - l);
                bad[t] |= bad_score(x[t]);
                joint[t] = largest ? fmaxf(joint[t], w) : joint[t] + w;
            }
        }
#pragma unroll
        for (int t = 0; t < N; t++)
            sum[t] += bad[t] ? NEVER : joint[t];
    }

    /* put(i, key) for bits [begin, end) by whole warps, and up to PRHS_RETRIEVE_PAST more: keys past n are 0. begin: a multiple of 32. */
    template <class Put> DEV_MEMBER void each_key(int begin, int end, Put put) const
    {
        const int wide = RAW ? 16 : 4;
        for (int tile = begin + warp_id() * wide * 32; tile < end; tile += blockDim.x * wide) {
            int at[wide];
            unsigned k[wide];
#pragma unroll
            for (int t = 0; t < wide; t++)
                at[t] = tile + lane_id() + 32 * t;
            if (RAW && tile >= skew && tile + 32 * wide <= n)
                keys<wide, true>(at, k);
            else
                keys<wide, false>(at, k);
#pragma unroll
            for (int t = 0; t < wide; t++)
                put(at[t], k[t]);
        }
    }
};

#define NORMS 4 /* chunks whose norms a lane has on their way together */

/* The log-sum-exp of a head over all scored tokens, by a warp. norm: [chunks][4]. */
DEV float merge_norm(const float4 *norm, int chunks)
{
    float top = LOWEST, sum = 0.0f;
    float2 z[NORMS];
#pragma unroll
    for (int t = 0; t < NORMS; t++) {
        const int i = lane_id() + 32 * t;
        z[t] = i < chunks ? *(const float2 *)(norm + i) : make_float2(LOWEST, 0.0f);
        top = fmaxf(top, z[t].x);
    }
#pragma unroll 1
    for (int i = lane_id() + 32 * NORMS; i < chunks; i += 32)
        top = fmaxf(top, norm[i].x);
    top = warp_max(top);
#pragma unroll
    for (int t = 0; t < NORMS; t++)
        if (lane_id() + 32 * t < chunks)
            sum += z[t].y * expf(z[t].x - top);
#pragma unroll 1
    for (int i = lane_id() + 32 * NORMS; i < chunks; i += 32)
        sum += norm[i].y * expf(norm[i].x - top);
    sum = warp_sum(sum);
    return sum == 0.0f ? 0.0f : top + logf(sum);
}

/* Those of the unit's heads: a warp a head. norm: [heads][score_chunks][4]. Ends with a barrier. */
DEV void merge_norms(const prhs_k_work &w, int heads, int n, const float4 *norm, float *lse)
{
    const int chunks = chunk_count(n, w.score_chunk_min, w.score_chunks);
    for (int h = warp_id(); h < heads; h += blockDim.x >> 5) {
        const float l = merge_norm(norm + h * w.score_chunks, chunks);
        if (lane_id() == 0)
            lse[h] = l;
    }
    __syncthreads();
}

#endif
