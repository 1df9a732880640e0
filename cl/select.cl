/* SPDX-License-Identifier: Apache-2.0 */
/*
 * select: exact top-k by a radix search for the threshold, key by key recomputed from the scores, so that no scratch is needed.
 * Dilation forces the neighbours of the best m in: what is taken is forced + best of the others. aim: how many runs a target takes, by
 * the same search with weights for counts; the keys lie in the workspace meanwhile.
 */
#include "common.clh"

typedef struct job {
    const prhs_k_select *a;
    entry e;
    long b;
    int u, first, count;          /* runs: positions first, first + run, ... */
    const __global float *scores; /* of the unit's first head; heads are score_stride apart */
    float lse[PRHS_UH];
} job;

/* Larger keys come first: NaN and +inf, then by value; -0 is +0. */
uint order_key(float x)
{
    if (bad_score(x))
        return UINT_MAX;
    uint b = as_uint(x == 0.0f ? 0.0f : x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

/* Joint weights of 16 tokens from position pos on; reading past the candidates stays inside the padded score row. */
float16 joint_weights(const job *j, int pos)
{
    float16 joint = 0.0f;
    int16 bad = 0;
    for (int h = 0; h < PRHS_UH; h++) {
        float16 s = vload16(0, j->scores + h * j->a->work.score_stride + pos), w = exp(s - j->lse[h]);
        bad |= !(s < INFINITY) ? -1 : 0;
        joint = j->a->policy.join == PRHS_K_JOIN_MAX ? fmax(joint, w) : joint + w;
    }
    return select(joint, (float16)(NAN), bad);
}

float token_weight(const job *j, int pos)
{
    float joint = 0.0f;
    for (int h = 0; h < PRHS_UH; h++) {
        float s = j->scores[h * j->a->work.score_stride + pos];
        if (bad_score(s))
            return NAN;
        float w = exp(s - j->lse[h]);
        joint = j->a->policy.join == PRHS_K_JOIN_MAX ? fmax(joint, w) : joint + w;
    }
    return joint;
}

/* Keys of runs [r, r + 16); those past the last run are garbage. */
void run_keys(const job *j, int r, uint *keys)
{
    const int run = j->a->policy.run, pos = j->first + r * run, n = min(16, j->count - r);
    if (run > 1 || n < 16) {
        for (int i = 0; i < n; i++) {
            float sum = 0.0f;
            if (PRHS_UH == 1 && run == 1)
                sum = j->scores[pos + i];
            else
                for (int t = 0; t < run; t++)
                    sum += token_weight(j, pos + i * run + t);
            keys[i] = order_key(sum);
        }
        return;
    }
    float x[16];
    vstore16(PRHS_UH == 1 ? vload16(0, j->scores + pos) : joint_weights(j, pos), 0, x);
    for (int i = 0; i < 16; i++)
        keys[i] = order_key(x[i]);
}

/*
 * Dilation: the best m runs, ascending, lie at the end of the list's own memory while the list grows from its start. They never meet
 * before they are used up: what is taken so far and the best runs to come are at most k together.
 */
typedef struct walk {
    const __global int *best;
    int m, next, last; /* best[0, next) are at or before the run last asked for; the last of them, or far below */
} walk;

walk walk_from(const __global int *best, int m)
{
    walk w = { best, m, 0, INT_MIN / 2 };
    return w;
}

/* Runs are asked in ascending order. */
bool is_forced(const job *j, walk *w, int r)
{
    while (w->next < w->m && w->best[w->next] <= r)
        w->last = w->best[w->next++];
    return r - w->last <= j->a->policy.dilate_ahead || (w->next < w->m && w->best[w->next] - r <= j->a->policy.dilate_back);
}

/* The key of the k-th best run that is not forced, and how many runs with exactly that key belong to the best k. */
uint threshold(const job *j, int k, walk forced, int *ties)
{
    uint prefix = 0;
    int left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int histogram[256];
        walk w = forced;
        for (int i = 0; i < 256; i++)
            histogram[i] = 0;
        for (int r = 0; r < j->count; r += 16) {
            uint keys[16];
            run_keys(j, r, keys);
            for (int i = 0; i < min(16, j->count - r); i++)
                if ((w.m == 0 || !is_forced(j, &w, r + i)) && (shift == 24 || keys[i] >> (shift + 8) == prefix >> (shift + 8)))
                    histogram[keys[i] >> shift & 255]++;
        }
        int digit = 255;
        while (digit > 0 && histogram[digit] < left)
            left -= histogram[digit--];
        prefix |= (uint)digit << shift;
    }
    *ties = left;
    return prefix;
}

/* Writes the runs of the best k that `out` takes; positions are run indices times `step` plus `first`. Returns their number. */
int take(const job *j, int k, walk w, int first, int step, __global int *out)
{
    int forced = 0, ties = 0, n = 0;
    walk counter = w;
    for (int r = 0; w.m > 0 && r < j->count; r++)
        forced += is_forced(j, &counter, r);
    const int places = k - forced;
    const uint limit = places > 0 ? threshold(j, places, w, &ties) : 0;
    for (int r = 0; r < j->count; r += 16) {
        uint keys[16];
        run_keys(j, r, keys);
        for (int i = 0; i < min(16, j->count - r); i++) {
            bool in = w.m > 0 && is_forced(j, &w, r + i);
            if (!in && places > 0)
                in = keys[i] > limit || (keys[i] == limit && ties-- > 0);
            if (in)
                out[n++] = first + (r + i) * step;
        }
    }
    return n;
}

int fill_list(const job *j, int k, __global int *list)
{
    const prhs_k_policy *p = &j->a->policy;
    const int m = min(p->dilate_m, k);
    __global int *best = list + j->a->state.list_cap - m;
    if (m > 0)
        take(j, m, walk_from(0, 0), 0, 1, best);
    return take(j, k, walk_from(best, m), j->first, p->run, list);
}

/* What the weights' logarithms sum up to, once and squared, each times its weight: beside lse_pass, of the same tokens. */
typedef struct spread_pass {
    float first, second;
    float16 parts[2];
} spread_pass;

void add_dropped(lse_pass *z, spread_pass *v, float16 s, int16 in, int last)
{
    const int16 counts = in & (s > -INFINITY);
    const float16 x = select((float16)(0.0f), s - z->top, counts), w = select((float16)(0.0f), exp(s - z->top), counts);
    z->part += w;
    v->parts[0] += w * x;
    v->parts[1] += w * x * x;
    if (!last)
        return;
    z->total += sum16(z->part);
    v->first += sum16(v->parts[0]);
    v->second += sum16(v->parts[1]);
    z->part = v->parts[0] = v->parts[1] = 0.0f;
}

/*
 * Of every head's scores at the middle's positions that no list entry, edge or window covers: their log-sum-exp L_D, and their
 * variance.
 */
void dropped_lse(const job *j, const prhs_set *set, const __global int *list, float *out, float *spread)
{
    const int end = min(set->win_begin, set->mid_end);
    lse_pass z[PRHS_UH];
    spread_pass v[PRHS_UH];
    for (int h = 0; h < PRHS_UH; h++) {
        z[h] = (lse_pass){ -INFINITY, 0.0f, 0.0f, 0 };
        v[h] = (spread_pass){ 0.0f, 0.0f, { 0.0f, 0.0f } };
    }
    for (int pass = 0; pass < 2; pass++)
        for (int p = set->mid_begin / 16 * 16, next = 0; p < end; p += 16) {
            const int16 pos = p + LANES, out_of = ~attended16(set, list, &next, p) & (pos >= set->mid_begin) & (pos < end);
            for (int h = 0; h < PRHS_UH; h++) {
                const float16 s = vload16(0, j->scores + h * j->a->work.score_stride + p);
                if (pass == 0)
                    lse_top(&z[h], s, out_of);
                else
                    add_dropped(&z[h], &v[h], s, out_of, p % 256 == 240 || p + 16 >= end);
            }
        }
    for (int h = 0; h < PRHS_UH; h++) {
        out[h] = lse_of(&z[h]);
        spread[h] = z[h].bad ? NAN : spread_of(z[h].total, v[h].first, v[h].second);
    }
}

void merge_norms(job *j, mem ws)
{
    const prhs_k_work *w = &j->a->work;
    int chunks = chunk_count(j->e.pos0 + 1, w->score_chunk_min, w->score_chunks);
    for (int h = 0; h < PRHS_UH; h++) {
        const __global float *norm = FLOATS(ws, w->norm_off) + (j->b * j->a->shape.heads + j->u * PRHS_UH + h) * (long)w->score_chunks * 4;
        j->lse[h] = norms_lse(norm, chunks);
    }
}

/* What later steps need: the set, its position, the queries, and what was dropped. */
void store_reference(const job *j, const prhs_set *set, const __global int *list, mem q, mem state)
{
    const prhs_k_state *st = &j->a->state;
    if (st->unit_off != PRHS_NONE) {
        __global prhs_unit_state *unit = SLOT_AT(state, st, unit_off, j->e.slot, prhs_unit_state) + j->u;
        unit->set = *set;
        unit->set.end = j->e.pos0 + 1;
        unit->ref_pos = j->e.pos0;
    }
    float dropped[PRHS_UH], spread[PRHS_UH];
    if (st->head_off != PRHS_NONE)
        dropped_lse(j, set, list, dropped, spread);
    for (int i = 0; i < PRHS_UH; i++) {
        int h = j->u * PRHS_UH + i;
        if (st->qref_off != PRHS_NONE)
            for (int v = 0; v < NV; v++)
                VSTORE(load_vec(PRHS_Q, row_at(&j->a->q, q, j->e.row0, h), v), v,
                       SLOT_AT(state, st, qref_off, j->e.slot, float) + (long)h * PRHS_D);
        if (st->head_off != PRHS_NONE)
            SLOT_AT(state, st, head_off, j->e.slot, prhs_head_ref)[h].l_dropped = dropped[i];
        if (st->spread_off != PRHS_NONE)
            SLOT_AT(state, st, spread_off, j->e.slot, float)[2 * h] = spread[i];
    }
}

/* The unit's set and candidates; false: it does not retrieve. */
bool begin_unit(job *j, long item, mem seqs, mem ws, prhs_set *set)
{
    const prhs_k_select *a = j->a;
    j->b = item / a->shape.units;
    j->u = (int)(item % a->shape.units);
    j->e = entry_of(&a->batch, seqs, j->b);
    *set = *set_at(ws, &a->work, &a->shape, j->b, j->u);
    if (j->e.kind == IDLE || set->mode != PRHS_MODE_RETRIEVE)
        return false;
    j->scores = FLOATS(ws, a->work.score_off) + (j->b * a->shape.heads + j->u * PRHS_UH) * a->work.score_stride;
    merge_norms(j, ws);
    const int run = a->policy.run;
    j->first = (set->mid_begin + run - 1) / run * run;
    j->count = max(0, (set->mid_end / run * run - j->first) / run);
    return true;
}

#ifdef PRHS_ONLY_aim
/* Where a run stands in the order, from its end: by key, then the lower position. */
ulong place_of(const __global uint *key, int r) { return (ulong)key[r] << 24 | (ulong)(0xffffff - r); }

/* The run's weight in head h, in whole numbers; a score that is no number may be all there is. */
ulong weight_of(const job *j, int h, int r)
{
    const __global float *s = j->scores + h * j->a->work.score_stride + j->first + (long)r * j->a->policy.run;
    ulong sum = 0;
    for (int t = 0; t < j->a->policy.run; t++)
        sum += bad_score(s[t]) ? (ulong)PRHS_MASS_ONE : (ulong)convert_long_rte(exp(s[t] - j->lse[h]) * PRHS_MASS_ONE);
    return sum;
}

/* How many of the best runs head h needs, to drop at most `most` with the others: these are taken from the end of the order. */
int need_of(const job *j, const __global uint *key, int h, ulong most)
{
    ulong prefix = 0, mass = 0;
    int dropped = 0;
    for (int shift = 48; shift >= 0; shift -= 8) {
        ulong masses[256];
        int counts[256], bin = 0;
        for (int i = 0; i < 256; i++) {
            masses[i] = 0;
            counts[i] = 0;
        }
        for (int r = 0; r < j->count; r++) {
            const ulong place = place_of(key, r);
            if (place >> (shift + 8) != prefix)
                continue;
            masses[place >> shift & 255] += weight_of(j, h, r);
            counts[place >> shift & 255]++;
        }
        for (; bin < 256 && masses[bin] <= most - mass; bin++) {
            mass += masses[bin];
            dropped += counts[bin];
        }
        if (bin == 256 || counts[bin] == 1)
            break;
        prefix = prefix << 8 | (ulong)bin;
    }
    return j->count - dropped;
}

/* No list would do: all of the unit's rows attend to everything; a seed has no rows. */
void miss(const prhs_k_aim *a, const job *j, mem state, mem ws)
{
    const bool seed = j->e.kind == SEED;
    const prhs_set all = { seed ? PRHS_MODE_IDLE : PRHS_MODE_DENSE, 0, 0, 0, 0, 1, 0, j->e.kv_len, 0, 0, { 0, 0 } };
    __global prhs_unit_stat *st = STAT_AT(state, &a->state, unit_stat_off, j->e.slot, prhs_unit_stat) + j->u;
    __global int *work = INTS(ws, a->work.work_off) + j->b * a->batch.rows * a->shape.units + j->u;
    *set_at(ws, &a->work, &a->shape, j->b, j->u) = all;
    for (int r = 0; r < j->e.rows; r++) {
        __global int *row = work + (long)r * a->shape.units;
        if (r > 0 && *row == PRHS_WORK_ALL)
            st->rows_dense--; /* not by its own gate any more */
        *row = seed ? PRHS_WORK_NONE : PRHS_WORK_ALL;
    }
    st->missed += !seed;
}

void aim_item(const prhs_k_aim *a, long item, mem seqs, mem state, mem ws)
{
    const prhs_k_select as = { .batch = a->batch, .shape = a->shape, .state = a->state, .work = a->work, .policy = a->policy };
    job j;
    prhs_set set;
    j.a = &as;
    if (!begin_unit(&j, item, seqs, ws, &set))
        return;
    __global uint *key = (__global uint *)(ws + a->work.aim_off) + item * a->work.score_stride;
    for (int r = 0; r < j.count; r += 16) {
        uint keys[16];
        run_keys(&j, r, keys);
        for (int i = 0; i < min(16, j.count - r); i++)
            key[r + i] = keys[i];
    }
    int keep = min(j.count, a->policy.least / a->policy.run);
    for (int h = 0; h < PRHS_UH; h++)
        keep = max(keep, need_of(&j, key, h, (ulong)a->mass));
    set_at(ws, &a->work, &a->shape, j.b, j.u)->reserved[1] = keep;
    if (keep > min(a->policy.k / a->policy.run, a->state.list_cap))
        miss(a, &j, state, ws);
}

KERNEL void prhs_aim(mem seqs, mem state, mem ws, const prhs_k_aim args)
{
    prhs_k_aim a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0))
        aim_item(&a, item, seqs, state, ws);
}
#else
void select_item(const prhs_k_select *a, long item, mem seqs, mem q, mem state, mem ws)
{
    job j;
    prhs_set set;
    j.a = a;
    if (!begin_unit(&j, item, seqs, ws, &set))
        return;
    const int run = a->policy.run, lo = set.mid_begin;
    set.run = run;
    const bool edge = j.count && j.first > lo;
    set.edge_begin = edge ? lo : 0;
    set.edge_end = edge ? j.first : 0;
    set.win_begin = j.count ? j.first + j.count * run : lo;
    __global int *list = SLOT_AT(state, &a->state, list_off, j.e.slot, int) + (long)j.u * a->state.list_cap;
    const int keep = a->policy.least > 0 ? set.reserved[1] : a->policy.k / run;
    set.count = fill_list(&j, min(min(keep, a->state.list_cap), j.count), list);
    *set_at(ws, &a->work, &a->shape, j.b, j.u) = set;
    store_reference(&j, &set, list, q, state);
}

KERNEL void prhs_select(mem seqs, mem q, mem state, mem ws, const prhs_k_select args)
{
    prhs_k_select a = args;
    long items = (long)a.batch.max_seqs * a.shape.units;
    for (long item = get_global_id(0); item < items; item += get_global_size(0))
        select_item(&a, item, seqs, q, state, ws);
}
#endif
