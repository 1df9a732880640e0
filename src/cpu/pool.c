/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that take items of jobs. A job lives on the stack of the thread that runs it and takes part in it; helpers join while
 * it has items left. Helpers look for the next job for a moment before they sleep: a decode step is a train of short ops.
 */
#include "cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SPINS 4000 /* looks before a helper sleeps: a few tens of microseconds */

typedef struct job {
    const prhs_op *op;
    prhs_cpu_item *item;
    size_t n;
    atomic_size_t next;
    atomic_uint helpers; /* inside the job; grows only under the pool's mutex, while the job is listed */
    struct job *link;
} job;

typedef struct helper {
    struct prhs_cpu_pool *pool;
    pthread_t thread;
    void *scratch;
} helper;

struct prhs_cpu_pool {
    pthread_mutex_t mutex;
    pthread_cond_t wake, left;
    atomic_uint posted; /* jobs so far: what a spinning helper watches */
    job *jobs;          /* listed, under the mutex */
    bool stop;
    const prhs_cpu_lanes *lanes;
    unsigned count;
    helper helpers[];
};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void take_items(job *j, const prhs_cpu_worker *worker) {
    for (size_t i; (i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) < j->n;)
        j->item(j->op, worker, i);
}

static job *open_job(prhs_cpu_pool *pool) {
    job *j = pool->jobs;
    while (j && atomic_load_explicit(&j->next, memory_order_relaxed) >= j->n)
        j = j->link;
    return j;
}

static void *help(void *arg) {
    helper *me = arg;
    prhs_cpu_pool *pool = me->pool;
    prhs_cpu_worker worker = { pool->lanes, me->scratch };
    pthread_mutex_lock(&pool->mutex);
    while (!pool->stop) {
        job *j = open_job(pool);
        unsigned posted = atomic_load(&pool->posted);
        if (j)
            atomic_fetch_add(&j->helpers, 1);
        pthread_mutex_unlock(&pool->mutex);
        if (j)
            take_items(j, &worker);
        else
            for (int i = 0; i < SPINS && atomic_load_explicit(&pool->posted, memory_order_relaxed) == posted; i++)
                relax();
        pthread_mutex_lock(&pool->mutex);
        if (j) {
            if (atomic_fetch_sub(&j->helpers, 1) == 1)
                pthread_cond_broadcast(&pool->left);
        } else if (!pool->stop && atomic_load(&pool->posted) == posted) {
            pthread_cond_wait(&pool->wake, &pool->mutex);
        }
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

void prhs_cpu_pool_run(prhs_cpu_pool *pool, const prhs_op *op, size_t n, prhs_cpu_item *item, void *scratch) {
    prhs_cpu_worker worker = { pool->lanes, scratch };
    job j = { .op = op, .item = item, .n = n };
    pthread_mutex_lock(&pool->mutex);
    j.link = pool->jobs;
    pool->jobs = &j;
    atomic_fetch_add(&pool->posted, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);

    take_items(&j, &worker);
    pthread_mutex_lock(&pool->mutex);
    job **at = &pool->jobs;
    while (*at != &j)
        at = &(*at)->link;
    *at = j.link;
    /* A helper's last item may still run. It leaves under the mutex, so the job outlives its last use of it. */
    while (atomic_load(&j.helpers) > 0)
        pthread_cond_wait(&pool->left, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

prhs_cpu_pool *prhs_cpu_pool_create(unsigned threads, const prhs_cpu_lanes *lanes) {
    unsigned wanted = threads > 1 ? threads - 1 : 0;
    prhs_cpu_pool *pool = calloc(1, sizeof *pool + wanted * sizeof *pool->helpers);
    if (!pool)
        return NULL;
    pool->lanes = lanes;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->left, NULL);
    for (unsigned i = 0; i < wanted; i++) {
        helper *h = &pool->helpers[i];
        h->pool = pool;
        h->scratch = aligned_alloc(64, PRHS_CPU_SCRATCH);
        if (!h->scratch || pthread_create(&h->thread, NULL, help, h) != 0) {
            free(h->scratch);
            break;
        }
        pool->count++;
    }
    return pool;
}

void prhs_cpu_pool_destroy(prhs_cpu_pool *pool) {
    if (!pool)
        return;
    pthread_mutex_lock(&pool->mutex);
    pool->stop = true;
    atomic_fetch_add(&pool->posted, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (unsigned i = 0; i < pool->count; i++) {
        pthread_join(pool->helpers[i].thread, NULL);
        free(pool->helpers[i].scratch);
    }
    pthread_cond_destroy(&pool->left);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}
