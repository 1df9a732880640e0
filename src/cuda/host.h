/* SPDX-License-Identifier: Apache-2.0 */
/* The cuda backend's own types: what its files share. */
#ifndef PRHS_CUDA_HOST_H
#define PRHS_CUDA_HOST_H

#include <pthread.h>
#include <stdatomic.h>

#include "../backend.h"
#include "loader.h"

typedef enum prhs_nv_form {
    PRHS_NV_SM80, /* machine code */
    PRHS_NV_SM90,
    PRHS_NV_PTX,  /* compute_80, of a version that old drivers take; in the form of tools/ptx.py */
    PRHS_NV_FORMS
} prhs_nv_form;

/* Embedded kernels, one image a file of cuda/ (made by tools/compile_cuda.py and tools/embed_bin.py); ends with name NULL. */
struct prhs_nv_image {
    const char *name;
    struct prhs_nv_packed {
        const unsigned char *data;
        size_t size;
    } forms[PRHS_NV_FORMS]; /* each packed by itself */
};
extern const struct prhs_nv_image prhs_nv_images[];

#define PRHS_NV_IMAGES_MAX 20
#define PRHS_NV_NAME_MAX 48

/* What a key chooses: table.c. */
typedef struct prhs_nv_choice {
    const char *file;              /* cuda/<file>.cu */
    const char *path;              /* what op_supported says */
    char name[PRHS_NV_NAME_MAX]; /* of the kernel */
    unsigned threads;              /* a block */
    unsigned shared;               /* bytes of dynamic shared memory */
    bool sized;                    /* both are at most that: prhs_nv_size() has a launch's own; shared: what there is */
    bool teams;                    /* its blocks come in teams: see PRHS_NV_TEAM */
    bool counts;                   /* it counts chunks for the op's kernel: see PRHS_NV_COUNTS */
    unsigned lanes;                /* > 0: a block a tile of so many (row, head) pairs, however many: the device hands out short ones */
} prhs_nv_choice;

/* A loaded kernel. Entries are only ever added while the device lives, so readers need no lock. */
typedef struct prhs_nv_kernel {
    struct prhs_nv_kernel *next;
    prhs_nv_choice choice;
    prhs_drv_function function;
    prhs_drv_module module;        /* its own, of PTX; NULL: the function is of its file's module */
    unsigned resident;             /* blocks that a multiprocessor holds at once */
    unsigned registers;            /* of a thread; sized kernels */
    bool overlap;                  /* it waits for its predecessor by itself */
    atomic_bool launched;
} prhs_nv_kernel;

/* A prepared key; several may share a kernel. Only ever added, as above. */
typedef struct prhs_nv_variant {
    struct prhs_nv_variant *next;
    prhs_op_key key;
    prhs_nv_kernel *kernel;
    unsigned grid;                 /* blocks at most, where they take turns */
} prhs_nv_variant;

typedef struct prhs_nv_device {
    prhs_device head;
    prhs_drv_device id;
    prhs_drv_context context;
    bool primary;                  /* the context is the device's primary one, retained by us */
    int major, minor;              /* compute capability */
    int shared_most;               /* bytes a block may have */
    atomic_int broken;             /* the sticky result that ended the context; 0: it works */
    pthread_mutex_t prepare_lock;
    prhs_drv_module modules[PRHS_NV_IMAGES_MAX]; /* machine code by image; NULL: not loaded */
    bool refused[PRHS_NV_IMAGES_MAX];            /* there is no machine code that the driver takes */
    prhs_nv_kernel *kernels;     /* under prepare_lock */
    _Atomic(prhs_nv_variant *) variants[PRHS_OP_COUNT]; /* by the op's kind */
    atomic_uint launched;          /* kinds of ops, as bits */
} prhs_nv_device;

typedef struct prhs_nv_buffer {
    prhs_buffer head;
    prhs_drv_ptr pointer;
    bool owned;
} prhs_nv_buffer;

/* A launch to come: its kernel and what it is launched with. */
typedef struct prhs_nv_launch {
    const prhs_nv_kernel *kernel;
    void *args; /* the kernel's one parameter */
    unsigned grid, threads, shared;
} prhs_nv_launch;

/* In place of an op key's moments, of score and attend: the kernel that counts their chunks where no plan has. */
#define PRHS_NV_COUNTS 16

/* The same of score, or'ed with them: the kernel that takes units from their plan to their output. */
#define PRHS_NV_WHOLE 32

/* The same of select: the kernel whose blocks take a unit in teams. */
#define PRHS_NV_TEAM 64

#define PRHS_NV_CHAIN_MAX 10

/* An executable graph of so many kernels, one after the other. */
typedef struct prhs_nv_chain {
    prhs_drv_graph graph;
    prhs_drv_exec exec;
    prhs_drv_node nodes[PRHS_NV_CHAIN_MAX];
} prhs_nv_chain;

typedef struct prhs_nv_queue {
    prhs_queue head;
    prhs_drv_stream stream;
    bool owned;
    bool overlap;                                /* the chains' kernels wait for their predecessors by themselves */
    prhs_nv_chain chains[PRHS_NV_CHAIN_MAX + 1]; /* by their length, from 2 on */
} prhs_nv_queue;

typedef struct prhs_nv_event {
    prhs_event head;
    prhs_drv_event event;
    bool recorded;
} prhs_nv_event;

static inline prhs_nv_device *prhs_nv_device_of(const prhs_device *dev) { return (prhs_nv_device *)(uintptr_t)dev; }
static inline prhs_drv_ptr prhs_nv_pointer_of(const prhs_buffer *buffer) { return ((const prhs_nv_buffer *)buffer)->pointer; }
static inline prhs_drv_stream prhs_nv_stream_of(const prhs_queue *queue) { return ((const prhs_nv_queue *)queue)->stream; }

/* errors.c */
/* "cuda: call: NAME (code): words" with the status that the result maps to. */
prhs_status prhs_nv_fail(const prhs_log *log, const char *call, prhs_drv_result result);
/* PRHS_OK for success; else as above, and a result that ends the context is remembered. */
prhs_status prhs_nv_check(prhs_device *dev, const char *call, prhs_drv_result result);
/* Makes the device's context the thread's own until prhs_nv_leave(). Fails, always the same, once the context has ended. */
prhs_status prhs_nv_enter(prhs_device *dev);
void prhs_nv_leave(void);

/* device.c */
size_t prhs_nv_enumerate(prhs_device_info *infos, size_t cap, const prhs_log *log);
prhs_status prhs_nv_open(const prhs_device_params *params, const prhs_log *log, prhs_device **dev);
void prhs_nv_close(prhs_device *dev);
/* Opens device `ordinal` on `context`; NULL: on its primary context. */
prhs_status prhs_nv_open_device(int ordinal, prhs_drv_context context, uint32_t caps_mask, const char *tuning, const prhs_log *log,
                                prhs_device **dev);

/* buffer.c */
prhs_status prhs_nv_buffer_create(prhs_device *dev, size_t size, prhs_buffer **buf);
void prhs_nv_buffer_destroy(prhs_buffer *buf);
prhs_status prhs_nv_host_alloc(prhs_device *dev, size_t size, void **host);
void prhs_nv_host_free(prhs_device *dev, void *host);

/* queue.c */
prhs_status prhs_nv_queue_create(prhs_device *dev, prhs_queue **queue);
void prhs_nv_queue_destroy(prhs_queue *queue);
prhs_status prhs_nv_queue_finish(prhs_queue *queue);
prhs_status prhs_nv_write(prhs_queue *queue, prhs_buffer *dst, size_t off, const void *src, size_t size);
prhs_status prhs_nv_read(prhs_queue *queue, void *dst, const prhs_buffer *src, size_t off, size_t size);
prhs_status prhs_nv_copy(prhs_queue *queue, prhs_buffer *dst, size_t dst_off, const prhs_buffer *src, size_t src_off, size_t size);
prhs_status prhs_nv_fill(prhs_queue *queue, prhs_buffer *dst, size_t off, uint32_t word, size_t size);

/* chain.c */
/* Makes a queue's chains; loads a kernel where none is. The caller is not inside the context. */
prhs_status prhs_nv_chains_create(prhs_nv_queue *queue);
/* The caller is inside the context. */
void prhs_nv_chains_destroy(prhs_nv_queue *queue);
/* Launches all, in order; the caller is inside the context. */
prhs_status prhs_nv_launch_all(prhs_queue *queue, const prhs_nv_launch *launches, size_t count);

/* event.c */
prhs_status prhs_nv_event_create(prhs_device *dev, prhs_event **event);
void prhs_nv_event_destroy(prhs_event *event);
prhs_status prhs_nv_event_record(prhs_queue *queue, prhs_event *event);
prhs_status prhs_nv_event_query(prhs_event *event);
prhs_status prhs_nv_event_elapsed(prhs_event *begin, prhs_event *end, double *seconds);

/* table.c: which kernel serves a key, and how many blocks a launch needs. All pure. */
bool prhs_nv_choose(const prhs_nv_device *dev, const prhs_op_key *key, prhs_nv_choice *choice, const char **why);
/* The block of a launch whose choice is `sized`; returns the keys that its shared memory has room for. */
prhs_i32 prhs_nv_size(const prhs_nv_device *dev, const prhs_nv_choice *choice, const prhs_op *op, unsigned *threads, unsigned *shared);
/* Blocks of an op's launch beyond which more of them do harm. */
unsigned prhs_nv_most_blocks(const prhs_nv_choice *choice, const prhs_op *op, unsigned units);
/* Blocks that an op's items need by capacity. */
uint64_t prhs_nv_blocks(const prhs_nv_choice *choice, const prhs_op *op);
/* Whether there is a kernel whose blocks take units in teams where select has this key. */
bool prhs_nv_teams_exist(const prhs_nv_device *dev, const prhs_op_key *key);
/* The role (cuda/launch.h) of an op's buffer i. */
int prhs_nv_role(prhs_op_kind kind, int i);

/* program.c */
/* Index of a file's image, -1: this build has none. Pure. */
int prhs_nv_image_of(const char *file);
/* Loads a kernel; the caller holds prepare_lock and is inside the context. */
prhs_status prhs_nv_kernel_load(prhs_nv_device *dev, prhs_nv_kernel *kernel);
/* Blocks of a `sized` kernel's launch that the device holds at once. Pure. */
unsigned prhs_nv_resident(const prhs_nv_device *dev, const prhs_nv_kernel *kernel, unsigned threads, unsigned shared);
void prhs_nv_kernel_unload(prhs_nv_device *dev, prhs_nv_kernel *kernel);
void prhs_nv_modules_unload(prhs_nv_device *dev);

/* prepare.c */
prhs_chunking prhs_nv_chunking(const prhs_device *dev, const prhs_op_key *key);
const char *prhs_nv_op_supported(const prhs_device *dev, const prhs_op_key *key, const char **why);
prhs_status prhs_nv_op_prepare(prhs_device *dev, const prhs_op_key *key);
const prhs_nv_variant *prhs_nv_find(prhs_nv_device *dev, const prhs_op_key *key);
void prhs_nv_kernels_free(prhs_nv_device *dev);

/* enqueue.c */
prhs_status prhs_nv_ops_enqueue(prhs_queue *queue, const prhs_op *ops, size_t n);

#endif
