/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a model's linear algebra runs: the seam between what the engine does and who computes it. A `compute` has the weights and the
 * hidden rows x of a step; queries, keys, values and attention's output are the engine's rows, so that attention is enqueued between two
 * calls. Calls take their turn on the engine's queue; only those that give something to the host wait for it.
 */
#ifndef COMPUTE_H
#define COMPUTE_H

#include "engine.h"

#define PLAN_DECODE 0  /* the engine's plan that choose() moves on */
#define LOGIT_ROWS 128 /* rows whose logits are in memory at once */

typedef struct compute compute;

/* Every call: false after a sentence on standard error. */
typedef struct compute_ops {
    const char *name;
    uint32_t burst;                   /* decode steps that are worth enqueuing before the host looks at their tokens */
    void (*close)(compute *c);

    /* x of `rows` tokens, in x and in the engine's rows from 0 on */
    bool (*embed)(compute *c, const int32_t *ids, const int32_t *positions, size_t rows);
    /* the engine's q, k and v of a layer, rotated */
    bool (*qkv)(compute *c, uint32_t layer, size_t rows);
    /* x of rows [first, rows) after the layer, from the engine's out */
    bool (*rest)(compute *c, uint32_t layer, size_t first, size_t rows);

    /* one row's logits to the host */
    bool (*logits)(compute *c, size_t row, float *logits);
    /* -log p(target) and the likeliest token of every row, to the host */
    bool (*score)(compute *c, size_t rows, const int32_t *target, double *nll, int32_t *best);

    /* The decode loop. begin: no tokens yet; `seqs`, all of the engine's, are PLAN_DECODE before the first token. */
    bool (*begin)(compute *c, const prhs_seq *seqs);
    /* The next tokens of sequences [seq, seq + count): the host's, or (ids NULL) the likeliest after rows [row, row + count). They go to
       the end of the sequences' tokens, and PLAN_DECODE moves one position on. */
    bool (*choose)(compute *c, size_t row, size_t seq, size_t count, const int32_t *ids);
    /* x of the next tokens, a row for each sequence */
    bool (*feed)(compute *c);
    /* tokens [first, first + count) of all sequences to compute.tokens; there when the queue has come past this */
    bool (*fetch)(compute *c, uint32_t first, uint32_t count);

    /* What is enqueued between record and recorded becomes one graph instead, which replay enqueues. NULL: there are no graphs. */
    bool (*record)(compute *c);
    bool (*recorded)(compute *c, bool good);
    bool (*replay)(compute *c);
} compute_ops;

struct compute {
    const compute_ops *ops;
    engine *e;
    const model *m;
    int32_t *tokens;                  /* [engine.tokens][engine.seqs], by fetch */
    bool half;                        /* weights are float16, else float32 */
};

/*
 * `where`: NULL or "auto": on a cuda device cuBLAS and on an OpenCL GPU CLBlast where they are found, else this machine's BLAS, with a warning; on
 * other devices this machine's BLAS. "host": this machine's BLAS. "clblast": libclblast.so.1 on any OpenCL device. The name of a file with a '/' in
 * it: that cuBLAS or CLBlast and no other. half: float16 weights, which only cuBLAS has. Also makes the engine's rows.
 */
compute *compute_open(engine *e, const char *where, bool half);
void compute_close(compute *c);

/* compute_host.c */
compute *compute_host_open(engine *e);
/* compute_cuda.c and compute_opencl.c; compute_none.c where the library is built without. A library of NULL: the one that is found. NULL after a
   sentence in `why`. */
compute *compute_cuda_open(engine *e, const char *cublas, bool half, char *why, size_t cap);
compute *compute_opencl_open(engine *e, const char *clblast, char *why, size_t cap);
/* The engine's device is an OpenCL GPU. */
bool compute_opencl_gpu(const engine *e);

#endif
