/* SPDX-License-Identifier: Apache-2.0 */
/* audit: the exact dropped mass of row 0, from the scores of all cached tokens; statistics only. */
#include "common.clh"

bool attended(const prhs_set *s, const __global int *list, int *next, int p)
{
    if (p < s->sink_end || p >= s->win_begin || (p >= s->edge_begin && p < s->edge_end))
        return true;
    while (*next < s->count && list[*next] + s->run <= p)
        ++*next;
    return *next < s->count && list[*next] <= p;
}

/* Log-sum-exp of the scores that are attended ([0]) and of those that are not ([1]). */
void split_lse(const prhs_set *s, const __global int *list, const __global float *scores, int n, float *out)
{
    float top[2] = { -INFINITY, -INFINITY }, sum[2] = { 0.0f, 0.0f };
    int bad[2] = { 0, 0 };
    for (int pass = 0; pass < 2; pass++) {
        int next = 0;
        for (int block = 0; block < n; block += 256) {
            float part[2] = { 0.0f, 0.0f };
            for (int p = block; p < min(n, block + 256); p++) {
                int side = !attended(s, list, &next, p);
                if (pass == 0) {
                    bad[side] |= bad_score(scores[p]);
                    top[side] = scores[p] > top[side] ? scores[p] : top[side];
                } else if (scores[p] != -INFINITY) {
                    part[side] += exp(scores[p] - top[side]);
                }
            }
            sum[0] += part[0];
            sum[1] += part[1];
        }
    }
    for (int i = 0; i < 2; i++)
        out[i] = bad[i] ? NAN : top[i] == -INFINITY ? -INFINITY : top[i] + log(sum[i]);
}

__kernel void prhs_audit(mem seqs, mem state, mem ws, const prhs_k_audit args)
{
    prhs_k_audit a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        long b = item / a.shape.units;
        int u = (int)(item % a.shape.units);
        entry e = entry_of(&a.batch, seqs, b);
        prhs_set set = *set_at(ws, &a.work, &a.shape, b, u);
        if (e.kind != DECODE || set.mode == PRHS_MODE_IDLE || set.mode == PRHS_MODE_DENSE)
            continue;
        const __global int *list =
            a.state.list_off == PRHS_NONE ? 0 : SLOT_AT(state, &a.state, list_off, e.slot, int) + (long)u * a.state.list_cap;
        for (int i = 0; i < PRHS_UH; i++) {
            int h = u * PRHS_UH + i;
            float lse[2];
            split_lse(&set, list, FLOATS(ws, a.work.score_off) + (b * a.shape.heads + h) * a.work.score_stride, e.pos0 + 1, lse);
            float mass = lse[1] == -INFINITY ? 0.0f : 1.0f / (1.0f + exp(lse[0] - lse[1]));
            __global prhs_head_stat *st = STAT_AT(state, &a.state, head_stat_off, e.slot, prhs_head_stat) + h;
            if (isnan(mass)) {
                st->nan_count++;
            } else {
                st->audit_sum += convert_long_rte(mass * PRHS_MASS_ONE);
                st->audit_count++;
            }
            SLOT_AT(state, &a.state, head_off, e.slot, prhs_head_ref)[h].audit_last = mass;
        }
    }
}
