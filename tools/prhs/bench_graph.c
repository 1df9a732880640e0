/* SPDX-License-Identifier: Apache-2.0 */
/* Captures of a queue's work; a library that was built without CUDA has none. */
#include "bench.h"

#ifdef PRHS_HAVE_CUDA
#include <prhs/cuda.h>

bool bench_has_graphs(const bench *b) { return b->info.backend == PRHS_BACKEND_CUDA; }
void bench_graph_begin(bench *b) { bench_must(prhs_cuda_graph_begin(b->queue)); }

void *bench_graph_end(bench *b) {
    prhs_cuda_graph *graph = NULL;
    bench_must(prhs_cuda_graph_end(b->queue, &graph));
    return graph;
}

void bench_graph_launch(bench *b, void *graph) { bench_must(prhs_cuda_graph_launch(graph, b->queue)); }
void bench_graph_destroy(void *graph) { prhs_cuda_graph_destroy(graph); }
#else
bool bench_has_graphs(const bench *b) { return b == NULL; }
void bench_graph_begin(bench *b) { (void)b; }
void *bench_graph_end(bench *b) { return (void)b, NULL; }
void bench_graph_launch(bench *b, void *graph) { (void)b, (void)graph; }
void bench_graph_destroy(void *graph) { (void)graph; }
#endif
