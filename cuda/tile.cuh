/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A warp's tile of scattered rows, without tensor cores: L lanes hold a row (8 channels each), 32 / L rows come with one load
 * instruction, LOADS of these are in flight together. HB query heads share each row.
 */
#ifndef PRHS_TILE_CUH
#define PRHS_TILE_CUH

#include "common.cuh"

/* T: dtype of the rows; L: lanes a row; HB: heads; LOADS: rows that a lane has in flight. */
template <int T, int L, int HB, int LOADS> struct tile {
    static const int AT_ONCE = 32 / L;         /* rows a load */
    static const int TOKENS = AT_ONCE * LOADS;  /* rows a tile */
    static const int VALUES = LOADS * HB;    /* scores that a lane has a part of */
    static const int WHOLE = VALUES > L ? VALUES / L : 1; /* scores that a lane ends up with */

    /* What a warp keeps in shared memory: scores, then weights: [token][head]. */
    typedef float scores[TOKENS * HB];
};

/* Adds up W lanes' parts of N values; afterwards a lane has max(1, N / W) whole values, from index `off` on. */
template <int N, int W> DEV void spread_sum(float *v, int *off)
{
    if constexpr (W > 1) {
        if constexpr (N > 1) {
            const bool upper = lane_id() & (W / 2);
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                const float give = upper ? v[i] : v[i + N / 2], keep = upper ? v[i + N / 2] : v[i];
                v[i] = keep + __shfl_xor_sync(FULL, give, W / 2);
            }
            *off += upper ? N / 2 : 0;
            spread_sum<N / 2, W / 2>(v, off);
        } else {
            v[0] += __shfl_xor_sync(FULL, v[0], W / 2);
            spread_sum<1, W / 2>(v, off);
        }
    }
}

/* Scores of the tile's rows into s[token][head]. */
template <int T, int L, int HB, int LOADS> DEV void score_rows(const raw8<T> *k, const float q[HB][8], float *s)
{
    typedef tile<T, L, HB, LOADS> tl;
    float part[tl::VALUES];
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        float x[8];
        floats_of(k[i], x);
#pragma unroll
        for (int h = 0; h < HB; h++) {
            float d = x[0] * q[h][0];
#pragma unroll
            for (int c = 1; c < 8; c++)
                d += x[c] * q[h][c];
            part[i * HB + h] = d;
        }
    }
    int off = 0;
    spread_sum<tl::VALUES, L>(part, &off);
#pragma unroll
    for (int f = 0; f < tl::WHOLE; f++) {
        const int i = off + f, token = i / HB * tl::AT_ONCE + lane_id() / L;
        s[token * HB + i % HB] = part[f];
    }
}

#endif
