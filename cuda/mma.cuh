/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor cores for decode: a warp multiplies 16 rows of K or V, read 16 bytes at a time as they lie in memory, with the few queries (or
 * weights) that share them. Sums may run over channels, and outputs lie at channels, in any order, so that a row's pieces are fragments
 * already. lane = 4 g + c.
 *
 * Queries and weights are float32. They enter as sums of 16-bit terms that stand in neighbouring columns: two halves, the second one 2^11
 * times too large so that it keeps its precision, or three bfloat16s. Products of two 16-bit numbers are exact.
 */
#ifndef PRHS_MMA_CUH
#define PRHS_MMA_CUH

#include "common.cuh"

#define ROWS 16                                       /* rows of a tile */
template <int T> struct terms {
    static const int PAIRS = T == PRHS_K_BF16 ? 2 : 1; /* pairs of columns a head needs, one after another */
};

/* Term `odd` (0, 1) of pair `pair` of x, and of y in the upper half. */
template <int T> DEV unsigned pack_terms(float x, float y, int pair, bool odd)
{
    if (T == PRHS_K_F16) {
        const unsigned high = floats_half2(x, y);
        const float2 f = half2_floats(high);
        const unsigned low = floats_half2((x - f.x) * 2048.0f, (y - f.y) * 2048.0f);
        return odd ? low : high;
    }
    const unsigned high = floats_bf162(x, y);
    const float2 f = bf162_floats(high);
    const unsigned mid = floats_bf162(x - f.x, y - f.y);
    if (pair == 0)
        return odd ? mid : high;
    const float2 m = bf162_floats(mid);
    return odd ? 0 : floats_bf162(x - f.x - m.x, y - f.y - m.y);
}

/* What a pair of neighbouring columns stands for. The second one says nothing where the first is not finite: 0 times inf. */
template <int T> DEV float joined_terms(float first, float second)
{
    return fabsf(first) < __int_as_float(0x7f800000) ? first + (T == PRHS_K_F16 ? second * (1.0f / 2048.0f) : second) : first;
}

/* Queries of 4 heads as the right-hand fragments of DP / 16 products; lane's column g: term g % 2 of head g / 2. */
template <int T, int DP> struct query_terms {
    unsigned b[terms<T>::PAIRS][DP / 16][2];
    float scale;                             /* of head c: a power of two, so that halves neither overflow nor vanish */
};

/* A lane's part of queries as they lie in memory, two channels of each 8: asked for early. */
template <int DP> struct query_words {
    unsigned w[DP / 8][2]; /* the second ones where they are float32 */
};

/* Queries of `heads` heads that lie `step` elements apart, wherever they are; the last one is repeated. */
template <int DP> DEV void query_words_of(int dtype, const byte *queries, i64 step, int heads, int dim, query_words<DP> *words)
{
    const int g = lane_id() >> 2, c = lane_id() & 3, size = element(dtype);
    const byte *base = queries + (min(g >> 1, heads - 1) * step + 2 * c) * size;
#pragma unroll
    for (int j = 0; j < DP / 8; j++) {
        words->w[j][0] = words->w[j][1] = 0;
        if (j * 8 < dim && size == 2)
            words->w[j][0] = *(const unsigned *)(base + j * 16);
        if (j * 8 < dim && size == 4) {
            const uint2 x = *(const uint2 *)(base + j * 32);
            words->w[j][0] = x.x;
            words->w[j][1] = x.y;
        }
    }
}

template <int DP>
DEV void load_query_words(const prhs_k_rows &rows, byte *q, i64 row, int head, int heads, int dim, query_words<DP> *words)
{
    query_words_of<DP>(rows.dtype, row_at(rows, q, row, head), rows.head, heads, dim, words);
}

template <int T, int DP> DEV void make_query_terms(int dtype, const query_words<DP> &words, query_terms<T, DP> *t)
{
    const int g = lane_id() >> 2, c = lane_id() & 3;
    float top = 0.0f, up = 1.0f;
    float2 x[DP / 8];
#pragma unroll
    for (int j = 0; j < DP / 8; j++) {
        const unsigned *w = words.w[j];
        x[j] = dtype == PRHS_K_F32   ? make_float2(__uint_as_float(w[0]), __uint_as_float(w[1]))
               : dtype == PRHS_K_F16 ? half2_floats(w[0])
                                     : bf162_floats(w[0]);
        top = fmaxf(top, fmaxf(fabsf(x[j].x), fabsf(x[j].y)));
    }
    if (T == PRHS_K_F16) {
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
        const int e = __float_as_int(top) >> 23; /* biased exponent; 0 and 255 (zeros, inf) stay as they are */
        const int shift = e == 0 || e == 255 ? 0 : max(min(e - 127, 120), -120);
        up = __int_as_float((127 + shift) << 23);
        const float down = __int_as_float((127 - shift) << 23);
#pragma unroll
        for (int j = 0; j < DP / 8; j++)
            x[j] = make_float2(x[j].x * down, x[j].y * down);
    }
    t->scale = __shfl_sync(FULL, up, c * 8);
#pragma unroll
    for (int pair = 0; pair < terms<T>::PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < DP / 8; j++)
            t->b[pair][j / 2][j % 2] = pack_terms<T>(x[j].x, x[j].y, pair, g & 1);
}

/* Weights of 4 heads (those of rows g and g + 8 for head c are w[0], w[1]) as right-hand fragments. */
template <int T> struct weight_terms {
    unsigned b[terms<T>::PAIRS][2];
};

template <int T> DEV void spread_weights(const float w[2], weight_terms<T> *t)
{
    const int g = lane_id() >> 2, c = lane_id() & 3, from = 8 * c + (g >> 1);
    const float x0 = __shfl_sync(FULL, w[0], from), x1 = __shfl_sync(FULL, w[0], from + 4);
    const float x2 = __shfl_sync(FULL, w[1], from), x3 = __shfl_sync(FULL, w[1], from + 4);
#pragma unroll
    for (int pair = 0; pair < terms<T>::PAIRS; pair++) {
        t->b[pair][0] = pack_terms<T>(x0, x1, pair, g & 1);
        t->b[pair][1] = pack_terms<T>(x2, x3, pair, g & 1);
    }
}

/* Over the lanes that share a head (equal c). */
DEV float column_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 4));
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 8));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 16));
}
DEV float column_sum(float x)
{
    x += __shfl_xor_sync(FULL, x, 4);
    x += __shfl_xor_sync(FULL, x, 8);
    return x + __shfl_xor_sync(FULL, x, 16);
}
DEV bool column_any(bool x) { return __ballot_sync(FULL, x) & (0x11111111u << (lane_id() & 3)); }

#endif
