/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decode steps that one launch serves, a block a unit from the plan to the output. That is faster where there are units for all
 * multiprocessors and none is so long that others would wait for its retrieval; bits are the same either way. Nothing here calls
 * the driver.
 */
#include "fill.h"

#include <string.h>

enum {
    FEW_WARPS = 4,
    MANY_WARPS = 8, /* of a block; four such blocks, or two, are what a multiprocessor holds */
    FEW_TOKENS = 4096,
    MANY_TOKENS = 8192 /* of a sequence, up to which such blocks are faster than several launches */
};

/* A multiprocessor's blocks that the units need; more than four: they would take turns. */
static prhs_i64 blocks_each(const prhs_nv_device *dev, const prhs_k_batch *batch, const prhs_k_shape *shape) {
    const prhs_i64 units = (prhs_i64)batch->max_seqs * shape->units,
                   each = dev->head.info.compute_units ? dev->head.info.compute_units : 1;
    return units < each ? 0 : (units + each - 1) / each;
}

bool prhs_nv_whole_exists(const prhs_nv_device *dev, const prhs_op_key *key) {
    return key->kind == PRHS_OP_SCORE && key->moments <= PRHS_K_MOMENTS_KEYS && key->unit_heads == 1 && key->group == 1 &&
           key->kv_dtype != PRHS_K_F32 && key->dim > 64 && key->dim <= 128 && dev->head.info.caps & PRHS_CAP_TENSOR &&
           (unsigned)dev->shared_most >= 2 * PRHS_WHOLE_SHARED(MANY_WARPS); /* what a multiprocessor has, but for a KiB a block */
}

/* A step's ops; NULL: there is none of the kind. */
typedef struct parts {
    const prhs_op *append, *plan, *score, *select, *moments, *attend, *finish;
} parts;

static const prhs_op *take(const prhs_op *ops, size_t n, size_t *i, prhs_op_kind kind) {
    return *i < n && ops[*i].kind == kind ? &ops[(*i)++] : NULL;
}

/* A step as src/plan.c lists it that retrieves, with nothing before it and nothing after it. */
static bool find_parts(const prhs_op *ops, size_t n, parts *p) {
    size_t i = 0;
    p->append = take(ops, n, &i, PRHS_OP_APPEND);
    p->plan = take(ops, n, &i, PRHS_OP_PLAN);
    const bool judged = take(ops, n, &i, PRHS_OP_ATTEND) != NULL;
    if (judged && !take(ops, n, &i, PRHS_OP_FINISH))
        return false;
    p->score = take(ops, n, &i, PRHS_OP_SCORE);
    p->select = take(ops, n, &i, PRHS_OP_SELECT);
    p->moments = take(ops, n, &i, PRHS_OP_MOMENTS);
    p->attend = take(ops, n, &i, PRHS_OP_ATTEND);
    p->finish = take(ops, n, &i, PRHS_OP_FINISH);
    return i == n && p->plan && p->score && p->select && p->attend && p->finish && judged == (p->moments != NULL);
}

static bool suits(const prhs_nv_device *dev, const parts *p) {
    const prhs_k_plan *a = &p->plan->args.plan;
    const prhs_k_policy *y = &a->policy;
    const prhs_op_key key = prhs_op_key_of(p->score);
    const prhs_i64 each = blocks_each(dev, &a->batch, &a->shape);
    return prhs_nv_whole_exists(dev, &key) && a->batch.rows == 1 && each > 0 && each <= 4 &&
           a->batch.max_kv_len <= (each > 2 ? FEW_TOKENS : MANY_TOKENS) && y->least <= 0 &&
           y->residual != PRHS_K_RESIDUAL_RETRIEVED && a->work.score_count_off != PRHS_NONE;
}

/* What only units that retrieve look at. These ops come after plan and see the batch as it closes it up; the block that plans
 * knows better. */
static void fill_retrieval(const parts *p, prhs_cu_whole *args) {
    args->score.a = p->score->args.score;
    args->score.a.batch = args->batch;
    args->retrieve.select = p->select->args.select;
    args->retrieve.select.batch = args->batch;
    args->retrieve.room = (args->batch.max_kv_len + 163) / 4 * 4;
    if (!p->moments)
        return;
    args->moments = p->moments->args.moments;
    args->moments.batch = args->batch;
}

bool prhs_nv_whole(const prhs_nv_device *dev, const prhs_op *ops, size_t n, prhs_op_key *key, prhs_cu_whole *args) {
    parts p;
    if (!find_parts(ops, n, &p) || !suits(dev, &p))
        return false;
    const prhs_k_plan *plan = &p.plan->args.plan;
    const prhs_k_finish *finish = &p.finish->args.finish;
    *key = prhs_op_key_of(p.score);
    key->moments |= PRHS_NV_WHOLE;
    memset(args, 0, sizeof *args);
    args->kv = p.attend->args.attend.kv;
    args->batch = plan->batch;
    args->shape = plan->shape;
    args->q = plan->q;
    args->out = finish->out;
    args->lse_off = finish->lse_off;
    args->state = plan->state;
    args->work = plan->work;
    args->policy = plan->policy;
    args->by_units = prhs_nv_quotient(plan->shape.units);
    args->by_block = prhs_nv_quotient(plan->policy.block);
    if (p.append) {
        const prhs_k_append *append = &p.append->args.append;
        args->k = append->k;
        args->v = append->v;
        args->appends = 1;
        args->copies = prhs_nv_copies(append);
        args->write = append->write;
        args->validate = append->validate;
    }
    fill_retrieval(&p, args);
    return true;
}

void prhs_nv_whole_size(const prhs_nv_device *dev, const prhs_cu_whole *args, prhs_nv_launch *launch, unsigned grid) {
    const bool many = blocks_each(dev, &args->batch, &args->shape) <= 2;
    const unsigned units = (unsigned)args->batch.max_seqs * (unsigned)args->shape.units, most = many ? grid : 2 * grid;
    launch->grid = units < most ? units : most;
    launch->threads = 32 * (many ? MANY_WARPS : FEW_WARPS);
    launch->shared = many ? PRHS_WHOLE_SHARED(MANY_WARPS) : PRHS_WHOLE_SHARED(FEW_WARPS);
}
