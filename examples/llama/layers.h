/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launch structs of layers.cu, for the host and for the kernels' compiler. Pointers are the device's. half: the weights, and what a product
 * reads beside them, are float16 instead of float32.
 */
#ifndef LAYERS_H
#define LAYERS_H

#include <prhs/device_types.h>

#define LAYER_THREADS 256
#define LOGIT_THREADS 1024 /* of a block whose row is as long as the vocabulary */

/* x [rows][dim] = table[ids[row]] */
typedef struct embed_args {
    const int32_t *ids;
    const void *table;
    float *x;
    int32_t rows, dim, half;
} embed_args;

/* out = x / rms(x) * weight; the weight is float32 always */
typedef struct norm_args {
    const float *x, *weight;
    void *out;
    int32_t rows, dim, half;
    float eps;
} norm_args;

/* Rotates the first `heads` heads of rows `stride` apart. turns: (cosine, sine) [position][dim / 2]; row r is at positions[r]. */
typedef struct rope_args {
    float *rows_of;
    const float *turns;
    const int32_t *positions;
    int32_t rows, heads, dim, stride;
} rope_args;

/* out [rows][ffn] = silu(gate) * up, which are the halves of a row of both [rows][2 * ffn] */
typedef struct swiglu_args {
    const float *both;
    void *out;
    int32_t rows, ffn, half;
} swiglu_args;

/* to = from, rounded to float16 */
typedef struct round_args {
    const float *from;
    void *to;
    int64_t count;
} round_args;

/*
 * The next tokens of sequences [first, first + rows): the likeliest of logits [rows][vocab], or, where those are NULL, what stands in next
 * already. seqs, next, positions, made, tokens: of all sequences; tokens [step][all].
 */
typedef struct choose_args {
    const float *logits;
    prhs_seq *seqs;
    int32_t *next, *positions, *made, *tokens;
    int32_t rows, vocab, first, all;
} choose_args;

/* nll[row] = -log softmax(logits[row])[target[row]], best[row] the likeliest. */
typedef struct score_args {
    const float *logits;
    const int32_t *target;
    double *nll;
    int32_t *best;
    int32_t rows, vocab;
} score_args;

#endif
