/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scattered rows on their way to tensor cores: every warp has a ring of stages in shared memory, filled by asynchronous copies while it
 * works on an earlier stage. A stage holds 16 rows of K, and for attend of V. 16-byte pieces of a row are permuted, so that the
 * fragments' loads meet no bank twice.
 */
#ifndef PRHS_RING_CUH
#define PRHS_RING_CUH

#include "mma.cuh"

/* A warp's ring with K and V, in bytes. */
template <int DP> struct ring {
    static const int SIDE = ROWS * DP * 2;
    static const int STAGE = 2 * SIDE;
    static const int STAGES = 2;
    static const int BYTES = STAGES * STAGE;
};

/* Where a piece lies in its row: only the piece's last three bits change. */
DEV int piece_in(int row, int piece) { return piece ^ (row & 7); }

/* Copies of row I * 4 + a lane's own; J counts 128 bytes. */
template <int DP, bool VALUES, int I, int J> DEV void send_pieces(shared_at to, const byte *k, const byte *v, bool real, int left)
{
    if constexpr (J < DP / 64) {
        if (J * 64 < left) {
            copy_once_or_zero<I * 4 * DP * 2 + J * 128, J * 128>(to, k, real);
            if (VALUES)
                copy_once_or_zero<ring<DP>::SIDE + I * 4 * DP * 2 + J * 128, J * 128>(to, v, real);
        }
        send_pieces<DP, VALUES, I, J + 1>(to, k, v, real, left);
    }
}

template <int DP, int I>
DEV void send_place(const shared_at (&to)[2], const byte *keys, const byte *values, const row_place *at, int n, int left)
{
    if constexpr (I < ROWS / 4) {
        const row_place row = at[I * 4]; /* past the end: that of the last row */
        const byte *k = keys + (unsigned long long)row.k * 16, *v = values + (unsigned long long)row.v * 16;
        send_pieces<DP, true, I, 0>(to[I & 1], k, v, I * 4 < n, left);
        send_place<DP, I + 1>(to, keys, values, at, n, left);
    }
}

template <int DP, int I, int J> DEV void send_whole_pieces(shared_at to, const byte *k, const byte *v)
{
    if constexpr (J < DP / 64) {
        copy_once<I * 4 * DP * 2 + J * 128, J * 128>(to, k);
        copy_once<ring<DP>::SIDE + I * 4 * DP * 2 + J * 128, J * 128>(to, v);
        send_whole_pieces<DP, I, J + 1>(to, k, v);
    }
}

template <int DP, int I> DEV void send_whole(const shared_at (&to)[2], const byte *keys, const byte *values, const row_place *at)
{
    if constexpr (I < ROWS / 4) {
        const row_place row = at[I * 4];
        send_whole_pieces<DP, I, 0>(to[I & 1], keys + (unsigned long long)row.k * 16, values + (unsigned long long)row.v * 16);
        send_whole<DP, I + 1>(to, keys, values, at);
    }
}

/*
 * Sends for a tile of n rows, K and V, whose places lie in shared memory, from the KV head's first ones on. Rows past n become zeros and
 * are not read. Eight lanes copy 128 bytes of a row at a time, so that all that differs between a lane's copies of a row is a constant.
 */
template <int DP> DEV void send_places(shared_at stage, const byte *keys, const byte *values, const row_place *at, int n, int dim)
{
    const int group = lane_id() >> 3, piece = lane_id() & 7;
    const shared_at row = stage + group * DP * 2, to[2] = { row + piece_in(group, piece) * 16, row + piece_in(group + 4, piece) * 16 };
    if (n >= ROWS && dim == DP)
        send_whole<DP, 0>(to, keys + piece * 16, values + piece * 16, at + group);
    else
        send_place<DP, 0>(to, keys + piece * 16, values + piece * 16, at + group, n - group, dim - piece * 8);
}

/* Zeros where no copy ever writes: channels between D and DP. */
template <int DP> DEV void clear_rings(byte *rings, int bytes, int dim)
{
    if (dim == DP)
        return;
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x)
        ((uint4 *)rings)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
}

/* Where a lane reads of a row, in pieces 2 m + odd for m = 0 to 3; the later ones lie 128 bytes apart. */
template <int DP> DEV void piece_addresses(shared_at side, int row, int odd, shared_at (&at)[4])
{
#pragma unroll
    for (int m = 0; m < 4; m++)
        at[m] = side + row * DP * 2 + piece_in(row, 2 * m + odd) * 16;
}

template <int T, int DP, int NT, int M>
DEV void score_pieces(const shared_at (&keys)[4], const query_terms<T, DP> (&q)[NT], float (&sums)[NT][4])
{
    if constexpr (M < DP / 16) {
        unsigned a[4];
        load_matrices<M / 4 * 128>(a, keys[M & 3]);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            /* Tensor cores round sums towards zero: what is summed over products is summed in float32. */
            float acc[4] = {};
#pragma unroll
            for (int pair = terms<T>::PAIRS - 1; pair >= 0; pair--)
                multiply<T == PRHS_K_BF16>(acc, a, q[nt].b[pair][M][0], q[nt].b[pair][M][1]);
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[nt][i] += acc[i];
        }
        score_pieces<T, DP, NT, M + 1>(keys, q, sums);
    }
}

/*
 * Scores of rows g and g + 8 of a stage for head c of each four. Matrices have 8 rows and 8 channels: rows 0 to 7 and 8 to 15 of piece 2 m,
 * then of piece 2 m + 1.
 */
template <int T, int DP, int NT> DEV void score_stage(shared_at keys, const query_terms<T, DP> (&q)[NT], float (&s)[NT][2])
{
    shared_at at[4];
    float sums[NT][4] = {}; /* of each row's two columns */
    piece_addresses<DP>(keys, lane_id() & 15, lane_id() >> 4, at);
    score_pieces<T, DP, NT, 0>(at, q, sums);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        s[nt][0] = joined_terms<T>(sums[nt][0], sums[nt][1]) * q[nt].scale;
        s[nt][1] = joined_terms<T>(sums[nt][2], sums[nt][3]) * q[nt].scale;
    }
}

/*
 * Sums of weighted values, head c of each four: a lane's are of channels 8 j + g. Both columns by themselves: joined at the end.
 */
template <int DP, int NT> struct value_sums {
    float o[NT][DP / 8][2];
};

template <int T, int DP, int NT, int M>
DEV void add_pieces(const shared_at (&values)[4], const weight_terms<T> (&w)[NT], value_sums<DP, NT> *sums)
{
    if constexpr (M < DP / 16) {
        unsigned a[4];
        load_matrices_transposed<M / 4 * 128>(a, values[M & 3]);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float acc[4] = {};
#pragma unroll
            for (int pair = terms<T>::PAIRS - 1; pair >= 0; pair--)
                multiply<T == PRHS_K_BF16>(acc, a, w[nt].b[pair][0], w[nt].b[pair][1]);
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums->o[nt][2 * M + (i >> 1)][i & 1] += acc[i];
        }
        add_pieces<T, DP, NT, M + 1>(values, w, sums);
    }
}

/* Adds a stage's weighted values. Matrices: rows 0 to 7 of pieces 2 m and 2 m + 1, then rows 8 to 15. */
template <int T, int DP, int NT>
DEV void add_stage(shared_at values, const weight_terms<T> (&w)[NT], value_sums<DP, NT> *sums)
{
    shared_at at[4];
    piece_addresses<DP>(values, (lane_id() & 7) + (lane_id() >> 4) * 8, lane_id() >> 3 & 1, at);
    add_pieces<T, DP, NT, 0>(at, w, sums);
}

#endif
