/* SPDX-License-Identifier: Apache-2.0 */
/* Traces of random data that behave a little like a model's: queries drift from step to step, keys cluster. All of it from a
 * seed. */
#ifndef SYNTH_H
#define SYNTH_H

#include "trace.h"

typedef struct synth {
    trace_shape shape;
    const uint32_t *contexts, *steps; /* [seqs] */
    uint64_t seed;
    float drift; /* of a query from one step to the next; 0: it stays */
} synth;

/* splitmix64. */
uint64_t synth_draw(uint64_t *state);
/* Element i of the row of a kind at a position. */
float synth_value(const synth *s, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t position, size_t i);
/* Writes the whole trace; ends the program with a sentence where that fails. */
void synth_write(const synth *s, const char *path);
/* A file's bytes, malloc'ed. */
unsigned char *synth_bytes(const char *path, size_t *size);

#endif
