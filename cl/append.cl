/* SPDX-License-Identifier: Apache-2.0 */
/* append, range_sum, truncate: what changes when rows come and go. */
#include "common.clh"

#ifdef PRHS_D
#if PRHS_WIDE
typedef long16 vl;
#define TO_VL convert_long16_rte
#else
typedef long8 vl;
#define TO_VL convert_long8_rte
#endif

/* Adds (sign 1) or subtracts one value row of the cache. */
void sum_row(const __global uchar *row, long sign, __global long *sum, __global prhs_value_count *count)
{
    vf v[NV];
    int bad = 0;
    for (int i = 0; i < NV; i++) {
        v[i] = load_vec(PRHS_KV, row, i);
        bad |= any(!isfinite(v[i]));
    }
    if (bad) {
        count->nonfinite += (int)sign;
        return;
    }
    for (int i = 0; i < NV; i++) {
        vl add = TO_VL(clamp(v[i], -65536.0f, 65536.0f) * 16777216.0f);
        VSTORE(VLOAD(i, sum) + sign * add, i, sum);
    }
}
#endif

#ifdef PRHS_ONLY_append
int fault_of(const prhs_k_append *a, const __global prhs_seq *s, const __global int *pages)
{
    int fault = 0;
    if (s->slot < 0 || s->row_count == 0)
        return 0;
    if (s->slot >= a->batch.max_slots)
        fault |= PRHS_FAULT_SLOT;
    if (s->row_count < 0 || s->kv_len < s->row_count || s->kv_len > a->batch.max_kv_len)
        return fault | PRHS_FAULT_LENGTH;
    if (s->row_begin < 0 || s->row_begin > a->batch.max_rows - s->row_count ||
        (!(s->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) && s->row_count > a->batch.rows))
        fault |= PRHS_FAULT_ROWS;
    for (int i = 0; i < (s->kv_len + a->kv.page_size - 1) / a->kv.page_size; i++)
        if (i >= a->batch.page_stride || pages[i] < 0 || pages[i] >= a->kv.pages)
            fault |= PRHS_FAULT_PAGE;
    return fault;
}

void append_item(const prhs_k_append *a, long item, mem seqs, mem pages_mem, mem k_in, mem v_in, mem k_mem, mem v_mem, mem state)
{
    long b = item / a->shape.kv_heads;
    int hk = (int)(item % a->shape.kv_heads);
    const __global prhs_seq *s = seq_at(&a->batch, seqs, b);
    const __global int *pages = pages_of(&a->batch, pages_mem, b);
    if (a->validate) {
        int fault = fault_of(a, s, pages);
        if (fault && hk == 0)
            atomic_or((volatile __global int *)INTS(state, a->state.fault_off), fault);
        if (fault)
            return;
    }
    bool prompt = (s->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) != 0;
    if (!seq_ok(&a->batch, s) || (!prompt && s->row_count > a->batch.rows))
        return;
    int first = s->kv_len - s->row_count;
    bool seed_only = (s->flags & PRHS_SEQ_SEED) && !(s->flags & PRHS_SEQ_PREFILL);
    if (a->write && !seed_only)
        for (int i = 0; i < s->row_count; i++)
            for (int v = 0; v < NV; v++) {
                store_vec(PRHS_KV, k_row(&a->kv, k_mem, pages, first + i, hk), v,
                          load_vec(PRHS_Q, row_at(&a->k, k_in, s->row_begin + i, hk), v));
                store_vec(PRHS_KV, v_row(&a->kv, v_mem, pages, first + i, hk), v,
                          load_vec(PRHS_Q, row_at(&a->v, v_in, s->row_begin + i, hk), v));
            }
    if (a->state.vsum_off == PRHS_NONE)
        return;
    __global long *sum = SLOT_AT(state, &a->state, vsum_off, s->slot, long) + (long)hk * PRHS_D;
    __global prhs_value_count *count = SLOT_AT(state, &a->state, vcount_off, s->slot, prhs_value_count) + hk;
    int target = prompt ? s->kv_len : first + 1;
    for (int j = count->rows; j < target; j++)
        sum_row(v_row(&a->kv, v_mem, pages, j, hk), 1, sum, count);
    count->rows = max(count->rows, target);
}

KERNEL void prhs_append(mem seqs, mem pages, mem k_in, mem v_in, mem k_mem, mem v_mem, mem state, const prhs_k_append args)
{
    prhs_k_append a = args;
    long items = (long)a.batch.max_seqs * a.shape.kv_heads;
    for (long item = get_global_id(0); item < items; item += get_global_size(0))
        append_item(&a, item, seqs, pages, k_in, v_in, k_mem, v_mem, state);
}
#endif

bool slot_ok(const prhs_k_batch *k, const __global prhs_seq *s)
{
    return s->slot >= 0 && s->slot < k->max_slots && s->kv_len >= 0 && s->kv_len <= k->max_kv_len;
}

#ifdef PRHS_ONLY_range_sum
KERNEL void prhs_range_sum(mem seqs, mem pages_mem, mem v_mem, mem state, const prhs_k_range_sum args)
{
    prhs_k_range_sum a = args;
    long items = (long)a.batch.max_seqs * a.shape.kv_heads;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        long b = item / a.shape.kv_heads;
        int hk = (int)(item % a.shape.kv_heads);
        const __global prhs_seq *s = seq_at(&a.batch, seqs, b);
        if (!slot_ok(&a.batch, s))
            continue;
        const __global int *pages = pages_of(&a.batch, pages_mem, b);
        __global long *sum = SLOT_AT(state, &a.state, vsum_off, s->slot, long) + (long)hk * PRHS_D;
        __global prhs_value_count *count = SLOT_AT(state, &a.state, vcount_off, s->slot, prhs_value_count) + hk;
        int first = s->kv_len, last = min(count->rows, a.batch.max_kv_len);
        if (a.sign > 0) {
            for (int d = 0; d < PRHS_D; d++)
                sum[d] = 0;
            count->rows = count->nonfinite = 0;
            first = 0;
            last = s->kv_len;
        }
        for (int j = first; j < last; j++)
            sum_row(v_row(&a.kv, v_mem, pages, j, hk), a.sign, sum, count);
        if (a.sign > 0 || count->rows > s->kv_len)
            count->rows = s->kv_len;
    }
}
#endif

#ifdef PRHS_ONLY_truncate
KERNEL void prhs_truncate(mem seqs, mem state, const prhs_k_truncate args)
{
    prhs_k_truncate a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        const __global prhs_seq *s = seq_at(&a.batch, seqs, item / a.shape.units);
        if (!slot_ok(&a.batch, s))
            continue;
        const int u = (int)(item % a.shape.units);
        __global prhs_unit_state *unit = SLOT_AT(state, &a.state, unit_off, s->slot, prhs_unit_state) + u;
        __global prhs_unit_state *kept = kept_at(state, &a.state, &a.pool, s->slot, u);
        for (int i = -1; i < a.pool.count; i++) {
            __global prhs_unit_state *one = i < 0 ? unit : kept + i;
            if (a.all || one->ref_pos >= s->kv_len)
                one->ref_pos = one->used = -1;
        }
    }
}
#endif
