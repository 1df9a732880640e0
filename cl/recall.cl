/* SPDX-License-Identifier: Apache-2.0 */
/* recall: which of its references a unit has in hand when plan looks at it. */
#include "common.clh"
#include "recall.clh"

void recall_item(const prhs_k_recall *a, long item, mem seqs, mem q, mem state)
{
    const int u = (int)(item % a->shape.units);
    const entry e = entry_of(&a->batch, seqs, item / a->shape.units);
    if (e.kind == IDLE)
        return;
    __global prhs_unit_state *unit = SLOT_AT(state, &a->state, unit_off, e.slot, prhs_unit_state) + u;
    __global prhs_unit_state *kept = kept_at(state, &a->state, &a->pool, e.slot, u);
    const standing s = standing_of(a, unit, kept, e.pos0);
    int best = -1;
    float most = -3.0f;
    if (s.fresh)
        exchange(a, e.slot, u, s.place, unit->set.count, true, state, 0, 1);
    settle(a, s, unit, kept, e.pos0);
    if (e.kind == SEED)
        return;
    for (int i = 0; i < a->pool.count; i++) {
        if (!in_force(a, kept + i, e.pos0))
            continue;
        const __global uchar *rows = record_at(a, e.slot, u, i, state) + PRHS_POOL_ROWS(PRHS_UH);
        const float near = least_cosine(&a->q, &e, 0, u, (const __global float *)rows, q);
        if (near > most) {
            most = near;
            best = i;
        }
    }
    if (best >= 0 && best != s.place) {
        exchange(a, e.slot, u, best, kept[best].set.count, false, state, 0, 1);
        *unit = kept[best];
    }
    unit->used = e.pos0;
}

KERNEL void prhs_recall(mem seqs, mem q, mem state, const prhs_k_recall args)
{
    prhs_k_recall a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0))
        recall_item(&a, item, seqs, q, state);
}
