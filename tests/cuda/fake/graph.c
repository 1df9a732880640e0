/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's functions: capture and graphs. */
#include "api.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

PRHS_PUBLIC result cuStreamBeginCapture_v2(prhs_drv_stream stream, int mode) {
    CALL();
    STREAM_OF(stream);
    (void)mode;
    if (!stream || stream->capture)
        DONE(!stream ? PRHS_DRV_CAPTURE_FIRST : PRHS_DRV_CAPTURE_FIRST + 1);
    stream->capture = PRHS_DRV_CAPTURE_ACTIVE;
    stream->owner = (unsigned long)pthread_self();
    DONE(0);
}

/* Ends it even if the call is told to fail. */
PRHS_PUBLIC result cuStreamEndCapture(prhs_drv_stream stream, prhs_drv_graph *graph) {
    fake_lock();
    const result error = fake_call("cuStreamEndCapture");
    STREAM_OF(stream);
    *graph = NULL;
    if (!stream || !stream->capture)
        DONE(PRHS_DRV_CAPTURE_FIRST + 3);
    const bool good = stream->capture == PRHS_DRV_CAPTURE_ACTIVE && !error;
    stream->capture = PRHS_DRV_CAPTURE_NONE;
    if (good && (*graph = fake_new(GRAPH, sizeof **graph)))
        (*graph)->nodes = stream->captured;
    else
        fake_items_free(&stream->captured);
    stream->captured.first = NULL;
    DONE(error ? error : !good ? PRHS_DRV_CAPTURE_FIRST + 1 : *graph ? 0 : PRHS_DRV_OUT_OF_MEMORY);
}

PRHS_PUBLIC result cuGraphInstantiateWithFlags(prhs_drv_exec *exec, prhs_drv_graph graph, unsigned long long flags) {
    CALL();
    CURRENT();
    (void)flags;
    if (!fake_known(graph, GRAPH))
        DONE(PRHS_DRV_INVALID_VALUE);
    *exec = fake_new(EXEC, sizeof **exec);
    if (*exec)
        fake_items_copy(&(*exec)->nodes, &graph->nodes);
    DONE(*exec ? 0 : PRHS_DRV_OUT_OF_MEMORY);
}

/* The graph's nodes as they are now: what a graph is told later is not for launches under way. */
static result launch(prhs_drv_exec exec, prhs_drv_stream stream) {
    result error = PRHS_DRV_SUCCESS;
    if (stream && stream->capture) {
        stream->capture = PRHS_DRV_CAPTURE_INVALIDATED;
        return PRHS_DRV_CAPTURE_FIRST;
    }
    for (const item *it = exec->nodes.first; it && !error; it = it->next)
        if (it->what != RECORD)
            error = fake_submit(stream, it);
    return error;
}

PRHS_PUBLIC result cuGraphLaunch(prhs_drv_exec exec, prhs_drv_stream stream) {
    CALL();
    STREAM_OF(stream);
    DONE(fake_known(exec, EXEC) ? launch(exec, stream) : PRHS_DRV_INVALID_VALUE);
}

PRHS_PUBLIC result cuGraphExecDestroy(prhs_drv_exec exec) {
    fake_lock();
    const result error = fake_call("cuGraphExecDestroy"), unsafe = fake_unsafe();
    if (!fake_known(exec, EXEC))
        DONE(PRHS_DRV_INVALID_VALUE);
    if (unsafe)
        DONE(unsafe);
    fake_run_all();
    fake_items_free(&exec->nodes);
    fake_delete(exec);
    DONE(error);
}

PRHS_PUBLIC result cuGraphDestroy(prhs_drv_graph graph) {
    fake_lock();
    const result error = fake_call("cuGraphDestroy");
    if (!fake_known(graph, GRAPH))
        DONE(PRHS_DRV_INVALID_VALUE);
    fake_items_free(&graph->nodes);
    fake_delete(graph);
    DONE(error);
}

/* --- graphs made by hand: chains of kernels --- */

PRHS_PUBLIC result cuGraphCreate(prhs_drv_graph *graph, unsigned flags) {
    CALL();
    CURRENT();
    *graph = flags ? NULL : fake_new(GRAPH, sizeof **graph);
    DONE(*graph ? 0 : flags ? PRHS_DRV_INVALID_VALUE : PRHS_DRV_OUT_OF_MEMORY);
}

static result kernel_item(const prhs_drv_kernel_node *what, item *it) {
    const prhs_drv_launch how = { what->grid_x,  what->grid_y, what->grid_z, what->block_x, what->block_y,
                                  what->block_z, what->shared, NULL,         NULL,          0 };
    return fake_kernel_item(what->function, &how, what->params, what->extra, it);
}

PRHS_PUBLIC result cuGraphAddKernelNode(prhs_drv_node *node, prhs_drv_graph graph, const prhs_drv_node *after, size_t count,
                                        const prhs_drv_kernel_node *what) {
    CALL();
    CURRENT();
    item it;
    if (!fake_known(graph, GRAPH) || after || count)
        DONE(PRHS_DRV_INVALID_VALUE);
    const result error = kernel_item(what, &it);
    *node = error ? NULL : (prhs_drv_node)(void *)fake_items_add(&graph->nodes, &it);
    DONE(error ? error : *node ? 0 : PRHS_DRV_OUT_OF_MEMORY);
}

/* Edges lead from a node to the next one. */
static result add_edges(prhs_drv_graph graph, const prhs_drv_node *from, const prhs_drv_node *to, const prhs_drv_edge *edges,
                        size_t count) {
    if (!fake_known(graph, GRAPH))
        return PRHS_DRV_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        item *before = (item *)(void *)from[i], *after = (item *)(void *)to[i];
        const bool overlaps = edges && edges[i].type == 1;
        if (before->next != after || (edges && (edges[i].from_port != edges[i].type || edges[i].to_port))) {
            fake_complain("an edge that is no chain's");
            return PRHS_DRV_INVALID_VALUE;
        }
        after->follows = true;
        after->overlaps = overlaps;
    }
    return PRHS_DRV_SUCCESS;
}

PRHS_PUBLIC result cuGraphAddDependencies(prhs_drv_graph graph, const prhs_drv_node *from, const prhs_drv_node *to,
                                          size_t count) {
    CALL();
    DONE(add_edges(graph, from, to, NULL, count));
}

PRHS_PUBLIC result cuGraphAddDependencies_v2(prhs_drv_graph graph, const prhs_drv_node *from, const prhs_drv_node *to,
                                             const prhs_drv_edge *edges, size_t count) {
    CALL();
    DONE(add_edges(graph, from, to, edges, count));
}

PRHS_PUBLIC result cuGraphExecKernelNodeSetParams(prhs_drv_exec exec, prhs_drv_node node, const prhs_drv_kernel_node *what) {
    CALL();
    CURRENT();
    item it, *at = fake_known(exec, EXEC) ? exec->nodes.first : NULL, *first = at;
    while (at && at->node != (const item *)(void *)node)
        at = at->next;
    if (!at || (at != first && !at->follows)) {
        fake_complain("a node that the graph has not, or that no edge leads to");
        DONE(PRHS_DRV_INVALID_VALUE);
    }
    result error = kernel_item(what, &it);
    if (!error && it.kernel->team != at->kernel->team) {
        fake_complain("a node of %s is told %s: it keeps the size of its teams", at->kernel->name, it.kernel->name);
        DONE(PRHS_DRV_INVALID_VALUE);
    }
    void *params = error ? NULL : malloc(it.kernel->params);
    if (!error && !params)
        error = PRHS_DRV_OUT_OF_MEMORY;
    if (!error) {
        memcpy(params, it.params, it.kernel->params);
        free(at->params);
        at->params = params;
        at->kernel = it.kernel;
        at->grid = it.grid;
        at->block = it.block;
        at->shared = it.shared;
    }
    DONE(error);
}
