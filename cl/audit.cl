/* SPDX-License-Identifier: Apache-2.0 */
/* audit: the exact dropped mass of row 0, from the scores of all cached tokens; statistics only. */
#include "common.clh"

/* Log-sum-exp of the scores that are attended ([0]) and of those that are not ([1]), for every head of the unit. */
void split_lse(const prhs_set *set, const __global int *list, const __global float *scores, long stride, int n, float out[][2])
{
    lse_pass z[PRHS_UH][2];
    for (int h = 0; h < PRHS_UH; h++)
        for (int i = 0; i < 2; i++)
            z[h][i] = (lse_pass){ -INFINITY, 0.0f, 0.0f, 0 };
    for (int pass = 0; pass < 2; pass++)
        for (int p = 0, next = 0; p < n; p += 16) {
            const int16 in = attended16(set, list, &next, p), real = p + LANES < n;
            for (int h = 0; h < PRHS_UH; h++) {
                const float16 s = vload16(0, scores + h * stride + p);
                for (int i = 0; i < 2; i++) {
                    const int16 side = real & (i ? ~in : in);
                    if (pass == 0)
                        lse_top(&z[h][i], s, side);
                    else
                        lse_add(&z[h][i], s, side, p % 256 == 240 || p + 16 >= n);
                }
            }
        }
    for (int h = 0; h < PRHS_UH; h++)
        for (int i = 0; i < 2; i++)
            out[h][i] = lse_of(&z[h][i]);
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
        float lse[PRHS_UH][2];
        split_lse(&set, list, FLOATS(ws, a.work.score_off) + (b * a.shape.heads + u * PRHS_UH) * a.work.score_stride,
                  a.work.score_stride, e.pos0 + 1, lse);
        for (int i = 0; i < PRHS_UH; i++) {
            int h = u * PRHS_UH + i;
            float mass = lse[i][1] == -INFINITY ? 0.0f : 1.0f / (1.0f + exp(lse[i][0] - lse[i][1]));
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
