/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score's second kernel where values are summed, too: the middle's, weighted, chunk by chunk, once the chunk's scores and the maximum of its
 * middle are in memory. Any dtype and head size. Only the retrieved residual asks for it; inside the kernels that score it would cost each of
 * them registers, and its code many times.
 */
#include "score.cuh"

#define VALUE_HEADS 4 /* that share a row */

struct value_sums {
    float v[VALUE_HEADS][8];
};

/* What the rows are weighted with: their scores, relative to the chunk's tops. */
struct value_weights {
    const float *scores;
    float top[VALUE_HEADS];
};

/* A warp's rows [base, base + 32) below `end`: a lane finds a row and its weights, then `width` lanes share each. */
template <int T, int LOADS>
DEV void add_values(const prhs_cu_score &p, const job &j, int head, int base, int end, int width, const value_weights &w, value_sums *x)
{
    const prhs_k_score &a = p.a;
    const int lane = lane_id(), channel = lane % width * 8, per = 32 / width, n = min(32, end - base);
    const i64 at = place_of(a.kv, j.pages, min(base + lane, end - 1), head).v;
    float weight[VALUE_HEADS];
#pragma unroll
    for (int h = 0; h < VALUE_HEADS; h++) {
        const float s = lane < n && w.top[h] != NOTHING ? w.scores[h * a.work.score_stride + base + lane] : NOTHING;
        weight[h] = bad_score(s) ? NEVER : exp_weight(s - fmaxf(w.top[h], LOWEST));
    }
#pragma unroll 1
    for (int r = 0; r < n; r += LOADS * per) {
        raw8<T> raw[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int from = r + i * per + lane / width;
            const unsigned low = __shfl_sync(FULL, (unsigned)at, from & 31), high = __shfl_sync(FULL, (unsigned)(at >> 32), from & 31);
            raw[i] = load_raw_or_zero<T>(p.mem[PRHS_R_V] + (i64)((unsigned long long)high << 32 | low) + channel * (T == PRHS_K_F32 ? 4 : 2),
                                         from < n && channel < a.shape.dim);
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int from = r + i * per + lane / width;
            float y[8];
            floats_of(raw[i], y);
#pragma unroll
            for (int h = 0; h < VALUE_HEADS; h++) {
                const float wh = __shfl_sync(FULL, weight[h], from & 31);
#pragma unroll
                for (int c = 0; c < 8; c++)
                    x->v[h][c] += from < n ? wh * y[c] : 0.0f;
            }
        }
    }
}

/* The warps' sums of each head meet. slot: of the first head's chunk. */
DEV void put_values(const prhs_k_score &a, value_sums *x, int heads, i64 slot, int width, byte *ws)
{
    __shared__ float sums[WARPS][256];
    const int dim = a.shape.dim, channel = lane_id() % width * 8;
#pragma unroll
    for (int h = 0; h < VALUE_HEADS; h++) {
#pragma unroll
        for (int c = 0; c < 8; c++) {
#pragma unroll 1
            for (int w = width; w < 32; w <<= 1)
                x->v[h][c] += __shfl_xor_sync(FULL, x->v[h][c], w);
            if (lane_id() < width)
                sums[warp_id()][channel + c] = x->v[h][c];
        }
        __syncthreads();
#pragma unroll 1
        for (int d = threadIdx.x; d < dim && h < heads; d += THREADS) {
            float s = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++)
                s += sums[w][d];
            FLOATS(ws, a.work.vmid_off)[(slot + (i64)h * a.work.score_chunks) * dim + d] = s;
        }
        __syncthreads();
    }
}

/* Heads [h0, h0 + VALUE_HEADS) of the unit over the job's chunk. */
DEV void value_heads(const prhs_cu_score &p, const job &j, int h0)
{
    const prhs_k_score &a = p.a;
    const int heads = min(VALUE_HEADS, a.shape.unit_heads - h0), first = j.u * a.shape.unit_heads + h0, head = first / a.shape.group;
    const int dim = a.shape.dim, width = dim <= 32 ? 4 : dim <= 64 ? 8 : dim <= 128 ? 16 : 32;
    const int begin = max(j.first, j.set.mid_begin), end = min(j.last, j.set.mid_end);
    const i64 row = j.b * a.shape.heads + first, slot = row * a.work.score_chunks + j.chunk;
    byte *ws = p.mem[PRHS_R_WORK];
    value_weights w = { FLOATS(ws, a.work.score_off) + row * a.work.score_stride, {} };
    value_sums x = {};
#pragma unroll
    for (int h = 0; h < VALUE_HEADS; h++)
        w.top[h] = h < heads ? FLOATS(ws, a.work.norm_off)[(slot + (i64)h * a.work.score_chunks) * 4 + 2] : NOTHING;
#pragma unroll 1
    for (int base = begin + warp_id() * 32; base < end; base += WARPS * 32)
        if (a.kv.dtype == PRHS_K_F32)
            add_values<PRHS_K_F32, 2>(p, j, head, base, end, width, w, &x);
        else if (a.kv.dtype == PRHS_K_F16)
            add_values<PRHS_K_F16, 4>(p, j, head, base, end, width, w, &x);
        else
            add_values<PRHS_K_BF16, 4>(p, j, head, base, end, width, w, &x);
    put_values(a, &x, heads, slot, width, ws);
}

KERNEL(prhs_values, prhs_cu_score, THREADS, 4)
{
    score<VALUE_HEADS, true>(p, [&](const job &j, int h0) { value_heads(p, j, h0); });
}
