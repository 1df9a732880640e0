/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs bench: what its files share. K/V are rotated over so many copies that no call finds its cache rows in the processor's
 * caches; all times come from events in one queue.
 */
#ifndef PRHS_BENCH_H
#define PRHS_BENCH_H

#include <stddef.h>

#include "tool.h"

typedef struct bench_shape {
    uint32_t batch, n, heads, kv_heads, dim;
} bench_shape;

typedef struct bench_options {
    prhs_device_params device;
    bench_shape shapes[16];
    uint32_t shape_count;
    uint32_t kept_part;    /* C = N / kept_part */
    uint32_t page_size;
    uint32_t repeat;       /* timed calls an op */
    uint64_t rotate_bytes; /* K/V that a rotation goes through */
    prhs_dtype dtype;
    bool nhd;              /* page layout [token][head][channel], else [head][token][channel] */
    bool ops, steps, start;
    const char *json;      /* NULL: no document; "-": standard output */
} bench_options;

/* One line of the result. */
typedef struct bench_row {
    const char *section, *name;
    bench_shape shape;
    double bytes;                     /* that must move in a call; 0: not meaningful */
    double median, min, max, mean;    /* seconds; mean: all time over all calls */
    double worst_of_median;           /* 0: not meaningful */
    double dense;                     /* seconds of own dense beside it; 0: not meaningful */
    uint32_t calls;
} bench_row;

typedef struct bench {
    const bench_options *o;
    prhs_device *dev;
    prhs_queue *queue;
    prhs_device_info info;
    double read_rate, copy_rate; /* bytes a second; 0: not known */
    void *report;                /* bench_report.c's */
    uint64_t rng;
    prhs_buffer *buffers[1024];  /* everything made since bench_mark() */
    uint32_t buffer_count;
} bench;

/* --- bench_data.c --- */

/* Ends the program with a sentence: a benchmark that half worked has no figures. */
void bench_must(prhs_status status);
void *bench_alloc(size_t n, size_t size);
uint32_t bench_below(bench *b, uint32_t n);
/* A buffer that bench_release(b, mark) destroys; mark: b->buffer_count before. */
prhs_mem bench_buffer(bench *b, uint64_t size);
prhs_mem bench_filled(bench *b, const void *data, uint64_t size);
void bench_release(bench *b, uint32_t mark);
/* float32 or K/V type, standard normal. */
prhs_mem bench_normals(bench *b, prhs_dtype type, uint64_t n);

typedef struct bench_cache {
    prhs_kv kv[64];    /* rotated copies, all read through one page table */
    uint32_t copies;
    uint32_t page_stride;
    uint64_t bytes;    /* of K and V of one copy */
    prhs_mem pages;
} bench_cache;

/* Room for `extra` more tokens a sequence than the shape's n. Pages lie in random order. */
void bench_cache_make(bench *b, const bench_shape *s, uint32_t extra, bench_cache *cache);

/* --- bench_time.c --- */

/* Times `calls` calls of fn(arg, i) in one queue, after `warm` calls that are not timed; i counts on. Fills times in the row. */
void bench_time(bench *b, void (*fn)(void *arg, uint32_t i), void *arg, uint32_t warm, uint32_t calls, bench_row *row);
void bench_summary(double *seconds, uint32_t n, bench_row *row);
/* Fills read_rate and copy_rate. */
void bench_ceilings(bench *b);
double bench_clock(void);

/* --- the parts --- */

void bench_ops(bench *b, const bench_shape *s);
void bench_steps(bench *b, const bench_shape *s);
/* In a process of its own: opens the device, makes a session, runs a step; prints the seconds. */
int bench_start_child(const bench_options *o, const bench_shape *s);
void bench_start(bench *b, const bench_shape *s, const char *program);

/* --- bench_report.c --- */

void bench_report_begin(bench *b);
void bench_report_row(bench *b, const bench_row *row);
void bench_report_note(bench *b, const char *key, double value, const char *text);
bool bench_report_end(bench *b);

#endif
