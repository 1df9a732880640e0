/* SPDX-License-Identifier: Apache-2.0 */
/* recall on GPUs: a group takes a unit, as cl/recall.cl does. All work-items come to the same conclusions, and move words together. */
#include "gpu.clh"
#include "recall.clh"

void recall_item(const prhs_k_recall *a, long item, mem seqs, mem q, mem state, __local angles *m)
{
    const int u = (int)(item % a->shape.units);
    const entry e = entry_of(&a->batch, seqs, item / a->shape.units);
    const long slot = e.kind == IDLE ? 0 : e.slot;
    const int t = e.pos0;
    __global prhs_unit_state *unit = SLOT_AT(state, &a->state, unit_off, slot, prhs_unit_state) + u;
    __global prhs_unit_state *kept = kept_at(state, &a->state, &a->pool, slot, u);
    const standing s = standing_of(a, unit, kept, t);
    int best = -1;
    float most = -3.0f;
    if (e.kind != IDLE && s.fresh)
        exchange(a, slot, u, s.place, unit->set.count, true, state, LID, GROUP);
    SYNC_ALL();
    if (e.kind != IDLE && LID == 0)
        settle(a, s, unit, kept, t);
    SYNC_ALL();
    const int looks = e.kind == DECODE ? a->pool.count : 0;
    for (int i = 0; i < looks; i++) {
        /* Of those out of force, too: barriers are not left out. */
        const __global uchar *rows = record_at(a, slot, u, i, state) + PRHS_POOL_ROWS(PRHS_UH);
        const float near = least_cosine(&a->q, &e, 0, u, (const __global float *)rows, q, m);
        if (in_force(a, kept + i, t) && near > most) {
            most = near;
            best = i;
        }
    }
    if (best >= 0 && best != s.place)
        exchange(a, slot, u, best, kept[best].set.count, false, state, LID, GROUP);
    SYNC_ALL();
    if (LID == 0 && e.kind == DECODE) {
        if (best >= 0 && best != s.place)
            *unit = kept[best];
        unit->used = t;
    }
}

KERNEL void prhs_recall(mem seqs, mem q, mem state, const prhs_k_recall args)
{
    __local angles m;
    prhs_k_recall a = args;
    const long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0))
        recall_item(&a, item, seqs, q, state, &m);
}
