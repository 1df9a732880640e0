/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libprhs inside an engine that has CUDA already: its context, its stream, its memory. The engine uploads its K/V, libprhs enqueues one
 * decode step on the engine's stream, the engine reads the result; then the step is recorded once and replayed while the sequence grows.
 * An engine would link CUDA; this one opens the driver at run time, so that it is built everywhere. Exit status 77: no CUDA device.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <prhs/cuda.h>
#include <prhs/prhs.h>

enum { HEADS = 8, KV_HEADS = 2, DIM = 64, PAGE = 16, PAGES = 8, TOKENS = PAGE * PAGES, FIRST = 100, STEPS = 8 };

/* The driver calls of this engine. */
#define DRIVER(X)                                                         \
    X(cuInit, (unsigned))                                                 \
    X(cuDeviceGet, (int *, int))                                          \
    X(cuDevicePrimaryCtxRetain, (void **, int))                           \
    X(cuDevicePrimaryCtxRelease_v2, (int))                                \
    X(cuCtxPushCurrent_v2, (void *))                                      \
    X(cuCtxPopCurrent_v2, (void **))                                      \
    X(cuStreamCreate, (void **, unsigned))                                \
    X(cuStreamDestroy_v2, (void *))                                       \
    X(cuStreamSynchronize, (void *))                                      \
    X(cuMemAlloc_v2, (uint64_t *, size_t))                                \
    X(cuMemFree_v2, (uint64_t))                                           \
    X(cuMemcpyHtoDAsync_v2, (uint64_t, const void *, size_t, void *))     \
    X(cuMemcpyDtoHAsync_v2, (void *, uint64_t, size_t, void *))
#define X(name, params) static int(*name) params;
DRIVER(X)
#undef X

/* One allocation of the engine, cut by hand: everything that the step touches. */
enum { AT_SEQS = 0, AT_PAGES = 256, AT_Q = 512, AT_OUT = AT_Q + 4 * HEADS * DIM, AT_K = AT_OUT + 4 * HEADS * DIM,
       AT_V = AT_K + 4 * TOKENS * KV_HEADS * DIM, BYTES = AT_V + 4 * TOKENS * KV_HEADS * DIM };

typedef struct engine {
    int device;
    void *context, *stream;
    uint64_t memory, state, work;
    float host[BYTES / 4];
} engine;

static engine e;

static int driver(void) {
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *symbol;
    if (!lib)
        return 0;
#define X(name, params) \
    symbol = dlsym(lib, #name); \
    memcpy(&name, &symbol, sizeof symbol); \
    if (!symbol) \
        return 0;
    DRIVER(X)
#undef X
    return cuInit(0) == 0 && cuDeviceGet(&e.device, 0) == 0;
}

static void must(int good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "interop: %s failed\n", what);
    exit(1);
}
#define CU(call) must((call) == 0, #call)
#define PRHS(call) must((call) == PRHS_OK, #call)

static void print(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    fprintf(stderr, "prhs: %s\n", text);
}

static void fill(void) {
    unsigned seed = 1;
    for (int i = AT_Q / 4; i < BYTES / 4; i++) {
        seed = seed * 1664525u + 1013904223u;
        e.host[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
    for (int i = 0; i < PAGES; i++)
        ((int32_t *)e.host)[AT_PAGES / 4 + i] = i;
    CU(cuMemcpyHtoDAsync_v2(e.memory, e.host, BYTES, e.stream));
}

/* The batch lives in device memory: between steps only this changes, also under a recorded graph. */
static void set_length(int tokens) {
    const prhs_seq seq = { .slot = 0, .row_count = 1, .kv_len = tokens };
    memcpy(e.host, &seq, sizeof seq);
    CU(cuMemcpyHtoDAsync_v2(e.memory + AT_SEQS, e.host, sizeof seq, e.stream)); /* e.host stays as it is until error_of() has waited */
}

/* The largest difference of the device's output from attention over all tokens. */
static double error_of(int tokens) {
    float out[HEADS * DIM];
    double worst = 0.0;
    CU(cuMemcpyDtoHAsync_v2(out, e.memory + AT_OUT, sizeof out, e.stream));
    CU(cuStreamSynchronize(e.stream));
    for (int h = 0; h < HEADS; h++) {
        double sum = 0.0, want[DIM] = { 0.0 };
        for (int j = 0; j < tokens; j++) {
            const size_t row = ((size_t)j * KV_HEADS + (size_t)(h / (HEADS / KV_HEADS))) * DIM;
            double dot = 0.0;
            for (int d = 0; d < DIM; d++)
                dot += (double)e.host[AT_Q / 4 + h * DIM + d] * (double)e.host[AT_K / 4 + row + (size_t)d];
            const double w = exp(dot / sqrt(DIM));
            sum += w;
            for (int d = 0; d < DIM; d++)
                want[d] += w * (double)e.host[AT_V / 4 + row + (size_t)d];
        }
        for (int d = 0; d < DIM; d++)
            worst = fmax(worst, fabs(want[d] / sum - (double)out[h * DIM + d]));
    }
    return worst;
}

/* What the engine made for libprhs, and what libprhs made of it. */
typedef struct plugged {
    prhs_device *device;
    prhs_queue *queue;
    prhs_buffer *memory, *state, *work;
    prhs_session *session;
} plugged;

static void start(void) {
    CU(cuDevicePrimaryCtxRetain(&e.context, e.device));
    CU(cuCtxPushCurrent_v2(e.context));
    CU(cuStreamCreate(&e.stream, 1));
    CU(cuMemAlloc_v2(&e.memory, BYTES));
    fill();
}

static void plug(plugged *p) {
    static const prhs_log log = { PRHS_LOG_WARN, NULL, print };
    prhs_cuda_params params = PRHS_CUDA_PARAMS_INIT;
    params.context = e.context;
    PRHS(prhs_cuda_device_open(&params, &log, &p->device));
    PRHS(prhs_cuda_queue_wrap(p->device, e.stream, &p->queue));
    PRHS(prhs_cuda_buffer_wrap(p->device, e.memory, BYTES, &p->memory));
    prhs_session_params s = PRHS_SESSION_PARAMS_INIT;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    PRHS(prhs_policy_preset("dense", 1, &s.policy));
    s.shape = (prhs_shape){ HEADS, KV_HEADS, DIM, 0.0f };
    s.layers = s.max_slots = s.max_seqs = s.max_rows = 1;
    s.max_kv_len = TOKENS;
    s.kv_dtype = PRHS_F32;
    PRHS(prhs_session_get_sizes(p->device, &s, &sizes));
    CU(cuMemAlloc_v2(&e.state, (size_t)sizes.state));
    CU(cuMemAlloc_v2(&e.work, (size_t)sizes.workspace));
    PRHS(prhs_cuda_buffer_wrap(p->device, e.state, (size_t)sizes.state, &p->state));
    PRHS(prhs_cuda_buffer_wrap(p->device, e.work, (size_t)sizes.workspace, &p->work));
    PRHS(prhs_session_create(p->device, &s, p->queue, (prhs_mem){ p->state, 0 }, (prhs_mem){ p->work, 0 }, &p->session));
}

static prhs_step make_step(const plugged *p) {
    prhs_step step = PRHS_STEP_INIT;
    step.batch = (prhs_batch){ { p->memory, AT_SEQS }, { p->memory, AT_PAGES }, 1, PAGES, 1, 1, PRHS_HAS_DECODE };
    step.kv = (prhs_kv){ .dtype = PRHS_F32, .page_size = PAGE, .pages = PAGES, .k = { p->memory, AT_K }, .v = { p->memory, AT_V } };
    prhs_kv_strides_nhd(&step.kv, KV_HEADS, DIM);
    step.q.mem = (prhs_mem){ p->memory, AT_Q };
    step.out.mem = (prhs_mem){ p->memory, AT_OUT };
    return step;
}

static void unplug(plugged *p) {
    prhs_session_destroy(p->session);
    prhs_buffer_destroy(p->work);
    prhs_buffer_destroy(p->state);
    prhs_buffer_destroy(p->memory);
    prhs_queue_destroy(p->queue);
    PRHS(prhs_device_close(p->device));
}

static void stop(void) {
    CU(cuMemFree_v2(e.work));
    CU(cuMemFree_v2(e.state));
    CU(cuMemFree_v2(e.memory));
    CU(cuStreamDestroy_v2(e.stream));
    CU(cuCtxPopCurrent_v2(&e.context));
    CU(cuDevicePrimaryCtxRelease_v2(e.device));
}

int main(void) {
    plugged p = { 0 };
    prhs_cuda_graph *graph = NULL;
    if (!driver()) {
        puts("no CUDA device");
        return 77;
    }
    start();
    plug(&p);
    const prhs_step step = make_step(&p);
    set_length(FIRST);
    PRHS(prhs_session_step(p.session, p.queue, &step));
    double worst = error_of(FIRST);

    PRHS(prhs_cuda_graph_begin(p.queue));
    PRHS(prhs_session_step(p.session, p.queue, &step));
    PRHS(prhs_cuda_graph_end(p.queue, &graph));
    for (int i = 1; i <= STEPS; i++) {
        set_length(FIRST + i);
        PRHS(prhs_cuda_graph_launch(graph, p.queue));
        worst = fmax(worst, error_of(FIRST + i));
    }
    prhs_cuda_graph_destroy(graph);
    unplug(&p);
    stop();
    printf("one step on the engine's stream, %d replayed from a graph: off by at most %.1e\n", STEPS, worst);
    return worst < 1e-5 ? 0 : 1;
}
