/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The middle's values, weighted and summed chunk by chunk, once the chunk's scores and the maximum of its middle are in memory: score's
 * second kernel, where that is asked for (the retrieved residual). Any dtype and head size. Inside the kernels that score it would cost
 * each of them registers, and its code many times.
 */
#ifndef PRHS_VALUES_CUH
#define PRHS_VALUES_CUH

#include "score.cuh"

#define VALUE_HEADS 4 /* that share a row */
#define VALUE_LOADS 4 /* rows in flight a lane */

/* A block of channels of the chunk's middle, and the heads' sums so far; a lane has 16 bytes of a row: 8 channels, or 4 of float32. */
struct value_job {
    const byte *rows;    /* of the KV head, at the lane's channels */
    const float *scores; /* of the first head */
    float top[VALUE_HEADS];
    float sum[VALUE_HEADS][8];
    int head, heads;     /* KV head; heads that there are */
    int end, width;      /* positions; lanes a row */
    bool real;           /* the lane has channels */
};

DEV void floats_of_word(int dtype, const uint4 &w, float y[8])
{
    if (dtype == PRHS_K_F32) {
        const raw8<PRHS_K_F32> r = { { w, make_uint4(0, 0, 0, 0) } };
        floats_of(r, y);
    } else if (dtype == PRHS_K_F16) {
        floats_of(raw8<PRHS_K_F16>{ { w } }, y);
    } else {
        floats_of(raw8<PRHS_K_BF16>{ { w } }, y);
    }
}

/* Rows [base, base + 32) before the end: a lane finds a row and its weights, then `width` lanes share each. */
DEV void add_values(const prhs_k_score &a, const score_job &j, int base, value_job *x)
{
    const int lane = lane_id(), per = 32 / x->width, n = min(32, x->end - base);
    const i64 at = place_of(a.kv, j.pages, min(base + lane, x->end - 1), x->head).v;
    float weight[VALUE_HEADS];
#pragma unroll
    for (int h = 0; h < VALUE_HEADS; h++) {
        const float s = lane < n && h < x->heads ? x->scores[h * a.work.score_stride + base + lane] : NOTHING;
        weight[h] = bad_score(s) ? NEVER : exp_weight(s - x->top[h]);
    }
#pragma unroll 1
    for (int r = lane / x->width; r - lane / x->width < n; r += VALUE_LOADS * per) {
        uint4 raw[VALUE_LOADS];
#pragma unroll
        for (int i = 0; i < VALUE_LOADS; i++) {
            const int from = (r + i * per) & 31;
            const unsigned low = __shfl_sync(FULL, (unsigned)at, from), high = __shfl_sync(FULL, (unsigned)(at >> 32), from);
            raw[i] = load_stream_or_zero(x->rows + (i64)((unsigned long long)high << 32 | low), r + i * per < n && x->real);
        }
#pragma unroll
        for (int i = 0; i < VALUE_LOADS; i++) {
            float y[8];
            floats_of_word(a.kv.dtype, raw[i], y);
#pragma unroll
            for (int h = 0; h < VALUE_HEADS; h++) {
                const float w = __shfl_sync(FULL, weight[h], (r + i * per) & 31); /* 0 past the end; 32 is a whole number of rounds */
#pragma unroll
                for (int c = 0; c < 8; c++)
                    x->sum[h][c] += w * y[c];
            }
        }
    }
}

/* The lanes' sums of the channels [first, first + each * width), which are those of the chunk whose first head's sums lie at `out`. */
DEV void put_values(const prhs_k_score &a, value_job *x, int first, int each, float *out)
{
#pragma unroll 1
    for (int w = x->width; w < 32; w <<= 1)
#pragma unroll
        for (int h = 0; h < VALUE_HEADS; h++)
#pragma unroll
            for (int c = 0; c < 8; c++)
                x->sum[h][c] += __shfl_xor_sync(FULL, x->sum[h][c], w);
    if (lane_id() >= x->width || !x->real)
        return;
#pragma unroll
    for (int h = 0; h < VALUE_HEADS; h++) {
        if (h >= x->heads)
            break;
        float4 *to = (float4 *)(out + (i64)h * a.work.score_chunks * a.shape.dim + first + lane_id() * each);
        to[0] = make_float4(x->sum[h][0], x->sum[h][1], x->sum[h][2], x->sum[h][3]);
        if (each > 4)
            to[1] = make_float4(x->sum[h][4], x->sum[h][5], x->sum[h][6], x->sum[h][7]);
    }
}

/* Heads [h0, h0 + VALUE_HEADS) of the unit over the job's chunk. */
DEV void value_heads(const prhs_cu_score &p, const score_job &j, int h0)
{
    const prhs_k_score &a = p.a;
    const int each = a.kv.dtype == PRHS_K_F32 ? 4 : 8, words = (a.shape.dim + each - 1) / each;
    const i64 row = j.row + h0, slot = slot_of(a, j, h0);
    byte *ws = p.mem[PRHS_R_WORK];
#pragma unroll 1
    for (int word = 0; word < words; word += 32) {
        const int width = words <= 4 ? 4 : words <= 8 ? 8 : words <= 16 ? 16 : 32, mine = word + lane_id() % width;
        value_job x = { p.mem[PRHS_R_V] + mine * 16, FLOATS(ws, a.work.score_off) + row * a.work.score_stride, {}, {},
                        kv_head(a, j, h0), min(VALUE_HEADS, a.shape.unit_heads - h0), min(j.last, j.mid_end), width, mine < words };
#pragma unroll
        for (int h = 0; h < VALUE_HEADS; h++)
            x.top[h] = h < x.heads ? FLOATS(ws, a.work.norm_off)[(slot + (i64)h * a.work.score_chunks) * 4 + 2] : 0.0f;
#pragma unroll 1
        for (int base = max(j.begin, j.mid_begin); base < x.end; base += 32)
            add_values(a, j, base, &x);
        put_values(a, &x, word * each, each, FLOATS(ws, a.work.vmid_off) + slot * a.shape.dim);
    }
}

#endif
