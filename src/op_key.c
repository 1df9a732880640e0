/* SPDX-License-Identifier: Apache-2.0 */
/* What a variant of an op depends on, and the tables that kernels.def spells out. */
#include "backend.h"

static const struct {
    const char *name;
    int mems;
    size_t size;
} ops[PRHS_OP_COUNT] = {
#define X(NAME, name, mems, ...) [PRHS_OP_##NAME] = { #name, mems, sizeof(prhs_k_##name) },
#include "kernels.def"
#undef X
};

const void *prhs_op_args(const prhs_op *op, size_t *size) {
    *size = ops[op->kind].size;
    return &op->args;
}

int prhs_op_mems(prhs_op_kind kind) { return ops[kind].mems; }

const char *prhs_op_name(prhs_op_kind kind) { return ops[kind].name; }

static void add_shape(prhs_op_key *key, const prhs_k_shape *shape) {
    key->dim = shape->dim;
    key->group = shape->group;
    key->unit_heads = shape->unit_heads;
}

/* One case an op; every member that a kernel's code depends on at compile time must be set here, and nothing else. */
prhs_op_key prhs_op_key_of(const prhs_op *op) {
    prhs_op_key key = { .kind = op->kind };
    switch (op->kind) {
    case PRHS_OP_APPEND:
        add_shape(&key, &op->args.append.shape);
        key.kv_dtype = op->args.append.kv.dtype;
        key.q_dtype = op->args.append.k.dtype;
        break;
    case PRHS_OP_RANGE_SUM:
        add_shape(&key, &op->args.range_sum.shape);
        key.kv_dtype = op->args.range_sum.kv.dtype;
        break;
    case PRHS_OP_TRUNCATE: add_shape(&key, &op->args.truncate.shape); break;
    case PRHS_OP_RECALL:
        add_shape(&key, &op->args.recall.shape);
        key.q_dtype = op->args.recall.q.dtype;
        break;
    case PRHS_OP_PLAN:
        add_shape(&key, &op->args.plan.shape);
        key.q_dtype = op->args.plan.q.dtype;
        break;
    case PRHS_OP_SCORE:
        add_shape(&key, &op->args.score.shape);
        key.kv_dtype = op->args.score.kv.dtype;
        key.q_dtype = op->args.score.q.dtype;
        key.moments = op->args.score.moments;
        break;
    case PRHS_OP_AIM: add_shape(&key, &op->args.aim.shape); break;
    case PRHS_OP_SELECT:
        add_shape(&key, &op->args.select.shape);
        key.q_dtype = op->args.select.q.dtype;
        break;
    case PRHS_OP_MOMENTS:
        add_shape(&key, &op->args.moments.shape);
        key.kv_dtype = op->args.moments.kv.dtype;
        break;
    case PRHS_OP_ATTEND:
        add_shape(&key, &op->args.attend.shape);
        key.kv_dtype = op->args.attend.kv.dtype;
        key.q_dtype = op->args.attend.q.dtype;
        break;
    case PRHS_OP_FINISH:
        add_shape(&key, &op->args.finish.shape);
        key.q_dtype = op->args.finish.q.dtype;
        key.out_dtype = op->args.finish.out.dtype;
        break;
    case PRHS_OP_AUDIT: add_shape(&key, &op->args.audit.shape); break;
    case PRHS_OP_PREFILL:
        add_shape(&key, &op->args.prefill.shape);
        key.kv_dtype = op->args.prefill.kv.dtype;
        key.q_dtype = op->args.prefill.q.dtype;
        key.out_dtype = op->args.prefill.out.dtype;
        break;
    case PRHS_OP_COMBINE:
        add_shape(&key, &op->args.combine.shape);
        key.out_dtype = op->args.combine.out.dtype;
        break;
    case PRHS_OP_MERGE:
        add_shape(&key, &op->args.merge.shape);
        key.out_dtype = op->args.merge.out.dtype;
        break;
    case PRHS_OP_GATE:
        add_shape(&key, &op->args.gate.shape);
        key.q_dtype = op->args.gate.q.dtype;
        break;
    case PRHS_OP_COUNT: break;
    }
    return key;
}
