/* SPDX-License-Identifier: Apache-2.0 */
/* Captures of the benchmark's queue. */
#include "bench.h"

bool bench_has_graphs(const bench *b) { return tool_has_graphs(&b->info); }
void bench_graph_begin(bench *b) { bench_must(tool_graph_begin(b->queue)); }

void *bench_graph_end(bench *b) {
    void *graph = NULL;
    bench_must(tool_graph_end(b->queue, &graph));
    return graph;
}

void bench_graph_launch(bench *b, void *graph) { bench_must(tool_graph_launch(graph, b->queue)); }
void bench_graph_destroy(void *graph) { tool_graph_destroy(graph); }
