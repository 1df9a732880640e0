/* SPDX-License-Identifier: Apache-2.0 */
/* finish: merges a row's parts and ends the row: the mass gate's verdict, the residual, the dropped mass, output, statistics. */
#include "policy.h"

enum { SEQS, Q, STATE, WORK, OUT, LSE };

typedef struct scratch {
    float o[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM], q[PRHS_CPU_MAX_GROUP * PRHS_CPU_MAX_DIM];
    float lse[PRHS_CPU_MAX_GROUP], delta[PRHS_CPU_MAX_GROUP];
    float weight[PRHS_CPU_MAX_GROUP]; /* of what stands for the dropped tokens: the mass, or what it is judged to be */
} scratch;
_Static_assert(sizeof(scratch) <= PRHS_CPU_SCRATCH, "finish's scratch");

typedef struct task {
    const prhs_op *op;
    const prhs_k_finish *a;
    const prhs_seq *e;
    prhs_set *set;
    prhs_i32 *work; /* of row 0; rows are `units` apart */
    char *state, *ws;
    scratch *x;
    size_t b;
    int u, first, heads, n; /* first head; n: tokens of the row in hand */
} task;

/* What the row attended, as in attend; merges its parts into o and lse of every head of the unit. */
static void merge_row(task *k, int r) {
    const prhs_k_finish *a = k->a;
    const prhs_k_work *w = &a->work;
    int pos = prhs_cpu_row_pos(k->e, r), dim = a->shape.dim;
    prhs_set all = { .run = 1, .end = pos + 1 };
    bool whole = k->work[r * a->shape.units] == PRHS_WORK_ALL;
    k->n = prhs_cpu_span_of(whole ? &all : k->set, NULL, a->state.list_cap, pos + 1).n;
    int chunks = prhs_cpu_chunk_count(k->n, w->chunk_min, w->chunks);
    for (int j = 0; j < k->heads; j++) {
        prhs_i64 row = ((prhs_i64)k->b * a->batch.rows + r) * a->shape.heads + k->first + j;
        const float *part = (float *)(void *)(k->ws + w->part_off) + row * w->chunks * dim;
        const float *lse = (float *)(void *)(k->ws + w->part_lse_off) + row * w->chunks;
        k->x->lse[j] = prhs_cpu_merge_parts(part, dim, lse, 1, chunks, dim, k->x->o + j * dim);
        ((float *)(void *)(k->ws + w->lse_off))[row] = k->x->lse[j];
    }
}

/* Estimated dropped masses of row r under the mass gate; whether the gate holds for all heads (a NaN does not). */
static bool estimate_row(const task *k, int r) {
    const prhs_k_finish *a = k->a;
    int dim = a->shape.dim, pad = PRHS_CPU_PAD(dim);
    bool holds = true;
    prhs_cpu_load_q(&a->q, prhs_cpu_mem(k->op, Q), prhs_cpu_row_index(k->e, r), k->first, k->heads, dim, k->x->q);
    for (int j = 0; j < k->heads; j++) {
        const float *q = k->x->q + j * pad, *ref = prhs_cpu_qref(&a->state, k->state, k->e->slot, k->first + j, dim);
        const float *moments =
            (float *)prhs_cpu_state(&a->state, k->state, k->e->slot, a->state.moment_off) + (k->first + j) * 2 * dim;
        const prhs_head_ref *head = prhs_cpu_head(&a->state, k->state, k->e->slot, k->first + j);
        const float *spread = prhs_cpu_spread(&a->state, k->state, k->e->slot, k->first + j);
        k->x->delta[j] = prhs_cpu_estimate(q, ref, moments, spread, dim, a->shape.scale, head->l_dropped, k->x->lse[j], &k->x->weight[j]);
        holds = holds && k->x->weight[j] - (a->policy.least > 0 ? 0.0f : head->delta) <= a->policy.eps;
        if (r > 0) /* plan has checked row 0 */
            holds = holds && prhs_cpu_cosine(q, ref, dim) > a->policy.tau;
    }
    return holds;
}

/* o of head j of the unit, with the dropped part replaced by what it was at the reference. */
static void put_dropped(const task *k, int j, float delta) {
    const prhs_k_finish *a = k->a;
    int dim = a->shape.dim;
    const float *vhat = (float *)prhs_cpu_state(&a->state, k->state, k->e->slot, a->state.vhat_off) + (k->first + j) * dim;
    float *o = k->x->o + j * dim;
    for (int d = 0; d < dim; d++)
        o[d] = (1.0f - delta) * o[d] + delta * vhat[d];
}

/* The same, replaced by the mean of all values. */
static void put_mean(const task *k, int j, float delta) {
    const prhs_k_finish *a = k->a;
    int hk = k->first / a->shape.group, dim = a->shape.dim;
    const prhs_i64 *sum = (prhs_i64 *)prhs_cpu_state(&a->state, k->state, k->e->slot, a->state.vsum_off) + hk * dim;
    const prhs_value_count *count = (prhs_value_count *)prhs_cpu_state(&a->state, k->state, k->e->slot, a->state.vcount_off) + hk;
    float *o = k->x->o + j * dim;
    for (int d = 0; d < dim; d++) {
        float mean = count->nonfinite > 0 ? NAN : (float)((double)sum[d] / 16777216.0 / count->rows);
        o[d] = (1.0f - delta) * o[d] + delta * mean;
    }
}

/* Writes the row; `masses`: something was dropped. */
static void output(task *k, int r, bool masses) {
    const prhs_k_finish *a = k->a;
    int row = prhs_cpu_row_index(k->e, r), dim = a->shape.dim;
    for (int j = 0; j < k->heads; j++) {
        float delta = masses ? k->x->weight[j] : 0.0f;
        if (a->policy.residual == PRHS_K_RESIDUAL_MEAN && delta != 0.0f)
            put_mean(k, j, delta);
        else if (a->policy.residual == PRHS_K_RESIDUAL_RETRIEVED && delta != 0.0f)
            put_dropped(k, j, delta);
        prhs_cpu_store(a->out.dtype, prhs_cpu_row(&a->out, prhs_cpu_mem(k->op, OUT), row, k->first + j), dim, k->x->o + j * dim);
        if (a->lse_off != PRHS_NONE)
            ((float *)(void *)(prhs_cpu_mem(k->op, LSE) + a->lse_off))[(prhs_i64)row * a->shape.heads + k->first + j] =
                k->x->lse[j];
    }
    k->work[r * a->shape.units] = PRHS_WORK_NONE;
}

static void add_mass(float mass, prhs_i64 *sum, prhs_i64 *count, prhs_i64 *nans) {
    if (mass != mass) {
        ++*nans;
        return;
    }
    *sum += (prhs_i64)llrintf(mass * PRHS_MASS_ONE);
    ++*count;
}

/* Per head: the mass of this step, by its grade. DENSE drops nothing, of WINDOW, STREAM and COPY nothing is known. */
static void count_masses(const task *k, prhs_i32 mode) {
    for (int j = 0; j < k->heads; j++) {
        prhs_head_ref *head = prhs_cpu_head(&k->a->state, k->state, k->e->slot, k->first + j);
        prhs_head_stat *stat = prhs_cpu_head_stat(&k->a->state, k->state, k->e->slot, k->first + j);
        float mass = mode == PRHS_MODE_DENSE ? 0.0f : NAN;
        if (mode == PRHS_MODE_RETRIEVE) {
            mass = k->x->delta[j];
            add_mass(mass, &stat->exact_sum, &stat->exact_count, &stat->nan_count);
        } else if (mode == PRHS_MODE_SHARE) {
            const bool judged = k->a->policy.gate == PRHS_K_GATE_MASS;
            mass = judged ? k->x->delta[j] : head->delta;
            if (judged)
                prhs_cpu_spread(&k->a->state, k->state, k->e->slot, k->first + j)[1] = k->x->weight[j];
            add_mass(mass, &stat->estimate_sum, &stat->estimate_count, &stat->nan_count);
        }
        head->delta_last = mass;
    }
}

/* Row 0 of a decode step has ended. Layers that are dense by policy have no state. */
static void count_step(const task *k) {
    const prhs_k_policy *p = &k->a->policy;
    prhs_i32 mode = k->set->mode, count = k->set->count * k->set->run;
    if (p->dense)
        return;
    prhs_unit_state *st = prhs_cpu_unit(&k->a->state, k->state, k->e->slot, k->u);
    prhs_unit_stat *stat = prhs_cpu_unit_stat(&k->a->state, k->state, k->e->slot, k->u);
    prhs_i64 kept = 0;
    if (mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE)
        kept = k->set->sink_end + k->set->edge_end - k->set->edge_begin + count + st->set.end - st->set.win_begin;
    else if (mode == PRHS_MODE_STREAM)
        kept = k->set->sink_end + p->local_tokens;
    else if (mode == PRHS_MODE_WINDOW || mode == PRHS_MODE_COPY)
        kept = k->n;
    stat->steps++;
    stat->dense += mode == PRHS_MODE_DENSE;
    stat->window += mode == PRHS_MODE_WINDOW;
    stat->stream += mode == PRHS_MODE_STREAM;
    stat->share += mode == PRHS_MODE_SHARE;
    stat->retrieve += mode == PRHS_MODE_RETRIEVE;
    stat->copy += mode == PRHS_MODE_COPY;
    stat->kept += kept;
    stat->attended += k->n;
    st->set.mode = mode;
    count_masses(k, mode);
}

/* Row 0 where its list is new: what was dropped is known exactly. */
static void end_retrieval(task *k) {
    for (int j = 0; j < k->heads; j++) {
        prhs_head_ref *head = prhs_cpu_head(&k->a->state, k->state, k->e->slot, k->first + j);
        float l = head->l_dropped;
        k->x->delta[j] = k->x->weight[j] = l == -INFINITY ? 0.0f : prhs_cpu_sigmoid(l - k->x->lse[j]);
        head->delta = head->delta_last = k->x->delta[j];
    }
    if (k->e->flags & PRHS_SEQ_SEED) {
        k->work[0] = PRHS_WORK_NONE;
        prhs_cpu_unit_stat(&k->a->state, k->state, k->e->slot, k->u)->seed++;
        return;
    }
    count_step(k);
    output(k, 0, true);
}

static void hand_on(const task *k, int from) {
    for (int r = from; r < prhs_cpu_decode_rows(k->e); r++)
        k->work[r * k->a->shape.units] = PRHS_WORK_SET;
}

/* Row 0 under the mass gate with the list of an earlier step: ends it, or turns the unit to retrieval. The next pass goes on. */
static void judge_share(task *k) {
    const prhs_k_finish *a = k->a;
    if (estimate_row(k, 0)) {
        count_step(k);
        output(k, 0, true);
        hand_on(k, 1);
        return;
    }
    *k->set = prhs_cpu_fresh(&a->policy, prhs_cpu_row_pos(k->e, 0), k->e->kv_len);
    prhs_cpu_unit_stat(&a->state, k->state, k->e->slot, k->u)->mass_failed++;
    hand_on(k, 0);
}

/* A further row of a unit with a list: by its own verdict under the mass gate, which may send it to another pass. */
static void end_further(task *k, int r) {
    if (k->a->policy.gate != PRHS_K_GATE_MASS) {
        output(k, r, false);
    } else if (estimate_row(k, r)) {
        output(k, r, true);
    } else {
        k->work[r * k->a->shape.units] = PRHS_WORK_ALL;
        prhs_cpu_unit_stat(&k->a->state, k->state, k->e->slot, k->u)->rows_dense++;
    }
}

/* Ends row r; false: the unit's later rows belong to the next pass. */
static bool end_row(task *k, int r) {
    prhs_i32 todo = k->work[r * k->a->shape.units], mode = k->set->mode;
    if (todo == PRHS_WORK_NONE) {
        if (r > 0 || !k->a->verify || mode != PRHS_MODE_RETRIEVE)
            return true;
        hand_on(k, 0);
        return false;
    }
    merge_row(k, r);
    bool listed = todo == PRHS_WORK_SET && (mode == PRHS_MODE_SHARE || mode == PRHS_MODE_RETRIEVE);
    if (listed && r > 0) {
        end_further(k, r);
    } else if (listed && mode == PRHS_MODE_RETRIEVE) {
        end_retrieval(k);
    } else if (listed && k->a->policy.gate == PRHS_K_GATE_MASS) {
        judge_share(k);
        return false;
    } else {
        if (r == 0)
            count_step(k);
        output(k, r, false);
    }
    return true;
}

static void finish_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item) {
    const prhs_k_finish *a = &op->args.finish;
    task k = { .op = op, .a = a, .state = prhs_cpu_mem(op, STATE), .ws = prhs_cpu_mem(op, WORK), .x = worker->scratch };
    k.b = item / (size_t)a->shape.units;
    k.u = (int)(item % (size_t)a->shape.units);
    k.heads = a->shape.unit_heads;
    k.first = k.u * k.heads;
    k.e = prhs_cpu_seq(&a->batch, prhs_cpu_mem(op, SEQS), k.b);
    if (prhs_cpu_idle(&a->batch, k.e))
        return;
    k.set = prhs_cpu_set(&a->work, &a->shape, k.ws, k.b, k.u);
    k.work = prhs_cpu_work(&a->work, &a->batch, &a->shape, k.ws, k.b, k.u);
    if (k.set->mode == PRHS_MODE_IDLE)
        return;
    for (int r = 0; r < prhs_cpu_decode_rows(k.e); r++)
        if (!end_row(&k, r))
            break;
}

void prhs_cpu_finish(prhs_queue *queue, const prhs_op *op) {
    const prhs_k_finish *a = &op->args.finish;
    size_t items = (size_t)a->batch.max_seqs * (size_t)a->shape.units;
    prhs_cpu_run(queue, op, items, (double)items * a->batch.rows * a->shape.unit_heads * a->shape.dim * 16, finish_item);
}
