/* SPDX-License-Identifier: Apache-2.0 */
/* What a policy's run gave, as a table and as JSON. */
#ifndef REPORT_H
#define REPORT_H

#include <stdio.h>

#include "compute.h"
#include "layer_stats.h"
#include "options.h"

#define MAX_POLICIES 64

typedef struct run_shape {
    uint32_t docs, context, decode;
    uint32_t set, sets;      /* of documents */
    bool at_end;
} run_shape;

typedef struct result {
    const char *name;
    prhs_policy policy;
    prhs_stats stats;
    bool drawn;              /* audits are a sample */
    prhs_audit_report audit;
    layer_stats *layers;     /* [layer_count], of `heads` query heads each */
    uint32_t layer_count, heads;
    double bytes, dense_bytes; /* of K and V, a step of a sequence */
    double *nll;             /* [docs], mean over decode rows */
    int32_t *best;           /* [decode * docs] */
    uint32_t *right;         /* [docs]: decode rows whose likeliest token is the text's */
    bool comparator;         /* no policy of the library's */
    double seconds, attention;
} result;

bool result_make(result *r, const char *name, const run_shape *shape);
void result_free(result *r);
/* Takes what the session counted. */
bool result_take(result *r, engine *e, engine_session *s, const run_shape *shape);

/* results[0] is dense, the baseline. */
void report_table(FILE *to, const run_shape *shape, const prhs_device_info *device, const result *results, size_t n);
bool report_json(const char *path, const run_shape *shape, const prhs_device_info *device, const compute *c, const result *results, size_t n);

/* The head that all documents have, and their way into a file ("-": standard output), after which they are gone. */
struct cJSON *report_begin(const char *kind, const prhs_device_info *device, const compute *c);
bool report_end(const char *path, struct cJSON *root);

#endif
