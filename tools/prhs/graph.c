/* SPDX-License-Identifier: Apache-2.0 */
/* Captures of a queue's work; a library that was built without CUDA has none. */
#include "tool.h"

#ifdef PRHS_HAVE_CUDA
#include <prhs/cuda.h>

bool tool_has_graphs(const prhs_device_info *info) { return info->backend == PRHS_BACKEND_CUDA; }
prhs_status tool_graph_begin(prhs_queue *queue) { return prhs_cuda_graph_begin(queue); }

prhs_status tool_graph_end(prhs_queue *queue, void **graph) {
    prhs_cuda_graph *made = NULL;
    prhs_status status = prhs_cuda_graph_end(queue, &made);
    *graph = made;
    return status;
}

prhs_status tool_graph_launch(void *graph, prhs_queue *queue) { return prhs_cuda_graph_launch(graph, queue); }
void tool_graph_destroy(void *graph) { prhs_cuda_graph_destroy(graph); }
#else
bool tool_has_graphs(const prhs_device_info *info) { return info == NULL; }
prhs_status tool_graph_begin(prhs_queue *queue) { return (void)queue, PRHS_ERR_UNSUPPORTED; }
prhs_status tool_graph_end(prhs_queue *queue, void **graph) { return (void)queue, (void)graph, PRHS_ERR_UNSUPPORTED; }
prhs_status tool_graph_launch(void *graph, prhs_queue *queue) { return (void)graph, (void)queue, PRHS_ERR_UNSUPPORTED; }
void tool_graph_destroy(void *graph) { (void)graph; }
#endif
