/* SPDX-License-Identifier: Apache-2.0 */
/* Launches: neighbours that one kernel serves are found here. Nothing allocates, loads or waits. */
#include "fill.h"

#include <string.h>

/* More decode rows a sequence than this are appended by a launch of their own, with a block a head. */
#define PREPARE_ROWS 8

#define GRID_MOST (1u << 20)
#define LAUNCHES_MOST 3 /* that one op of a list may need */

typedef union launch {
    unsigned char *mem[PRHS_ROLES]; /* where every launch struct begins */
    prhs_cu_prepare prepare;
    prhs_cu_serve serve;
    prhs_cu_retrieve retrieve;
    prhs_cu_close close;
    prhs_cu_whole whole;
#define X(NAME, name, ...) prhs_cu_##name name;
#include "../kernels.def"
#undef X
} launch;

/* Launches that have been gathered, and what they are launched with. */
typedef struct step {
    prhs_queue *queue;
    size_t count;
    prhs_nv_launch launches[PRHS_NV_CHAIN_MAX];
    launch args[PRHS_NV_CHAIN_MAX];
} step;

/* Launches what has been gathered. */
static prhs_status flush(step *s) {
    const size_t count = s->count;
    s->count = 0;
    return prhs_nv_launch_all(s->queue, s->launches, count);
}

/* Enters the op's buffers; false, and *l is as it was, where a role is taken by another buffer already. */
static bool add_mems(launch *l, const prhs_op *op) {
    unsigned char *mem[PRHS_ROLES];
    memcpy(mem, l->mem, sizeof mem);
    for (int i = 0; i < prhs_op_mems(op->kind); i++) {
        unsigned char **at = &mem[prhs_nv_role(op->kind, i)];
        unsigned char *pointer = op->mem[i] ? (unsigned char *)(uintptr_t)prhs_nv_pointer_of(op->mem[i]) : NULL;
        if (*at && pointer && *at != pointer)
            return false;
        *at = pointer ? pointer : *at;
    }
    memcpy(l->mem, mem, sizeof mem);
    return true;
}

/* How many ops from `ops` on one launch serves (1 or 2), and the one whose kernel it is. */
static size_t together(const prhs_op *ops, size_t n, launch *l, const prhs_op **leader) {
    const prhs_op *next = n > 1 ? &ops[1] : NULL;
    *leader = &ops[0];
    /* The mass gate's verdicts: those who score come to them, and leave what has been attended to the finish after them. */
    if (next && ops[0].kind == PRHS_OP_FINISH && ops[0].args.finish.verify && next->kind == PRHS_OP_SCORE) {
        add_mems(l, next);
        *leader = next;
        return 2;
    }
    add_mems(l, &ops[0]);
    if (!next)
        return 1;
    const bool prepares = ops[0].kind == PRHS_OP_APPEND && next->kind == PRHS_OP_PLAN && ops[0].args.append.batch.rows <= PREPARE_ROWS;
    if (!prepares || !add_mems(l, next))
        return 1;
    *leader = next;
    return 2;
}

prhs_copies prhs_nv_copies(const prhs_k_append *a) {
    if (!a->write || a->validate || a->k.dtype != a->kv.dtype || a->v.dtype != a->kv.dtype)
        return PRHS_COPIES_NOT;
    if (a->state.vsum_off == PRHS_NONE)
        return PRHS_COPIES_ONLY;
    /* A row that half of a warp holds, 16 bytes a lane. */
    return a->kv.dtype != PRHS_K_F32 && a->shape.dim <= 128 ? PRHS_COPIES_SUM : PRHS_COPIES_NOT;
}

/* Fills *l but for its buffers; pass: attends before these ops; moments: what a finish does first, or NULL. Returns its size. */
static size_t fill(launch *l, const prhs_op *ops, size_t count, const prhs_op *leader, prhs_i32 pass, const prhs_op *moments) {
    switch (leader->kind) {
    case PRHS_OP_PLAN:
        if (count > 1)
            l->prepare.append = ops[0].args.append;
        else
            memset(&l->prepare.append, 0, sizeof l->prepare.append);
        l->prepare.plan = leader->args.plan;
        l->prepare.by_units = prhs_nv_quotient(leader->args.plan.shape.units);
        l->prepare.by_kv_heads = prhs_nv_quotient(leader->args.plan.shape.kv_heads);
        l->prepare.by_block = prhs_nv_quotient(leader->args.plan.policy.block);
        l->prepare.appends = count > 1;
        l->prepare.copies = count > 1 ? prhs_nv_copies(&ops[0].args.append) : PRHS_COPIES_NOT;
        return sizeof l->prepare;
    case PRHS_OP_ATTEND:
        l->serve.attend = leader->args.attend;
        l->serve.pass = pass;
        l->serve.reserved = 0;
        return sizeof l->serve;
    case PRHS_OP_AIM:
        l->aim.a = leader->args.aim;
        l->aim.a.pass = pass;
        return sizeof l->aim;
    case PRHS_OP_SELECT:
        l->retrieve.select = leader->args.select;
        l->retrieve.pass = pass;
        l->retrieve.room = 0;
        return sizeof l->retrieve;
    case PRHS_OP_FINISH:
        l->close.a = leader->args.finish;
        if (moments)
            l->close.moments = moments->args.moments;
        else
            memset(&l->close.moments, 0, sizeof l->close.moments);
        l->close.has_moments = moments != NULL;
        l->close.reserved = 0;
        l->close.by_heads = prhs_nv_quotient(leader->args.finish.shape.heads);
        l->close.by_unit_heads = prhs_nv_quotient(leader->args.finish.shape.unit_heads);
        return sizeof l->close;
    default: break;
    }
    size_t size = 0;
    const void *args = prhs_op_args(leader, &size);
    memcpy((unsigned char *)l + sizeof l->mem, args, size);
    return sizeof l->mem + size;
}

/* Blocks: no more than there is work for; nor than `most`, where blocks take turns. */
static unsigned grid_of(const prhs_nv_kernel *kernel, uint64_t most, const prhs_op *ops, size_t count) {
    uint64_t blocks = 1;
    for (size_t i = 0; i < count; i++) {
        const uint64_t more = prhs_nv_blocks(&kernel->choice, &ops[i]);
        blocks = more > blocks ? more : blocks;
    }
    if (kernel->choice.lanes)
        most = GRID_MOST;
    return (unsigned)(blocks < most ? blocks : most);
}

/* Tells what is launched for the first time, so that a run of tests can show what it covered. */
static void tell_first(prhs_nv_device *dev, prhs_nv_kernel *kernel, const prhs_op *ops, size_t count) {
    const prhs_log *log = &dev->head.log;
    if (!atomic_load_explicit(&kernel->launched, memory_order_relaxed)) {
        atomic_store_explicit(&kernel->launched, true, memory_order_relaxed);
        prhs_logf(log, PRHS_LOG_INFO, "cuda: first launch of kernel %s", kernel->choice.name);
    }
    for (size_t i = 0; i < count; i++) {
        const unsigned bit = 1u << ops[i].kind;
        if (!(atomic_load_explicit(&dev->launched, memory_order_relaxed) & bit)) {
            atomic_fetch_or_explicit(&dev->launched, bit, memory_order_relaxed);
            prhs_logf(log, PRHS_LOG_INFO, "cuda: first launch of op %s", prhs_op_name(ops[i].kind));
        }
    }
}

/* Gathers the launch of the kernel of a key for ops[0 .. count). *l is one of the step's own. */
static prhs_status send(step *s, const prhs_op_key *key, launch *l, const prhs_op *leader, const prhs_op *ops, size_t count) {
    prhs_nv_device *dev = prhs_nv_device_of(s->queue->dev);
    const prhs_nv_variant *variant = prhs_nv_find(dev, key);
    if (!variant)
        return prhs_fail(&dev->head.log, PRHS_ERR_STATE, "cuda: %s was never prepared for this head size and these dtypes",
                         prhs_op_name(leader->kind));
    prhs_nv_kernel *kernel = variant->kernel;
    unsigned threads = kernel->choice.threads, shared = kernel->choice.shared, most = variant->grid;
    const unsigned useful = prhs_nv_most_blocks(&kernel->choice, leader, dev->head.info.compute_units);
    most = most < useful ? most : useful;
    if (kernel->choice.sized) {
        l->retrieve.room = prhs_nv_size(dev, &kernel->choice, leader, &threads, &shared);
        const unsigned resident = prhs_nv_resident(dev, kernel, threads, shared);
        most = most < resident ? most : resident;
        if (kernel->choice.teams) { /* a part of the multiprocessors lies so that no whole team has place there */
            const unsigned teams = most / PRHS_TEAM * 7 / 8;
            most = PRHS_TEAM * (teams ? teams : 1);
        }
    }
    if (shared > kernel->choice.shared)
        return prhs_fail(&dev->head.log, PRHS_ERR_UNSUPPORTED, "cuda: %s needs %u bytes of shared memory for this max_kv_len, a block may have %u",
                         kernel->choice.name, shared, kernel->choice.shared);
    tell_first(dev, kernel, ops, count);
    s->launches[s->count++] = (prhs_nv_launch){ kernel, l, grid_of(kernel, most, ops, count), threads, shared };
    return PRHS_OK;
}

/* Whether a finish to come can do the moments before it ends rows: nothing before it looks at them. */
static bool finish_follows(const prhs_op *ops, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (ops[i].kind == PRHS_OP_FINISH)
            return true;
    return false;
}

/* Whether nobody has counted the op's chunks: in the ops tier no plan has closed up the batch. */
static bool counts_are_due(const prhs_op *op) {
    switch (op->kind) {
    case PRHS_OP_ATTEND: return op->args.attend.batch.active_off == PRHS_NONE;
    case PRHS_OP_SCORE: return op->args.score.batch.active_off == PRHS_NONE && !op->args.score.full;
    default: return false;
    }
}

/* The kernels of an op, whose launch struct is full: that which counts and that of the values where they are due. */
static prhs_status send_all(step *s, launch *l, const prhs_op *leader, const prhs_op *ops, size_t count) {
    prhs_op_key key = prhs_op_key_of(leader);
    if (key.kind == PRHS_OP_SELECT && leader->args.select.work.slice_off != PRHS_NONE) {
        prhs_op_key teams = key;
        teams.moments |= PRHS_NV_TEAM;
        key = prhs_nv_find(prhs_nv_device_of(s->queue->dev), &teams) ? teams : key;
    }
    const bool values = key.kind == PRHS_OP_SCORE && key.moments == PRHS_K_MOMENTS_VALUES;
    prhs_op_key other = key;
    prhs_status status = PRHS_OK;
    if (counts_are_due(leader)) {
        other.moments = PRHS_NV_COUNTS;
        status = send(s, &other, l, leader, ops, count);
    }
    if (values && status == PRHS_OK) {
        other.moments = PRHS_K_MOMENTS_KEYS;
        status = send(s, &other, l, leader, ops, count);
    }
    return status == PRHS_OK ? send(s, &key, l, leader, ops, count) : status;
}

/*
 * One launch for the first ops of a list (more where score sums values, where chunks are to be counted, and before a finish that cannot take
 * its moments along); *count: how many it serves. *moments: an op that waits for the next finish, or NULL.
 */
static prhs_status enqueue(step *s, const prhs_op *ops, size_t n, prhs_i32 pass, size_t *count, const prhs_op **moments) {
    const prhs_op *leader = NULL;
    *count = 1;
    if (ops[0].kind == PRHS_OP_MOMENTS && finish_follows(ops, n)) {
        *moments = &ops[0];
        return PRHS_OK;
    }
    prhs_status status = s->count + LAUNCHES_MOST > PRHS_NV_CHAIN_MAX ? flush(s) : PRHS_OK;
    if (status != PRHS_OK)
        return status;
    launch *l = &s->args[s->count];
    memset(l->mem, 0, sizeof l->mem);
    *count = together(ops, n, l, &leader);
    const prhs_op *first = NULL;
    if (leader->kind == PRHS_OP_FINISH && *moments) {
        const prhs_op *own = *moments;
        *moments = NULL;
        if (!add_mems(l, own)) {
            size_t one = 0;
            const launch finish = *l;
            if ((status = enqueue(s, own, 1, pass, &one, moments)) != PRHS_OK)
                return status;
            l = &s->args[s->count];
            *l = finish;
        } else {
            first = own;
        }
    }
    fill(l, ops, *count, leader, pass, first);
    return send_all(s, l, leader, ops, *count);
}

/* Enters the buffers of all ops; false where two of them disagree. */
static bool add_all_mems(launch *l, const prhs_op *ops, size_t n) {
    memset(l->mem, 0, sizeof l->mem);
    for (size_t i = 0; i < n; i++) {
        prhs_op op = ops[i];
        /* Where plan leaves the sequences in the workspace, others look there. */
        for (int k = 0; op.kind != PRHS_OP_APPEND && op.kind != PRHS_OP_PLAN && k < prhs_op_mems(op.kind); k++)
            op.mem[k] = prhs_nv_role(op.kind, k) == PRHS_R_SEQS ? NULL : op.mem[k];
        if (!add_mems(l, &op))
            return false;
    }
    return true;
}

/* All ops at once, where one kernel takes units whole; *done: it does. */
static prhs_status enqueue_whole(step *s, const prhs_op *ops, size_t n, bool *done) {
    prhs_nv_device *dev = prhs_nv_device_of(s->queue->dev);
    launch *l = &s->args[0];
    prhs_op_key key;
    *done = prhs_nv_whole(dev, ops, n, &key, &l->whole) && add_all_mems(l, ops, n);
    if (!*done)
        return PRHS_OK;
    const prhs_nv_variant *variant = prhs_nv_find(dev, &key);
    if (!variant)
        return prhs_fail(&dev->head.log, PRHS_ERR_STATE, "cuda: a step was never prepared for this head size and these dtypes");
    memcpy(l->whole.score.mem, l->mem, sizeof l->mem);
    memcpy(l->whole.retrieve.mem, l->mem, sizeof l->mem);
    tell_first(dev, variant->kernel, ops, n);
    s->launches[s->count] = (prhs_nv_launch){ .kernel = variant->kernel, .args = l };
    prhs_nv_whole_size(dev, &l->whole, &s->launches[s->count++], variant->grid);
    return PRHS_OK;
}

/* attend finds rows by 32-bit distances of 16 bytes from a KV head's first one. */
static prhs_status check_reach(prhs_queue *queue, const prhs_op *ops, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (ops[i].kind != PRHS_OP_ATTEND)
            continue;
        const prhs_k_kv *kv = &ops[i].args.attend.kv;
        const prhs_i64 size = kv->dtype == PRHS_K_F32 ? 4 : 2, pages = kv->pages - 1, rows = kv->page_size - 1;
        if ((pages * kv->k_page + rows * kv->k_token) * size >> 36 || (pages * kv->v_page + rows * kv->v_token) * size >> 36)
            return prhs_fail(&queue->dev->log, PRHS_ERR_UNSUPPORTED, "cuda: a layer's keys or values reach over more than 64 GiB");
    }
    return PRHS_OK;
}

prhs_status prhs_nv_ops_enqueue(prhs_queue *queue, const prhs_op *ops, size_t n) {
    prhs_i32 pass = 0;
    prhs_status status = check_reach(queue, ops, n);
    if (status == PRHS_OK)
        status = prhs_nv_enter(queue->dev);
    if (status != PRHS_OK)
        return status;
    const prhs_op *moments = NULL;
    step s;
    s.queue = queue;
    s.count = 0;
    bool done = false;
    status = enqueue_whole(&s, ops, n, &done);
    for (size_t i = 0, count = 1; !done && i < n && status == PRHS_OK; i += count) {
        status = enqueue(&s, ops + i, n - i, pass, &count, &moments);
        pass += ops[i].kind == PRHS_OP_ATTEND;
    }
    if (status == PRHS_OK)
        status = flush(&s);
    prhs_nv_leave();
    return status;
}
