/* SPDX-License-Identifier: Apache-2.0 */
/*
 * select on GPUs: a group takes a unit. Keys lie in local memory, a slice of the candidates at a time: one slice stays there, more are computed
 * anew in every pass. A histogram between the largest and the smallest key finds the bin of the last one that is in, and its few keys are ranked
 * against each other; where they are many, or slices are, histograms of 11, 11 and 10 bits of the keys find it, as many as it takes. Then every
 * work-item writes what its own neighbouring runs give. Only whole numbers are added up in an order that is not fixed. What a unit is lies in
 * local memory too: registers decide how many groups run side by side.
 */
#include "gpu.clh"

#define SLICE 4096
#define BINS 2048
#define BITS 11
#define EACH_BIN (BINS / GROUP)
#define SPOT(bin) ((bin) + (bin) / EACH_BIN) /* a work-item looks at EACH_BIN neighbours: it meets no other in its bank */
#define AHEAD 8              /* keys of a work-item that are looked at together: those past the last one are 0 */
#define FEW GROUP            /* keys that are ranked against each other, at most */
#define FORCED UINT_MAX      /* the key of a run that dilation brings in: no score has it */
#define BAD (UINT_MAX - 1)   /* NaN and +inf */

typedef struct job {
    entry e;
    prhs_set set;
    int u, first, count;          /* runs: positions first, first + run, ... */
    int keep, m;                  /* m: of the best runs that dilation forces; they are the last ones of the list's room */
    int digit, left, inside;      /* what a histogram has found: a bin, how many of its keys are in, and how many it has */
    int few;                      /* keys that were gathered from it */
    uint limit;                   /* the last key that is in */
    const __global float *scores; /* of the unit's first head; heads are score_stride apart */
    __global int *list;
} job;

typedef struct memory {
    job j;
    uint keys[SLICE]; /* then: 0 where the run is in */
    int histogram[SPOT(BINS)];
    int sums[MEETING];
    float lse[PRHS_UH];
} memory;

/* Larger keys come first: NaN and +inf, then by value; -0 is +0. No score has key 0. */
uint order_key(float x)
{
    if (bad_score(x))
        return BAD;
    const uint b = as_uint(x == 0.0f ? 0.0f : x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

float value_of(uint key) { return as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

/* Whether a score by itself is the key. */
bool is_raw(const prhs_k_select *a) { return PRHS_UH == 1 && a->policy.run == 1; }

float token_weight(const prhs_k_select *a, const __global float *s, const __local memory *m)
{
    float joint = 0.0f;
    bool bad = false;
    for (int h = 0; h < PRHS_UH; h++) {
        const float x = s[h * a->work.score_stride], w = exp(x - m->lse[h]);
        bad |= bad_score(x);
        joint = a->policy.join == PRHS_K_JOIN_MAX ? fmax(joint, w) : joint + w;
    }
    return bad ? NAN : joint;
}

int padded(int n) { return (n + AHEAD * GROUP - 1) / (AHEAD * GROUP) * (AHEAD * GROUP); }

void widen(float2 *span, float x)
{
    span->x = isfinite(x) ? fmax(span->x, x) : span->x;
    span->y = isfinite(x) ? fmax(span->y, -x) : span->y;
}

/* Brings the slice from run `from` on in, if it is not; those that dilation forces get the key FORCED. best[0, past) lie before the slice, and of
   these only `last` can still reach into it. *staged: the slice that is in, < 0: none. wanted: false where there is nothing to do. span: NULL, or
   the largest of the work-item's numbers, and of their negatives. */
void stage(const prhs_k_select *a, int from, int past, int last, bool wanted, int *staged, float2 *span, __local memory *m)
{
    const int run = a->policy.run, n = *staged == from || !wanted ? 0 : min(SLICE, m->j.count - from);
    const int back = a->policy.dilate_back, ahead = a->policy.dilate_ahead, reach = back + 1 + ahead, marks = n > 0 ? (m->j.m - past) * reach : 0;
    const __global int *best = m->j.list + a->state.list_cap - m->j.m;
    const __global float *s = m->j.scores + m->j.first + (long)from * run;
    SYNC();
    if (is_raw(a)) {
        for (int first = LID; first < padded(n); first += AHEAD * GROUP) {
            float x[AHEAD];
#pragma unroll
            for (int t = 0; t < AHEAD; t++)
                x[t] = first + t * GROUP < n ? s[first + t * GROUP] : 0.0f;
#pragma unroll
            for (int t = 0; t < AHEAD; t++) {
                m->keys[first + t * GROUP] = first + t * GROUP < n ? order_key(x[t]) : 0;
                if (span)
                    widen(span, first + t * GROUP < n ? x[t] : NAN);
            }
        }
    } else {
        for (int i = LID; i < n; i += GROUP) {
            float sum = 0.0f;
            for (int t = 0; t < run; t++)
                sum += token_weight(a, s + i * run + t, m);
            m->keys[i] = order_key(sum);
            if (span)
                widen(span, sum);
        }
        for (int i = n + LID; i < padded(n); i += GROUP)
            m->keys[i] = 0;
    }
    SYNC();
    for (int i = LID; i < marks; i += GROUP) {
        const int r = best[past + i / reach] + i % reach - back - from;
        if (r >= 0 && r < n)
            m->keys[r] = FORCED;
    }
    for (int i = LID; past > 0 && i < min(last + ahead + 1 - from, n); i += GROUP)
        m->keys[i] = FORCED;
    *staged = wanted ? from : *staged;
    SYNC();
}

/* Bins of even width, by value for scores, by key (the exponent, mostly) for weights. Bad keys have the last one, of which others keep off. */
typedef struct ruler {
    float zero, scale; /* the smallest score's bin is 0 */
    uint low;
    int shift;
} ruler;

int bin_of(const ruler *r, bool raw, uint key)
{
    if (key >= BAD)
        return BINS - 1;
    if (raw)
        return (int)fmin(fmax((value_of(key) - r->zero) * r->scale, 0.0f), BINS - 2.0f);
    return (int)min((max(key, r->low) - r->low) >> r->shift, BINS - 2u);
}

/* From the smallest number to the largest; -inf has its bin with the smallest. */
ruler rule(float2 span, __local memory *m)
{
    float top = span.x, low = span.y;
    max_two(&top, &low, (__local float *)m->sums, (__local float *)m->histogram);
    low = -low;
    ruler r = { low, fmin((BINS - 2) / (top - low), 1e37f), order_key(low), 0 };
    if (!(top > low)) /* equal ones, or none */
        r.scale = 0.0f;
    r.shift = top > low ? max(21 - (int)clz(order_key(top) - r.low), 0) : 0;
    return r;
}

/* Which bin, counted from the highest, holds number `left`. */
void find_bin(int left, __local memory *m)
{
    const __local int *bins = m->histogram + SPOT(BINS - (LID + 1) * EACH_BIN);
    int n[EACH_BIN], own = 0, all;
#pragma unroll
    for (int i = 0; i < EACH_BIN; i++)
        own += n[i] = bins[i];
    int before = sum_before(own, m->sums, &all);
#pragma unroll
    for (int i = EACH_BIN - 1; i >= 0; i--) {
        if (before < left && before + n[i] >= left) {
            m->j.digit = BINS - (LID + 1) * EACH_BIN + i;
            m->j.left = left - before;
            m->j.inside = n[i];
        }
        before += n[i];
    }
    SYNC();
}

void clear_bins(__local memory *m)
{
    SYNC();
    for (int i = LID; i < SPOT(BINS); i += GROUP)
        m->histogram[i] = 0;
    if (LID == 0)
        m->j.few = 0;
    SYNC();
}

/*
 * The limit from one histogram of n keys that are staged, span as there; in m->j.inside more than FEW where it has not found it, else in m->j.left
 * the ties.
 */
void find_limit(const prhs_k_select *a, int k, int n, float2 span, __local memory *m)
{
    const bool raw = is_raw(a);
    __local uint *few = (__local uint *)m->sums;
    const ruler r = rule(span, m);
    clear_bins(m);
    for (int i = LID; i < padded(n); i += AHEAD * GROUP)
#pragma unroll
        for (int t = 0; t < AHEAD; t++)
            atomic_inc(&m->histogram[SPOT(bin_of(&r, raw, m->keys[i + t * GROUP]))]);
    SYNC();
    find_bin(k, m);
    const int bin = m->j.digit, left = m->j.left, inside = n > 0 ? m->j.inside : 0;
    for (int i = LID; i < (inside <= FEW ? padded(n) : 0); i += AHEAD * GROUP)
#pragma unroll
        for (int t = 0; t < AHEAD; t++) {
            const uint key = m->keys[i + t * GROUP];
            if (bin_of(&r, raw, key) == bin)
                few[atomic_inc(&m->j.few)] = key;
        }
    SYNC();
    if (LID < inside && inside <= FEW) {
        const uint key = few[LID];
        int better = 0, equal = 0;
#pragma unroll 4
        for (int i = 0; i < inside; i++) {
            better += few[i] > key;
            equal += few[i] == key;
        }
        if (better < left && left <= better + equal) {
            m->j.limit = key;
            m->j.left = left - better;
        }
    }
    SYNC();
}

/* A key that only those of the best k exceed, and how many runs with exactly that key belong to them too; k 0: none. */
uint threshold(const prhs_k_select *a, int k, int *ties, int *staged, __local memory *m)
{
    const int n = k > 0 && m->j.count <= SLICE ? m->j.count : 0;
    float2 span = (float2)(LOWEST, LOWEST);
    stage(a, 0, 0, 0, n > 0, staged, &span, m);
    find_limit(a, k, n, span, m);
    const bool found = n > 0 && m->j.inside <= FEW;
    uint limit = found ? m->j.limit : k > 0 ? 0 : UINT_MAX;
    *ties = found ? m->j.left : 0;
#pragma unroll 1
    for (int above = found || k == 0 ? 0 : 32, shift = 0; above > 0; above = shift) {
        shift = max(above - BITS, 0);
        clear_bins(m);
#pragma unroll 1
        for (int from = 0; from < m->j.count; from += SLICE) {
            stage(a, from, 0, 0, true, staged, 0, m);
#pragma unroll 4
            for (int i = LID; i < min(SLICE, m->j.count - from); i += GROUP) {
                const uint key = m->keys[i];
                const int bin = (int)(key >> shift & ((1u << (above - shift)) - 1));
                if (above == 32 || key >> above == limit)
                    atomic_inc(&m->histogram[SPOT(bin)]);
            }
        }
        SYNC();
        find_bin(k, m);
        limit = (above == 32 ? 0 : limit << (above - shift)) | (uint)m->j.digit;
        *ties = k = m->j.left;
        if (m->j.inside == k) { /* all keys that begin so are in: nobody needs to know which is the last */
            limit = (limit << shift) - 1;
            *ties = shift = 0;
        }
    }
    return limit;
}

/* What a work-item knows of the dropped tokens of every head. */
typedef struct dropped {
    float top[PRHS_UH], sum[PRHS_UH]; /* NaN: one was no number */
    float first[PRHS_UH], second[PRHS_UH]; /* the weights times their logarithms, and times the squares of these */
} dropped;

/* So much of a head that sums relative to `top` have been; they become relative to a larger one. */
void move_top(dropped *x, int h, float top)
{
    const float by = fmax(x->top[h] - top, FARTHEST), e = exp(by);
    x->second[h] = (x->second[h] + by * (2.0f * x->first[h] + by * x->sum[h])) * e;
    x->first[h] = (x->first[h] + by * x->sum[h]) * e;
    x->sum[h] *= e;
    x->top[h] = top;
}

void add_weight(dropped *x, int h, bool bad, float l)
{
    const float w = bad ? NAN : exp(l), y = fmax(l, FARTHEST);
    x->sum[h] += w;
    x->first[h] += w * y;
    x->second[h] += w * y * y;
}

/*
 * Tokens of the slice's runs that are not in: their largest score, then the sum relative to it. Scores that are keys: of runs [begin, end), whose
 * largest one left is `rest`.
 */
void add_dropped(const prhs_k_select *a, int from, int n, int begin, int end, uint rest, dropped *x, const __local memory *m)
{
    const int run = a->policy.run;
    for (int h = 0; h < PRHS_UH; h++) {
        const __global float *s = m->j.scores + h * a->work.score_stride + m->j.first + (long)from * run;
        float top = x->top[h];
        if (is_raw(a)) {
            top = rest && rest < BAD ? fmax(top, value_of(rest)) : top;
            move_top(x, h, top);
#pragma unroll 8
            for (int i = begin; i < end; i++) {
                const uint key = m->keys[i];
                add_weight(x, h, key == BAD, (key ? value_of(key) : -INFINITY) - top);
            }
        } else {
#pragma unroll 4
            for (int i = LID; i < n * run; i += GROUP)
                top = m->keys[i / run] ? fmax(top, s[i]) : top;
            move_top(x, h, top);
#pragma unroll 4
            for (int i = LID; i < n * run; i += GROUP)
                if (m->keys[i / run])
                    add_weight(x, h, bad_score(s[i]), s[i] - top);
        }
    }
}

/*
 * Writes the runs of the best k that `out` takes, as run indices times `step` plus `first`; returns their number. x: NULL, or what gathers
 * the tokens of the others. What is written may lie where the best m runs are, once they have been used.
 */
int take(const prhs_k_select *a, int k, int first, int step, __global int *out, dropped *x, __local memory *m)
{
    const __global int *best = m->j.list + a->state.list_cap - m->j.m;
    int ties = 0, n = 0, past = 0, last = 0, staged = -1, all;
    const uint limit = threshold(a, k, &ties, &staged, m);
    staged = m->j.count > SLICE ? -1 : staged; /* that of several was staged with all of the best runs */
#pragma unroll 1
    for (int from = 0; from < m->j.count; from += SLICE) {
        const int size = min(SLICE, m->j.count - from), each = (size + GROUP - 1) / GROUP | 1; /* odd: no bank conflicts */
        stage(a, from, past, last, true, &staged, 0, m);
        while (past < m->j.m && best[past] < from + size)
            last = best[past++];
        const int begin = min(LID * each, size), end = min(begin + each, size);
        int found = 0; /* better runs in units of 2^16, then those with the same key as the last one */
        uint rest = 0; /* the best of the others */
#pragma unroll 8
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
            if (key > limit || (key == limit && left-- > 0)) {
                out[own++] = first + (from + i) * step;
                m->keys[i] = 0;
            } else {
                rest = max(rest, key);
            }
        }
        SYNC_ALL();
        if (x)
            add_dropped(a, from, size, begin, end, rest, x, m);
    }
    SYNC_ALL();
    return n;
}

int fill_list(const prhs_k_select *a, dropped *x, __local memory *m)
{
    const prhs_k_policy *p = &a->policy;
    const int k = m->j.keep, best = min(p->dilate_m, k);
    int n = 0;
#pragma unroll 1
    for (int last = best == 0; last < 2; last++) { /* first the best runs, then the list */
        if (LID == 0)
            m->j.m = last ? best : 0;
        SYNC();
        n = take(a, last ? k : best, last ? m->j.first : 0, last ? p->run : 1, m->j.list + (last ? 0 : a->state.list_cap - best),
                 last ? x : 0, m);
    }
    return n;
}

/* Log-sum-exp of each head over the work-items, and the variance of its scores. */
void put_dropped(const prhs_k_select *a, dropped *x, mem state, __local memory *m)
{
    __local float *shared = (__local float *)m->sums;
    for (int h = 0; h < PRHS_UH; h++) {
        float top = x->top[h], same = top;
        max_two(&top, &same, shared, (__local float *)m->histogram);
        move_top(x, h, top);
        const float sum = sum_over(x->sum[h], shared), first = sum_over(x->first[h], shared), second = sum_over(x->second[h], shared);
        if (LID == 0 && a->state.spread_off != PRHS_NONE)
            SLOT_AT(state, &a->state, spread_off, m->j.e.slot, float)[2 * (m->j.u * PRHS_UH + h)] = spread_of(sum, first, second);
        if (LID == 0 && a->state.head_off != PRHS_NONE)
            SLOT_AT(state, &a->state, head_off, m->j.e.slot, prhs_head_ref)[m->j.u * PRHS_UH + h].l_dropped =
                isnan(sum) ? NAN : sum > 0.0f ? top + log(sum) : -INFINITY;
    }
}

/* What later steps need: the set, its position and the queries. */
void store_reference(const prhs_k_select *a, mem q, mem state, const __local memory *m)
{
    const prhs_k_state *st = &a->state;
    if (st->unit_off != PRHS_NONE && LID == 0) {
        __global prhs_unit_state *unit = SLOT_AT(state, st, unit_off, m->j.e.slot, prhs_unit_state) + m->j.u;
        unit->set = m->j.set;
        unit->set.end = m->j.e.pos0 + 1;
        unit->ref_pos = m->j.e.pos0;
    }
    for (int i = LID; st->qref_off != PRHS_NONE && i < PRHS_UH * NV; i += GROUP) {
        const int h = m->j.u * PRHS_UH + i / NV;
        vstore8(load_vec(PRHS_Q, row_at(&a->q, q, m->j.e.row0, h), i % NV), i % NV,
                SLOT_AT(state, st, qref_off, m->j.e.slot, float) + (long)h * PRHS_D);
    }
}

/* What the unit's candidates are: by one work-item. */
void start(const prhs_k_select *a, long b, int u, mem seqs, mem state, mem ws, __local memory *m)
{
    const entry e = entry_of(&a->batch, seqs, b);
    prhs_set set = *set_at(ws, &a->work, &a->shape, b, u);
    const int run = a->policy.run, lo = set.mid_begin, first = (lo + run - 1) / run * run, count = max(0, (set.mid_end / run * run - first) / run);
    const bool edge = count && first > lo;
    set.run = run;
    set.edge_begin = edge ? lo : 0;
    set.edge_end = edge ? first : 0;
    set.win_begin = count ? first + count * run : lo;
    m->j.e = e;
    m->j.set = set;
    m->j.u = u;
    m->j.first = first;
    m->j.count = count;
    m->j.keep = min(min(a->policy.least > 0 ? set.reserved[1] : a->policy.k / run, a->state.list_cap), count);
    m->j.scores = FLOATS(ws, a->work.score_off) + (b * a->shape.heads + u * PRHS_UH) * a->work.score_stride;
    m->j.list = SLOT_AT(state, &a->state, list_off, e.slot, int) + (long)u * a->state.list_cap;
}

/* A unit that retrieves. */
void select_item(const prhs_k_select *a, long item, mem seqs, mem q, mem state, mem ws, __local memory *m)
{
    const long b = item / a->shape.units;
    const int u = (int)(item % a->shape.units);
    dropped x;
    SYNC();
    if (LID == 0)
        start(a, b, u, seqs, state, ws, m);
    SYNC_ALL(); /* all have seen the set */
    const int chunks = chunk_count(m->j.e.pos0 + 1, a->work.score_chunk_min, a->work.score_chunks);
    for (int h = is_raw(a) ? PRHS_UH : LID; h < PRHS_UH; h += GROUP)
        m->lse[h] = norms_lse(FLOATS(ws, a->work.norm_off) + (b * a->shape.heads + u * PRHS_UH + h) * (long)a->work.score_chunks * 4, chunks);
    for (int h = 0; h < PRHS_UH; h++) {
        x.top[h] = LOWEST;
        x.sum[h] = x.first[h] = x.second[h] = 0.0f;
    }
    const int n = fill_list(a, a->state.head_off != PRHS_NONE ? &x : 0, m);
    if (LID == 0) {
        m->j.set.count = n;
        *set_at(ws, &a->work, &a->shape, b, u) = m->j.set;
    }
    store_reference(a, q, state, m);
    put_dropped(a, &x, state, m);
}

/* The first item from `item` on, in the group's steps, that retrieves. */
long next_item(const prhs_k_select *a, long item, long items, mem seqs, mem ws)
{
    for (; item < items; item += get_num_groups(0)) {
        const long b = item / a->shape.units;
        const int mode = set_at(ws, &a->work, &a->shape, b, (int)(item % a->shape.units))->mode;
        if (mode == PRHS_MODE_RETRIEVE && entry_of(&a->batch, seqs, b).kind != IDLE)
            break;
    }
    return item;
}

KERNEL void prhs_select(mem seqs, mem q, mem state, mem ws, const prhs_k_select args)
{
    __local memory m;
    prhs_k_select a = args;
    const long items = (long)a.batch.max_seqs * a.shape.units;
#pragma unroll 1
    for (long item = next_item(&a, get_group_id(0), items, seqs, ws); item < items;
         item = next_item(&a, item + get_num_groups(0), items, seqs, ws))
        select_item(&a, item, seqs, q, state, ws, &m);
}
