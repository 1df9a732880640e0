/* SPDX-License-Identifier: Apache-2.0 */
/* Comparators in a teacher-forced run: lists of the host's, attention by the library's ops on the run's device. */
#ifndef COMPARATOR_RUN_H
#define COMPARATOR_RUN_H

#include "comparator.h"
#include "report.h"

/* What H2O takes from the prompts: what each cached token has been given, [layers][seqs][kv_heads][tokens]. All zeros: nobody wants it. */
typedef struct comparator_prompts {
    float *given;
} comparator_prompts;

bool comparator_prompts_make(comparator_prompts *p, const engine *e);
/* The engine's rows [0, rows) are q, k and v of a whole prompt. */
bool comparator_prompts_take(comparator_prompts *p, engine *e, uint32_t layer, uint32_t seq, uint32_t rows);

/* A comparator's run: ops, arrays of all steps, and sums over them. */
typedef struct comparator_run comparator_run;

comparator_run *comparator_run_open(engine *e, const comparator *c, const comparator_prompts *prompts, const run_shape *shape, bool audits);
void comparator_run_close(comparator_run *r);
/*
 * All decode rows of a layer, whose q, k and v are the engine's rows (row step * docs + doc): appends, chooses, attends. Plan `plan` + step
 * is a step's batch.
 */
bool comparator_run_layer(comparator_run *r, uint32_t layer, uint32_t plan, double *attention);
/* What was counted, in the form of a session's. */
bool comparator_run_take(comparator_run *r, result *res);

#endif
