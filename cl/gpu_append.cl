/* SPDX-License-Identifier: Apache-2.0 */
/* append and range_sum on GPUs. */
#include "gpu.clh"

#define CACHED(kv) PRHS_KV
#ifdef PRHS_ONLY_append
#define GIVEN(rows) PRHS_Q
#endif
#include "gpu_append.clh"

#ifdef PRHS_ONLY_append
KERNEL void prhs_append(mem seqs, mem pages, mem k_in, mem v_in, mem k_mem, mem v_mem, mem state, const prhs_k_append args)
{
    __local append_memory m;
    prhs_k_append a = args;
    const long items = (long)a.batch.max_seqs * a.shape.kv_heads;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0))
        append_item(&a, item, seqs, pages, k_in, v_in, k_mem, v_mem, state, &m);
}
#endif

#ifdef PRHS_ONLY_range_sum
KERNEL void prhs_range_sum(mem seqs, mem pages_mem, mem v_mem, mem state, const prhs_k_range_sum args)
{
    __local append_memory m;
    prhs_k_range_sum a = args;
    const long items = (long)a.batch.max_seqs * a.shape.kv_heads;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0)) {
        const long b = item / a.shape.kv_heads;
        const int hk = (int)(item % a.shape.kv_heads);
        const __global prhs_seq *s = seq_at(&a.batch, seqs, b);
        const bool active = s->slot >= 0 && s->slot < a.batch.max_slots && s->kv_len >= 0 && s->kv_len <= a.batch.max_kv_len;
        const long slot = active ? s->slot : 0;
        __global long *sum = SLOT_AT(state, &a.state, vsum_off, slot, long) + (long)hk * PRHS_D;
        __global prhs_value_count *count = SLOT_AT(state, &a.state, vcount_off, slot, prhs_value_count) + hk;
        const int rows = active ? count->rows : 0, length = active ? s->kv_len : 0;
        const int first = a.sign > 0 ? 0 : length, last = a.sign > 0 ? length : active ? min(rows, a.batch.max_kv_len) : 0;
        SYNC_ALL(); /* all have seen the count */
        for (int d = LID; active && a.sign > 0 && d < PRHS_D; d += GROUP)
            sum[d] = 0;
        if (LID == 0 && active && a.sign > 0)
            count->nonfinite = 0;
        sum_rows(&a.kv, v_mem, pages_of(&a.batch, pages_mem, b), hk, first, last, a.sign, sum, count, &m);
        if (LID == 0 && active && (a.sign > 0 || rows > length))
            count->rows = length;
    }
}
#endif
