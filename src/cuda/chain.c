/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Launches of a step. One by one they cost the calling thread 2 to 4 us each, most of it the driver's. So a queue keeps an
 * executable graph for each number of launches, whose nodes are told their kernels and arguments, and launches that: what is
 * under way keeps what it was told. A stream that is being captured gets the launches themselves, and so does any where a kernel's blocks come in
 * teams: a node that had such a kernel keeps their size when it is told another one.
 */
#include "host.h"

/* A key that any device has a kernel for: nodes cannot be without one, and are told another before they run. */
static const prhs_op_key any_key = { .kind = PRHS_OP_TRUNCATE };

static prhs_drv_kernel_node node_of(const prhs_nv_launch *l, void **params) {
    return (prhs_drv_kernel_node){ l->kernel->function, l->grid, 1, 1, l->threads, 1, 1, l->shared, params, NULL };
}

static prhs_status add_edges(prhs_nv_queue *queue, const prhs_nv_chain *c, size_t edges) {
    prhs_drv_edge data[PRHS_NV_CHAIN_MAX];
    for (size_t i = 0; i < edges; i++)
        data[i] = PRHS_DRV_EDGE_OVERLAP;
    if (queue->overlap)
        return prhs_nv_check(queue->head.dev, "cuGraphAddDependencies",
                             prhs_drv.GraphAddEdges(c->graph, c->nodes, c->nodes + 1, data, edges));
    return prhs_nv_check(queue->head.dev, "cuGraphAddDependencies",
                         prhs_drv.GraphAddDependencies(c->graph, c->nodes, c->nodes + 1, edges));
}

static prhs_status make(prhs_nv_queue *queue, const prhs_nv_launch *first, size_t length) {
    prhs_device *dev = queue->head.dev;
    prhs_nv_chain *c = &queue->chains[length];
    void *params[] = { first->args };
    const prhs_drv_kernel_node node = node_of(first, params);
    prhs_status status = prhs_nv_check(dev, "cuGraphCreate", prhs_drv.GraphCreate(&c->graph, 0));
    for (size_t i = 0; i < length && status == PRHS_OK; i++)
        status = prhs_nv_check(dev, "cuGraphAddKernelNode", prhs_drv.GraphAddKernelNode(&c->nodes[i], c->graph, NULL, 0, &node));
    if (status == PRHS_OK)
        status = add_edges(queue, c, length - 1);
    if (status == PRHS_OK)
        status = prhs_nv_check(dev, "cuGraphInstantiate", prhs_drv.GraphInstantiate(&c->exec, c->graph, 0));
    if (status == PRHS_OK)
        prhs_count(&dev->counters.allocations);
    return status;
}

prhs_status prhs_nv_chains_create(prhs_nv_queue *queue) {
    prhs_device *dev = queue->head.dev;
    unsigned char args[4096] = { 0 }; /* more than any kernel's */
    prhs_status status = prhs_nv_op_prepare(dev, &any_key);
    if (status != PRHS_OK || (status = prhs_nv_enter(dev)) != PRHS_OK)
        return status;
    const prhs_nv_kernel *kernel = prhs_nv_find(prhs_nv_device_of(dev), &any_key)->kernel;
    const prhs_nv_launch first = { kernel, args, 1, kernel->choice.threads, kernel->choice.shared };
    queue->overlap = kernel->overlap && prhs_drv.GraphAddEdges;
    for (size_t i = 2; i <= PRHS_NV_CHAIN_MAX && status == PRHS_OK; i++)
        status = make(queue, &first, i);
    if (status != PRHS_OK)
        prhs_nv_chains_destroy(queue);
    prhs_nv_leave();
    return status;
}

void prhs_nv_chains_destroy(prhs_nv_queue *queue) {
    for (size_t i = 2; i <= PRHS_NV_CHAIN_MAX; i++) {
        prhs_nv_chain *c = &queue->chains[i];
        if (c->exec)
            prhs_nv_check(queue->head.dev, "cuGraphExecDestroy", prhs_drv.GraphExecDestroy(c->exec));
        if (c->graph)
            prhs_nv_check(queue->head.dev, "cuGraphDestroy", prhs_drv.GraphDestroy(c->graph));
        c->exec = NULL;
        c->graph = NULL;
    }
}

static prhs_status launch_one(prhs_queue *queue, const prhs_nv_launch *l) {
    const prhs_nv_kernel *kernel = l->kernel;
    void *params[] = { l->args };
    if (!kernel->overlap)
        return prhs_nv_check(queue->dev, kernel->choice.name,
                             prhs_drv.LaunchKernel(kernel->function, l->grid, 1, 1, l->threads, 1, 1, l->shared,
                                                   prhs_nv_stream_of(queue), params, NULL));
    prhs_drv_attribute overlap = { .id = PRHS_DRV_ATTRIBUTE_OVERLAP, .value.overlap = 1 };
    const prhs_drv_launch how = { l->grid, 1, 1, l->threads, 1, 1, l->shared, prhs_nv_stream_of(queue), &overlap, 1 };
    return prhs_nv_check(queue->dev, kernel->choice.name, prhs_drv.LaunchKernelEx(&how, kernel->function, params, NULL));
}

/* The chain that can take the launches; NULL: none can, or the stream is being captured. */
static const prhs_nv_chain *chain_for(const prhs_nv_queue *queue, const prhs_nv_launch *launches, size_t count) {
    int state = PRHS_DRV_CAPTURE_ACTIVE;
    if (count < 2 || count > PRHS_NV_CHAIN_MAX || !queue->chains[count].exec)
        return NULL;
    for (size_t i = 0; i < count; i++)
        if (launches[i].kernel->overlap != queue->overlap)
            return NULL;
    if (prhs_drv.StreamIsCapturing(queue->stream, &state) != PRHS_DRV_SUCCESS || state != PRHS_DRV_CAPTURE_NONE)
        return NULL;
    return &queue->chains[count];
}

/* Launches neighbours, none of which has teams, or one. */
static prhs_status launch_some(prhs_queue *head, const prhs_nv_launch *launches, size_t count) {
    prhs_device *dev = head->dev;
    const prhs_nv_chain *chain = chain_for((const prhs_nv_queue *)head, launches, count);
    prhs_status status = PRHS_OK;
    for (size_t i = 0; i < count && status == PRHS_OK; i++) {
        void *params[] = { launches[i].args };
        const prhs_drv_kernel_node node = node_of(&launches[i], params);
        status = chain ? prhs_nv_check(dev, launches[i].kernel->choice.name,
                                       prhs_drv.GraphSetKernelNode(chain->exec, chain->nodes[i], &node))
                       : launch_one(head, &launches[i]);
        if (status == PRHS_OK && !chain)
            prhs_count(&dev->counters.launches);
    }
    if (chain && status == PRHS_OK)
        status = prhs_nv_check(dev, "cuGraphLaunch", prhs_drv.GraphLaunch(chain->exec, prhs_nv_stream_of(head)));
    for (size_t i = 0; chain && i < count && status == PRHS_OK; i++)
        prhs_count(&dev->counters.launches);
    return status;
}

prhs_status prhs_nv_launch_all(prhs_queue *head, const prhs_nv_launch *launches, size_t count) {
    prhs_status status = PRHS_OK;
    for (size_t i = 0, n; i < count && status == PRHS_OK; i += n) {
        n = 1;
        while (!launches[i].kernel->choice.teams && i + n < count && !launches[i + n].kernel->choice.teams)
            n++;
        status = launch_some(head, launches + i, n);
    }
    return status;
}
