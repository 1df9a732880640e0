/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aim: how many candidates a target takes. select: exact top-k of the middle by radix selection. A candidate (a token, or a run
 * of tokens) has a 32-bit key that is monotone in the order of docs/kernels.md; four passes over its bytes find the smallest key
 * that is kept and how many of its equals.
 */
#include "rows.h"

enum { SEQS, Q, STATE, WORK, AIM_STATE = 1, AIM_WORK };
enum { CACHE = 60 * 1024, BLOCK = 256 };

typedef struct scratch {
    uint32_t key[CACHE]; /* of all candidates if they fit, else of one block at a time */
    float joint[BLOCK], weight[BLOCK];
    float lse[PRHS_CPU_MAX_GROUP];
    uint32_t count[256];
    uint64_t mass[256];
    uint8_t bin[BLOCK];
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "select's scratch");

typedef struct task {
    const prhs_k_select *a;
    const prhs_cpu_lanes *lanes;
    const prhs_seq *e;
    prhs_set *set;
    prhs_i32 *list;
    scratch *x;
    char *work, *state;
    size_t b;
    int u, t;
    int run, first, n; /* candidate i covers [first + i*run, first + (i+1)*run) */
    bool raw, cached;  /* keys are scores; x->key holds all of them */
} task;

/* Best m candidates, ascending; the others walk past them to know whether they are neighbours. */
typedef struct forced {
    const prhs_i32 *centre;
    int m, at, back, ahead;
    prhs_i32 last, next;
} forced;

#define FAR (1 << 30)

static forced force(const prhs_i32 *centre, int m, const prhs_k_policy *p) {
    return (forced){ centre, m, 0, p->dilate_back, p->dilate_ahead, -FAR, m > 0 ? centre[0] : FAR };
}

/* For i in ascending order. A centre is read before the list, in whose end they are kept, can grow over it. */
static bool is_forced(forced *f, int i) {
    if (i == f->next) {
        f->last = i;
        f->next = ++f->at < f->m ? f->centre[f->at] : FAR;
        return true;
    }
    return i - f->last <= f->ahead || f->next - i <= f->back;
}

/* NaN and +inf first, then by value; both zeros are one. */
static uint32_t key_of(float x) {
    if (!(x < INFINITY))
        return 0xffffffffu;
    uint32_t bits = prhs_cpu_bits(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Joint weights of n <= BLOCK tokens from position j on, into x->joint; NaN where a head's score is NaN or +inf. */
static void join_tokens(const task *k, int j, int n) {
    const prhs_k_select *a = k->a;
    float *joint = k->x->joint, *w = k->x->weight;
    for (int h = 0; h < a->shape.unit_heads; h++) {
        const float *s = prhs_cpu_scores(&a->work, &a->shape, k->work, k->b, k->u * a->shape.unit_heads + h) + j;
        float lse = k->x->lse[h];
        for (int i = 0; i < n; i++)
            w[i] = !(s[i] < INFINITY) ? NAN : lse == -INFINITY ? -INFINITY : s[i] - lse;
        k->lanes->exps(w, n);
        for (int i = 0; i < n; i++)
            if (h == 0)
                joint[i] = w[i];
            else if (a->policy.join == PRHS_K_JOIN_MAX)
                joint[i] = w[i] > joint[i] || w[i] != w[i] ? w[i] : joint[i];
            else
                joint[i] += w[i];
    }
}

/* The sum of a run's tokens, ascending, across blocks. */
static float join_run(const task *k, int j) {
    float sum = 0.0f;
    for (int i = 0; i < k->run; i += BLOCK) {
        int n = prhs_cpu_min(BLOCK, k->run - i);
        join_tokens(k, j + i, n);
        for (int r = 0; r < n; r++)
            sum += k->x->joint[r];
    }
    return sum;
}

static void fill_keys(const task *k, int i, int n, uint32_t *key) {
    const prhs_k_select *a = k->a;
    if (k->raw) {
        const float *s = prhs_cpu_scores(&a->work, &a->shape, k->work, k->b, k->u) + k->first + i;
        for (int r = 0; r < n; r++)
            key[r] = key_of(s[r]);
    } else if (k->run == 1) {
        for (int r = 0; r < n; r += BLOCK) {
            int m = prhs_cpu_min(BLOCK, n - r);
            join_tokens(k, k->first + i + r, m);
            for (int q = 0; q < m; q++)
                key[r + q] = key_of(k->x->joint[q]);
        }
    } else {
        for (int r = 0; r < n; r++)
            key[r] = key_of(join_run(k, k->first + (i + r) * k->run));
    }
}

/* Keys of candidates i ... i+n-1. */
static const uint32_t *keys(const task *k, int i, int n) {
    if (k->cached)
        return k->x->key + i;
    fill_keys(k, i, n, k->x->key);
    return k->x->key;
}

/* The threshold for the best `want` candidates that are not forced: all keys above it, and *equals of its own. */
static uint32_t find_threshold(const task *k, int want, forced f0, int *equals) {
    uint32_t prefix = 0, *count = k->x->count;
    for (int shift = 24; shift >= 0; shift -= 8) {
        forced f = f0;
        memset(count, 0, sizeof k->x->count);
        for (int i = 0; i < k->n; i += BLOCK) {
            int n = prhs_cpu_min(BLOCK, k->n - i);
            const uint32_t *key = keys(k, i, n);
            for (int r = 0; r < n; r++)
                if ((f.m == 0 || !is_forced(&f, i + r)) && (shift == 24 || key[r] >> (shift + 8) == prefix))
                    count[key[r] >> shift & 255]++;
        }
        uint32_t byte = 255;
        while (byte > 0 && (int)count[byte] < want)
            want -= (int)count[byte--];
        prefix = prefix << 8 | byte;
    }
    *equals = want;
    return prefix;
}

/* Writes the forced and the best `want` others, ascending, as candidate numbers; returns how many: at most `cap`. */
static int emit(const task *k, int want, forced f, prhs_i32 *out, int cap) {
    int equals = 0, m = 0;
    uint32_t threshold = want > 0 ? find_threshold(k, want, f, &equals) : 0xffffffffu;
    for (int i = 0; i < k->n; i += BLOCK) {
        int n = prhs_cpu_min(BLOCK, k->n - i);
        const uint32_t *key = keys(k, i, n);
        for (int r = 0; r < n; r++) {
            bool take = f.m > 0 && is_forced(&f, i + r);
            if (!take)
                take = key[r] > threshold || (key[r] == threshold && equals-- > 0);
            if (take && m < cap)
                out[m++] = i + r;
        }
    }
    return m;
}

static int count_forced(const task *k, forced f) {
    int n = 0;
    for (int i = 0; i < k->n; i++)
        n += is_forced(&f, i);
    return n;
}

/* The list as candidate numbers; the centres of the dilation wait at the list's end meanwhile. */
static int choose(const task *k) {
    const prhs_k_policy *p = &k->a->policy;
    int keep = prhs_cpu_min(p->least > 0 ? k->set->reserved[1] : p->k / k->run, k->a->state.list_cap);
    if (k->n <= keep) {
        for (int i = 0; i < k->n; i++)
            k->list[i] = i;
        return k->n;
    }
    forced none = force(NULL, 0, p);
    int m = prhs_cpu_min(p->dilate_m, keep);
    if (m <= 0)
        return emit(k, keep, none, k->list, keep);
    prhs_i32 *centres = k->list + k->a->state.list_cap - m;
    emit(k, m, none, centres, m);
    forced f = force(centres, m, p);
    return emit(k, prhs_cpu_max(0, keep - count_forced(k, f)), f, k->list, keep);
}

/* Cuts the middle into runs: what is no whole run joins the edge or the window. */
static void cut_runs(task *k) {
    prhs_set *set = k->set;
    int low = prhs_cpu_max(0, set->mid_begin), high = prhs_cpu_min(set->mid_end, k->t + 1);
    int g = prhs_cpu_max(1, k->a->policy.run), first = (low + g - 1) / g * g, n = prhs_cpu_max(0, high / g - first / g);
    set->run = k->run = g;
    set->edge_begin = set->edge_end = 0;
    k->first = first;
    k->n = n;
    if (n == 0) {
        set->win_begin = low;
        return;
    }
    if (first > low)
        set->edge_begin = low, set->edge_end = first;
    set->win_begin = first + n * g;
}

/* Log-sum-exps of the unit's heads over all scored tokens. */
static void merge_norms(task *k) {
    const prhs_k_work *w = &k->a->work;
    int chunks = prhs_cpu_chunk_count(k->t + 1, w->score_chunk_min, w->score_chunks);
    for (int h = 0; h < k->a->shape.unit_heads; h++) {
        const float *norm = prhs_cpu_norms(w, &k->a->shape, k->work, k->b, k->u * k->a->shape.unit_heads + h);
        float max = PRHS_CPU_LOWEST, sum = 0.0f;
        for (int c = 0; c < chunks; c++)
            max = norm[4 * c] > max ? norm[4 * c] : max;
        for (int c = 0; c < chunks; c++)
            sum += norm[4 * c + 1] * expf(norm[4 * c] - max);
        k->x->lse[h] = sum == 0.0f ? -INFINITY : max + logf(sum);
    }
}

/* Of n dropped tokens: sums of the weights e, of e*x and of e*x*x, x being their logarithms. */
static void add_dropped(float *e, const float *x, int n, float sums[3]) {
    sums[0] += prhs_cpu_sum(e, n);
    for (int m = 1; m < 3; m++) {
        for (int i = 0; i < n; i++)
            e[i] *= x[i];
        sums[m] += prhs_cpu_sum(e, n);
    }
}

/* L_D of a head: exp of each dropped candidate's scores, relative to the middle's maximum, block by block; *spread: the scores'
 * variance. */
static float sum_dropped(const task *k, int h, float *spread) {
    const prhs_k_work *w = &k->a->work;
    const float *s = prhs_cpu_scores(w, &k->a->shape, k->work, k->b, h),
                *norm = prhs_cpu_norms(w, &k->a->shape, k->work, k->b, h);
    int chunks = prhs_cpu_chunk_count(k->t + 1, w->score_chunk_min, w->score_chunks), at = 0;
    float max = PRHS_CPU_LOWEST, sums[3] = { 0 }, *e = k->x->weight, *x = k->x->joint;
    for (int c = 0; c < chunks; c++)
        max = norm[4 * c + 2] > max ? norm[4 * c + 2] : max;
    for (int j = k->first, end = k->first + k->n * k->run; j < end; j += BLOCK) {
        int n = prhs_cpu_min(BLOCK, end - j);
        for (int i = 0; i < n; i++)
            e[i] = s[j + i] < INFINITY ? s[j + i] - max : NAN;
        for (; at < k->set->count && k->list[at] < j + n; at++)
            for (int p = prhs_cpu_max(k->list[at], j); p < k->list[at] + k->run && p < j + n; p++)
                e[p - j] = -INFINITY;
        if (at > 0 && k->list[at - 1] + k->run > j + n)
            at--; /* it goes on in the next block */
        for (int i = 0; i < n; i++)
            x[i] = e[i] > -200.0f ? e[i] : -200.0f; /* whose weight is 0 */
        k->lanes->exps(e, n);
        add_dropped(e, x, n, sums);
    }
    const float mean = sums[1] / sums[0], variance = sums[2] / sums[0] - mean * mean;
    *spread = sums[0] == 0.0f || variance < 0.0f ? 0.0f : variance;
    return sums[0] == 0.0f ? -INFINITY : max + logf(sums[0]);
}

static void remember(const prhs_op *op, const task *k) {
    const prhs_k_select *a = k->a;
    const prhs_k_state *st = &a->state;
    int heads = a->shape.unit_heads, dim = a->shape.dim;
    if (st->unit_off != PRHS_NONE) {
        prhs_unit_state *unit = prhs_cpu_unit(st, k->state, k->e->slot, k->u);
        unit->set = *k->set;
        unit->set.end = k->t + 1; /* the state knows row 0 only */
        unit->ref_pos = k->t;
    }
    for (int h = k->u * heads; h < (k->u + 1) * heads; h++) {
        if (st->qref_off != PRHS_NONE)
            prhs_cpu_load(a->q.dtype, prhs_cpu_row(&a->q, prhs_cpu_mem(op, Q), prhs_cpu_row_index(k->e, 0), h), dim,
                          prhs_cpu_qref(st, k->state, k->e->slot, h, dim));
        float spread = 0.0f;
        if (st->head_off != PRHS_NONE)
            prhs_cpu_head(st, k->state, k->e->slot, h)->l_dropped =
                k->set->count == k->n ? -INFINITY : sum_dropped(k, h, &spread);
        if (st->spread_off != PRHS_NONE)
            *prhs_cpu_spread(st, k->state, k->e->slot, h) = spread;
    }
}

/* --- aim --- */

/* Weights that wait for their exponentials, and the bins that they belong to. */
static void add_weights(const task *k, int n) {
    scratch *x = k->x;
    k->lanes->exps(x->weight, n);
    for (int i = 0; i < n; i++)
        x->mass[x->bin[i]] += (uint64_t)llrintf(x->weight[i] * PRHS_MASS_ONE);
}

/* Where a candidate stands in the order, from its end: by key, then the lower position. */
static uint64_t place_of(const uint32_t *key, int i) { return (uint64_t)key[i] << 24 | (uint64_t)(0xffffff - i); }

/* Candidates whose place begins with `prefix`, and their weights in head h, in whole numbers, by the next byte of the place. */
static void fill_bins(const task *k, const uint32_t *key, int h, int shift, uint64_t prefix) {
    const float *s = prhs_cpu_scores(&k->a->work, &k->a->shape, k->work, k->b, k->u * k->a->shape.unit_heads + h) + k->first;
    const float lse = k->x->lse[h];
    scratch *x = k->x;
    int n = 0;
    memset(x->count, 0, sizeof x->count);
    memset(x->mass, 0, sizeof x->mass);
    for (int i = 0; i < k->n; i++) {
        const uint64_t place = place_of(key, i);
        const uint8_t bin = (uint8_t)(place >> shift);
        if (place >> (shift + 8) != prefix)
            continue;
        x->count[bin]++;
        for (int r = 0; r < k->run; r++) {
            const float score = s[(prhs_i64)i * k->run + r];
            if (!(score < INFINITY)) /* it may be all there is */
                x->mass[bin] += (uint64_t)PRHS_MASS_ONE;
            if (!(score < INFINITY) || lse == -INFINITY)
                continue;
            x->weight[n] = score - lse;
            x->bin[n++] = bin;
            if (n == BLOCK) {
                add_weights(k, n);
                n = 0;
            }
        }
    }
    add_weights(k, n);
}

/* How many of the best candidates head h needs, to drop at most `most` with the others: these are taken from the end of the
 * order. */
static int need_of(const task *k, const uint32_t *key, int h, uint64_t most) {
    uint64_t prefix = 0, mass = 0;
    int dropped = 0;
    for (int shift = 48; shift >= 0; shift -= 8) {
        int bin = 0;
        fill_bins(k, key, h, shift, prefix);
        for (; bin < 256 && k->x->mass[bin] <= most - mass; bin++) {
            mass += k->x->mass[bin];
            dropped += (int)k->x->count[bin];
        }
        if (bin == 256 || k->x->count[bin] == 1)
            break;
        prefix = prefix << 8 | (uint64_t)bin;
    }
    return k->n - dropped;
}

/* No list would do: all of the unit's rows attend to everything; a seed has no rows. */
static void miss(const prhs_k_aim *a, const task *k) {
    const bool seed = k->e->flags & PRHS_SEQ_SEED;
    prhs_i32 *todo = prhs_cpu_work(&a->work, &a->batch, &a->shape, k->work, k->b, k->u);
    prhs_unit_stat *stat = prhs_cpu_unit_stat(&a->state, k->state, k->e->slot, k->u);
    *k->set = (prhs_set){ .mode = seed ? PRHS_MODE_IDLE : PRHS_MODE_DENSE, .run = 1, .end = k->e->kv_len };
    for (int r = 0; r < prhs_cpu_decode_rows(k->e); r++) {
        if (r > 0 && todo[r * a->shape.units] == PRHS_WORK_ALL)
            stat->rows_dense--; /* not by its own gate any more */
        todo[r * a->shape.units] = seed ? PRHS_WORK_NONE : PRHS_WORK_ALL;
    }
    stat->missed += !seed;
}

/* The unit's candidates, as far as both ops look at them; false: it does not retrieve. */
static bool begin_unit(task *k, size_t item) {
    const prhs_k_select *a = k->a;
    k->b = item / (size_t)a->shape.units;
    k->u = (int)(item % (size_t)a->shape.units);
    if (prhs_cpu_idle(&a->batch, k->e) || prhs_cpu_decode_rows(k->e) == 0)
        return false;
    k->set = prhs_cpu_set(&a->work, &a->shape, k->work, k->b, k->u);
    if (k->set->mode != PRHS_MODE_RETRIEVE)
        return false;
    k->t = prhs_cpu_row_pos(k->e, 0);
    k->raw = a->shape.unit_heads == 1 && a->policy.run <= 1;
    return true;
}

static void aim_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_aim *a = &op->args.aim;
    const prhs_k_select as = { .batch = a->batch, .shape = a->shape, .state = a->state, .work = a->work, .policy = a->policy };
    task k = { .a = &as,
               .lanes = worker->lanes,
               .x = worker->scratch,
               .work = prhs_cpu_mem(op, AIM_WORK),
               .state = prhs_cpu_mem(op, AIM_STATE) };
    k.e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), item / (size_t)a->shape.units);
    if (!begin_unit(&k, item))
        return;
    prhs_set *const set = k.set;
    prhs_set cut = *set; /* select's affair */
    k.set = &cut;
    cut_runs(&k);
    k.set = set;
    uint32_t *key = (uint32_t *)(void *)(k.work + a->work.aim_off) + (prhs_i64)item * a->work.score_stride;
    int keep = prhs_cpu_min(k.n, a->policy.least / k.run);
    merge_norms(&k);
    fill_keys(&k, 0, k.n, key);
    for (int h = 0; h < a->shape.unit_heads; h++)
        keep = prhs_cpu_max(keep, need_of(&k, key, h, (uint64_t)a->mass));
    k.set->reserved[1] = keep;
    if (keep > prhs_cpu_min(a->policy.k / k.run, a->state.list_cap))
        miss(a, &k);
}

void prhs_cpu_aim(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_aim *a = &op->args.aim;
    double tokens;
    prhs_cpu_longest(&a->batch, prhs_cpu_mem(op, SEQS), false, &tokens);
    prhs_cpu_run(queue, op, (size_t)a->batch.max_seqs * (size_t)a->shape.units, tokens * a->shape.heads * 64, aim_item);
}

/* --- select --- */

static void select_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_select *a = &op->args.select;
    task k = {
        .a = a, .lanes = worker->lanes, .x = worker->scratch, .work = prhs_cpu_mem(op, WORK), .state = prhs_cpu_mem(op, STATE)
    };
    k.e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), item / (size_t)a->shape.units);
    if (!begin_unit(&k, item))
        return;
    cut_runs(&k);
    k.list = prhs_cpu_list(&a->state, k.state, k.e->slot, k.u);
    k.cached = k.n <= CACHE;
    if (!k.raw)
        merge_norms(&k);
    if (k.cached)
        fill_keys(&k, 0, k.n, k.x->key);
    k.set->count = choose(&k);
    for (int i = 0; i < k.set->count; i++)
        k.list[i] = k.first + k.list[i] * k.run;
    remember(op, &k);
}

void prhs_cpu_select(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_select *a = &op->args.select;
    double tokens;
    prhs_cpu_longest(&a->batch, prhs_cpu_mem(op, SEQS), false, &tokens);
    prhs_cpu_run(queue, op, (size_t)a->batch.max_seqs * (size_t)a->shape.units, tokens * a->shape.heads * 16, select_item);
}
