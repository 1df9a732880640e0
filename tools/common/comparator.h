/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two selectors of the literature, for comparison with the library's policies on the same kernels; no part of the library. Their lists are
 * made on the host, for many decode steps of one KV head at once, from the rows of a teacher-forced run or of a trace.
 *
 * Quest (Tang et al., ICML 2024, arXiv 2406.10774): pages of 16 tokens, each with its keys' smallest and largest value in every channel; a
 * query head attends to the pages whose upper bound of q.k is largest. The last page is one of them always; the first two layers are dense.
 * H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): of the tokens behind a recent window those are kept that have been given most
 * attention so far, prompt included; the others are evicted and never come back. Under grouped heads a KV head keeps what its group gives most.
 */
#ifndef PRHS_COMPARATOR_H
#define PRHS_COMPARATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <prhs/device_types.h>

typedef enum comparator_kind { COMPARATOR_NONE, COMPARATOR_QUEST, COMPARATOR_H2O } comparator_kind;

typedef struct comparator {
    comparator_kind kind;
    uint32_t dense;   /* first layers, which attend to everything */
    uint32_t k;       /* Quest: tokens in all, in whole pages and three of them at least; H2O: tokens behind the window */
    uint32_t page;    /* Quest: tokens a page */
    uint32_t recent;  /* H2O: tokens of the window */
} comparator;

/*
 * "quest,k=512,page=16,dense=2" or "h2o,k=256,recent=256,dense=0": *c; a name of another kind: COMPARATOR_NONE. false: a sentence was
 * written, which begins with the program's name.
 */
bool comparator_parse(const char *program, const char *text, comparator *c);

/* Runs that a list holds at most. */
uint32_t comparator_list_cap(const comparator *c);
/* Whether every query head has a list of its own, else a KV head. */
bool comparator_per_head(const comparator *c);
/* Rows of K's size that are read for a choice from n tokens, by one KV head: Quest's pages have two. */
double comparator_reads(const comparator *c, double n);

/*
 * Scores: out[i * out_step + j] = scale * q[i * q_step ...] . k[j * k_step ...], rows i below `rows` and j below `n`, of `dim` floats each. A
 * program that has a BLAS takes that; comparator_product_plain() needs nothing.
 */
typedef void comparator_product(uint32_t rows, uint32_t n, uint32_t dim, float scale, const float *q, size_t q_step, const float *k, size_t k_step,
                                float *out, size_t out_step);
comparator_product comparator_product_plain;

/* One KV head of one sequence: `context` rows are cached, then `steps` rows are decoded, one a step. Rows are contiguous but for q. */
typedef struct comparator_task {
    uint32_t context, steps, group, dim;
    float scale;
    const float *k;        /* [context + steps][dim] */
    const float *q;        /* step s, head g: q + s * q_step + g * dim */
    size_t q_step;
    float *given;          /* H2O: [context + steps], what the prompt's rows gave each token; it is added to */
    bool dense;            /* attends to everything */
    int32_t *list;         /* of step s and list i: list + s * list_step + i * list_cap */
    prhs_set *set;         /* the same: set + s * set_step + i */
    size_t list_step, set_step;
    double *dropped;       /* exact dropped mass: of step s and head g added to dropped[s * dropped_step + g]; NULL: not wanted */
    size_t dropped_step;   /* 0: summed over steps */
    double attended;       /* tokens, summed over steps and lists */
} comparator_task;

/* Lists of all steps. false: no memory. */
bool comparator_lists(const comparator *c, comparator_task *t, comparator_product *product);

/* What rows 0 to n - 1 of one query head give each of them: added to given[n]. Row i: q + i * q_step, k + i * k_step. false: no memory. */
bool comparator_give(const float *q, size_t q_step, const float *k, size_t k_step, uint32_t n, uint32_t dim, float scale, float *given,
                     comparator_product *product);

#endif
