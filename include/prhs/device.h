/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file device.h
 * Tier 1: devices, buffers, queues, events. An engine that has these already wraps its own (cuda.h, opencl.h) and uses only
 * prhs_device_open-like calls from here.
 */
#ifndef PRHS_DEVICE_H
#define PRHS_DEVICE_H

#include <prhs/common.h>
#include <prhs/log.h>

PRHS_EXTERN_C_BEGIN

typedef enum prhs_backend_kind {
    PRHS_BACKEND_ANY = 0,     /**< the first one that has a device: CUDA, OpenCL, then cpu */
    PRHS_BACKEND_CPU = 1,     /**< plain C on host threads; always there */
    PRHS_BACKEND_OPENCL = 2,  /**< any OpenCL 1.2 device whose driver libOpenCL.so.1 finds at run time */
    PRHS_BACKEND_CUDA = 3     /**< NVIDIA devices of compute capability 8.0 and above; libcuda.so.1 is opened at run time */
} prhs_backend_kind;

/** Name of a backend kind ("cpu", "opencl", "cuda"), a static string; "?" otherwise. Thread-safe. */
PRHS_API const char *prhs_backend_name(prhs_backend_kind kind);

/** Capabilities, as bits. A mask at open (or the environment variable PRHS_CAPS, hexadecimal) takes them away. */
typedef enum prhs_caps {
    PRHS_CAP_WIDE = 1 << 0,     /**< the kernels for CPU-type devices (work-groups of one, wide vectors) */
    PRHS_CAP_THREADS = 1 << 1,  /**< more than one host thread (cpu backend) */
    PRHS_CAP_HOST_MEM = 1 << 2, /**< device buffers are host memory; prhs_buffer_host() works */
    PRHS_CAP_TENSOR = 1 << 3,   /**< tensor cores for prompts (cuda backend) */
    PRHS_CAP_SM90 = 1 << 4,     /**< machine code for compute capability 9.0; without it such a device compiles the PTX for 8.0 */
    PRHS_CAP_OVERLAP = 1 << 5,  /**< a kernel starts while the one before it ends (programmatic dependent launch) */
    PRHS_CAP_GPU = 1 << 6,      /**< the OpenCL kernels for GPUs (work-groups with local memory); where WIDE is not taken */
    PRHS_CAP_AVX2 = 1 << 8,     /**< cpu backend: inner loops for AVX2, FMA and F16C */
    PRHS_CAP_AVX512 = 1 << 9    /**< cpu backend: inner loops for AVX-512 (F, BW, DQ, VL) */
} prhs_caps;
#define PRHS_CAPS_ALL 0xffffffffu

/** What is known of a device before it is opened. */
typedef struct prhs_device_info {
    size_t size;               /**< sizeof(prhs_device_info), set by the caller */
    prhs_backend_kind backend;
    uint32_t index;            /**< within its backend; for prhs_device_params */
    uint32_t caps;             /**< PRHS_CAP_* */
    uint32_t compute_units;    /**< cores or multiprocessors */
    uint64_t memory;           /**< bytes; 0: unknown */
    uint64_t max_buffer;       /**< bytes of the largest buffer; 0: unknown */
    char name[128];            /**< the driver's name of the device */
    char platform[128];        /**< the driver's name of itself */
    char driver[64];           /**< its version */
} prhs_device_info;

typedef struct prhs_device prhs_device;  /**< Thread-safety: any thread; destroy it when nothing uses it any more. */
typedef struct prhs_buffer prhs_buffer;  /**< Thread-safety: any thread may pass it to calls. */
typedef struct prhs_queue prhs_queue;    /**< Thread-safety: one thread at a time. Work runs in the order of the calls. */
typedef struct prhs_event prhs_event;    /**< Thread-safety: one thread at a time. A point in a queue. */

/** A place in a buffer: how every call takes device memory. buffer NULL: absent, where the call allows that. */
typedef struct prhs_mem {
    prhs_buffer *buffer;
    uint64_t offset;  /**< bytes; a multiple of 16 unless the call says otherwise */
} prhs_mem;

/** How to open a device. Start from PRHS_DEVICE_PARAMS_INIT. */
typedef struct prhs_device_params {
    size_t size;                /**< sizeof(prhs_device_params) */
    prhs_backend_kind backend;
    uint32_t index;
    uint32_t caps_mask;         /**< capabilities that may be used; PRHS_CAPS_ALL */
    uint32_t threads;           /**< cpu: host threads, 0: one a core */
    const char *cache_dir;      /**< OpenCL: folder of compiled programs and of what their self-tests found; NULL: $PRHS_CACHE_DIR, else
                                     $XDG_CACHE_HOME/prhs, else ~/.cache/prhs; "": no cache. Read during the call. */
    const char *tuning;         /**< CUDA, OpenCL: file of work-groups a launch, as `prhs tune --write` makes it, that goes before the
                                     built-in table; NULL: $PRHS_TUNING, else none; "": none. Changes times, never a bit of a result.
                                     Read during the call. */
} prhs_device_params;
#define PRHS_DEVICE_PARAMS_INIT { sizeof(prhs_device_params), PRHS_BACKEND_ANY, 0, PRHS_CAPS_ALL, 0, NULL, NULL }

/** Calls that libprhs itself made on a device since it was opened; a warm decode step adds to `launches` and `generic` only. */
typedef struct prhs_counters {
    size_t size;           /**< sizeof(prhs_counters), set by the caller */
    uint64_t launches;     /**< kernels enqueued */
    uint64_t allocations;  /**< device buffers and host blocks */
    uint64_t waits;        /**< times the host waited for the device */
    uint64_t compiles;     /**< programs built from source or loaded from the cache */
    uint64_t copies;       /**< reads, writes, copies and fills */
    uint64_t generic;      /**< of the launches: on the path "generic", that any device can run (see prhs_ops_get_paths()) */
} prhs_counters;

/**
 * Lists the devices of every backend. Writes at most *count infos and sets *count to how many there are; infos may be NULL
 * when *count is 0. Set infos[0].size; every info written gets it. Thread-safe.
 * PRHS_ERR_ARGUMENT: count NULL, infos NULL with *count > 0, or infos[0].size unknown.
 */
PRHS_API prhs_status prhs_enumerate(prhs_device_info *infos, size_t *count, const prhs_log *log);

/**
 * Opens a device; close it with prhs_device_close(). `log` is copied, NULL is silence. Thread-safe.
 * PRHS_ERR_ARGUMENT: params or device NULL, params->size unknown, backend not an enum value; the tuning file cannot be read, has a line
 * that is no row of it, or no row for this backend. PRHS_ERR_NO_DEVICE: no such backend or index. PRHS_ERR_UNSUPPORTED: the device
 * lacks what libprhs needs. PRHS_ERR_DRIVER, PRHS_ERR_MEMORY: as named.
 */
PRHS_API prhs_status prhs_device_open(const prhs_device_params *params, const prhs_log *log, prhs_device **device);

/** Closes a device; NULL is allowed. PRHS_ERR_STATE, and nothing happens, while its buffers, queues, events or sessions live. */
PRHS_API prhs_status prhs_device_close(prhs_device *device);

/** Copies what is known of an open device. Thread-safe. PRHS_ERR_ARGUMENT: NULL, or info->size unknown. */
PRHS_API prhs_status prhs_device_get_info(const prhs_device *device, prhs_device_info *info);

/** Copies the counters. Thread-safe. PRHS_ERR_ARGUMENT: NULL, or counters->size unknown. */
PRHS_API prhs_status prhs_device_get_counters(const prhs_device *device, prhs_counters *counters);

/**
 * Creates a buffer of `size` bytes, its content undefined; the caller owns it. Thread-safe.
 * PRHS_ERR_ARGUMENT: NULL or size 0. PRHS_ERR_MEMORY: larger than the device has, or than its largest buffer.
 */
PRHS_API prhs_status prhs_buffer_create(prhs_device *device, size_t size, prhs_buffer **buffer);

/**
 * cpu backend: makes a buffer of the caller's own host memory, which must stay valid until the buffer is destroyed and is not
 * freed by it. `host` must be 16-byte aligned. PRHS_ERR_ARGUMENT: NULL, size 0, misaligned. PRHS_ERR_UNSUPPORTED: another backend.
 */
PRHS_API prhs_status prhs_buffer_wrap_host(prhs_device *device, void *host, size_t size, prhs_buffer **buffer);

/** Destroys a buffer; NULL is allowed. No queue may still use it. */
PRHS_API void prhs_buffer_destroy(prhs_buffer *buffer);

/** The buffer's size in bytes; 0 for NULL. */
PRHS_API size_t prhs_buffer_size(const prhs_buffer *buffer);

/** The buffer's host address where the device has PRHS_CAP_HOST_MEM (cpu backend), else NULL. */
PRHS_API void *prhs_buffer_host(prhs_buffer *buffer);

/** Creates an in-order queue; the caller owns it. PRHS_ERR_ARGUMENT: NULL. PRHS_ERR_MEMORY, PRHS_ERR_DRIVER: as named. */
PRHS_API prhs_status prhs_queue_create(prhs_device *device, prhs_queue **queue);

/** Waits for the queue's work, then destroys it; NULL is allowed. */
PRHS_API void prhs_queue_destroy(prhs_queue *queue);

/** Waits until all that was enqueued is done. PRHS_ERR_ARGUMENT: NULL. PRHS_ERR_DRIVER: the device failed meanwhile. */
PRHS_API prhs_status prhs_queue_finish(prhs_queue *queue);

/**
 * Enqueue a transfer of `size` bytes. Host memory must stay valid and untouched until the queue has come past it. CUDA: a read into
 * memory that is not page-locked returns when the queue has come past it, as cuMemcpyDtoHAsync does.
 * PRHS_ERR_ARGUMENT: NULL, or the range leaves the buffer. PRHS_ERR_DRIVER: the driver refused.
 */
PRHS_API prhs_status prhs_queue_write(prhs_queue *queue, prhs_mem dst, const void *src, size_t size);
PRHS_API prhs_status prhs_queue_read(prhs_queue *queue, void *dst, prhs_mem src, size_t size);
PRHS_API prhs_status prhs_queue_copy(prhs_queue *queue, prhs_mem dst, prhs_mem src, size_t size);
/** Fills `size` bytes (a multiple of 4) with a 32-bit word. Errors as above. */
PRHS_API prhs_status prhs_queue_fill(prhs_queue *queue, prhs_mem dst, uint32_t word, size_t size);

/** Creates an event; the caller owns it. PRHS_ERR_ARGUMENT: NULL. PRHS_ERR_MEMORY. */
PRHS_API prhs_status prhs_event_create(prhs_device *device, prhs_event **event);
/** Destroys an event; NULL is allowed. */
PRHS_API void prhs_event_destroy(prhs_event *event);
/** Marks this point of the queue. An event may be recorded again. PRHS_ERR_ARGUMENT: NULL or of another device. */
PRHS_API prhs_status prhs_event_record(prhs_queue *queue, prhs_event *event);
/** Never waits. PRHS_OK: the queue has come past the mark. PRHS_NOT_READY: not yet. PRHS_ERR_STATE: never recorded. */
PRHS_API prhs_status prhs_event_query(prhs_event *event);
/**
 * Seconds of device time between two events that are done; 0 where the driver does not tell.
 * PRHS_ERR_ARGUMENT: NULL. PRHS_NOT_READY: one is not done.
 */
PRHS_API prhs_status prhs_event_elapsed(prhs_event *begin, prhs_event *end, double *seconds);

PRHS_EXTERN_C_END

#endif
