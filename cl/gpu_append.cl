/* SPDX-License-Identifier: Apache-2.0 */
/* append and range_sum on GPUs: a group takes a KV head of a sequence, a team a row. */
#include "gpu.clh"

typedef struct memory {
    long sums[TEAMS * PRHS_D];
    int bad[TEAMS], fault;
} memory;

/* Adds (sign 1) or subtracts value rows [first, last) of the cache; a row with a channel that is not finite is counted instead. */
void sum_rows(const prhs_k_kv *kv, mem v_mem, const __global int *pages, int hk, int first, int last, long sign, __global long *sum,
              __global prhs_value_count *count, __local memory *m)
{
    const int team = min(LID / TEAM, TEAMS - 1), lane = LID % TEAM;
    const bool busy = LID < TEAMS * TEAM;
    long8 own = 0;
    int nonfinite = 0;
    for (int j = first; j < last; j += TEAMS) {
        const bool mine = busy && j + team < last;
        vf x = 0.0f;
        if (mine)
            x = load_vec(PRHS_KV, v_row(kv, v_mem, pages, j + team, hk), lane);
        SYNC();
        if (LID < TEAMS)
            m->bad[LID] = 0;
        SYNC();
        if (mine && any(!isfinite(x)))
            atomic_or(&m->bad[team], 1);
        SYNC();
        if (mine && !m->bad[team])
            own += convert_long8_rte(clamp(x, -65536.0f, 65536.0f) * 16777216.0f);
        for (int t = 0; t < TEAMS; t++)
            nonfinite += m->bad[t];
    }
    SYNC();
    if (busy)
        vstore8(own, 0, m->sums + team * PRHS_D + lane * 8);
    SYNC();
    for (int d = LID; first < last && d < PRHS_D; d += GROUP) {
        long all = 0;
        for (int t = 0; t < TEAMS; t++)
            all += m->sums[t * PRHS_D + d];
        sum[d] += sign * all;
    }
    if (LID == 0 && nonfinite)
        count->nonfinite += (int)sign * nonfinite;
}

#ifdef PRHS_ONLY_append
/* The same to all work-items. */
int fault_of(const prhs_k_append *a, const __global prhs_seq *s, const __global int *pages, __local memory *m)
{
    const bool idle = !a->validate || s->slot < 0 || s->row_count == 0;
    const bool bad_length = s->row_count < 0 || s->kv_len < s->row_count || s->kv_len > a->batch.max_kv_len;
    const int used = idle || bad_length ? 0 : (s->kv_len + a->kv.page_size - 1) / a->kv.page_size;
    int fault = s->slot >= a->batch.max_slots ? PRHS_FAULT_SLOT : 0;
    if (bad_length)
        fault |= PRHS_FAULT_LENGTH;
    else if (s->row_begin < 0 || s->row_begin > a->batch.max_rows - s->row_count ||
             (!(s->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) && s->row_count > a->batch.rows))
        fault |= PRHS_FAULT_ROWS;
    SYNC();
    if (LID == 0)
        m->fault = 0;
    SYNC();
    for (int i = LID; i < used; i += GROUP)
        if (i >= a->batch.page_stride || pages[i] < 0 || pages[i] >= a->kv.pages)
            atomic_or(&m->fault, PRHS_FAULT_PAGE);
    SYNC();
    return idle ? 0 : fault | m->fault;
}

/* Rows of the caller into the cache, rounded to its dtype: half of the lanes' turns are K's, half V's. */
void write_rows(const prhs_k_append *a, const __global prhs_seq *s, const __global int *pages, int hk, mem k_in, mem v_in, mem k_mem,
                mem v_mem)
{
    const int first = s->kv_len - s->row_count;
    for (int i = LID; i < 2 * s->row_count * NV; i += GROUP) {
        const int v = i % NV, row = i / NV / 2;
        if (i / NV % 2)
            store_vec(PRHS_KV, v_row(&a->kv, v_mem, pages, first + row, hk), v,
                      load_vec(PRHS_Q, row_at(&a->v, v_in, s->row_begin + row, hk), v));
        else
            store_vec(PRHS_KV, k_row(&a->kv, k_mem, pages, first + row, hk), v,
                      load_vec(PRHS_Q, row_at(&a->k, k_in, s->row_begin + row, hk), v));
    }
}

void append_item(const prhs_k_append *a, long item, mem seqs, mem pages_mem, mem k_in, mem v_in, mem k_mem, mem v_mem, mem state,
                 __local memory *m)
{
    const long b = item / a->shape.kv_heads;
    const int hk = (int)(item % a->shape.kv_heads);
    const __global prhs_seq *s = seq_at(&a->batch, seqs, b);
    const __global int *pages = pages_of(&a->batch, pages_mem, b);
    const int fault = fault_of(a, s, pages, m);
    if (fault && hk == 0 && LID == 0)
        atomic_or((volatile __global int *)INTS(state, a->state.fault_off), fault);
    const bool prompt = (s->flags & (PRHS_SEQ_PREFILL | PRHS_SEQ_SEED)) != 0;
    const bool seed_only = (s->flags & PRHS_SEQ_SEED) && !(s->flags & PRHS_SEQ_PREFILL);
    const bool active = !fault && seq_ok(&a->batch, s) && (prompt || s->row_count <= a->batch.rows);
    if (active && a->write && !seed_only)
        write_rows(a, s, pages, hk, k_in, v_in, k_mem, v_mem);
    const bool sums = active && a->state.vsum_off != PRHS_NONE;
    const long slot = sums ? s->slot : 0;
    __global long *sum = SLOT_AT(state, &a->state, vsum_off, slot, long) + (long)hk * PRHS_D;
    __global prhs_value_count *count = SLOT_AT(state, &a->state, vcount_off, slot, prhs_value_count) + hk;
    const int rows = sums ? count->rows : 0, target = !sums ? 0 : prompt ? s->kv_len : s->kv_len - s->row_count + 1;
    SYNC_ALL(); /* the rows lie in the cache; all have seen the count */
    sum_rows(&a->kv, v_mem, pages, hk, rows, target, 1, sum, count, m);
    if (LID == 0 && sums)
        count->rows = max(rows, target);
}

KERNEL void prhs_append(mem seqs, mem pages, mem k_in, mem v_in, mem k_mem, mem v_mem, mem state, const prhs_k_append args)
{
    __local memory m;
    prhs_k_append a = args;
    const long items = (long)a.batch.max_seqs * a.shape.kv_heads;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0))
        append_item(&a, item, seqs, pages, k_in, v_in, k_mem, v_mem, state, &m);
}
#endif

#ifdef PRHS_ONLY_range_sum
KERNEL void prhs_range_sum(mem seqs, mem pages_mem, mem v_mem, mem state, const prhs_k_range_sum args)
{
    __local memory m;
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
