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
    unsigned b[terms<T>::PAIRS][DP / 32][4]; /* [pair][16-byte piece][2 words of each of 2 products] */
    float scale;                             /* of head c: a power of two, so that halves neither overflow nor vanish */
};

/* A lane's part of queries as they lie in memory: asked for early. */
template <int DP> struct query_words {
    uint4 w[DP / 32][2]; /* the second ones where they are float32 */
};

template <int DP>
DEV void load_query_words(const prhs_k_rows &rows, byte *q, i64 row, int head, int heads, int dim, query_words<DP> *words)
{
    const int g = lane_id() >> 2, c = lane_id() & 3, size = element(rows.dtype);
    const byte *base = row_at(rows, q, row, head + min(g >> 1, heads - 1));
#pragma unroll
    for (int j = 0; j < DP / 32; j++) {
        const int d = (j * 4 + c) * 8;
        words->w[j][0] = load_stream_or_zero(base + d * size, d < dim);
        words->w[j][1] = load_stream_or_zero(base + d * size + 16, d < dim && size == 4);
    }
}

DEV void query_floats(int dtype, const uint4 (&w)[2], float x[8])
{
    if (dtype == PRHS_K_F32)
        floats_of(raw8<PRHS_K_F32>{ { w[0], w[1] } }, x);
    else if (dtype == PRHS_K_F16)
        floats_of(raw8<PRHS_K_F16>{ { w[0] } }, x);
    else
        floats_of(raw8<PRHS_K_BF16>{ { w[0] } }, x);
}

template <int T, int DP> DEV void make_query_terms(int dtype, const query_words<DP> &words, query_terms<T, DP> *t)
{
    const int g = lane_id() >> 2, c = lane_id() & 3;
    float top = 0.0f, up = 1.0f;
    float x[DP / 32][8];
#pragma unroll
    for (int j = 0; j < DP / 32; j++) {
        query_floats(dtype, words.w[j], x[j]);
#pragma unroll
        for (int i = 0; i < 8; i++)
            top = fmaxf(top, fabsf(x[j][i]));
    }
    if (T == PRHS_K_F16) {
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
        const int e = __float_as_int(top) >> 23; /* biased exponent; 0 and 255 (zeros, inf) stay as they are */
        const int shift = e == 0 || e == 255 ? 0 : max(min(e - 127, 120), -120);
        up = __int_as_float((127 + shift) << 23);
        const float down = __int_as_float((127 - shift) << 23);
#pragma unroll
        for (int j = 0; j < DP / 32; j++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                x[j][i] *= down;
    }
    t->scale = __shfl_sync(FULL, up, c * 8);
#pragma unroll
    for (int pair = 0; pair < terms<T>::PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < DP / 32; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                t->b[pair][j][i] = pack_terms<T>(x[j][2 * i], x[j][2 * i + 1], pair, g & 1);
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
