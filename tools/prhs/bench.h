/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs bench: what its files share. K/V are rotated over so many copies that no call finds its rows in the processor's caches; all
 * times come from events in one queue, on CUDA around graphs that were captured once.
 */
#ifndef PRHS_BENCH_H
#define PRHS_BENCH_H

#include <stddef.h>

#include "tool.h"

typedef struct bench_shape {
    uint32_t batch, n, heads, kv_heads, dim;
    uint32_t kept; /* tokens that sparse calls attend to */
} bench_shape;

/* What can be run, as bits. */
enum {
    BENCH_OPS = 1,
    BENCH_STEPS = 2,
    BENCH_SELECT = 4,
    BENCH_HOST = 8,
    BENCH_CROSS = 16,
    BENCH_SLOTS = 32,
    BENCH_PREFILL = 64,
    BENCH_START = 128,
    BENCH_SURE = 256,
    BENCH_ALL = 511
};

typedef struct bench_options {
    prhs_device_params device;
    bench_shape shapes[32];
    uint32_t shape_count;
    uint32_t parts;        /* BENCH_*; 0: what suits the device */
    uint32_t kept_part;    /* a shape without a number of its own keeps n / kept_part tokens, */
    uint32_t kept_tokens;  /* or this many, where not 0 */
    uint32_t page_size;
    uint32_t repeat;       /* timed calls an op; CUDA: replays */
    uint64_t rotate_bytes; /* that a rotation goes through; 0: what suits the device */
    prhs_dtype dtype;
    bool nhd;              /* page layout [token][head][channel], else [head][token][channel] */
    bool preset;           /* shapes came from --preset: prompts, selections and crossovers have shapes of their own */
    bool direct;           /* CUDA: no graphs */
    const char *json;      /* NULL: no document; "-": standard output */
} bench_options;

/* One line of the result. 0: not meaningful, or not known. */
typedef struct bench_row {
    const char *section, *name;
    bench_shape shape;
    double bytes;                     /* that must move in a call */
    double median, min, max, mean;    /* seconds; mean: all time over all calls */
    double worst_of_median;
    double dense;                     /* seconds of own dense beside it */
    double rho;                       /* retrievals per sparse unit-step, counted */
    double rotation;                  /* bytes that calls touch before one comes back to the same copy of K/V */
    double host, launches;            /* outside a graph: seconds of the calling thread, kernels enqueued */
    double flops;
    uint32_t calls;
} bench_row;

/* Device memory full of normals, which K/V are cut from, for one shape after the other. It grows, up to `budget`. */
enum { BENCH_SLABS = 256 };
typedef struct bench_pool {
    prhs_buffer *slabs[BENCH_SLABS];
    uint64_t used[BENCH_SLABS];
    uint64_t slab_bytes, bytes, budget;
    uint32_t count;
} bench_pool;

typedef struct bench {
    const bench_options *o;
    prhs_device *dev;
    prhs_queue *queue;
    prhs_device_info info;
    bool graphs;                 /* calls are captured */
    prhs_dtype row_type;         /* of queries, outputs and rows to append */
    double read_rate, copy_rate; /* bytes a second; 0: not known */
    double dense_rate;           /* own dense attention, the best so far */
    bool host_reads;             /* read_rate is the memory's, measured by host threads; else own dense attention's */
    void *report;                /* bench_report.c's */
    void (*on_row)(void *user, const bench_row *row); /* where set: gets the rows instead of the report */
    void *user;
    uint64_t rng;
    bench_pool pool;
    prhs_buffer *normals[3];     /* by dtype: the block that all data is copied from */
    uint64_t normal_bytes;       /* of such a block */
    prhs_buffer *buffers[1024];  /* everything made since bench_mark() */
    uint32_t buffer_count;
} bench;

/* --- bench.c --- */

/* Opens o->device; TOOL_OK or the exit status, with a sentence. */
int bench_open(bench *b, bench_options *o);
int bench_close(bench *b);

/* --- bench_options.c --- */

/* Fills *o; -1: go on, else the exit status. *child: this process only measures a start. */
int bench_parse(int argc, char **argv, bench_options *o, bool *child);
/* Of a shape or a dtype; false, with a sentence, where the text is none. */
bool bench_parse_shape(const char *text, bench_options *o);
bool bench_parse_dtype(const char *text, bench_options *o);
/* Every shape gets its number of kept tokens; false, with a sentence. */
bool bench_resolve_kept(bench_options *o);

/* --- bench_data.c --- */

/* Ends the program with a sentence: a benchmark that half worked has no figures. */
void bench_must(prhs_status status);
void *bench_alloc(size_t n, size_t size);
uint32_t bench_below(bench *b, uint32_t n);
/* A buffer that bench_release(b, mark) destroys; mark: b->buffer_count before. */
prhs_mem bench_buffer(bench *b, uint64_t size);
prhs_mem bench_filled(bench *b, const void *data, uint64_t size);
void bench_release(bench *b, uint32_t mark);
/* Enqueues: fills device memory with standard normals, copies from different places of one block. */
void bench_fill_normals(bench *b, prhs_dtype type, prhs_mem mem, uint64_t bytes);
prhs_mem bench_normals(bench *b, prhs_dtype type, uint64_t n);
/* Destroys the blocks. */
void bench_normals_free(bench *b);
/* Rows of b->row_type: normals, or undefined. */
prhs_rows bench_rows(bench *b, uint64_t rows, uint32_t heads, uint32_t dim, bool filled);

/* --- bench_cache.c --- */

enum { BENCH_COPIES = 64 };
typedef struct bench_cache {
    prhs_kv kv[BENCH_COPIES]; /* rotated copies, all read through one page table */
    uint32_t copies;
    uint32_t page_stride;
    uint64_t bytes;           /* of K and V of one copy */
    prhs_mem pages;
} bench_cache;

/*
 * Room for `extra` more tokens a sequence than the shape's n, in as many copies as a rotation of calls that read `kept` tokens of each
 * sequence needs. Pages lie in random order. Cut from the pool: what an earlier call cut is taken back.
 */
void bench_cache_make(bench *b, const bench_shape *s, uint32_t kept, uint32_t extra, bench_cache *cache);
/* int32[seqs][stride]: `used` pages of each sequence in random order, then page 0. */
prhs_mem bench_pages(bench *b, uint32_t seqs, uint32_t used, uint32_t stride);
void bench_pool_free(bench *b);
/* Bytes of the K and V rows of `kept` tokens of every sequence and KV head. */
double bench_row_bytes(const bench *b, const bench_shape *s, double kept);

/* --- bench_time.c --- */

/* Calls that are made together: captured once on CUDA, else made one by one with i counting on. */
typedef struct bench_loop {
    bench *b;
    void (*fn)(void *arg, uint32_t i);
    void *arg;
    uint32_t calls, next;
    void *graph;
} bench_loop;
void bench_loop_make(bench *b, void (*fn)(void *arg, uint32_t i), void *arg, uint32_t calls, bench_loop *loop);
void bench_loop_run(bench_loop *loop);
void bench_loop_free(bench_loop *loop);

/* bench_graph.c: captures of b->queue, where the backend has them. */
bool bench_has_graphs(const bench *b);
void bench_graph_begin(bench *b);
void *bench_graph_end(bench *b);
void bench_graph_launch(bench *b, void *graph);
void bench_graph_destroy(void *graph);

/*
 * Times fn(arg, i). Without graphs: `warm` calls that are not timed, then `calls` timed ones, i counting on. With graphs: at least
 * GRAPH_CALLS calls, a multiple of `copies`, are captured; `calls` replays of them are timed. Fills the row's times, of one call.
 */
void bench_time(bench *b, void (*fn)(void *arg, uint32_t i), void *arg, uint32_t copies, uint32_t warm, uint32_t calls, bench_row *row);
void bench_summary(double *seconds, uint32_t n, bench_row *row);
/* Fills read_rate where host threads can tell, and copy_rate. */
void bench_ceilings(bench *b);
double bench_clock(void);

/* --- bench_step.c: decode steps --- */

enum { BENCH_LAYERS = 32 };

/* A policy of a session: a preset with its retrievals scripted. */
typedef struct step_case {
    const char *name, *preset;
    uint32_t block;        /* steps between retrievals, which nothing else causes; 0: the preset as it is (dense) */
    uint32_t granularity, dense_layers;
    uint32_t kept;         /* 0: the shape's */
    uint32_t min_sparse_n;
    prhs_residual residual; /* 0: the preset's */
    bool ungated;           /* no gate, whatever the preset has */
    double audit_rate;
} step_case;

typedef struct step_bench {
    bench *b;
    const bench_shape *s;
    const bench_cache *cache;
    const step_case *c;
    uint32_t seqs;        /* entries of the batch; those past s->batch are idle */
    uint32_t max_kv_len;  /* of the session; 0: as many as its steps need */
    uint32_t warm;        /* steps before the first timed one */
    uint32_t steps;       /* that there are records for */
    prhs_session *session;
    prhs_step step;
    prhs_mem records;     /* prhs_seq[steps][seqs] */
    uint64_t query_bytes; /* of one layer */
    uint32_t mark;
} step_bench;

/* Makes the session and takes the rows that are in the cache already. `timed` steps can follow the first one and the next. */
void step_begin(step_bench *m, uint32_t timed);
void step_end(step_bench *m);
/* One layer of a step; arg: step_bench. */
void step_layer(void *arg, uint32_t i);
/* Puts the records and fresh queries of a step where the layers read them. */
void step_records(step_bench *m, uint32_t at);
/* Whole blocks: at least two, at least `least` steps. */
uint32_t step_count(const step_case *c, uint32_t least);
/* Times the first step, which retrieves everywhere, and `timed` steps from the next but one; seconds of one layer. */
void step_time(step_bench *m, uint32_t timed, bench_row *first, bench_row *row);
extern const step_case step_dense, step_cis, step_mass;

/* --- the parts --- */

void bench_ops(bench *b, const bench_shape *s);
void bench_steps(bench *b, const bench_shape *s);
void bench_select(bench *b);
/* Own dense attention over everything, for the ceiling. */
void bench_dense(bench *b, const bench_shape *s);
void bench_host(bench *b, const bench_shape *s, bool replays);
void bench_cross(bench *b, const bench_shape *s);
void bench_sure(bench *b, const bench_shape *s);
void bench_slots(bench *b);
void bench_prefill(bench *b);
/* In a process of its own: opens the device, makes a session, runs a step; prints the seconds. */
int bench_start_child(const bench_options *o, const bench_shape *s);
void bench_start(bench *b, const bench_shape *s, const char *program);

/* --- bench_report.c --- */

void bench_report_begin(bench *b);
void bench_report_row(bench *b, const bench_row *row);
/* Into the document only. */
void bench_report_add(bench *b, const bench_row *row);
/* A number of the document. */
void bench_report_number(bench *b, const char *key, double value);
/* A line of the table, and where key is not NULL a number of the document. */
void bench_report_note(bench *b, const char *key, double value, const char *text);
bool bench_report_end(bench *b);

#endif
