/* SPDX-License-Identifier: Apache-2.0 */
/* The opencl backend's own types: what its files share. */
#ifndef PRHS_OPENCL_HOST_H
#define PRHS_OPENCL_HOST_H

#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 120
#endif
#include <CL/cl.h>
#include <pthread.h>

#include "../backend.h"
#include "loader.h"

/* Embedded kernels: one self-contained source a family (made by tools/embed.py from cl/), in pieces; ends with name NULL. */
struct prhs_cl_source {
    const char *name;
    const char *const *text;
    const size_t *size;
    cl_uint pieces;
};
extern const struct prhs_cl_source prhs_cl_sources[];

#define PRHS_CL_OPTIONS_MAX 320
#define PRHS_CL_LOCAL 64  /* work-items a group of the generic kernels, where the device runs them in as many */
#define PRHS_CL_GROUP 128 /* least work-items a group of the kernels for GPUs, */
#define PRHS_CL_LOCAL_BYTES 32768 /* and the local memory that a group may take */

typedef enum prhs_cl_flavour { PRHS_CL_GENERIC, PRHS_CL_WIDE, PRHS_CL_GPU } prhs_cl_flavour;

/* A variant that is not used on this device; see verdict.c. */
typedef struct prhs_cl_failure prhs_cl_failure;

/* A compiled variant of an op. Entries are only ever added while the device lives, so readers need no lock. */
typedef struct prhs_cl_variant {
    struct prhs_cl_variant *next;
    prhs_op_key key;
    prhs_cl_flavour flavour;
    uint64_t grid;         /* work-groups at most */
    size_t local;          /* work-items a group: no bit of a result depends on it */
    char options[PRHS_CL_OPTIONS_MAX];
    cl_program program;
    cl_kernel kernel;
    pthread_mutex_t lock;  /* clSetKernelArg and the enqueue after it must not interleave on one cl_kernel */
} prhs_cl_variant;

typedef struct prhs_cl_device {
    prhs_device head;
    cl_platform_id platform;
    cl_device_id id;
    cl_context context;
    cl_command_queue prepare_queue;  /* first launches of new variants, so that ops_enqueue never compiles */
    cl_mem dummy;                    /* stands where an array is absent */
    char *cache_dir;                 /* NULL: no cache */
    char *identity;                  /* device, driver, platform: part of the cache's key */
    pthread_mutex_t prepare_lock;
    prhs_log unfit_log;              /* what a variant that is unfit for the device is logged through; see prepare.c */
    bool untested;                   /* no self-tests, and a cache of its own: PRHS_SELFTEST=0 */
    bool replaceable;                /* under the lock: what is being prepared has another flavour below it */
    bool unsaved;                    /* under the lock: it was said that programs cannot be saved */
    _Atomic(prhs_cl_failure *) failures;
    _Atomic(prhs_cl_variant *) variants;
} prhs_cl_device;

typedef struct prhs_cl_buffer {
    prhs_buffer head;
    cl_mem mem;
} prhs_cl_buffer;

typedef struct prhs_cl_queue {
    prhs_queue head;
    cl_command_queue queue;
} prhs_cl_queue;

typedef struct prhs_cl_event {
    prhs_event head;
    cl_event event;  /* NULL: never recorded */
} prhs_cl_event;

static inline prhs_cl_device *prhs_cl_device_of(const prhs_device *dev) { return (prhs_cl_device *)(uintptr_t)dev; }
static inline cl_mem prhs_cl_mem_of(const prhs_buffer *buffer) { return ((const prhs_cl_buffer *)buffer)->mem; }
static inline cl_command_queue prhs_cl_queue_of(const prhs_queue *queue) { return ((const prhs_cl_queue *)queue)->queue; }

/* errors.c: the name of a CL error, and the sentence "what: NAME (code)" with the status that the error maps to. */
const char *prhs_cl_error_name(cl_int error);
prhs_status prhs_cl_fail(const prhs_log *log, const char *call, cl_int error);

/* device.c */
size_t prhs_cl_enumerate(prhs_device_info *infos, size_t cap, const prhs_log *log);
prhs_status prhs_cl_open(const prhs_device_params *params, const prhs_log *log, prhs_device **dev);
void prhs_cl_close(prhs_device *dev);
/* Opens a given device; `context` NULL: a new one. `index` is what the info tells. */
prhs_status prhs_cl_open_device(cl_platform_id platform, cl_device_id id, uint32_t index, cl_context context,
                                const prhs_device_params *params, const prhs_log *log, prhs_device **dev);
/* The index at which enumeration lists `id`, with its platform, or UINT32_MAX. */
uint32_t prhs_cl_find(cl_device_id id);

/* buffer.c */
prhs_status prhs_cl_buffer_create(prhs_device *dev, size_t size, prhs_buffer **buf);
void prhs_cl_buffer_destroy(prhs_buffer *buf);

/* queue.c */
prhs_status prhs_cl_queue_create(prhs_device *dev, prhs_queue **queue);
void prhs_cl_queue_destroy(prhs_queue *queue);
prhs_status prhs_cl_queue_finish(prhs_queue *queue);
prhs_status prhs_cl_write(prhs_queue *queue, prhs_buffer *dst, size_t off, const void *src, size_t size);
prhs_status prhs_cl_read(prhs_queue *queue, void *dst, const prhs_buffer *src, size_t off, size_t size);
prhs_status prhs_cl_copy(prhs_queue *queue, prhs_buffer *dst, size_t dst_off, const prhs_buffer *src, size_t src_off, size_t size);
prhs_status prhs_cl_fill(prhs_queue *queue, prhs_buffer *dst, size_t off, uint32_t word, size_t size);

/* event.c */
prhs_status prhs_cl_event_create(prhs_device *dev, prhs_event **event);
void prhs_cl_event_destroy(prhs_event *event);
prhs_status prhs_cl_event_record(prhs_queue *queue, prhs_event *event);
prhs_status prhs_cl_event_query(prhs_event *event);
prhs_status prhs_cl_event_elapsed(prhs_event *begin, prhs_event *end, double *seconds);

/* table.c: which flavour, file and options serve a key, and how many groups a launch takes. Nothing here calls OpenCL. */
const char *prhs_cl_flavour_name(prhs_cl_flavour flavour);
/* The best flavour that the device can run and that did not fail on it. */
bool prhs_cl_choose(const prhs_cl_device *dev, const prhs_op_key *key, prhs_cl_flavour *flavour, const char **why);
/* NULL: this build has none. */
const struct prhs_cl_source *prhs_cl_source_of(prhs_op_kind kind, prhs_cl_flavour flavour);
void prhs_cl_options(const prhs_op_key *key, prhs_cl_flavour flavour, char options[PRHS_CL_OPTIONS_MAX]);
/* Work-items a group, of the `most` that the device can run of a kernel; 0: these are too few. */
size_t prhs_cl_local(prhs_op_kind kind, prhs_cl_flavour flavour, size_t most);
/* append: NULL, or what the launch takes along. */
size_t prhs_cl_groups(uint64_t grid, const prhs_op *op, const prhs_op *append);

/* cache.c: files of bytes under a 128-bit key. */
typedef struct prhs_cl_cache_key {
    unsigned char bytes[16];
} prhs_cl_cache_key;
typedef enum prhs_cl_cache_kind {
    PRHS_CL_CACHE_PROGRAM, /* the binary of a program that passed its self-test */
    PRHS_CL_CACHE_FAILED   /* in words, how a program failed it */
} prhs_cl_cache_kind;
/* The folder that is meant, malloc()ed; NULL: none. */
char *prhs_cl_cache_dir(const char *wanted);
/* Whatever pieces a text is in, its key is the same. */
prhs_cl_cache_key prhs_cl_cache_key_of(const char *identity, const char *options, const char *const *text, const size_t *size, size_t pieces);
/* malloc()ed payload, or NULL: not there, or bad (then a warning was logged). */
void *prhs_cl_cache_load(const char *dir, prhs_cl_cache_kind kind, const prhs_cl_cache_key *key, const prhs_log *log, size_t *size);
/* 0, or the errno of what went wrong. */
int prhs_cl_cache_store(const char *dir, prhs_cl_cache_kind kind, const prhs_cl_cache_key *key, const void *data, size_t size);
/* At most `cap` keys of a kind that there are files for; returns how many. The files may still be bad. */
size_t prhs_cl_cache_list(const char *dir, prhs_cl_cache_kind kind, prhs_cl_cache_key *keys, size_t cap);

/* program.c: a program from the cache or from source; *cached says which. */
prhs_status prhs_cl_program_create(prhs_cl_device *dev, const struct prhs_cl_source *source, const char *options, cl_program *program,
                                   bool *cached);
/* Saves a program that passed its self-test in the cache, if there is one; failures are only logged. */
void prhs_cl_program_save(prhs_cl_device *dev, const struct prhs_cl_source *source, const char *options, cl_program program);
prhs_cl_cache_key prhs_cl_program_key(const prhs_cl_device *dev, const struct prhs_cl_source *source, const char *options);

/* verdict.c: variants that are not used on this device and driver. Asking needs no lock, adding the prepare lock. */
typedef enum prhs_cl_verdict { PRHS_CL_WRONG, PRHS_CL_UNBUILT } prhs_cl_verdict;
/* Called by open: what the cache remembers. */
void prhs_cl_verdicts_load(prhs_cl_device *dev);
void prhs_cl_verdicts_free(prhs_cl_device *dev);
/* In words, why a variant is not used; NULL: it is. */
const char *prhs_cl_failed(const prhs_cl_device *dev, const prhs_op_key *key, prhs_cl_flavour flavour);
/* `words`: how it failed its self-test, for the cache. A verdict that no memory is left for is forgotten. */
void prhs_cl_failed_add(prhs_cl_device *dev, const prhs_cl_variant *v, prhs_cl_verdict verdict, const char *words);

/*
 * selftest.c: runs a variant on small cases beside the cpu backend. PRHS_OK with *words empty: it passed; else they say where it differs. Other
 * statuses: it could not be run, and why was logged. selftest_run.c: the cases, on a device whose launches the caller looks into; `seed` is
 * that of their data.
 */
#define PRHS_CL_WORDS 200
prhs_status prhs_cl_selftest(prhs_cl_device *dev, prhs_cl_variant *v, char words[PRHS_CL_WORDS]);
prhs_status prhs_cl_selftest_run(prhs_device *dev, const prhs_op_key *key, uint64_t seed);

/* enqueue.c */
prhs_chunking prhs_cl_chunking(const prhs_device *dev, const prhs_op_key *key);
prhs_status prhs_cl_ops_enqueue(prhs_queue *queue, const prhs_op *ops, size_t n);
/* The variant that serves a key; NULL: it was never prepared. */
prhs_cl_variant *prhs_cl_find_variant(prhs_cl_device *dev, const prhs_op_key *key);
/* Whether launches of a variant can take an append along; whether the first two ops of a list are an append and what can take it. */
bool prhs_cl_takes_append(const prhs_cl_variant *v);
bool prhs_cl_go_together(const prhs_op *ops, size_t n);
/* Sets the arguments and launches; the caller holds the variant's lock, or is the only one to know the variant. append: NULL, or one that goes
   along. */
prhs_status prhs_cl_launch(prhs_cl_device *dev, prhs_cl_variant *v, cl_command_queue queue, const prhs_op *op, const prhs_op *append);

/* prepare.c */
const char *prhs_cl_op_supported(const prhs_device *dev, const prhs_op_key *key, const char **why);
prhs_status prhs_cl_op_prepare(prhs_device *dev, const prhs_op_key *key);
void prhs_cl_prepare_init(prhs_cl_device *dev);
void prhs_cl_variants_free(prhs_cl_device *dev);

#endif
