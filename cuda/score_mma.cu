/* SPDX-License-Identifier: Apache-2.0 */
/* score on tensor cores, without moments: float16 and bfloat16 keys, for units whose heads share their rows. */
#include "mma.cuh"
#include "score.cuh"

#define TILES 2 /* tiles of 16 rows that a warp has in flight */

/* Takes a lane's scores for a head; those that do not count are NOTHING. */
DEV void take(logsum *z, const float s[2 * TILES])
{
    float top = z->top;
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++)
        top = fmaxf(top, s[i]);
    z->sum *= exp_weight(z->top - top);
    z->top = top;
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++)
        z->sum += exp_weight(s[i] - top);
}

/* The lanes' sums of a head (equal c) become one. */
DEV logsum gathered(logsum z)
{
    const float top = column_max(z.top);
    z.sum = column_sum(z.sum * exp_weight(z.top - top));
    z.top = top;
    return z;
}

/* Writes out the scores of rows base + g, base + g + 8, ... for head c and takes them into the sums. */
DEV void take_scores(const job &j, int base, float *out, const float s[2 * TILES], logsum *mid, logsum *rest)
{
    float in[2 * TILES], other[2 * TILES];
    bool any_other = false;
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        const int pos = base + (lane_id() >> 2) + 8 * i;
        const bool mine = pos < j.last && is_scored(j, pos), inside = mine && is_inside(j, pos), good = mine && !bad_score(s[i]);
        if (mine && out)
            out[pos] = s[i];
        in[i] = good && inside ? s[i] : NOTHING;
        other[i] = good && !inside ? s[i] : NOTHING;
        any_other |= mine && !inside;
    }
    take(mid, in);
    if (any_other)
        take(rest, other);
}

/* Heads [h0, h0 + 4 NT) of the unit over the job's chunk. */
template <int T, int DP, int NT> DEV void score_heads(const prhs_cu_score &p, const job &j, int h0)
{
    __shared__ place places[WARPS][ROWS * TILES];
    __shared__ logsum mids[WARPS][NT * 4], outs[WARPS][NT * 4];
    const prhs_k_score &a = p.a;
    const int heads = min(NT * 4, a.shape.unit_heads - h0), head = j.u * a.shape.unit_heads + h0;
    const int lane = lane_id(), warp = warp_id(), c = lane & 3;
    place *at = places[warp];
    byte *ws = p.mem[PRHS_R_WORK];
    query_terms<T, DP> q[NT];
    logsum mid[NT], out[NT];
    float *rows[NT];
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const int first = min(nt * 4, heads - 1);
        load_query_terms<T, DP>(a.q, p.mem[PRHS_R_Q], j.e.row0, head + first, heads - first, a.shape.dim, &q[nt]);
        mid[nt] = out[nt] = logsum{ LOWEST, 0.0f };
        rows[nt] = nt * 4 + c < heads
                       ? FLOATS(ws, a.work.score_off) + (j.b * a.shape.heads + head + nt * 4 + c) * a.work.score_stride
                       : nullptr;
    }
    for (int base = j.first + warp * ROWS * TILES; base < j.last; base += WARPS * ROWS * TILES) {
        /* Between the sinks and the middle (PSAW) nothing is scored, unless everything is. */
        if (!j.full && base >= j.set.sink_end && base + ROWS * TILES <= j.set.mid_begin)
            continue;
        key_rows<DP> k[TILES];
        if (base + lane < j.last)
            at[lane] = place_of(a.kv, j.pages, base + lane, head / a.shape.group);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < TILES; i++)
            load_keys(p.mem[PRHS_R_K], at + i * ROWS, j.last - base - i * ROWS, a.shape.dim, &k[i]);
        __syncwarp();
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float s[2 * TILES];
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                score_keys<T, DP>(k[i], q[nt], s + 2 * i);
                s[2 * i] *= a.shape.scale;
                s[2 * i + 1] *= a.shape.scale;
            }
            take_scores(j, base, rows[nt], s, &mid[nt], &out[nt]);
        }
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        mid[nt] = gathered(mid[nt]);
        out[nt] = gathered(out[nt]);
        if (lane < 4) {
            mids[warp][nt * 4 + c] = mid[nt];
            outs[warp][nt * 4 + c] = out[nt];
        }
    }
    __syncthreads();
    put_norms<NT * 4>(a, mids, outs, heads, (j.b * a.shape.heads + head) * a.work.score_chunks + j.chunk, ws);
    __syncthreads();
}

#define SCORE(t, T, dp, nt, hb, blocks)                                        \
    KERNEL(prhs_score_##t##_d##dp##_h##hb, prhs_cu_score, THREADS, blocks)     \
    { score<hb>(p, [&](const job &j, int h0) { score_heads<T, dp, nt>(p, j, h0); }); }
#define SCORE_DIMS(t, T)         \
    SCORE(t, T, 64, 1, 4, 6)     \
    SCORE(t, T, 64, 2, 8, 5)     \
    SCORE(t, T, 128, 1, 4, 4)    \
    SCORE(t, T, 128, 2, 8, 3)    \
    SCORE(t, T, 256, 1, 4, 2)
SCORE_DIMS(f16, PRHS_K_F16)
SCORE_DIMS(bf16, PRHS_K_BF16)
