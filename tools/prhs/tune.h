/* SPDX-License-Identifier: Apache-2.0 */
/* prhs tune: what its two files share. */
#ifndef PRHS_TUNE_H
#define PRHS_TUNE_H

#include "bench.h"

enum { TUNE_CANDIDATES = 12, TUNE_NAMES = 24, TUNE_ROUNDS = 9 };

/* A row of bench's ops, with every candidate, once a round. */
typedef struct tune_sample {
    const char *name;
    double median[TUNE_CANDIDATES][TUNE_ROUNDS]; /* seconds; 0: not measured */
} tune_sample;

typedef struct tune {
    bench_options o;
    const char *write;              /* file of rows to bring up to date; NULL: none */
    prhs_device_info info;          /* of the device, nothing masked */
    char device_class[16];          /* as rows name it */
    int groups[TUNE_CANDIDATES];    /* a compute unit; the first is what a launch gets without a row of its own */
    int candidates;
    int rounds;
    tune_sample samples[32][TUNE_NAMES]; /* by shape */
    int names[32];
} tune;

/* The op that a row of bench belongs to: its first word. */
void tune_op_of(const char *name, char op[16]);
/*
 * Time of an op with candidate c over the median of the first one's: the geometric mean over its rows; median, least and greatest of the
 * rounds. All 0: it was not measured.
 */
typedef struct tune_cost {
    double median, least, greatest;
} tune_cost;
tune_cost tune_cost_of(const tune *t, uint32_t shape, const char *op, int c);
/* The quickest candidate; the first one unless it is beaten in every round, and by more than noise. */
int tune_best(const tune *t, uint32_t shape, const char *op);
bool tune_measured(const tune *t, uint32_t shape, const char *op);
/* The ops that rows are written for; ends with NULL. */
extern const char *const tune_ops[];
/* One row of tuning with its line end. */
int tune_row(const tune *t, const bench_shape *s, const char *op, int groups, char *line, size_t size);

/* The table on `f`; the rows' file; the document. false, with a sentence, where a file cannot be written. */
void tune_print(const tune *t, FILE *f);
bool tune_write(const tune *t);
bool tune_json(const tune *t);

#endif
