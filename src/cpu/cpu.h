/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cpu backend: docs/kernels.md in C. An op is a function that cuts its work into items and runs them on the device's threads;
 * an item reads everything it needs from the op itself, so results cannot depend on who runs it or when.
 */
#ifndef PRHS_CPU_CPU_H
#define PRHS_CPU_CPU_H

#include "../backend.h"
#include "lanes.h"

#define PRHS_CPU_SCRATCH (400 * 1024) /* bytes a thread; each op asserts that its own struct fits */
#define PRHS_CPU_MAX_DIM 256
#define PRHS_CPU_MAX_GROUP 64

/* What an item runs with. Scratch is 64-byte aligned and undefined at the start of an item. */
typedef struct prhs_cpu_worker {
    const prhs_cpu_lanes *lanes;
    void *scratch;
} prhs_cpu_worker;

typedef struct prhs_cpu_pool prhs_cpu_pool;
typedef void prhs_cpu_item(const prhs_op *op, const prhs_cpu_worker *worker, size_t item);

/* A pool of `threads` threads, the caller's included; fewer where the system gives no more. NULL: no memory. */
prhs_cpu_pool *prhs_cpu_pool_create(unsigned threads, const prhs_cpu_lanes *lanes);
void prhs_cpu_pool_destroy(prhs_cpu_pool *pool);
/* Runs item 0 ... n-1 and returns when all are done. Any number of threads may call it on one pool, each with its own scratch. */
void prhs_cpu_pool_run(prhs_cpu_pool *pool, const prhs_op *op, size_t n, prhs_cpu_item *item, void *scratch);

typedef struct prhs_cpu_device {
    prhs_device head;
    prhs_cpu_pool *pool; /* NULL: one thread */
    const prhs_cpu_lanes *lanes;
} prhs_cpu_device;

typedef struct prhs_cpu_buffer {
    prhs_buffer head;
    char *host;
    bool owned;
} prhs_cpu_buffer;

typedef struct prhs_cpu_queue {
    prhs_queue head;
    void *scratch; /* of the thread that enqueues */
} prhs_cpu_queue;

/* Called by the front end: a buffer of the caller's memory (16-byte aligned), which stays the caller's; a buffer's address. */
prhs_status prhs_cpu_buffer_wrap(prhs_device *dev, void *host, size_t size, prhs_buffer **buf);
void *prhs_cpu_buffer_host(prhs_buffer *buf);

/* Called by ops: n items of about `work` multiply-adds in all; little work is not worth waking other threads. */
void prhs_cpu_run(prhs_queue *queue, const prhs_op *op, size_t n, double work, prhs_cpu_item *item);

/* One function an op, prhs_cpu_append() and so on. */
#define X(NAME, name, ...) void prhs_cpu_##name(prhs_queue *queue, const prhs_op *op);
#include "../kernels.def"
#undef X

#endif
