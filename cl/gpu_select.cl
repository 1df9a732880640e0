/* SPDX-License-Identifier: Apache-2.0 */
/*
 * select on GPUs: a group takes a unit. Keys lie in local memory, a slice of the candidates at a time: one slice stays there, more are computed
 * anew in every pass. Three histograms of 11, 11 and 10 bits of the keys find the last one that is in; then every work-item writes what its own
 * neighbouring runs give. Only whole numbers are added up in an order that is not fixed.
 */
#include "gpu.clh"

#define SLICE 4096
#define BINS 2048
#define BITS 11
#define FORCED UINT_MAX /* the key of a run that dilation brings in: no score has it */

typedef struct memory {
    uint keys[SLICE];       /* then: whether the run is in */
    int histogram[BINS];
    int sums[GROUP + GROUP / PART];
    float lse[PRHS_UH];
    int digit, left;        /* what a histogram has found */
} memory;

typedef struct job {
    const prhs_k_select *a;
    entry e;
    long b;
    int u, first, count;          /* runs: positions first, first + run, ... */
    int staged;                   /* the slice that lies in local memory, from this run on; < 0: none */
    const __global float *scores; /* of the unit's first head; heads are score_stride apart */
    const __global int *best;     /* dilation: the best m runs, ascending */
    int m;
} job;

/* Larger keys come first: NaN and +inf, then by value; -0 is +0. */
uint order_key(float x)
{
    if (bad_score(x))
        return UINT_MAX - 1;
    const uint b = as_uint(x == 0.0f ? 0.0f : x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

float token_weight(const job *j, const __local memory *m, int p)
{
    float joint = 0.0f;
    bool bad = false;
    for (int h = 0; h < PRHS_UH; h++) {
        const float s = j->scores[h * j->a->work.score_stride + p], w = exp(s - m->lse[h]);
        bad |= bad_score(s);
        joint = j->a->policy.join == PRHS_K_JOIN_MAX ? fmax(joint, w) : joint + w;
    }
    return bad ? NAN : joint;
}

uint key_of(const job *j, const __local memory *m, int r)
{
    const int run = j->a->policy.run, p = j->first + r * run;
    float sum = 0.0f;
    if (PRHS_UH == 1 && run == 1)
        return order_key(j->scores[p]);
    for (int t = 0; t < run; t++)
        sum += token_weight(j, m, p + t);
    return order_key(sum);
}

/* Brings the slice from run `from` on in; those that dilation forces get the key FORCED. best[0, past) lie before the slice, and of these
   only `last` can still reach into it. */
void stage(job *j, int from, int past, int last, __local memory *m)
{
    const int n = j->staged == from ? 0 : min(SLICE, j->count - from);
    const int back = j->a->policy.dilate_back, reach = back + 1 + j->a->policy.dilate_ahead, marks = n > 0 ? (j->m - past) * reach : 0;
    SYNC();
    for (int i = LID; i < n; i += GROUP)
        m->keys[i] = key_of(j, m, from + i);
    SYNC();
    for (int i = LID; i < marks; i += GROUP) {
        const int r = j->best[past + i / reach] + i % reach - back - from;
        if (r >= 0 && r < n)
            m->keys[r] = FORCED;
    }
    for (int i = LID; past > 0 && i < min(last + j->a->policy.dilate_ahead + 1 - from, n); i += GROUP)
        m->keys[i] = FORCED;
    j->staged = j->m > 0 && j->count > SLICE ? -1 : from;
    SYNC();
}

/* Which bin, counted from the highest, holds number `left`, and how many are left for it. */
void find_bin(int left, __local memory *m)
{
    const int each = BINS / GROUP, top = BINS - 1 - LID * each;
    int own = 0, all;
#pragma unroll 4
    for (int i = 0; i < each; i++)
        own += m->histogram[top - i];
    int before = sum_before(own, m->sums, &all);
    if (before < left && before + own >= left) {
        int bin = top;
        while (before + m->histogram[bin] < left)
            before += m->histogram[bin--];
        m->digit = bin;
        m->left = left - before;
    }
    SYNC();
}

/* The key of the k-th best run, and how many runs with exactly that key belong to the best k; k 0: none. */
uint threshold(job *j, int k, int *ties, __local memory *m)
{
    uint prefix = k > 0 ? 0 : UINT_MAX;
#pragma unroll 1
    for (int shift = 32 - BITS, above = k > 0 ? 32 : 0; above > 0; above = shift, shift = max(shift - BITS, 0)) {
        const uint bins = 1u << (above - shift);
        SYNC();
        for (int i = LID; i < BINS; i += GROUP)
            m->histogram[i] = 0;
        SYNC();
        for (int from = 0; from < j->count; from += SLICE) {
            stage(j, from, 0, 0, m);
            for (int i = LID; i < min(SLICE, j->count - from); i += GROUP) {
                const uint key = m->keys[i];
                if (above == 32 || key >> above == prefix)
                    atomic_inc(&m->histogram[key >> shift & (bins - 1)]);
            }
        }
        SYNC();
        find_bin(k, m);
        prefix = prefix * bins + (uint)m->digit;
        k = m->left;
    }
    *ties = k;
    return prefix;
}

/* What a work-item knows of the dropped tokens of every head. */
typedef struct dropped {
    float top[PRHS_UH], sum[PRHS_UH]; /* NaN: one was no number */
} dropped;

/* Tokens of the slice's runs that are not in: their largest score, then the sum relative to it. */
void add_dropped(const job *j, int from, int n, dropped *x, const __local memory *m)
{
    const int run = j->a->policy.run;
    for (int h = 0; h < PRHS_UH; h++) {
        const __global float *s = j->scores + h * j->a->work.score_stride + j->first + (long)from * run;
        float top = x->top[h], sum = 0.0f;
#pragma unroll 4
        for (int i = LID; i < n * run; i += GROUP)
            top = m->keys[run == 1 ? i : i / run] ? top : fmax(top, s[i]);
#pragma unroll 4
        for (int i = LID; i < n * run; i += GROUP)
            if (!m->keys[run == 1 ? i : i / run])
                sum += bad_score(s[i]) ? NAN : exp(s[i] - top);
        x->sum[h] = x->sum[h] * exp(x->top[h] - top) + sum;
        x->top[h] = top;
    }
}

/*
 * Writes the runs of the best k that `out` takes, as run indices times `step` plus `first`; returns their number. x: NULL, or what gathers
 * the tokens of the others. What is written may lie where the best m runs are, once they have been used.
 */
int take(job *j, int k, int first, int step, __global int *out, dropped *x, __local memory *m)
{
    int ties = 0, n = 0, past = 0, last = 0, all;
    const uint limit = threshold(j, k, &ties, m);
    for (int from = 0; from < j->count; from += SLICE) {
        const int size = min(SLICE, j->count - from), each = (size + GROUP - 1) / GROUP | 1; /* odd: no bank conflicts */
        stage(j, from, past, last, m);
        while (past < j->m && j->best[past] < from + size)
            last = j->best[past++];
        const int begin = min(LID * each, size), end = min(begin + each, size);
        int found = 0; /* better runs in units of 2^16, then those with the same key as the last one */
#pragma unroll 4
        for (int i = begin; i < end; i++)
            found += m->keys[i] > limit ? 1 << 16 : m->keys[i] == limit;
        const int before = sum_before(found, m->sums, &all);
        int own = n + (before >> 16) + min(before & 0xffff, ties), left = ties - (before & 0xffff);
        n += (all >> 16) + min(all & 0xffff, ties);
        ties = max(ties - (all & 0xffff), 0);
        SYNC_ALL(); /* the best runs have been looked at */
#pragma unroll 4
        for (int i = begin; i < end; i++) {
            const uint key = m->keys[i];
            const bool in = key > limit || (key == limit && left-- > 0);
            if (in)
                out[own++] = first + (from + i) * step;
            m->keys[i] = in;
        }
        j->staged = -1;
        SYNC_ALL();
        if (x)
            add_dropped(j, from, size, x, m);
    }
    SYNC_ALL();
    return n;
}

int fill_list(job *j, int k, __global int *list, dropped *x, __local memory *m)
{
    const prhs_k_policy *p = &j->a->policy;
    const int best = min(p->dilate_m, k);
    int n = 0;
    j->best = list + j->a->state.list_cap - best;
#pragma unroll 1
    for (int last = best == 0; last < 2; last++) { /* first the best runs, then the list */
        j->m = last ? best : 0;
        n = take(j, last ? k : best, last ? j->first : 0, last ? p->run : 1, last ? list : list + j->a->state.list_cap - best,
                 last ? x : 0, m);
    }
    return n;
}

/* The sum of n tallies from `first` on, relative to their largest top, into place `to`. */
void add_tallies(__local float *top, __local float *sum, int first, int n, int to)
{
    float most = LOWEST, all = 0.0f;
    for (int i = first; i < first + n; i++)
        most = fmax(most, top[i]);
    for (int i = first; i < first + n; i++)
        all += sum[i] * exp(top[i] - most);
    top[to] = most;
    sum[to] = all;
}

/* Log-sum-exp of each head over the work-items. */
void put_dropped(const job *j, int heads, const dropped *x, mem state, __local memory *m)
{
    __local float *top = (__local float *)m->keys, *sum = (__local float *)m->histogram;
    for (int h = 0; h < heads; h++) {
        SYNC();
        top[LID] = x->top[h];
        sum[LID] = x->sum[h];
        SYNC();
        if (LID < GROUP / PART)
            add_tallies(top, sum, LID * PART, PART, GROUP + LID);
        SYNC();
        if (LID == 0) {
            add_tallies(top, sum, GROUP, GROUP / PART, 2 * GROUP);
            SLOT_AT(state, &j->a->state, head_off, j->e.slot, prhs_head_ref)[j->u * PRHS_UH + h].l_dropped =
                isnan(sum[2 * GROUP]) ? NAN : sum[2 * GROUP] > 0.0f ? top[2 * GROUP] + log(sum[2 * GROUP]) : -INFINITY;
        }
    }
}

/* Largest score and log-sum-exp of each head, where keys are joint weights. */
void merge_norms(const job *j, bool wanted, mem ws, __local memory *m)
{
    const prhs_k_work *w = &j->a->work;
    const int chunks = chunk_count(j->e.pos0 + 1, w->score_chunk_min, w->score_chunks);
    for (int h = PRHS_UH == 1 && j->a->policy.run == 1 ? 1 : LID; wanted && h < PRHS_UH; h += GROUP) { /* a score by itself is the key */
        const __global float *norm = FLOATS(ws, w->norm_off) + (j->b * j->a->shape.heads + j->u * PRHS_UH + h) * (long)w->score_chunks * 4;
        m->lse[h] = norms_lse(norm, chunks);
    }
    SYNC();
}

/* What later steps need: the set, its position and the queries. */
void store_reference(const job *j, const prhs_set *set, mem q, mem state)
{
    const prhs_k_state *st = &j->a->state;
    if (st->unit_off != PRHS_NONE && LID == 0) {
        __global prhs_unit_state *unit = SLOT_AT(state, st, unit_off, j->e.slot, prhs_unit_state) + j->u;
        unit->set = *set;
        unit->set.end = j->e.pos0 + 1;
        unit->ref_pos = j->e.pos0;
    }
    if (st->qref_off == PRHS_NONE)
        return;
    for (int i = LID; i < PRHS_UH * NV; i += GROUP) {
        const int h = j->u * PRHS_UH + i / NV;
        vstore8(load_vec(PRHS_Q, row_at(&j->a->q, q, j->e.row0, h), i % NV), i % NV,
                SLOT_AT(state, st, qref_off, j->e.slot, float) + (long)h * PRHS_D);
    }
}

void select_item(const prhs_k_select *a, long item, mem seqs, mem q, mem state, mem ws, __local memory *m)
{
    job j;
    j.a = a;
    j.b = item / a->shape.units;
    j.u = (int)(item % a->shape.units);
    j.e = entry_of(&a->batch, seqs, j.b);
    prhs_set set = *set_at(ws, &a->work, &a->shape, j.b, j.u);
    const bool retrieves = j.e.kind != IDLE && set.mode == PRHS_MODE_RETRIEVE;
    j.scores = FLOATS(ws, a->work.score_off) + (j.b * a->shape.heads + j.u * PRHS_UH) * a->work.score_stride;
    const int run = a->policy.run, lo = set.mid_begin;
    j.first = (lo + run - 1) / run * run;
    j.count = retrieves ? max(0, (set.mid_end / run * run - j.first) / run) : 0;
    j.staged = -1;
    j.m = 0;
    j.best = 0;
    SYNC_ALL(); /* all have read the set */
    merge_norms(&j, retrieves, ws, m);
    set.run = run;
    const bool edge = j.count && j.first > lo;
    set.edge_begin = edge ? lo : 0;
    set.edge_end = edge ? j.first : 0;
    set.win_begin = j.count ? j.first + j.count * run : lo;
    dropped x;
    for (int h = 0; h < PRHS_UH; h++) {
        x.top[h] = LOWEST;
        x.sum[h] = 0.0f;
    }
    const int keep = a->policy.least > 0 ? set.reserved[1] : a->policy.k / run;
    __global int *list = SLOT_AT(state, &a->state, list_off, retrieves ? j.e.slot : 0, int) + (long)j.u * a->state.list_cap;
    set.count = fill_list(&j, min(min(keep, a->state.list_cap), j.count), list, a->state.head_off != PRHS_NONE ? &x : 0, m);
    if (LID == 0 && retrieves)
        *set_at(ws, &a->work, &a->shape, j.b, j.u) = set;
    if (retrieves)
        store_reference(&j, &set, q, state);
    put_dropped(&j, retrieves && a->state.head_off != PRHS_NONE ? PRHS_UH : 0, &x, state, m);
}

KERNEL void prhs_select(mem seqs, mem q, mem state, mem ws, const prhs_k_select args)
{
    __local memory m;
    prhs_k_select a = args;
    const long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_group_id(0); item < items; item += get_num_groups(0))
        select_item(&a, item, seqs, q, state, ws, &m);
}
