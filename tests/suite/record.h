/* SPDX-License-Identifier: Apache-2.0 */
/* Recordings of a queue's work, where the backend has them. */
#ifndef PRHS_TEST_RECORD_H
#define PRHS_TEST_RECORD_H

#include <prhs/device.h>

/* NULL: this backend of this build records; else the reason why it does not. */
const char *t_graph_missing(prhs_backend_kind backend);
prhs_status t_graph_begin(prhs_queue *queue);
prhs_status t_graph_end(prhs_queue *queue, void **graph);
prhs_status t_graph_launch(void *graph, prhs_queue *queue);
void t_graph_destroy(void *graph);

#endif
