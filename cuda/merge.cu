/* SPDX-License-Identifier: Apache-2.0 */
/* The ops tier's own: combine (attend's chunks), a block a head of a row, and merge (a caller's parts), a warp a head of a row. */
#include "parts.cuh"

/* Parts of one row of one head; steps are in floats. */
struct row_parts {
    const float *o, *lse;
    i64 o_step, lse_step;
    int parts;
};

/* Writes the merged row; returns its log-sum-exp. */
DEV float merge_row(const row_parts &x, int dim, int dtype, byte *out)
{
    const int UNROLL = 8;
    const weights w = merge_weights(load_lse(x.lse, x.lse_step, x.parts), x.lse, x.lse_step, x.parts);
    for (int base = 0; base < dim; base += 32) {
        const int d = base + lane_id();
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        for (int first = 0; first < x.parts && d < dim; first += UNROLL) {
            float o[UNROLL], l[UNROLL];
#pragma unroll
            for (int i = 0; i < UNROLL; i++) {
                const bool real = first + i < x.parts;
                l[i] = real ? __ldcg(x.lse + (first + i) * x.lse_step) : NOTHING;
                o[i] = real ? __ldcg(x.o + (first + i) * x.o_step + d) : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < UNROLL; i++)
                add_part(&acc[i % 4], l[i] != NOTHING, part_weight(l[i], w.top), o[i]);
        }
        if (d < dim)
            store_one(dtype, out, d, isnan(w.sum) ? NEVER : ((acc[0] + acc[1]) + (acc[2] + acc[3])) / w.sum);
    }
    return w.lse;
}

/* Item: a head of a row, by the whole block. */
DEV void combine_row(const prhs_k_combine &a, byte *const mem[], int item)
{
    __shared__ __align__(16) float acc[4][256];
    const int row = small_quotient(item, a.shape.heads), h = item - row * a.shape.heads;
    const int b = small_quotient(row, a.batch.rows), r = row - b * a.batch.rows, c = threadIdx.x * 2;
    byte *ws = mem[PRHS_R_WORK];
    const entry e = entry_of(a.batch, mem[PRHS_R_SEQS], b);
    const prhs_set set = *set_at(ws, a.work, a.shape, b, small_quotient(h, a.shape.unit_heads));
    if (e.kind == IDLE || r >= e.rows)
        return;
    const int end = e.flags & PRHS_SEQ_FULL ? e.kv_len - 1 : e.pos0 + r;
    const i64 at = (i64)item * a.work.chunks;
    const weights w = merge_share(FLOATS(ws, a.work.part_off) + at * a.shape.dim, FLOATS(ws, a.work.part_lse_off) + at, a.shape.dim,
                                  attend_chunks(a.work, set_tokens(set, end + 1)), acc[warp_id()], [] {});
    __syncthreads();
    if (c < a.shape.dim) {
        float y[2];
#pragma unroll
        for (int k = 0; k < 2; k++)
            y[k] = isnan(w.sum) ? NEVER : ((acc[0][c + k] + acc[1][c + k]) + (acc[2][c + k] + acc[3][c + k])) / w.sum;
        put_two(a.out.dtype, row_at(a.out, mem[PRHS_R_OUT], e.row0 + r, h), c, y);
    }
    if (a.lse_off != PRHS_NONE && threadIdx.x == 0)
        FLOATS(mem[PRHS_R_LSE], a.lse_off)[(i64)(e.row0 + r) * a.shape.heads + h] = w.lse;
    __syncthreads();
}

KERNEL(prhs_combine, prhs_cu_combine, 128, 4)
{
    grid_begin();
    const int items = p.a.batch.max_seqs * p.a.batch.rows * p.a.shape.heads;
    for (int item = blockIdx.x; item < items; item += gridDim.x)
        combine_row(p.a, p.mem, item);
}

KERNEL(prhs_merge, prhs_cu_merge, 128, 4)
{
    grid_begin();
    const prhs_k_merge &a = p.a;
    const int items = a.rows * a.shape.heads;
    for (int item = blockIdx.x * 4 + warp_id(); item < items; item += gridDim.x * 4) {
        const int h = item % a.shape.heads, row = item / a.shape.heads;
        const row_parts x = { FLOATS(p.mem[PRHS_R_PARTS], a.o_off) + row * a.o_row + h * a.o_head,
                              FLOATS(p.mem[PRHS_R_PARTS_LSE], a.lse_off) + item, a.o_part, items, a.parts };
        const float lse = merge_row(x, a.shape.dim, a.out.dtype, row_at(a.out, p.mem[PRHS_R_OUT], row, h));
        if (a.out_lse_off != PRHS_NONE && lane_id() == 0)
            FLOATS(p.mem[PRHS_R_LSE], a.out_lse_off)[item] = lse;
    }
}
