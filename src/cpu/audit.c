/* SPDX-License-Identifier: Apache-2.0 */
/* audit: the exact dropped mass of row 0 from its scores over all tokens. Statistics only: no reference changes. */
#include "rows.h"

enum { SEQS, STATE, WORK };
enum { BLOCK = 256 };

typedef struct scratch {
    float kept[BLOCK], dropped[BLOCK];
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "audit's scratch");

/* Walks the attended positions of a set in ascending order: its parts are disjoint and ascending. */
typedef struct walk {
    const prhs_cpu_span *span;
    int i, next;
} walk;

static bool attended(walk *w, int j) {
    if (j != w->next)
        return false;
    w->i++;
    w->next = w->i < w->span->n ? prhs_cpu_span_at(w->span, w->i) : -1;
    return true;
}

/* Dropped mass of scores s over n positions: both sums directly, relative to their common maximum. */
static float dropped_mass(const prhs_cpu_lanes *lanes, const prhs_cpu_span *span, const float *s, int n, scratch *x) {
    walk w = { span, 0, span->n > 0 ? prhs_cpu_span_at(span, 0) : -1 };
    float max = PRHS_CPU_LOWEST, kept = 0.0f, dropped = 0.0f;
    for (int j = 0; j < n; j++)
        max = s[j] > max && s[j] < INFINITY ? s[j] : max;
    for (int j = 0; j < n; j += BLOCK) {
        int m = prhs_cpu_min(BLOCK, n - j);
        for (int i = 0; i < m; i++) {
            float e = s[j + i] < INFINITY ? s[j + i] - max : NAN;
            bool in = attended(&w, j + i);
            x->kept[i] = in ? e : -INFINITY;
            x->dropped[i] = in ? -INFINITY : e;
        }
        lanes->exps(x->kept, m);
        lanes->exps(x->dropped, m);
        kept += prhs_cpu_sum(x->kept, m);
        dropped += prhs_cpu_sum(x->dropped, m);
    }
    return span->n >= n ? 0.0f : prhs_cpu_sigmoid(logf(dropped) - logf(kept));
}

static prhs_i64 fixed(float mass) { return (prhs_i64)llrintf(mass * PRHS_MASS_ONE); }

static void book_sample(prhs_sample_stat *s, float mass, float worst) {
    s->count++;
    s->sum += fixed(mass);
    s->square += fixed(mass * mass);
    s->worst_sum += fixed(worst);
    s->worst_square += fixed(worst * worst);
}

/* One head's audit; known: what the step said, weight: the residual's. Returns max(mass, weight) where there is one. */
static float book_head(const prhs_k_audit *a, prhs_head_stat *stat, float mass, float known, float weight, bool shared, bool unknown) {
    const float worst = a->residual != PRHS_K_RESIDUAL_NONE && weight > mass ? weight : mass;
    if (mass != mass) {
        stat->nan_count++;
        return mass;
    }
    stat->audit_sum += fixed(mass);
    stat->audit_count++;
    stat->within += mass <= a->target;
    if (unknown)
        book_sample(&stat->sample, mass, worst);
    if (shared && known == known) {
        stat->pair_count++;
        stat->pair_exact += fixed(mass);
        stat->pair_estimate += fixed(known);
        stat->pair_off += fixed(fabsf(known - mass));
        stat->pair_square += fixed((known - mass) * (known - mass));
    }
    return worst;
}

static void audit_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_audit *a = &op->args.audit;
    char *state = prhs_cpu_mem(op, STATE), *work = prhs_cpu_mem(op, WORK);
    size_t b = item / (size_t)a->shape.units;
    int u = (int)(item % (size_t)a->shape.units);
    const prhs_seq *e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), b);
    if (prhs_cpu_idle(&a->batch, e) || !prhs_cpu_decodes(e))
        return;
    const prhs_set *set = prhs_cpu_set(&a->work, &a->shape, work, b, u);
    int n = prhs_cpu_row_pos(e, 0) + 1;
    if (!(a->modes >> set->mode & 1) || !prhs_is_drawn(a->sample, e->slot, u, n - 1))
        return;
    const bool unknown = a->unknown >> set->mode & 1;
    float sum = 0.0f, worst = 0.0f;
    prhs_cpu_span span = prhs_cpu_span_of(set, prhs_cpu_list(&a->state, state, e->slot, u), a->state.list_cap, n);
    for (int h = u * a->shape.unit_heads; h < (u + 1) * a->shape.unit_heads; h++) {
        float mass = dropped_mass(worker->lanes, &span, prhs_cpu_scores(&a->work, &a->shape, work, b, h), n, worker->scratch);
        prhs_head_stat *stat = prhs_cpu_head_stat(&a->state, state, e->slot, h);
        prhs_head_ref *head = prhs_cpu_head(&a->state, state, e->slot, h);
        const bool judged = set->mode == PRHS_MODE_SHARE && a->residual != PRHS_K_RESIDUAL_NONE;
        const float weight = judged ? prhs_cpu_spread(&a->state, state, e->slot, h)[1] : head->delta_last;
        head->audit_last = mass;
        worst += book_head(a, stat, mass, head->delta_last, weight, set->mode == PRHS_MODE_SHARE, unknown);
        sum += mass;
    }
    const float each = 1.0f / (float)a->shape.unit_heads;
    if (unknown && sum == sum)
        book_sample(&prhs_cpu_unit_stat(&a->state, state, e->slot, u)->sample, sum * each, worst * each);
}

void prhs_cpu_audit(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_audit *a = &op->args.audit;
    double tokens;
    prhs_cpu_longest(&a->batch, prhs_cpu_mem(op, SEQS), false, &tokens);
    prhs_cpu_run(queue, op, (size_t)a->batch.max_seqs * (size_t)a->shape.units, tokens * a->shape.heads * 16, audit_item);
}
