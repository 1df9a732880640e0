/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only seam between the front end (session, ops, scheduler) and the backends. A backend makes no decisions: it runs typed
 * ops on buffers, in the order in which they were enqueued. The front end has validated everything; a backend asserts.
 */
#ifndef PRHS_BACKEND_H
#define PRHS_BACKEND_H

#include <stdarg.h>
#include <stdbool.h>

#include <prhs/device.h>

#include "kargs.h"
#include "tuning.h"

typedef enum prhs_op_kind {
#define X(NAME, name, ...) PRHS_OP_##NAME,
#include "kernels.def"
#undef X
    PRHS_OP_COUNT
} prhs_op_kind;

#define PRHS_OP_MAX_MEMS 8

/* An op: its kind, its buffers in the order of kernels.def (NULL where an array is absent), its arguments. */
typedef struct prhs_op {
    prhs_op_kind kind;
    prhs_buffer *mem[PRHS_OP_MAX_MEMS];
    union {
#define X(NAME, name, ...) prhs_k_##name name;
#include "kernels.def"
#undef X
    } args;
} prhs_op;

/* What a variant of an op depends on; op_prepare compiles or looks up for it. */
typedef struct prhs_op_key {
    prhs_op_kind kind;
    prhs_i32 dim, unit_heads, group;
    prhs_i32 kv_dtype, q_dtype, out_dtype;
    prhs_i32 moments;
} prhs_op_key;

/* How attention and scoring over n tokens are cut. Fixed per device, so that bits depend on n only. */
typedef struct prhs_chunking {
    prhs_i32 attend_min, attend_chunks;
    prhs_i32 score_min, score_chunks;
    prhs_i32 prefill_tile;
    bool counts;           /* the backend wants the workspace's item counts (prhs_k_work.attend_count_off and its neighbours) */
} prhs_chunking;

typedef struct prhs_backend prhs_backend;

/* Common heads of the opaque objects; a backend embeds them as its first member. */
struct prhs_device {
    const prhs_backend *backend;
    prhs_log log;
    prhs_device_info info;
    prhs_counters counters;  /* atomically incremented by prhs_count() */
    int refs;                /* buffers, queues, events and sessions that are alive (atomic) */
    prhs_tuning tuning;      /* opened and closed by a backend that has work-groups to deal out */
};
struct prhs_buffer {
    prhs_device *dev;
    size_t size;
};
struct prhs_queue {
    prhs_device *dev;
};
struct prhs_event {
    prhs_device *dev;
};

struct prhs_backend {
    prhs_backend_kind kind;
    const char *name;

    /* Fills at most cap infos, returns how many devices there are; 0 where there is no driver. Never fails. */
    size_t (*enumerate)(prhs_device_info *infos, size_t cap, const prhs_log *log);
    /* Opens device `index`; *dev has its head (backend, log, info) filled by the backend through prhs_device_init(). */
    prhs_status (*open)(const prhs_device_params *params, const prhs_log *log, prhs_device **dev);
    void (*close)(prhs_device *dev);

    prhs_status (*buffer_create)(prhs_device *dev, size_t size, prhs_buffer **buf);
    void (*buffer_destroy)(prhs_buffer *buf);
    /* Host memory, zeroed, that write and read reach without holding up the caller. NULL, both: any memory will do. */
    prhs_status (*host_alloc)(prhs_device *dev, size_t size, void **host);
    void (*host_free)(prhs_device *dev, void *host);
    prhs_status (*queue_create)(prhs_device *dev, prhs_queue **queue);
    void (*queue_destroy)(prhs_queue *queue);
    /* Waits until all that was enqueued is done; returns a fault of the queue. */
    prhs_status (*queue_finish)(prhs_queue *queue);

    /* Asynchronous, in order. write and read: the host range must stay valid until an event recorded after it is done. */
    prhs_status (*write)(prhs_queue *queue, prhs_buffer *dst, size_t off, const void *src, size_t size);
    prhs_status (*read)(prhs_queue *queue, void *dst, const prhs_buffer *src, size_t off, size_t size);
    prhs_status (*copy)(prhs_queue *queue, prhs_buffer *dst, size_t dst_off, const prhs_buffer *src, size_t src_off, size_t size);
    prhs_status (*fill)(prhs_queue *queue, prhs_buffer *dst, size_t off, uint32_t word, size_t size); /* size: multiple of 4 */

    /* Events: a point in a queue. `query` never waits: PRHS_OK or PRHS_NOT_READY. `elapsed` needs two that are done; 0 if unknown. */
    prhs_status (*event_create)(prhs_device *dev, prhs_event **event);
    void (*event_destroy)(prhs_event *event);
    prhs_status (*event_record)(prhs_queue *queue, prhs_event *event);
    prhs_status (*event_query)(prhs_event *event);
    prhs_status (*event_elapsed)(prhs_event *begin, prhs_event *end, double *seconds);

    /* Pure: how ops are cut on this device, for this head size and dtype. */
    prhs_chunking (*chunking)(const prhs_device *dev, const prhs_op_key *key);
    /* Pure. Which path an op with this key takes ("cpu", "wide", "generic"), NULL where it cannot run; *why: what decided it. */
    const char *(*op_supported)(const prhs_device *dev, const prhs_op_key *key, const char **why);
    /* The only slow call: compiles, loads and tests what ops_enqueue will use for this key. What it finds may change op_supported. */
    prhs_status (*op_prepare)(prhs_device *dev, const prhs_op_key *key);
    /*
     * Runs n ops in order; a backend may serve neighbours with one launch. Never allocates, compiles, copies to the host or waits.
     * PRHS_ERR_STATE if a key was never prepared.
     */
    prhs_status (*ops_enqueue)(prhs_queue *queue, const prhs_op *ops, size_t n);
};

/* --- provided by the front end for backends ---------------------------------------------------------------------------- */

/* The key of an op, from its arguments (src/op_key.c): what ops_enqueue looks a prepared variant up with. */
prhs_op_key prhs_op_key_of(const prhs_op *op);

/* The argument struct's bytes and size; the number of mems of a kind; its name as in kernels.def. */
const void *prhs_op_args(const prhs_op *op, size_t *size);
int prhs_op_mems(prhs_op_kind kind);
const char *prhs_op_name(prhs_op_kind kind);

/* Fills the head of a device. */
void prhs_device_init(prhs_device *dev, const prhs_backend *backend, const prhs_log *log, const prhs_device_info *info);

/* The capability mask: what the caller allows, less what PRHS_CAPS in the environment takes away (tests and bug reports use it). */
uint32_t prhs_caps_mask(uint32_t wanted);

/* Counts what lives on a device: prhs_device_close() refuses while anything does. The front end retains for what it creates through
   the table; a backend's own interop calls (wrapped queues and buffers) retain themselves; destroying releases. */
void prhs_device_retain(prhs_device *dev);
void prhs_device_release(prhs_device *dev);

/* The backend's host memory, else the C library's; `call` is for the sentence of a failure. NULL may be freed. */
prhs_status prhs_host_alloc(prhs_device *dev, const char *call, size_t size, void **host);
void prhs_host_free(prhs_device *dev, void *host);

/* One formatted sentence through a log (NULL allowed). prhs_fail logs at ERROR level and returns `status`. */
#if defined(__GNUC__)
#define PRHS_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define PRHS_PRINTF(a, b)
#endif
void prhs_logf(const prhs_log *log, prhs_log_level level, const char *format, ...) PRHS_PRINTF(3, 4);
prhs_status prhs_fail(const prhs_log *log, prhs_status status, const char *format, ...) PRHS_PRINTF(3, 4);
/* The size that a caller's struct says it has against the one that this library was built with. `name`: as in "params->size". */
prhs_status prhs_check_size(const prhs_log *log, const char *call, const char *name, size_t size, size_t known);

/* Adds one to a counter of the device, e.g. prhs_count(&dev->counters.launches). Thread-safe. */
void prhs_count(uint64_t *counter);

/* The backends that are built in, in order of preference; ends with NULL. */
extern const prhs_backend *const prhs_backends[];
extern const prhs_backend prhs_backend_cpu;
extern const prhs_backend prhs_backend_opencl;
extern const prhs_backend prhs_backend_cuda;

#endif
