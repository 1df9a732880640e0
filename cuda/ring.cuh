/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scattered rows on their way to tensor cores: every warp has a ring of stages in shared memory, filled by asynchronous copies while it
 * works on an earlier stage. A stage holds 16 rows of K and, where VALUES, of V. 16-byte pieces of a row are permuted, so that the fragments'
 * loads meet no bank twice.
 */
#ifndef PRHS_RING_CUH
#define PRHS_RING_CUH

#include "mma.cuh"

#define WARPS 4
#define THREADS (32 * WARPS)

template <int DP, bool VALUES> struct ring {
    static const int ROW = DP * 2;                           /* bytes */
    static const int SIDE = ROWS * ROW;
    static const int STAGE = VALUES ? 2 * SIDE : SIDE;
    static const int STAGES = 2;
    static const int BYTES = WARPS * STAGES * STAGE;         /* of a block */
};

DEV int key_piece(int row, int piece) { return piece ^ (row & 1) << 2; }
DEV int value_piece(int row, int piece) { return piece ^ (row >> 1 & 3) << 1; }

DEV i64 shuffle_wide(i64 x, int from)
{
    const unsigned low = __shfl_sync(FULL, (unsigned)x, from), high = __shfl_sync(FULL, (unsigned)((unsigned long long)x >> 32), from);
    return (i64)((unsigned long long)high << 32 | low);
}

/* Sends for a tile of n rows (fewer than 1: for nothing); `mine` says where row lane % 16 lies. Rows past n become zeros. */
template <int DP, bool VALUES> DEV void send_tile(byte *stage, const byte *keys, const byte *values, const place &mine, int n, int dim)
{
    const int PIECES = DP / 8, EACH = 32 / PIECES > 0 ? 32 / PIECES : 1; /* rows a round */
    const int lane = lane_id();
#pragma unroll
    for (int i = 0; i < ROWS / EACH; i++) {
        const int row = i * EACH + lane / PIECES, piece = lane % PIECES;
        const i64 k = shuffle_wide(mine.k, row);
        const bool real = row < n;
        if (n > 0 && piece * 8 < dim)
            copy_async_or_zero(stage + row * DP * 2 + key_piece(row, piece) * 16, keys + (real ? k : 0) + piece * 16, real);
        if (VALUES) {
            const i64 v = shuffle_wide(mine.v, row);
            if (n > 0 && piece * 8 < dim)
                copy_async_or_zero(stage + ROWS * DP * 2 + row * DP * 2 + value_piece(row, piece) * 16, values + (real ? v : 0) + piece * 16,
                                   real);
        }
    }
}

/* Zeros where no copy ever writes: channels between D and DP. */
template <int DP, bool VALUES> DEV void clear_ring(byte *ring_of_block, int dim)
{
    if (dim == DP)
        return;
    for (int i = threadIdx.x; i < ring<DP, VALUES>::BYTES / 16; i += THREADS)
        ((uint4 *)ring_of_block)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
}

/* Scores of rows g and g + 8 of a stage for head c of each four. */
template <int T, int DP, int NT> DEV void score_stage(const byte *keys, const query_terms<T, DP> (&q)[NT], float (&s)[NT][2])
{
    const int g = lane_id() >> 2, c = lane_id() & 3;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
        s[nt][0] = s[nt][1] = 0.0f;
#pragma unroll
    for (int j = 0; j < DP / 32; j++) {
        const int piece = key_piece(g, j * 4 + c);
        const uint4 x = *(const uint4 *)(keys + g * DP * 2 + piece * 16);
        const uint4 y = *(const uint4 *)(keys + (g + 8) * DP * 2 + piece * 16);
        const unsigned a[2][4] = { { x.x, y.x, x.y, y.y }, { x.z, y.z, x.w, y.w } };
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                /* Tensor cores round sums towards zero: what is summed over products is summed in float32. */
                float acc[4] = {};
#pragma unroll
                for (int pair = terms<T>::PAIRS - 1; pair >= 0; pair--)
                    multiply<T == PRHS_K_BF16>(acc, a[half], q[nt].b[pair][j][2 * half], q[nt].b[pair][j][2 * half + 1]);
                s[nt][0] += joined_terms<T>(acc[0], acc[1]);
                s[nt][1] += joined_terms<T>(acc[2], acc[3]);
            }
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        s[nt][0] *= q[nt].scale;
        s[nt][1] *= q[nt].scale;
    }
}

/* Adds a stage's weighted values; a lane's sums are of head c, channels (8 j + g) * 8 ... + 7. */
template <int T, int DP, int NT>
DEV void add_stage(const byte *values, const weight_terms<T> (&w)[NT], float (&o)[NT][DP / 64][8])
{
    const int g = lane_id() >> 2, c = lane_id() & 3;
#pragma unroll
    for (int j = 0; j < DP / 64; j++) {
        unsigned x[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = 2 * c + (i & 1) + (i >> 1) * 8;
            const uint4 v = *(const uint4 *)(values + row * DP * 2 + value_piece(row, j * 8 + g) * 16);
            x[i][0] = v.x;
            x[i][1] = v.y;
            x[i][2] = v.z;
            x[i][3] = v.w;
        }
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const unsigned a[4] = { low_halves(x[0][m], x[1][m]), high_halves(x[0][m], x[1][m]), low_halves(x[2][m], x[3][m]),
                                    high_halves(x[2][m], x[3][m]) };
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                float acc[4] = {};
#pragma unroll
                for (int pair = terms<T>::PAIRS - 1; pair >= 0; pair--)
                    multiply<T == PRHS_K_BF16>(acc, a, w[nt].b[pair][0], w[nt].b[pair][1]);
                o[nt][j][2 * m] += joined_terms<T>(acc[0], acc[1]);
                o[nt][j][2 * m + 1] += joined_terms<T>(acc[2], acc[3]);
            }
        }
    }
}

#endif
