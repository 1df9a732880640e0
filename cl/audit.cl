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

long fixed(float mass) { return convert_long_rte(mass * PRHS_MASS_ONE); }

void book_sample(__global prhs_sample_stat *s, float mass, float worst)
{
    s->count++;
    s->sum += fixed(mass);
    s->square += fixed(mass * mass);
    s->worst_sum += fixed(worst);
    s->worst_square += fixed(worst * worst);
}

/* One head's audit; known: what the step said, weight: the residual's. Returns max(mass, weight) where there is one. */
float book_head(const prhs_k_audit *a, __global prhs_head_stat *st, float mass, float known, float weight, int shared, int unknown)
{
    const float worst = a->residual != PRHS_K_RESIDUAL_NONE && weight > mass ? weight : mass;
    if (isnan(mass)) {
        st->nan_count++;
        return mass;
    }
    st->audit_sum += fixed(mass);
    st->audit_count++;
    st->within += mass <= a->target;
    if (unknown)
        book_sample(&st->sample, mass, worst);
    if (shared && !isnan(known)) {
        st->pair_count++;
        st->pair_exact += fixed(mass);
        st->pair_estimate += fixed(known);
        st->pair_off += fixed(fabs(known - mass));
        st->pair_square += fixed((known - mass) * (known - mass));
    }
    return worst;
}

KERNEL void prhs_audit(mem seqs, mem state, mem ws, const prhs_k_audit args)
{
    prhs_k_audit a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        long b = item / a.shape.units;
        int u = (int)(item % a.shape.units);
        entry e = entry_of(&a.batch, seqs, b);
        prhs_set set = *set_at(ws, &a.work, &a.shape, b, u);
        if (e.kind != DECODE || !(a.modes >> set.mode & 1) || !prhs_is_drawn(a.sample, e.slot, u, e.pos0))
            continue;
        const __global int *list =
            a.state.list_off == PRHS_NONE ? 0 : SLOT_AT(state, &a.state, list_off, e.slot, int) + (long)u * a.state.list_cap;
        float lse[PRHS_UH][2];
        split_lse(&set, list, FLOATS(ws, a.work.score_off) + (b * a.shape.heads + u * PRHS_UH) * a.work.score_stride,
                  a.work.score_stride, e.pos0 + 1, lse);
        const int unknown = a.unknown >> set.mode & 1;
        float sum = 0.0f, worst = 0.0f;
        for (int i = 0; i < PRHS_UH; i++) {
            int h = u * PRHS_UH + i;
            float mass = lse[i][1] == -INFINITY ? 0.0f : 1.0f / (1.0f + exp(lse[i][0] - lse[i][1]));
            __global prhs_head_stat *st = STAT_AT(state, &a.state, head_stat_off, e.slot, prhs_head_stat) + h;
            __global prhs_head_ref *head = SLOT_AT(state, &a.state, head_off, e.slot, prhs_head_ref) + h;
            head->audit_last = mass;
            const bool judged = set.mode == PRHS_MODE_SHARE && a.residual != PRHS_K_RESIDUAL_NONE;
            const float weight = judged ? SLOT_AT(state, &a.state, spread_off, e.slot, float)[2 * h + 1] : head->delta_last;
            worst += book_head(&a, st, mass, head->delta_last, weight, set.mode == PRHS_MODE_SHARE, unknown);
            sum += mass;
        }
        if (unknown && !isnan(sum))
            book_sample(&STAT_AT(state, &a.state, unit_stat_off, e.slot, prhs_unit_stat)[u].sample, sum / PRHS_UH, worst / PRHS_UH);
    }
}
