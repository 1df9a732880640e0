/* SPDX-License-Identifier: Apache-2.0 */
/* --record: a run's queries, keys and values as a trace for `prhs replay` (docs/trace.md). */
#ifndef RECORD_H
#define RECORD_H

#include "engine.h"
#include "trace.h"

typedef struct record_options {
    const char *file; /* NULL: nothing is recorded */
    bool some;        /* layers [first, last] only */
    uint32_t first, last;
    uint32_t limit;   /* MiB */
    bool prompts;     /* with the queries of the prompts' rows */
} record_options;

#define RECORD_DEFAULTS { .limit = 1024 }
/* For getopt_long(); what it returns for them goes to record_option(). */
#define RECORD_OPTIONS { "record", 1, 0, 'R' }, { "record-layers", 1, 0, 'L' }, { "record-limit", 1, 0, 'M' }, \
                       { "record-prompts", 0, 0, 'Q' }
#define RECORD_HELP \
    "  --record FILE       write the run's queries, keys and values, for 'prhs replay'\n" \
    "  --record-layers A-B of these layers only (all)\n" \
    "  --record-prompts    with the queries of all of the prompts' rows, which 'prhs replay --policy h2o' asks for\n" \
    "  --record-limit MIB  do not begin where the file could grow larger (1024)\n"

/* false: the value is none for this option. */
bool record_option(int option, const char *text, record_options *o);

/* A recording that is going on; all zeros: there is none, and every call below does nothing and is true. */
typedef struct record {
    trace_writer *writer;
    uint32_t *context; /* [seqs]: the prompts' lengths */
    uint32_t seqs, made; /* decoded rows of every sequence that all layers have had */
    float *rows;
    size_t room;
} record;

/* false, with a sentence on standard error: it cannot be. steps: decoded rows of a sequence, at most. */
bool record_begin(record *r, const record_options *o, const model *m, const uint32_t *contexts, uint32_t seqs, uint32_t steps);
/* Ends the recording; the file stays where all went well. */
bool record_end(record *r, bool keep);

/* The engine's rows [0, rows) are q, k and v of a layer: a sequence's prompt from position `first` on. Waits for the queue. */
bool record_prompt(record *r, engine *e, uint32_t layer, uint32_t seq, uint32_t first, uint32_t rows);
/* The next `steps` decoded rows of all sequences, [steps][seqs]; layers come in order. */
bool record_decoded(record *r, engine *e, uint32_t layer, uint32_t steps);

#endif
