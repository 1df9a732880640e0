/* SPDX-License-Identifier: Apache-2.0 */
/* The cpu backend's device, buffers, queues and events. A queue runs its work while it is enqueued, so nothing is ever pending.
 */
#include "cpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct cpu_event {
    prhs_event head;
    struct timespec at;
    bool recorded;
} cpu_event;

static void read_name(char *name, size_t size) {
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(name, size, "host CPU");
    while (file && fgets(line, sizeof line, file)) {
        char *value = strchr(line, ':');
        if (!value || strncmp(line, "model name", 10) != 0)
            continue;
        value += strspn(value, ": \t");
        value[strcspn(value, "\n")] = '\0';
        snprintf(name, size, "host CPU: %.100s", value);
        break;
    }
    if (file)
        fclose(file);
}

/* What there is of the capabilities in `mask`. */
static void describe(prhs_device_info *info, uint32_t mask) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    memset(info, 0, sizeof *info);
    info->backend = PRHS_BACKEND_CPU;
    info->caps = (PRHS_CAP_THREADS | PRHS_CAP_HOST_MEM | prhs_cpu_lanes_caps()) & mask;
    info->compute_units = cores > 0 ? (uint32_t)cores : 1;
#ifdef _SC_PHYS_PAGES
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    info->memory = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
#endif
    read_name(info->name, sizeof info->name);
    snprintf(info->driver, sizeof info->driver, "%s", PRHS_VERSION_STRING);
    snprintf(info->platform, sizeof info->platform, "libprhs cpu (%s)", prhs_cpu_lanes_pick(info->caps)->name);
}

static size_t cpu_enumerate(prhs_device_info *infos, size_t cap, const prhs_log *log) {
    (void)log;
    if (cap > 0)
        describe(infos, PRHS_CAPS_ALL);
    return 1;
}

static prhs_status cpu_open(const prhs_device_params *params, const prhs_log *log, prhs_device **dev) {
    if (params->index != 0)
        return prhs_fail(log, PRHS_ERR_NO_DEVICE, "the cpu backend has one device, no device %u", (unsigned)params->index);
    prhs_device_info info;
    describe(&info, params->caps_mask);
    uint32_t threads = params->threads ? params->threads : info.compute_units;
    if (!(info.caps & PRHS_CAP_THREADS))
        threads = 1;
    prhs_cpu_device *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return prhs_fail(log, PRHS_ERR_MEMORY, "no memory for a cpu device");
    cpu->lanes = prhs_cpu_lanes_pick(info.caps);
    if (threads > 1) {
        cpu->pool = prhs_cpu_pool_create(threads, cpu->lanes);
        if (!cpu->pool) {
            free(cpu);
            return prhs_fail(log, PRHS_ERR_MEMORY, "no memory for the threads of a cpu device");
        }
    }
    prhs_device_init(&cpu->head, &prhs_backend_cpu, log, &info);
    *dev = &cpu->head;
    return PRHS_OK;
}

static void cpu_close(prhs_device *dev) {
    prhs_cpu_device *cpu = (prhs_cpu_device *)dev;
    prhs_cpu_pool_destroy(cpu->pool);
    free(cpu);
}

prhs_status prhs_cpu_buffer_wrap(prhs_device *dev, void *host, size_t size, prhs_buffer **buf) {
    prhs_cpu_buffer *b = calloc(1, sizeof *b);
    if (!b)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "no memory for a buffer object");
    b->head.dev = dev;
    b->head.size = size;
    b->host = host;
    *buf = &b->head;
    return PRHS_OK;
}

void *prhs_cpu_buffer_host(prhs_buffer *buf) { return ((prhs_cpu_buffer *)buf)->host; }

static prhs_status cpu_buffer_create(prhs_device *dev, size_t size, prhs_buffer **buf) {
    void *host = size <= SIZE_MAX - 63 ? aligned_alloc(64, (size + 63) & ~(size_t)63) : NULL;
    if (!host)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "no memory for a buffer of %zu bytes", size);
    prhs_status status = prhs_cpu_buffer_wrap(dev, host, size, buf);
    if (status != PRHS_OK) {
        free(host);
        return status;
    }
    ((prhs_cpu_buffer *)*buf)->owned = true;
    prhs_count(&dev->counters.allocations);
    return PRHS_OK;
}

static void cpu_buffer_destroy(prhs_buffer *buf) {
    prhs_cpu_buffer *b = (prhs_cpu_buffer *)buf;
    if (b->owned)
        free(b->host);
    free(b);
}

static prhs_status cpu_queue_create(prhs_device *dev, prhs_queue **queue) {
    prhs_cpu_queue *q = calloc(1, sizeof *q);
    if (q)
        q->scratch = aligned_alloc(64, PRHS_CPU_SCRATCH);
    if (!q || !q->scratch) {
        free(q);
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "no memory for a queue");
    }
    q->head.dev = dev;
    prhs_count(&dev->counters.allocations);
    *queue = &q->head;
    return PRHS_OK;
}

static void cpu_queue_destroy(prhs_queue *queue) {
    free(((prhs_cpu_queue *)queue)->scratch);
    free(queue);
}

static prhs_status cpu_queue_finish(prhs_queue *queue) {
    (void)queue;
    return PRHS_OK;
}

static char *bytes_of(const prhs_buffer *buf, size_t off) { return ((const prhs_cpu_buffer *)buf)->host + off; }

static prhs_status cpu_write(prhs_queue *queue, prhs_buffer *dst, size_t off, const void *src, size_t size) {
    memcpy(bytes_of(dst, off), src, size);
    prhs_count(&queue->dev->counters.copies);
    return PRHS_OK;
}

static prhs_status cpu_read(prhs_queue *queue, void *dst, const prhs_buffer *src, size_t off, size_t size) {
    memcpy(dst, bytes_of(src, off), size);
    prhs_count(&queue->dev->counters.copies);
    return PRHS_OK;
}

static prhs_status cpu_copy(prhs_queue *queue, prhs_buffer *dst, size_t dst_off, const prhs_buffer *src, size_t src_off,
                            size_t size) {
    memmove(bytes_of(dst, dst_off), bytes_of(src, src_off), size);
    prhs_count(&queue->dev->counters.copies);
    return PRHS_OK;
}

static prhs_status cpu_fill(prhs_queue *queue, prhs_buffer *dst, size_t off, uint32_t word, size_t size) {
    char *to = bytes_of(dst, off);
    for (size_t i = 0; i + 4 <= size; i += 4)
        memcpy(to + i, &word, 4);
    prhs_count(&queue->dev->counters.copies);
    return PRHS_OK;
}

static prhs_status cpu_event_create(prhs_device *dev, prhs_event **event) {
    cpu_event *e = calloc(1, sizeof *e);
    if (!e)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "no memory for an event");
    e->head.dev = dev;
    prhs_count(&dev->counters.allocations);
    *event = &e->head;
    return PRHS_OK;
}

static void cpu_event_destroy(prhs_event *event) { free(event); }

static prhs_status cpu_event_record(prhs_queue *queue, prhs_event *event) {
    cpu_event *e = (cpu_event *)event;
    (void)queue;
    clock_gettime(CLOCK_MONOTONIC, &e->at);
    e->recorded = true;
    return PRHS_OK;
}

static prhs_status cpu_event_query(prhs_event *event) { return ((cpu_event *)event)->recorded ? PRHS_OK : PRHS_ERR_STATE; }

static prhs_status cpu_event_elapsed(prhs_event *begin, prhs_event *end, double *seconds) {
    const cpu_event *a = (const cpu_event *)begin, *b = (const cpu_event *)end;
    if (!a->recorded || !b->recorded)
        return PRHS_NOT_READY;
    *seconds = (double)(b->at.tv_sec - a->at.tv_sec) + 1e-9 * (double)(b->at.tv_nsec - a->at.tv_nsec);
    return PRHS_OK;
}

static prhs_chunking cpu_chunking(const prhs_device *dev, const prhs_op_key *key) {
    (void)dev, (void)key;
    return (prhs_chunking){ .attend_min = 256, .attend_chunks = 64, .score_min = 512, .score_chunks = 32, .prefill_tile = 64 };
}

static bool dtype_known(prhs_i32 dtype) { return dtype == PRHS_K_F32 || dtype == PRHS_K_F16 || dtype == PRHS_K_BF16; }

/* Members that an op does not have are 0 in its key. */
static const char *cpu_op_supported(const prhs_device *dev, const prhs_op_key *key, const char **why) {
    const char *reason = NULL;
    (void)dev;
    *why = "host threads serve every legal shape";
    if (key->dim && (key->dim < 32 || key->dim > PRHS_CPU_MAX_DIM || key->dim % 8 != 0))
        reason = "the head dimension is no multiple of 8 from 32 to 256";
    else if (key->group < 0 || key->group > PRHS_CPU_MAX_GROUP || key->unit_heads < 0 || key->unit_heads > PRHS_CPU_MAX_GROUP)
        reason = "more than 64 query heads share a K/V head";
    else if (!dtype_known(key->kv_dtype) || !dtype_known(key->q_dtype) || !dtype_known(key->out_dtype))
        reason = "an element type is none of float32, float16, bfloat16";
    if (reason)
        *why = reason;
    return reason ? NULL : "cpu";
}

static prhs_status cpu_op_prepare(prhs_device *dev, const prhs_op_key *key) {
    const char *why = NULL;
    if (!cpu_op_supported(dev, key, &why))
        return prhs_fail(&dev->log, PRHS_ERR_UNSUPPORTED, "cpu cannot run %s: %s", prhs_op_name(key->kind), why);
    return PRHS_OK;
}

static prhs_status cpu_ops_enqueue(prhs_queue *queue, const prhs_op *ops, size_t n) {
    static void (*const run[PRHS_OP_COUNT])(prhs_queue *, const prhs_op *) = {
#define X(NAME, name, ...) [PRHS_OP_##NAME] = prhs_cpu_##name,
#include "../kernels.def"
#undef X
    };
    for (size_t i = 0; i < n; i++) {
        assert((unsigned)ops[i].kind < PRHS_OP_COUNT);
        run[ops[i].kind](queue, &ops[i]);
        prhs_count(&queue->dev->counters.launches);
    }
    return PRHS_OK;
}

/* Waking a thread costs about as much as this many multiply-adds. */
#define WORTH_THREADS 100e3

void prhs_cpu_run(prhs_queue *queue, const prhs_op *op, size_t n, double work, prhs_cpu_item *item) {
    prhs_cpu_device *cpu = (prhs_cpu_device *)queue->dev;
    void *scratch = ((prhs_cpu_queue *)queue)->scratch;
    if (cpu->pool && n > 1 && work > WORTH_THREADS) {
        prhs_cpu_pool_run(cpu->pool, op, n, item, scratch);
        return;
    }
    prhs_cpu_worker worker = { cpu->lanes, scratch };
    for (size_t i = 0; i < n; i++)
        item(op, &worker, i);
}

const prhs_backend prhs_backend_cpu = {
    .kind = PRHS_BACKEND_CPU,
    .name = "cpu",
    .enumerate = cpu_enumerate,
    .open = cpu_open,
    .close = cpu_close,
    .buffer_create = cpu_buffer_create,
    .buffer_destroy = cpu_buffer_destroy,
    .queue_create = cpu_queue_create,
    .queue_destroy = cpu_queue_destroy,
    .queue_finish = cpu_queue_finish,
    .write = cpu_write,
    .read = cpu_read,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .event_query = cpu_event_query,
    .event_elapsed = cpu_event_elapsed,
    .chunking = cpu_chunking,
    .op_supported = cpu_op_supported,
    .op_prepare = cpu_op_prepare,
    .ops_enqueue = cpu_ops_enqueue,
};
