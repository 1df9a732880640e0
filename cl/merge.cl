/* SPDX-License-Identifier: Apache-2.0 */
/* The ops tier's own: combine (attend's chunks) and merge (a caller's parts). */
#include "common.clh"

#ifdef PRHS_ONLY_combine
KERNEL void prhs_combine(mem seqs, mem ws, mem out, mem lse, const prhs_k_combine args)
{
    prhs_k_combine a = args;
    long items = (long)a.batch.max_seqs * a.batch.rows * a.shape.heads;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        int h = (int)(item % a.shape.heads), r = (int)(item / a.shape.heads % a.batch.rows);
        long b = item / a.shape.heads / a.batch.rows;
        entry e = entry_of(&a.batch, seqs, b);
        if (e.kind == IDLE || r >= e.rows)
            continue;
        prhs_set set = *set_at(ws, &a.work, &a.shape, b, h / PRHS_UH);
        int end = e.flags & PRHS_SEQ_FULL ? e.kv_len - 1 : e.pos0 + r, n = set_tokens(&set, end + 1);
        int parts = n > 0 ? chunk_count(n, a.work.chunk_min, a.work.chunks) : 0;
        vf o[NV];
        float l = merge_parts(FLOATS(ws, a.work.part_off) + item * a.work.chunks * PRHS_D, PRHS_D,
                              FLOATS(ws, a.work.part_lse_off) + item * a.work.chunks, 1, parts, o);
        for (int v = 0; v < NV; v++)
            store_vec(PRHS_OUT, row_at(&a.out, out, e.row0 + r, h), v, o[v]);
        if (a.lse_off != PRHS_NONE)
            FLOATS(lse, a.lse_off)[(long)(e.row0 + r) * a.shape.heads + h] = l;
    }
}
#endif

#ifdef PRHS_ONLY_merge
KERNEL void prhs_merge(mem parts, mem parts_lse, mem out, mem lse, const prhs_k_merge args)
{
    prhs_k_merge a = args;
    long items = (long)a.rows * a.shape.heads;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        int h = (int)(item % a.shape.heads);
        long row = item / a.shape.heads;
        vf o[NV];
        float l = merge_parts(FLOATS(parts, a.o_off) + row * a.o_row + h * a.o_head, a.o_part, FLOATS(parts_lse, a.lse_off) + item, items,
                              a.parts, o);
        for (int v = 0; v < NV; v++)
            store_vec(PRHS_OUT, row_at(&a.out, out, row, h), v, o[v]);
        if (a.out_lse_off != PRHS_NONE)
            FLOATS(lse, a.out_lse_off)[item] = l;
    }
}
#endif
