/* SPDX-License-Identifier: Apache-2.0 */
/* combine and merge on GPUs: a group takes a row of a head. */
#include "gpu.clh"

#ifdef PRHS_ONLY_combine
KERNEL void prhs_combine(mem seqs, mem ws, mem out, mem lse, const prhs_k_combine args)
{
    __local float weights[GROUP];
    prhs_k_combine a = args;
    const long items = (long)a.batch.max_seqs * a.batch.rows * a.shape.heads;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0)) {
        const int h = (int)(item % a.shape.heads), r = (int)(item / a.shape.heads % a.batch.rows);
        const long b = item / a.shape.heads / a.batch.rows;
        const entry e = entry_of(&a.batch, seqs, b);
        if (e.kind == IDLE || r >= e.rows)
            continue;
        const prhs_set set = *set_at(ws, &a.work, &a.shape, b, h / PRHS_UH);
        const int end = e.flags & PRHS_SEQ_FULL ? e.kv_len - 1 : e.pos0 + r, n = set_tokens(&set, end + 1);
        const int parts = n > 0 ? chunk_count(n, a.work.chunk_min, a.work.chunks) : 0;
        float o[CHANNELS];
        const float l = merge_group(FLOATS(ws, a.work.part_off) + item * a.work.chunks * PRHS_D, PRHS_D,
                                    FLOATS(ws, a.work.part_lse_off) + item * a.work.chunks, 1, parts, o, weights);
        for (int c = 0; c < CHANNELS; c++)
            if (LID + c * GROUP < PRHS_D)
                store_one(PRHS_OUT, row_at(&a.out, out, e.row0 + r, h), LID + c * GROUP, o[c]);
        if (a.lse_off != PRHS_NONE && LID == 0)
            FLOATS(lse, a.lse_off)[(long)(e.row0 + r) * a.shape.heads + h] = l;
    }
}
#endif

#ifdef PRHS_ONLY_merge
KERNEL void prhs_merge(mem parts, mem parts_lse, mem out, mem lse, const prhs_k_merge args)
{
    __local float weights[GROUP];
    prhs_k_merge a = args;
    const long items = (long)a.rows * a.shape.heads;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0)) {
        const int h = (int)(item % a.shape.heads);
        const long row = item / a.shape.heads;
        float o[CHANNELS];
        const float l = merge_group(FLOATS(parts, a.o_off) + row * a.o_row + h * a.o_head, a.o_part,
                                    FLOATS(parts_lse, a.lse_off) + item, items, a.parts, o, weights);
        for (int c = 0; c < CHANNELS; c++)
            if (LID + c * GROUP < PRHS_D)
                store_one(PRHS_OUT, row_at(&a.out, out, row, h), LID + c * GROUP, o[c]);
        if (a.out_lse_off != PRHS_NONE && LID == 0)
            FLOATS(lse, a.out_lse_off)[item] = l;
    }
}
#endif
