/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams. Items run late, when somebody waits or asks for an event, so that a missing wait shows; PRHS_FAKE_CUDA_SYNC=1: at once. A stream
 * that is captured collects them for a graph instead.
 */
#define _GNU_SOURCE
#include "fake.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct prhs_drv_stream_ *null_stream;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void put(items *list, item *it) {
    if (!list->first)
        list->end = &list->first;
    it->next = NULL;
    *list->end = it;
    list->end = &it->next;
}

static void free_item(item *it) {
    free(it->params);
    free(it->own);
    free(it);
}

void fake_items_free(items *list) {
    for (item *it = list->first, *next; it; it = next) {
        next = it->next;
        free_item(it);
    }
    list->first = NULL;
}

prhs_drv_stream fake_null_stream(void) {
    if (!null_stream && (null_stream = calloc(1, sizeof *null_stream)))
        null_stream->head.kind = STREAM;
    return null_stream;
}

static result run_item(const item *it) {
    switch (it->what) {
    case KERNEL:
        if (!emu_launch(it->kernel, it->grid, it->block, it->shared, it->params, it->overlaps)) {
            fake_complain("kernel %s failed", it->kernel->name);
            return fake_die(PRHS_DRV_LAUNCH_FAILED);
        }
        break;
    case COPY: memmove(it->to, it->from, it->size); break;
    case FILL:
        for (size_t i = 0; i < it->size; i++)
            ((uint32_t *)it->to)[i] = it->word;
        break;
    case RECORD:
        it->event->time = now();
        it->event->pending--;
        break;
    }
    return PRHS_DRV_SUCCESS;
}

result fake_run(prhs_drv_stream stream, int most) {
    for (; stream->pending.first && most > 0 && !fake_dead; most--) {
        item *it = stream->pending.first;
        stream->pending.first = it->next;
        run_item(it);
        free_item(it);
    }
    return fake_dead;
}

result fake_run_all(void) {
    for (object *o = fake_first(); o; o = o->next)
        if (o->kind == STREAM)
            fake_run((prhs_drv_stream)o, INT32_MAX);
    return fake_run(fake_null_stream(), INT32_MAX);
}

/* The item's own copy of what it needs; NULL: no host memory. */
static item *copied(const item *it, bool pageable) {
    item *own = malloc(sizeof *own);
    if (!own)
        return NULL;
    *own = *it;
    if (it->what == KERNEL && it->params && (own->params = malloc(it->kernel->params)))
        memcpy(own->params, it->params, it->kernel->params);
    if (pageable && (own->own = malloc(it->size))) {
        memcpy(own->own, it->from, it->size);
        own->from = own->own;
    }
    return own;
}

item *fake_items_add(items *list, const item *it) {
    item *own = copied(it, false);
    if (own)
        put(list, own);
    return own;
}

bool fake_items_copy(items *to, const items *from) {
    for (const item *it = from->first; it; it = it->next) {
        item *own = fake_items_add(to, it);
        if (!own)
            return false;
        own->node = it;
    }
    return true;
}

result fake_submit(prhs_drv_stream stream, const item *it) {
    stream = stream ? stream : fake_null_stream();
    if (stream->capture == PRHS_DRV_CAPTURE_INVALIDATED)
        return PRHS_DRV_CAPTURE_FIRST + 1;
    if (stream->capture == PRHS_DRV_CAPTURE_ACTIVE) {
        if (!fake_items_add(&stream->captured, it))
            return PRHS_DRV_OUT_OF_MEMORY;
        if (it->what == RECORD)
            it->event->captured = true;
        return PRHS_DRV_SUCCESS;
    }
    if (stream == null_stream && fake_run_all())
        return fake_dead;
    /* A copy out of pageable memory may have left it when the call returns, one into it is waited for. */
    const bool to_pageable = it->what == COPY && !fake_memory_of(it->to, it->size);
    const bool from_pageable = it->what == COPY && !fake_memory_of(it->from, it->size);
    item *own = copied(it, from_pageable);
    if (!own)
        return PRHS_DRV_OUT_OF_MEMORY;
    if (it->what == RECORD) {
        it->event->captured = false;
        it->event->recorded = true;
        it->event->on = stream;
        it->event->pending++;
    }
    put(&stream->pending, own);
    return to_pageable || stream == null_stream || fake_setting("PRHS_FAKE_CUDA_SYNC", 0) ? fake_run(stream, INT32_MAX) : PRHS_DRV_SUCCESS;
}

result fake_unsafe(void) {
    result error = PRHS_DRV_SUCCESS;
    for (object *o = fake_first(); o; o = o->next) {
        prhs_drv_stream s = (prhs_drv_stream)o;
        if (o->kind == STREAM && s->capture != PRHS_DRV_CAPTURE_NONE && s->owner == (unsigned long)pthread_self()) {
            s->capture = PRHS_DRV_CAPTURE_INVALIDATED;
            error = PRHS_DRV_CAPTURE_FIRST;
        }
    }
    return error;
}
