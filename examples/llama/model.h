/* SPDX-License-Identifier: Apache-2.0 */
/* A llama-family model on the host: float32 weights, and the parts of a layer that are not attention, for many rows at once. */
#ifndef MODEL_H
#define MODEL_H

#include "gguf.h"

typedef struct layer_weights {
    float *attn_norm, *ffn_norm;          /* [dim] */
    float *wq, *wk, *wv, *wo;             /* [out][in]; q, k and v one after the other */
    float *gate, *up, *down;              /* gate and up one after the other */
} layer_weights;

typedef struct model {
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn, vocab, context;
    float rope_base, eps;
    float *embedding, *output, *norm;     /* output is the embedding where the file has none of its own */
    layer_weights *layer;
    float *block;                         /* all weights, one allocation of `floats` */
    size_t floats;
} model;

/* false on failure, with one sentence in `error`. */
bool model_load(const gguf *g, model *m, char *error, size_t cap);
void model_free(model *m);

/* Rows are contiguous float32. */
void model_embed(const model *m, const int32_t *ids, size_t rows, float *x);
/* q [rows][heads*D], k and v [rows][kv_heads*D] of one layer; q and k are rotated for position[row]. `tmp`: rows * dim floats. */
void model_qkv(const model *m, uint32_t layer, const float *x, size_t rows, const int32_t *position, float *q, float *k, float *v,
               float *tmp);
/* x += wo * attention; x += mlp(norm(x)). `tmp`: rows * (dim + 2 * ffn) floats. */
void model_rest(const model *m, uint32_t layer, float *x, const float *attention, size_t rows, float *tmp);
/* Logits [rows][vocab] of final hidden rows. `tmp`: rows * dim floats. */
void model_logits(const model *m, const float *x, size_t rows, float *logits, float *tmp);

#endif
