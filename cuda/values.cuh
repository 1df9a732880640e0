/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The weighted sum of the middle's values in a chunk, by the block that has just scored it: a second walk over the chunk, once its scores and
 * the middle's maximum in it are in memory. Only residuals that are retrieved ask for it, so it is a call of its own: one copy for all the
 * kernels of a file, and no registers of theirs.
 */
#ifndef PRHS_VALUES_CUH
#define PRHS_VALUES_CUH

#include "score.cuh"

#define VALUE_HEADS 4 /* that share a row */

/* A chunk's part of the middle, for heads [0, heads) of the unit from work row `row` (entry and head) on. */
struct value_job {
    const int *pages;
    i64 row;
    int heads, chunk, first, last;
};

struct value_sums {
    float v[VALUE_HEADS][8];
};

/* A warp's rows: a lane finds a row and its weights, then `width` lanes share each. */
template <int T, int UNROLL> DEV void add_values(const prhs_cu_score &p, const value_job &j, int base, int width, value_sums *x)
{
    const prhs_k_score &a = p.a;
    const int dim = a.shape.dim, lane = lane_id(), channel = lane % width * 8, per = 32 / width, n = min(32, j.last - base);
    const byte *ws = p.mem[PRHS_R_WORK];
    i64 at = 0;
    float w[VALUE_HEADS] = {};
    if (lane < n) {
        at = place_of(a.kv, j.pages, base + lane, (int)(j.row % a.shape.heads) / a.shape.group).v;
#pragma unroll
        for (int h = 0; h < VALUE_HEADS; h++)
            if (h < j.heads) {
                const float s = ((const float *)(ws + a.work.score_off))[(j.row + h) * a.work.score_stride + base + lane];
                const float top = ((const float *)(ws + a.work.norm_off))[((j.row + h) * a.work.score_chunks + j.chunk) * 4 + 2];
                w[h] = bad_score(s) ? NEVER : exp_weight(s - top);
            }
    }
#pragma unroll 1
    for (int r = 0; r < n; r += UNROLL * per) {
        raw8<T> raw[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            const int from = r + i * per + lane / width;
            const unsigned low = __shfl_sync(FULL, (unsigned)at, from & 31), high = __shfl_sync(FULL, (unsigned)(at >> 32), from & 31);
            raw[i] = load_raw_or_zero<T>(p.mem[PRHS_R_V] + (i64)((unsigned long long)high << 32 | low) + channel * (T == PRHS_K_F32 ? 4 : 2),
                                         from < n && channel < dim);
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            const int from = r + i * per + lane / width;
            float y[8];
            floats_of(raw[i], y);
#pragma unroll
            for (int h = 0; h < VALUE_HEADS; h++) {
                const float wh = __shfl_sync(FULL, w[h], from & 31);
#pragma unroll
                for (int c = 0; c < 8; c++)
                    x->v[h][c] += from < n ? wh * y[c] : 0.0f;
            }
        }
    }
}

/* By all threads of the block together; begins and ends with a barrier. */
DEV_CALL void put_values(const prhs_cu_score &p, const int *pages, i64 row, int heads, int chunk, int first, int last)
{
    __shared__ float sums[WARPS][256];
    const prhs_k_score &a = p.a;
    const value_job j = { pages, row, heads, chunk, first, last };
    const int dim = a.shape.dim, width = dim <= 32 ? 4 : dim <= 64 ? 8 : dim <= 128 ? 16 : 32, channel = lane_id() % width * 8;
    value_sums x = {};
    __syncthreads();
#pragma unroll 1
    for (int base = first + warp_id() * 32; base < last; base += WARPS * 32)
        if (a.kv.dtype == PRHS_K_F32)
            add_values<PRHS_K_F32, 2>(p, j, base, width, &x);
        else if (a.kv.dtype == PRHS_K_F16)
            add_values<PRHS_K_F16, 4>(p, j, base, width, &x);
        else
            add_values<PRHS_K_BF16, 4>(p, j, base, width, &x);
#pragma unroll
    for (int h = 0; h < VALUE_HEADS; h++) {
#pragma unroll
        for (int c = 0; c < 8; c++) {
            for (int w = width; w < 32; w <<= 1)
                x.v[h][c] += __shfl_xor_sync(FULL, x.v[h][c], w);
            if (lane_id() < width)
                sums[warp_id()][channel + c] = x.v[h][c];
        }
        __syncthreads();
        for (int d = threadIdx.x; d < dim && h < heads; d += THREADS) {
            float s = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++)
                s += sums[w][d];
            FLOATS(p.mem[PRHS_R_WORK], a.work.vmid_off)[((row + h) * a.work.score_chunks + chunk) * dim + d] = s;
        }
        __syncthreads();
    }
}

#endif
