/* SPDX-License-Identifier: Apache-2.0 */
/* Launches: the decode path. Neighbours that one kernel serves are found here. */
#include "host.h"

#include <stdatomic.h>

prhs_chunking prhs_cl_chunking(const prhs_device *dev, const prhs_op_key *key) {
    /* The same for both flavours; it is part of the bits and no tuning knob. */
    (void)dev, (void)key;
    return (prhs_chunking){ .attend_min = 256, .attend_chunks = 64, .score_min = 512, .score_chunks = 32, .prefill_tile = 16 };
}

static bool same_key(const prhs_op_key *a, const prhs_op_key *b) {
    return a->kind == b->kind && a->dim == b->dim && a->unit_heads == b->unit_heads && a->group == b->group &&
           a->kv_dtype == b->kv_dtype && a->q_dtype == b->q_dtype && a->out_dtype == b->out_dtype && a->moments == b->moments;
}

prhs_cl_variant *prhs_cl_find_variant(prhs_cl_device *dev, const prhs_op_key *key) {
    prhs_cl_variant *v = atomic_load_explicit(&dev->variants, memory_order_acquire);
    while (v && !same_key(&v->key, key))
        v = v->next;
    return v;
}

/* More decode rows a sequence than this are appended by a launch of their own, in wider groups. */
#define TOGETHER_ROWS 8

/* An op's buffers and arguments, from *at on. */
static cl_int set_op(const prhs_cl_device *dev, cl_kernel kernel, const prhs_op *op, cl_uint *at) {
    const int mems = prhs_op_mems(op->kind);
    size_t size = 0;
    const void *args = prhs_op_args(op, &size);
    cl_int error = CL_SUCCESS;
    for (int i = 0; i < mems && error == CL_SUCCESS; i++) {
        /* Never NULL: drivers differ in what a NULL buffer does to a kernel that does not touch it. */
        cl_mem mem = op->mem[i] ? prhs_cl_mem_of(op->mem[i]) : dev->dummy;
        error = prhs_cl.SetKernelArg(kernel, (*at)++, sizeof mem, &mem);
    }
    return error == CL_SUCCESS ? prhs_cl.SetKernelArg(kernel, (*at)++, size, args) : error;
}

bool prhs_cl_takes_append(const prhs_cl_variant *v) { return v->key.kind == PRHS_OP_PLAN && v->flavour == PRHS_CL_GPU; }

bool prhs_cl_go_together(const prhs_op *ops, size_t n) {
    return n > 1 && ops[0].kind == PRHS_OP_APPEND && ops[1].kind == PRHS_OP_PLAN && ops[0].args.append.batch.rows <= TOGETHER_ROWS;
}

prhs_status prhs_cl_launch(prhs_cl_device *dev, prhs_cl_variant *v, cl_command_queue queue, const prhs_op *op, const prhs_op *append) {
    static const prhs_op nothing = { .kind = PRHS_OP_APPEND };
    const prhs_log *log = &dev->head.log;
    cl_uint at = 0;
    cl_int error = set_op(dev, v->kernel, op, &at);
    if (error == CL_SUCCESS && prhs_cl_takes_append(v))
        error = set_op(dev, v->kernel, append ? append : &nothing, &at);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(log, "clSetKernelArg", error);
    const size_t global = prhs_cl_groups(v->grid, op, append) * v->local;
    error = prhs_cl.EnqueueNDRangeKernel(queue, v->kernel, 1, NULL, &global, &v->local, 0, NULL, NULL);
    return error == CL_SUCCESS ? PRHS_OK : prhs_cl_fail(log, "clEnqueueNDRangeKernel", error);
}

/* The variant whose launch serves ops[0], or where *count comes out as 2 both. NULL: it was never prepared. */
static prhs_cl_variant *leader_of(prhs_cl_device *dev, const prhs_op *ops, size_t n, size_t *count) {
    const prhs_op_key key = prhs_op_key_of(&ops[0]);
    prhs_cl_variant *own = prhs_cl_find_variant(dev, &key);
    *count = 1;
    if (!own || own->flavour != PRHS_CL_GPU || !prhs_cl_go_together(ops, n))
        return own;
    const prhs_op_key next = prhs_op_key_of(&ops[1]);
    prhs_cl_variant *v = prhs_cl_find_variant(dev, &next);
    if (!v || !prhs_cl_takes_append(v))
        return own;
    *count = 2;
    return v;
}

/* One launch for the first ops of a list; *count: how many. */
static prhs_status enqueue(prhs_queue *queue, const prhs_op *ops, size_t n, size_t *count) {
    prhs_cl_device *dev = prhs_cl_device_of(queue->dev);
    prhs_cl_variant *v = leader_of(dev, ops, n, count);
    if (!v)
        return prhs_fail(&dev->head.log, PRHS_ERR_STATE, "opencl: %s was never prepared for this head size and these dtypes",
                         prhs_op_name(ops[0].kind));
    pthread_mutex_lock(&v->lock);
    prhs_status status = prhs_cl_launch(dev, v, prhs_cl_queue_of(queue), &ops[*count - 1], *count > 1 ? &ops[0] : NULL);
    pthread_mutex_unlock(&v->lock);
    if (status == PRHS_OK)
        prhs_count(&dev->head.counters.launches);
    if (status == PRHS_OK && v->flavour == PRHS_CL_GENERIC)
        prhs_count(&dev->head.counters.generic);
    return status;
}

prhs_status prhs_cl_ops_enqueue(prhs_queue *queue, const prhs_op *ops, size_t n) {
    prhs_status status = PRHS_OK;
    for (size_t i = 0, count = 1; i < n && status == PRHS_OK; i += count)
        status = enqueue(queue, ops + i, n - i, &count);
    return status;
}
