/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands of `prhs` share. */
#ifndef PRHS_TOOL_H
#define PRHS_TOOL_H

#include <stdbool.h>

#include <prhs/prhs.h>

/* Exit statuses. */
enum { TOOL_OK = 0, TOOL_FAILED = 1, TOOL_USAGE = 2, TOOL_NO_DEVICE = 77 };

int tool_info(int argc, char **argv);
int tool_verify(int argc, char **argv);
int tool_bench(int argc, char **argv);
int tool_replay(int argc, char **argv);
int tool_report(int argc, char **argv);
int tool_tune(int argc, char **argv);

/* Options that choose a device: pass them to getopt_long() and what it returns to tool_device_option(). */
#define TOOL_DEVICE_OPTIONS \
    { "backend", 1, 0, 'b' }, { "device", 1, 0, 'd' }, { "caps", 1, 0, 'c' }, { "threads", 1, 0, 't' }, { "cache-dir", 1, 0, 'C' }
#define TOOL_DEVICE_HELP \
    "  --backend NAME    cpu, opencl, cuda or any (default: the first that has a device)\n" \
    "  --device INDEX    as 'prhs info' counts them (0)\n" \
    "  --caps HEX        capabilities that may be used, as bits (all)\n" \
    "  --threads N       cpu: host threads (one a core)\n" \
    "  --cache-dir DIR   OpenCL: compiled programs; '' keeps none\n"

/* 1: the option was one of these; 0: it is none; -1: its value is bad, and a sentence was printed. */
int tool_device_option(int option, const char *value, prhs_device_params *params);

/* An unsigned number from `low` to `high`; false, with a sentence, for anything else. */
bool tool_number(const char *option, const char *text, uint64_t low, uint64_t high, uint64_t *value);

/* Prints the library's messages. */
extern const prhs_log tool_log;

/* Opens a device; TOOL_OK or the exit status, with a sentence. */
int tool_open(const prhs_device_params *params, prhs_device **device);

/* graph.c: captures of a queue's work, where the device has them. */
bool tool_has_graphs(const prhs_device_info *info);
prhs_status tool_graph_begin(prhs_queue *queue);
prhs_status tool_graph_end(prhs_queue *queue, void **graph);
prhs_status tool_graph_launch(void *graph, prhs_queue *queue);
void tool_graph_destroy(void *graph);

/* Shows which options were wrong and where help is. */
int tool_usage(const char *command);

#endif
