/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs replay: what its files share. A trace lies on the device once: its K/V in one cache a layer, the decoded rows step by
 * step. A policy is run over it by a session with the model's number of layers, of which the recorded ones are called. It runs in
 * two ways: audited, every step looked at, for what was dropped and how far outputs are off; and as in normal use, for the
 * time.
 */
#ifndef PRHS_REPLAY_H
#define PRHS_REPLAY_H

#include <stddef.h>

#include "comparator.h"
#include "tool.h"
#include "trace.h"

enum { REPLAY_POLICIES = 64, REPLAY_VALUES = 32 };

/* What is measured, as bits. */
enum { REPLAY_ACCURACY = 1, REPLAY_TIME = 2 };

/* A list of values that --sweep walks: the words, so that they reach a policy as if they had been typed. */
typedef struct replay_list {
    const char *key;
    char text[256];
    const char *values[REPLAY_VALUES];
    uint32_t count;
} replay_list;

enum { REPLAY_K, REPLAY_S, REPLAY_REFS, REPLAY_EPS, REPLAY_TAU, REPLAY_TARGET, REPLAY_LISTS };

typedef struct replay_options {
    prhs_device_params device;
    const char *file, *json;
    const char *policies[REPLAY_POLICIES];
    uint32_t policy_count;
    uint32_t parts;
    uint32_t page_size;
    uint32_t repeat; /* timed runs */
    bool no_seed, direct, heads;
    bool sweep;
    replay_list lists[REPLAY_LISTS];
    double target_error, target_delta; /* NaN: none */
    uint32_t coverage, audits; /* seeds that are tried, 0: none; audits of each, on average */
    double confidence;
    double audit_rate; /* of timed runs */
} replay_options;

enum { REPLAY_BUFFERS = 16 };

typedef struct replay {
    const replay_options *o;
    prhs_device *dev;
    prhs_queue *queue;
    prhs_device_info info;
    trace *file;
    trace_shape shape;
    uint32_t steps;       /* of the longest sequence */
    uint32_t tokens;      /* the same */
    uint32_t page_stride; /* pages a sequence */
    prhs_kv *kv;          /* [layer_count] */
    prhs_buffer **caches; /* [layer_count] */
    prhs_buffer *buffers[REPLAY_BUFFERS];
    uint32_t buffer_count;
    prhs_mem pages;
    prhs_mem records; /* prhs_seq[1 + steps][seqs]: what is cached before the first step, then the steps */
    prhs_mem rows[3]; /* q [1 + steps], k and v [steps]: float16 [layer_count][seqs][row] each; q begins with the prompts' last */
    prhs_mem now[3], seqs; /* the step in work: fixed places, so that a graph can be replayed */
    prhs_mem out;          /* float32 [layer_count][seqs][heads * dim] */
    double *exact;         /* [layer_count][steps][seqs][heads * dim]: dense attention in double; NULL: not wanted */
} replay;

/* --- replay_load.c --- */

/* Opens the trace and brings it onto the device; false with a sentence. replay_free() in any case. */
bool replay_load(replay *r);
void replay_free(replay *r);
/* A buffer that replay_free() destroys. */
bool replay_buffer(replay *r, uint64_t size, prhs_mem *mem);
/* calloc with a sentence. */
void *replay_alloc(size_t n, size_t size);
/* Bytes of a step's rows of a kind, all layers and sequences. */
size_t replay_step_bytes(const replay *r, trace_kind kind);
static inline const trace_seq *replay_seq(const replay *r, uint32_t seq) { return trace_get_seq(r->file, seq); }

/* --- replay_exact.c --- */

/* Threads for so many items of work of the host's. */
uint32_t replay_threads(const replay *r, uint32_t items);
/* Dense attention of all decoded rows of one layer and sequence, in double, on host threads. Rows are those of the trace. */
bool replay_exact(replay *r, uint32_t layer, uint32_t seq, const uint16_t *q, const uint16_t *k, const uint16_t *v);

/* --- replay_run.c --- */

/* Mean, 99th percentile (nearest rank) and largest of some values, NaN left out; n 0: all NaN. */
typedef struct replay_summary {
    uint64_t n;
    double mean, p99, max;
} replay_summary;

/* The estimate of shared steps beside the exact mass: ratios of the two, each + 1e-4. */
typedef struct replay_estimate {
    uint64_t n;
    double median, within; /* within: the share of ratios from 1 / 1.25 to 1.25 */
    double mean, exact;    /* of the estimates; of the exact masses beside them */
} replay_estimate;

/* Bounds from audits that could have been drawn, over many seeds, beside the exact mean; runs 0: not wanted, or nothing to audit. */
typedef struct replay_coverage {
    uint32_t runs, held; /* held: runs whose limits hold */
    uint64_t steps, unknown; /* sparse unit-steps; of these, with a mass that only an audit knows */
    double rate, exact, audits; /* audits: mean number */
    double deviation;           /* standard deviation of the unknown ones */
    double width_median, width_most, miss_most; /* of the limits; the farthest that the exact mean lay outside */
} replay_coverage;

/* A layer: of its heads, of its units. */
typedef struct replay_layer {
    replay_summary delta, error;             /* all heads together */
    replay_summary *head_delta, *head_error; /* [heads] */
    replay_estimate estimate;
    prhs_stats stats; /* of this layer; zeros and NaN for one of the policy's dense layers */
} replay_layer;

typedef struct replay_result {
    char name[256];
    prhs_policy policy;   /* zeros: it is a comparator */
    comparator rival;     /* COMPARATOR_NONE: it is a policy */
    uint32_t parts;       /* REPLAY_*: what there is */
    replay_layer *layers; /* [layer_count] */
    prhs_stats stats;     /* all layers */
    replay_summary delta; /* exact dropped mass of sparse unit-steps, by head */
    replay_summary error; /* |o~ - o| / |o| of every head, step and layer */
    replay_estimate estimate, *sequences; /* of all; [seqs]: of each */
    replay_summary retrieving; /* by step: the share of units that retrieve, which is what makes steps differ */
    double retrieving_median;
    double bytes, dense_bytes;       /* of K and V that must be read, a step of one sequence through all recorded layers */
    double median, p99, worst, mean; /* seconds a layer step, the first one left out */
    double first, seed;              /* seconds a layer of the first step, of seeding (0 without) */
    replay_coverage coverage;
} replay_result;

/* A policy for a model of so many layers, or a comparator (*policy is zeros then). false: a sentence was written. */
bool replay_parse(const char *text, uint32_t layers, prhs_policy *policy, comparator *rival);
bool replay_policy(replay *r, const char *text, uint32_t parts, replay_result *result);
void replay_result_free(const replay *r, replay_result *result);

/* --- replay_stats.c --- */

/* All that the audited run saw: [step][seq][layer][head]. NaN: not there. */
typedef struct replay_samples {
    float *delta, *hat; /* exact; the estimate, of shared steps */
    unsigned char *mode; /* PRHS_MODE_* of the head's unit; IDLE: no sparse step */
    double *error;
    double scored;               /* keys read by retrievals besides what they attend */
    uint32_t *retrieved, *units; /* [steps]: units that retrieved, of how many that keep books */
} replay_samples;

static inline size_t replay_sample_at(const replay *r, uint32_t step, uint32_t seq, uint32_t layer) {
    return (((size_t)step * r->shape.seqs + seq) * r->shape.layer_count + layer) * r->shape.heads;
}
bool replay_samples_make(const replay *r, replay_samples *s);
void replay_samples_free(replay_samples *s);
bool replay_summarise(const replay *r, const replay_samples *s, replay_result *result);
/* seconds[repeat][steps + 1]: a layer of every step, then of the seeding. */
bool replay_times(const replay *r, const double *seconds, replay_result *result);

/* --- replay_run.c, again: what a comparator's run takes from it --- */

/* Puts the records and rows of a step where the layers read them: step 0 is what is cached, with the prompts' last queries. */
bool replay_take(const replay *r, uint32_t step);
prhs_batch replay_batch(const replay *r, uint32_t kinds);
/* Errors of a layer's outputs [heads * dim] of a sequence. */
void replay_errors(const replay *r, const float *outs, uint32_t layer, uint32_t step, uint32_t seq, replay_samples *s);

/* --- replay_compare.c --- */

/* result->rival over the trace: masses, errors and bytes. */
bool replay_compare(replay *r, replay_result *result);

/* --- replay_coverage.c --- */

/* Fills result->coverage, as the options ask for it. */
bool replay_cover(const replay *r, const replay_samples *s, replay_result *result);

/* --- replay_sweep.c --- */

/* Runs the grid; the exit status. */
int replay_sweep(replay *r);
/* "128,256" */
bool replay_list_parse(const char *option, const char *key, const char *text, replay_list *list);

/* --- replay_report.c --- */

void replay_head_line(const replay *r);
void replay_table_head(const replay *r);
void replay_table_line(const replay *r, const replay_result *result);
bool replay_json(const replay *r, const replay_result *results, uint32_t count, const char *extra_key, void *extra);
const char *replay_grade(const replay_result *result);
void replay_coverage_line(const replay *r, const replay_result *result);

#endif
