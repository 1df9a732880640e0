/* SPDX-License-Identifier: Apache-2.0 */
/* A library that was built without CUDA has no calls to record with. */
#include "record.h"

#include <stddef.h>

#ifdef PRHS_HAVE_CUDA
#include <prhs/cuda.h>

prhs_status t_graph_begin(prhs_queue *queue) { return prhs_cuda_graph_begin(queue); }

prhs_status t_graph_end(prhs_queue *queue, void **graph) {
    prhs_cuda_graph *made = NULL;
    prhs_status status = prhs_cuda_graph_end(queue, &made);
    *graph = made;
    return status;
}

prhs_status t_graph_launch(void *graph, prhs_queue *queue) { return prhs_cuda_graph_launch(graph, queue); }
void t_graph_destroy(void *graph) { prhs_cuda_graph_destroy(graph); }
#else
prhs_status t_graph_begin(prhs_queue *queue) { return (void)queue, PRHS_ERR_UNSUPPORTED; }

prhs_status t_graph_end(prhs_queue *queue, void **graph) {
    *graph = NULL;
    return (void)queue, PRHS_ERR_UNSUPPORTED;
}

prhs_status t_graph_launch(void *graph, prhs_queue *queue) { return (void)graph, (void)queue, PRHS_ERR_UNSUPPORTED; }
void t_graph_destroy(void *graph) { (void)graph; }
#endif

const char *t_graph_missing(prhs_backend_kind backend) {
    switch (backend) {
    case PRHS_BACKEND_CUDA: return NULL;
    case PRHS_BACKEND_OPENCL: return "OpenCL 1.2 has no graphs";
    default: return "the cpu backend runs calls at once: it has no graphs";
    }
}
