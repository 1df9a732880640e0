/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every case uses: the context, checks that end a case, guarded buffers, random data, number formats. A failed check jumps
 * out of the case; everything that a case made (buffers, host blocks, sessions, ops, requests) is released afterwards.
 */
#ifndef PRHS_TEST_HARNESS_H
#define PRHS_TEST_HARNESS_H

#include <setjmp.h>
#include <stdbool.h>

#include "suite.h"

#define T_GUARD 256   /* bytes of guard band on each side of a buffer */
#define T_POISON 0xFF /* what outputs and workspaces hold before a run: NaN as a float, -1 as an integer */

typedef struct t_ctx t_ctx;

typedef struct t_group {
    const char *name;
    int rows;  /* rows of the table */
    int quick; /* how many of them run in quick mode: the first ones */
    const char *(*row_name)(int row);
    void (*run)(t_ctx *t, int row);
} t_group;

/* T_FOREIGN: a buffer of another device, without guard bands. */
typedef enum t_kind { T_HOST, T_BUFFER, T_FOREIGN, T_SESSION, T_OPS, T_REQUEST, T_EVENT, T_GRAPH, T_QUEUE, T_DEVICE } t_kind;

typedef struct t_owned {
    t_kind kind;
    void *ptr;
    size_t size;       /* buffers: bytes between the guards */
    prhs_queue *queue; /* buffers: of their device */
    int dead;
} t_owned;

struct t_ctx {
    const prhs_suite_options *opt;
    prhs_device *dev;
    prhs_queue *queue;
    prhs_device_info info;
    uint64_t rng;
    int skipped;
    char why[1024];      /* the sentence of the failure or of the skip */
    char note[160];      /* shown with a passed case in verbose runs */
    double worst;        /* output rows of the case: largest error as a share of its bar */
    char sentence[1024]; /* the library's last error sentence */
    unsigned sentences;  /* error sentences since t_hush() */
    unsigned warnings;
    char warning[1024]; /* the last one */
    void (*on_message)(void *user, prhs_log_level level, const char *text);
    t_owned *own;
    size_t owned, own_cap;
    jmp_buf out;
};

/* --- checks --------------------------------------------------------------------------------------------------------------- */

#define T_PRINTF(a, b) __attribute__((format(printf, a, b)))
void t_fail(t_ctx *t, const char *file, int line, const char *format, ...) T_PRINTF(4, 5) __attribute__((noreturn));
void t_skip(t_ctx *t, const char *reason) __attribute__((noreturn));
#define T_FAIL(t, ...) t_fail(t, __FILE__, __LINE__, __VA_ARGS__)
#define T_CHECK(t, cond, ...)                                                                                                    \
    do {                                                                                                                         \
        if (!(cond))                                                                                                             \
            t_fail(t, __FILE__, __LINE__, __VA_ARGS__);                                                                          \
    } while (0)
#define T_OK(t, call) t_status(t, __FILE__, __LINE__, #call, PRHS_OK, call)
#define T_STATUS(t, want, call) t_status(t, __FILE__, __LINE__, #call, want, call)
void t_status(t_ctx *t, const char *file, int line, const char *what, prhs_status want, prhs_status got);
/* Forgets the library's sentences. */
void t_hush(t_ctx *t);

/* --- resources ------------------------------------------------------------------------------------------------------------ */

typedef struct t_buf {
    prhs_mem mem;
    size_t size;
} t_buf;

void *t_alloc(t_ctx *t, size_t size);  /* zeroed host memory */
t_buf t_buffer(t_ctx *t, size_t size); /* poisoned, with guard bands */
t_buf t_buffer_of(t_ctx *t, const void *data, size_t size);
void t_poison(t_ctx *t, t_buf buf);
void t_put(t_ctx *t, prhs_mem dst, const void *src, size_t size);
void t_get(t_ctx *t, void *dst, prhs_mem src, size_t size);
void *t_fetch(t_ctx *t, prhs_mem src, size_t size); /* t_alloc + t_get */
void t_check_guards(t_ctx *t);
void t_own(t_ctx *t, t_kind kind, void *ptr, size_t size);
void t_drop(t_ctx *t, void *ptr); /* releases one thing early */
void t_release(t_ctx *t);         /* releases everything */
size_t t_mark(t_ctx *t);
void t_release_to(t_ctx *t, size_t mark); /* releases what was made since the mark */
static inline prhs_mem t_at(prhs_mem mem, uint64_t bytes) {
    mem.offset += bytes;
    return mem;
}
static inline prhs_mem t_none(void) {
    prhs_mem none = { NULL, 0 };
    return none;
}

/* --- random data ---------------------------------------------------------------------------------------------------------- */

uint64_t t_hash(uint64_t x, const char *text);
uint64_t t_rand(t_ctx *t);
uint32_t t_below(t_ctx *t, uint32_t n); /* 0 ... n - 1 */
double t_uniform(t_ctx *t);             /* [0, 1) */
float t_normal(t_ctx *t);
void t_shuffle(t_ctx *t, int32_t *a, size_t n);

/* --- number formats, independent of the library ------------------------------------------------------------------------- */

uint16_t t_to_f16(float x);
float t_from_f16(uint16_t h);
uint16_t t_to_bf16(float x);
float t_from_bf16(uint16_t h);
size_t t_size(prhs_dtype type);
void t_store(prhs_dtype type, void *array, size_t i, float x);
float t_load(prhs_dtype type, const void *array, size_t i);
float t_round(prhs_dtype type, float x);
void *t_pack(t_ctx *t, prhs_dtype type, const float *x, size_t n);
float *t_unpack(t_ctx *t, prhs_dtype type, const void *x, size_t n);
const char *t_dtype_name(prhs_dtype type);

#endif
