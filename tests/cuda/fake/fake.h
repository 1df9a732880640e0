/* SPDX-License-Identifier: Apache-2.0 */
/* The fake driver's own types. Handles are objects of one list, so that a stale handle is found and a leak is named. */
#ifndef PRHS_FAKE_CUDA_H
#define PRHS_FAKE_CUDA_H

#include <stdbool.h>

#include "../../../src/cuda/loader.h"
#include "../emu/emu.h"

typedef prhs_drv_result result;

typedef enum kind { STREAM, EVENT, MEMORY, HOST_MEMORY, MODULE, FUNCTION, GRAPH, EXEC, KINDS } kind;

typedef struct object {
    kind kind;
    struct object *next;
} object;

typedef enum what { KERNEL, COPY, FILL, RECORD } what;

/* Something on a stream or in a graph. */
typedef struct item {
    struct item *next;
    what what;
    const emu_kernel *kernel;
    unsigned grid, block, shared;
    bool overlaps;
    void *params;       /* own copy */
    void *to;
    const void *from;
    void *own;          /* what `from` points into, if it is a copy of pageable memory */
    size_t size;
    uint32_t word;
    struct prhs_drv_event_ *event;
    const struct item *node; /* of an executable graph: what it was made of */
    bool follows;       /* a node: there is an edge from the one before */
} item;

typedef struct items {
    item *first, **end;
} items;

struct prhs_drv_stream_ {
    object head;
    items pending;
    int capture;        /* PRHS_DRV_CAPTURE_* */
    items captured;
    unsigned long owner; /* the thread that captures */
};
struct prhs_drv_event_ {
    object head;
    struct prhs_drv_stream_ *on; /* where it is pending */
    bool recorded, captured;
    int pending;
    double time;        /* seconds */
};
struct prhs_drv_module_ {
    object head;
};
struct prhs_drv_function_ {
    object head;
    const emu_kernel *kernel;
    struct prhs_drv_module_ *module;
    int dynamic;        /* bytes it may ask for */
};
struct prhs_drv_graph_ {
    object head;
    items nodes;
};
struct prhs_drv_exec_ {
    object head;
    items nodes;
};

/* Device or page-locked memory. */
typedef struct memory {
    object head;
    unsigned char *at;
    size_t size;
    unsigned char *map;
    size_t mapped;
} memory;

/* state.c */
/* Every driver call begins with it: counts, and returns what the call has to return at once, or success. */
result fake_call(const char *symbol);
void fake_lock(void);
void fake_unlock(void);
void *fake_new(kind kind, size_t size); /* NULL: no host memory */
bool fake_known(const void *handle, kind kind);
void fake_delete(void *handle);
object *fake_first(void);
int fake_setting(const char *name, int normal);
void fake_complain(const char *format, ...) __attribute__((format(printf, 1, 2))); /* misuse: printed, and the process fails at its end */
result fake_die(result error); /* ends the context: what every later call returns */
extern result fake_dead;
extern int fake_retained;      /* of the primary context */

/* api.c */
bool fake_current(void);       /* this thread has a context */
int fake_shared_most(void);    /* bytes of shared memory a block may have */
int fake_multiprocessors(void); /* of the device */
int fake_arch(void);           /* its compute capability, times ten */

/* memory.c */
memory *fake_memory_new(kind kind, size_t size, result *error);
void fake_memory_delete(memory *m);
memory *fake_memory_of(const void *at, size_t size); /* the allocation that holds the range; NULL: none does */

/* kernels.c */
/* Why a launch cannot be, complained of; or success, and *it is it. */
result fake_kernel_item(prhs_drv_function function, const prhs_drv_launch *how, void **params, void **extra, item *it);

/* queue.c */
result fake_submit(prhs_drv_stream stream, const item *it);
result fake_run(prhs_drv_stream stream, int most); /* runs pending items */
result fake_run_all(void);
item *fake_items_add(items *list, const item *it); /* a copy; NULL: no host memory */
void fake_items_free(items *list);
bool fake_items_copy(items *to, const items *from); /* false: no host memory */
prhs_drv_stream fake_null_stream(void);
result fake_unsafe(void);      /* an error where this thread captures: for calls that a capture does not allow */

#endif
