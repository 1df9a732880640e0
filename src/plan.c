/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scheduler: which ops a layer of a step needs, in which order. It knows the policy and the capacities, never the data: gate,
 * retrieval, second attend and the fallback to dense are decided by the ops themselves, so that the same list serves every step.
 *
 *   [recall], append, prefill                         prompt rows are done
 *   plan, [attend, finish: mass gate], [score, [aim], select, [moments]], attend, finish, [attend, finish: rows that failed]
 *   [score all, audit]
 */
#include "session_state.h"

typedef struct list {
    const prhs_session *s;
    const prhs_step_args *a;
    prhs_op *ops;
    size_t n;
    prhs_buffer *seqs;
    prhs_k_batch batch;
    prhs_k_policy policy;
    prhs_k_state state;
    prhs_k_work work;
} list;

static prhs_i32 bounded(uint32_t value, prhs_i32 most) { return value < (uint32_t)most ? (prhs_i32)value : most; }

/* With a target: the fewest tokens of a list. */
static prhs_i32 least_of(const prhs_policy *p, prhs_i32 most) {
    const uint32_t least = p->k_min < p->granularity ? p->granularity : p->k_min;
    return bounded(least < p->k ? least : p->k, most);
}

/* The layer whose lists a layer attends with. */
static uint32_t source_of(const prhs_session *s, uint32_t layer) {
    return s->params.list_layers ? s->params.list_layers[layer] : layer;
}

static prhs_k_policy layer_policy(const prhs_session *s, uint32_t layer) {
    const prhs_policy *p = &s->params.policy;
    const prhs_i32 most = (prhs_i32)s->params.max_kv_len;
    const float target = prhs_target_of(&s->params, layer);
    return (prhs_k_policy){
        .layer = (prhs_i32)source_of(s, layer),
        .dense = layer < p->dense_layers,
        .k = bounded(p->k, most),
        .sinks = bounded(p->sinks, most),
        .local_tokens = bounded(p->local, most),
        .min_sparse_n = bounded(p->min_sparse_n, INT32_MAX),
        .block = (prhs_i32)p->block,
        .gate = (prhs_i32)p->gate,
        .tau = p->tau,
        .eps = target > 0.0f ? target : p->eps,
        .dilate_m = (prhs_i32)p->dilate_m,
        .dilate_back = bounded(p->dilate_back, most),
        .dilate_ahead = bounded(p->dilate_ahead, most),
        .run = (prhs_i32)p->granularity,
        .join = p->join == PRHS_JOIN_MAX ? PRHS_K_JOIN_MAX : PRHS_K_JOIN_SUM,
        .residual = (prhs_i32)p->residual,
        .psaw = s->factors[2 * layer],
        .etf = s->factors[2 * layer + 1],
        .least = target > 0.0f ? least_of(p, most) : 0,
        .copies = source_of(s, layer) != layer,
    };
}

/* State of the layer whose lists a sparse layer attends with. */
static prhs_k_state source_state(const prhs_session *s, uint32_t layer) {
    return prhs_layout_state(&s->layout, prhs_sparse_index(s, source_of(s, layer)), s->state.offset);
}

/* A dense layer has no state; its kernels get only the error word. */
static prhs_k_state layer_state(const prhs_session *s, uint32_t layer) {
    prhs_i32 index = prhs_sparse_index(s, layer);
    prhs_k_state k = prhs_layout_state(&s->layout, index < 0 ? 0 : index, s->state.offset);
    if (index < 0) {
        k.unit_off = k.list_off = k.qref_off = k.head_off = k.moment_off = k.spread_off = k.vhat_off = PRHS_NONE;
        k.vsum_off = k.vcount_off = k.unit_stat_off = k.head_stat_off = PRHS_NONE;
    } else {
        k.list_off = source_state(s, layer).list_off;
    }
    return k;
}

static list begin(const prhs_session *s, const prhs_step_args *a, prhs_op *ops) {
    return (list){
        .s = s,
        .a = a,
        .ops = ops,
        .seqs = a->seqs,
        .batch = a->batch,
        .policy = layer_policy(s, a->layer),
        .state = layer_state(s, a->layer),
        .work = prhs_layout_work(&s->layout, s->work.offset),
    };
}

static prhs_op *add(list *l, prhs_op_kind kind, prhs_buffer *const mem[PRHS_OP_MAX_MEMS]) {
    prhs_op *op = &l->ops[l->n++];
    op->kind = kind;
    for (int i = 0; i < PRHS_OP_MAX_MEMS; i++)
        op->mem[i] = mem[i];
    return op;
}
#define ADD(l, kind, ...) add(l, PRHS_OP_##kind, (prhs_buffer *const[PRHS_OP_MAX_MEMS]){ __VA_ARGS__ })

static void add_append(list *l) {
    const prhs_step_args *a = l->a;
    prhs_op *op = ADD(l, APPEND, l->seqs, a->pages, a->k_in, a->v_in, a->k_mem, a->v_mem, l->s->state.buffer);
    op->args.append = (prhs_k_append){
        .kv = a->kv, .batch = l->batch, .shape = l->s->limits.shape, .k = a->k, .v = a->v, .state = l->state,
        .write = a->append, .validate = l->s->params.validate != 0,
    };
}

static void add_prefill(list *l) {
    const prhs_step_args *a = l->a;
    prhs_op *op = ADD(l, PREFILL, l->seqs, a->pages, a->q_mem, a->k_mem, a->v_mem, l->s->state.buffer, a->out_mem, a->lse_mem);
    op->args.prefill = (prhs_k_prefill){
        .kv = a->kv, .batch = l->batch, .shape = l->s->limits.shape, .q = a->q, .out = a->out, .lse_off = a->lse_off,
        .fault_off = l->state.fault_off, .sinks = l->policy.sinks, .psaw = l->policy.psaw, .etf = l->policy.etf,
    };
    prhs_op_key key = prhs_op_key_of(op);
    op->args.prefill.tile = l->s->dev->backend->chunking(l->s->dev, &key).prefill_tile;
}

static prhs_k_pool layer_pool(const list *l) {
    return prhs_layout_pool(&l->s->layout, prhs_sparse_index(l->s, l->a->layer), l->s->state.offset);
}

static void add_recall(list *l) {
    const prhs_step_args *a = l->a;
    prhs_op *op = ADD(l, RECALL, l->seqs, a->q_mem, l->s->state.buffer);
    op->args.recall = (prhs_k_recall){
        .batch = l->batch, .shape = l->s->limits.shape, .q = a->q, .state = l->state, .pool = layer_pool(l),
        .layer = l->policy.layer, .block = l->policy.block,
    };
}

static void add_plan(list *l) {
    const prhs_step_args *a = l->a;
    prhs_op *op = ADD(l, PLAN, l->seqs, a->q_mem, l->s->state.buffer, l->s->work.buffer);
    op->args.plan = (prhs_k_plan){
        .batch = l->batch, .shape = l->s->limits.shape, .q = a->q, .state = l->state, .work = l->work, .policy = l->policy,
    };
    if (l->policy.copies)
        op->args.plan.state.unit_off = source_state(l->s, a->layer).unit_off;
}

static void add_attend(list *l) {
    const prhs_step_args *a = l->a;
    prhs_op *op =
        ADD(l, ATTEND, l->seqs, a->pages, a->q_mem, a->k_mem, a->v_mem, l->s->state.buffer, l->s->work.buffer);
    op->args.attend = (prhs_k_attend){
        .kv = a->kv, .batch = l->batch, .shape = l->s->limits.shape, .q = a->q, .state = l->state, .work = l->work,
    };
}

static void add_finish(list *l, bool verify) {
    const prhs_step_args *a = l->a;
    prhs_op *op = ADD(l, FINISH, l->seqs, a->q_mem, l->s->state.buffer, l->s->work.buffer, a->out_mem, a->lse_mem);
    op->args.finish = (prhs_k_finish){
        .batch = l->batch, .shape = l->s->limits.shape, .q = a->q, .out = a->out, .lse_off = a->lse_off, .state = l->state,
        .work = l->work, .policy = l->policy, .verify = verify,
    };
}

/* Modes in which a step's dropped mass is not known: shared lists, no lists, and all where PSAW leaves keys unscored. */
static prhs_i32 unknown_modes(const list *l) {
    return 1 << PRHS_MODE_WINDOW | 1 << PRHS_MODE_STREAM | 1 << PRHS_MODE_SHARE | 1 << PRHS_MODE_COPY | (l->policy.psaw ? 1 << PRHS_MODE_RETRIEVE : 0);
}

/* Units that a score takes: all, or those whose audit is drawn. */
static prhs_k_sample sample_of(const list *l, bool audits) {
    const uint64_t seed = l->s->params.audit_seed;
    return (prhs_k_sample){ .seed = { (prhs_u32)seed, (prhs_u32)(seed >> 32) },
                            .limit = audits ? l->s->audit_limit : UINT32_MAX,
                            .layer = (prhs_i32)l->a->layer };
}

static void add_score(list *l, prhs_i32 modes, bool full, prhs_i32 moments) {
    const prhs_step_args *a = l->a;
    prhs_buffer *values = moments == PRHS_K_MOMENTS_VALUES ? a->v_mem : NULL;
    prhs_op *op = ADD(l, SCORE, l->seqs, a->pages, a->q_mem, a->k_mem, values, l->s->work.buffer);
    op->args.score = (prhs_k_score){
        .kv = a->kv, .batch = l->batch, .shape = l->s->limits.shape, .q = a->q, .work = l->work, .modes = modes, .full = full,
        .moments = moments, .sample = sample_of(l, full),
    };
    if (!moments)
        op->args.score.work.mom_off = op->args.score.work.vmid_off = PRHS_NONE;
}

/* How many tokens the lists take that are made for a target: where they are shared their mass may double before it is missed. */
static void add_aim(list *l) {
    const double target = (double)prhs_target_of(&l->s->params, l->a->layer) / (l->policy.block > 1 ? 2.0 : 1.0);
    prhs_op *op = ADD(l, AIM, l->seqs, l->s->state.buffer, l->s->work.buffer);
    op->args.aim = (prhs_k_aim){
        .batch = l->batch, .shape = l->s->limits.shape, .state = l->state, .work = l->work, .policy = l->policy,
        .mass = (prhs_i64)(target * (double)PRHS_MASS_ONE),
    };
}

static void add_retrieval(list *l) {
    const prhs_step_args *a = l->a;
    add_score(l, 1 << PRHS_MODE_RETRIEVE, false, l->s->values ? PRHS_K_MOMENTS_VALUES : l->s->moments ? PRHS_K_MOMENTS_KEYS : 0);
    if (l->policy.least > 0)
        add_aim(l);
    prhs_op *op = ADD(l, SELECT, l->seqs, a->q_mem, l->s->state.buffer, l->s->work.buffer);
    op->args.select = (prhs_k_select){
        .batch = l->batch, .shape = l->s->limits.shape, .q = a->q, .state = l->state, .work = l->work, .policy = l->policy,
    };
    if (!l->s->moments)
        return;
    op = ADD(l, MOMENTS, l->seqs, a->pages, a->k_mem, l->s->values ? a->v_mem : NULL, l->s->state.buffer, l->s->work.buffer);
    op->args.moments = (prhs_k_moments){
        .kv = a->kv, .batch = l->batch, .shape = l->s->limits.shape, .state = l->state, .work = l->work,
    };
}

static void add_audit(list *l) {
    const prhs_i32 unknown = unknown_modes(l), modes = l->s->params.audit ? unknown | 1 << PRHS_MODE_RETRIEVE : unknown;
    add_score(l, modes, true, 0);
    prhs_op *op = ADD(l, AUDIT, l->seqs, l->s->state.buffer, l->s->work.buffer);
    op->args.audit = (prhs_k_audit){
        .batch = l->batch, .shape = l->s->limits.shape, .state = l->state, .work = l->work, .sample = sample_of(l, true),
        .modes = modes, .unknown = unknown, .residual = l->policy.residual,
        .target = l->policy.least > 0 ? prhs_target_of(&l->s->params, l->a->layer) : -1.0f,
    };
}

/* Where plan leaves the active sequences closed up, the ops after it see no others: what a batch could hold costs them nothing. */
static void close_up(list *l) {
    if (l->work.active_off == PRHS_NONE)
        return;
    l->seqs = l->s->work.buffer;
    l->batch.active_off = l->work.active_off;
    l->batch.seqs_off = l->work.active_off + PRHS_ACTIVE;
}

size_t prhs_plan_step(const prhs_session *s, const prhs_step_args *a, prhs_op *ops) {
    list l = begin(s, a, ops);
    const bool dense = l.policy.dense, retrieves = s->retrieves && !dense && !l.policy.copies;
    const bool mass = retrieves && s->params.policy.gate == PRHS_GATE_MASS;
    /* First, as it needs no row of this step: backends append and plan with one launch. */
    if (s->recalls && retrieves && a->kinds & (PRHS_HAS_DECODE | PRHS_HAS_SEED))
        add_recall(&l);
    if (a->append || (s->sums && !dense) || s->params.validate)
        add_append(&l);
    if (a->kinds & PRHS_HAS_PREFILL)
        add_prefill(&l);
    if (!(a->kinds & PRHS_HAS_DECODE) && !(retrieves && (a->kinds & PRHS_HAS_SEED)))
        return l.n;
    add_plan(&l);
    close_up(&l);
    if (mass) {
        add_attend(&l);
        add_finish(&l, true);
    }
    if (retrieves)
        add_retrieval(&l);
    add_attend(&l);
    add_finish(&l, false);
    if (mass && a->batch.rows > 1) {
        add_attend(&l);
        add_finish(&l, false);
    }
    if (s->audits && !dense && (a->kinds & PRHS_HAS_DECODE))
        add_audit(&l);
    return l.n;
}

size_t prhs_plan_truncate(const prhs_session *s, const prhs_step_args *a, bool rebuild, prhs_op *ops) {
    list l = begin(s, a, ops);
    if (l.policy.dense)
        return 0;
    if (s->sums) {
        prhs_op *op = ADD(&l, RANGE_SUM, l.seqs, a->pages, a->v_mem, s->state.buffer);
        op->args.range_sum = (prhs_k_range_sum){
            .kv = a->kv, .batch = l.batch, .shape = s->limits.shape, .state = l.state, .sign = rebuild ? 1 : -1,
        };
    }
    if (s->retrieves) {
        prhs_op *op = ADD(&l, TRUNCATE, l.seqs, s->state.buffer);
        op->args.truncate = (prhs_k_truncate){ .batch = l.batch, .shape = s->limits.shape, .state = l.state, .pool = layer_pool(&l), .all = rebuild };
    }
    return l.n;
}
