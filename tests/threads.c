/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight host threads at once, each with a queue and a session of its own, on one device or on two of a backend: kernels are
 * prepared by whoever needs them first, steps, polls and statistics interleave. Every thread must get the bits that it gets
 * alone. Sanitizers see what the threads share. usage: threads BACKEND DEVICES. Exit status: 0 good, 1 a check failed, 77 the
 * backend has fewer devices here.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <prhs/prhs.h>

enum { THREADS = 8, ROUNDS = 2, HEADS = 2, DIM = 32, PAGE = 16, PROMPT = 80, STEPS = 12, TOKENS = 96, BUFFERS = 12 };

static const char *const policies[] = { "cis-mass", "topk", "cis", "streaming" };

typedef struct life {
    int number; /* of the thread: its policy and data */
    prhs_device *dev;
    prhs_queue *queue;
    prhs_session *session;
    prhs_stats_request *request;
    prhs_buffer *buffers[BUFFERS];
    int count;
    prhs_step step;
    prhs_status status; /* the first that is not OK */
    uint64_t hash;      /* of every output and of the statistics */
} life;

static atomic_int failures;
static pthread_barrier_t barrier;

static void on_message(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    printf("%s\n", text);
}

static const prhs_log log_all = { PRHS_LOG_WARN, NULL, on_message };

static void did(life *l, prhs_status status) {
    if (l->status == PRHS_OK)
        l->status = status;
}

static void mix(life *l, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        l->hash = (l->hash ^ ((const unsigned char *)data)[i]) * UINT64_C(0x100000001b3);
}

static prhs_mem memory(life *l, size_t size) {
    prhs_mem mem = { NULL, 0 };
    if (l->status == PRHS_OK)
        did(l, prhs_buffer_create(l->dev, size, &mem.buffer));
    if (mem.buffer)
        l->buffers[l->count++] = mem.buffer;
    return mem;
}

static prhs_mem rows(life *l, uint64_t seed) {
    float x[PROMPT * HEADS * DIM];
    uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)l->number + 1;
    const size_t n = sizeof x / sizeof *x;
    for (size_t i = 0; i < n; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        x[i] = (float)(random >> 40) / 4194304.0f - 2.0f;
    }
    const prhs_mem mem = memory(l, n * sizeof *x);
    if (l->status == PRHS_OK)
        did(l, prhs_queue_write(l->queue, mem, x, n * sizeof *x));
    if (l->status == PRHS_OK)
        did(l, prhs_queue_finish(l->queue));
    return mem;
}

static void make_session(life *l) {
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    did(l, prhs_policy_preset(policies[(size_t)l->number % (sizeof policies / sizeof *policies)], 1, &p.policy));
    p.policy.dense_layers = 0;
    p.policy.k = p.policy.k ? 16 : 0;
    p.policy.local = 8;
    p.policy.dilate_m = 0;
    p.shape = (prhs_shape){ HEADS, HEADS, DIM, 0.0f };
    p.layers = p.max_slots = p.max_seqs = 1;
    p.max_rows = PROMPT;
    p.max_kv_len = TOKENS;
    p.kv_dtype = PRHS_F32;
    did(l, prhs_session_get_sizes(l->dev, &p, &sizes));
    const prhs_mem state = memory(l, sizes.state), work = memory(l, sizes.workspace);
    if (l->status == PRHS_OK)
        did(l, prhs_session_create(l->dev, &p, l->queue, state, work, &l->session));
    if (l->status == PRHS_OK)
        did(l, prhs_stats_request_create(l->session, &l->request));
}

static void make_arrays(life *l) {
    int32_t table[TOKENS / PAGE];
    prhs_step step = PRHS_STEP_INIT;
    for (int32_t i = 0; i < TOKENS / PAGE; i++)
        table[i] = TOKENS / PAGE - 1 - i;
    step.kv = (prhs_kv){ .dtype = PRHS_F32, .page_size = PAGE, .pages = TOKENS / PAGE };
    step.kv.k = memory(l, (size_t)TOKENS * HEADS * DIM * sizeof(float));
    step.kv.v = memory(l, (size_t)TOKENS * HEADS * DIM * sizeof(float));
    prhs_kv_strides_nhd(&step.kv, HEADS, DIM);
    step.q.mem = rows(l, 1);
    step.k.mem = rows(l, 2);
    step.v.mem = rows(l, 3);
    step.out.mem = rows(l, 4);
    step.batch = (prhs_batch){ .max_seqs = 1, .page_stride = TOKENS / PAGE, .max_rows = PROMPT, .decode_rows = 1 };
    step.batch.seqs = memory(l, sizeof(prhs_seq));
    step.batch.pages = memory(l, sizeof table);
    l->step = step;
    if (l->status == PRHS_OK)
        did(l, prhs_queue_write(l->queue, step.batch.pages, table, sizeof table));
    if (l->status == PRHS_OK)
        did(l, prhs_queue_finish(l->queue));
}

static void run_step(life *l, int t) {
    float out[HEADS * DIM];
    const prhs_seq seq = {
        .slot = 0, .row_count = t ? 1 : PROMPT, .kv_len = PROMPT + t, .flags = t ? 0 : PRHS_SEQ_PREFILL | PRHS_SEQ_SEED
    };
    l->step.batch.kinds = t ? PRHS_HAS_DECODE : PRHS_HAS_PREFILL | PRHS_HAS_SEED;
    did(l, prhs_queue_write(l->queue, l->step.batch.seqs, &seq, sizeof seq));
    did(l, prhs_session_step(l->session, l->queue, &l->step));
    const prhs_status polled = prhs_session_poll(l->session, l->queue);
    did(l, polled == PRHS_NOT_READY ? PRHS_OK : polled);
    did(l, prhs_queue_read(l->queue, out, l->step.out.mem, sizeof out));
    did(l, prhs_queue_finish(l->queue));
    mix(l, out, sizeof out);
}

static void live(life *l) {
    prhs_stats stats;
    prhs_counters counters = { .size = sizeof counters };
    l->hash = UINT64_C(0xcbf29ce484222325);
    did(l, prhs_queue_create(l->dev, &l->queue));
    make_session(l);
    make_arrays(l);
    for (int t = 0; t <= STEPS && l->status == PRHS_OK; t++)
        run_step(l, t);
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    if (l->status == PRHS_OK)
        did(l, prhs_stats_request_enqueue(l->request, l->queue));
    if (l->status == PRHS_OK)
        did(l, prhs_queue_finish(l->queue));
    if (l->status == PRHS_OK)
        did(l, prhs_stats_request_get(l->request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &stats));
    mix(l, &stats, sizeof stats);
    did(l, prhs_device_get_counters(l->dev, &counters));
    prhs_stats_request_destroy(l->request);
    prhs_session_destroy(l->session);
    while (l->count > 0)
        prhs_buffer_destroy(l->buffers[--l->count]);
    prhs_queue_destroy(l->queue);
    *l = (life){ .number = l->number, .dev = l->dev, .status = l->status, .hash = l->hash };
}

static void *thread(void *user) {
    life *l = user;
    const uint64_t alone = l->hash;
    pthread_barrier_wait(&barrier);
    for (int round = 0; round < ROUNDS; round++) {
        live(l);
        if (l->status != PRHS_OK || l->hash != alone) {
            printf("FAIL thread %d (%s), round %d: %s, %s\n", l->number, policies[l->number % 4], round,
                   prhs_status_name(l->status), l->hash == alone ? "the same bits" : "other bits than alone");
            failures++;
        }
    }
    return NULL;
}

static prhs_status open_devices(prhs_backend_kind backend, int devices, prhs_device *dev[2]) {
    prhs_device_params open = PRHS_DEVICE_PARAMS_INIT;
    prhs_status status = PRHS_OK;
    open.backend = backend;
    for (int d = 0; d < devices && status == PRHS_OK; d++) {
        /* The cpu backend has one device; opened twice, it is two. */
        open.index = backend == PRHS_BACKEND_CPU ? 0 : (uint32_t)d;
        open.threads = 2;
        status = prhs_device_open(&open, &log_all, &dev[d]);
    }
    return status;
}

static void close_devices(prhs_device *dev[2]) {
    for (int d = 0; d < 2; d++) {
        if (prhs_device_close(dev[d]) != PRHS_OK) {
            printf("FAIL device %d: something is left behind\n", d);
            failures++;
        }
        dev[d] = NULL;
    }
}

/* Every life by itself, one after the other: what it computes. */
static void alone(prhs_backend_kind backend, int devices, life lives[THREADS], prhs_status *opened) {
    prhs_device *dev[2] = { NULL, NULL };
    *opened = open_devices(backend, devices, dev);
    for (int i = 0; i < THREADS && *opened == PRHS_OK; i++) {
        lives[i].number = i;
        lives[i].dev = dev[i % devices];
        live(&lives[i]);
        if (lives[i].status != PRHS_OK) {
            printf("FAIL %s alone: %s\n", policies[i % 4], prhs_status_name(lives[i].status));
            failures++;
        }
    }
    close_devices(dev);
}

/* All at once, on devices that have prepared nothing yet. */
static void together(prhs_backend_kind backend, int devices, life lives[THREADS]) {
    prhs_device *dev[2] = { NULL, NULL };
    pthread_t threads[THREADS];
    if (open_devices(backend, devices, dev) != PRHS_OK || pthread_barrier_init(&barrier, NULL, THREADS) != 0) {
        printf("FAIL the devices cannot be opened once more\n");
        failures++;
        close_devices(dev);
        return;
    }
    for (int i = 0; i < THREADS; i++) {
        lives[i].dev = dev[i % devices];
        if (pthread_create(&threads[i], NULL, thread, &lives[i]) != 0)
            abort(); /* the others wait at the barrier */
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&barrier);
    close_devices(dev);
}

int main(int argc, char **argv) {
    const int devices = argc == 3 ? atoi(argv[2]) : 0;
    const prhs_backend_kind backend = argc == 3 && !strcmp(argv[1], "opencl") ? PRHS_BACKEND_OPENCL : PRHS_BACKEND_CPU;
    life lives[THREADS] = { { 0 } };
    prhs_status opened;
    if (devices < 1 || devices > 2) {
        printf("usage: threads cpu|opencl 1|2\n");
        return 2;
    }
    alone(backend, devices, lives, &opened);
    if (opened != PRHS_OK)
        return opened == PRHS_ERR_NO_DEVICE ? 77 : 1;
    if (!failures)
        together(backend, devices, lives);
    printf("%d threads, %d devices: %d checks failed\n", THREADS, devices, (int)failures);
    return failures ? 1 : 0;
}
