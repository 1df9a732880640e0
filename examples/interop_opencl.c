/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libprhs inside an engine that has OpenCL and CLBlast already: its context, its queue, its buffer. A decode step of one layer: CLBlast makes the
 * queries, libprhs attends with them over the engine's K/V, CLBlast makes the output, three calls on the engine's queue with no wait in between. An
 * engine would link both libraries; this one opens them at run time, so that it is built everywhere. Exit status 77: no OpenCL device, or no CLBlast.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <prhs/opencl.h>
#include <prhs/prhs.h>

enum { HEADS = 8, KV_HEADS = 2, DIM = 64, HIDDEN = 96, PAGE = 16, PAGES = 8, TOKENS = PAGE * PAGES, FIRST = 100, STEPS = 8, Q = HEADS * DIM };

/* What this engine calls. */
#define OPENCL(X)            \
    X(clGetPlatformIDs)      \
    X(clGetDeviceIDs)        \
    X(clCreateContext)       \
    X(clCreateCommandQueue)  \
    X(clCreateBuffer)        \
    X(clEnqueueWriteBuffer)  \
    X(clEnqueueReadBuffer)   \
    X(clReleaseMemObject)    \
    X(clReleaseCommandQueue) \
    X(clReleaseContext)
#define X(name) static __typeof__(name) *p_##name;
OPENCL(X)
#undef X
enum { COLUMNS = 102, PLAIN = 111, TRANSPOSED = 112 }; /* of clblast_c.h */
static int (*p_CLBlastSgemm)(int layout, int op_a, int op_b, size_t m, size_t n, size_t k, float alpha, cl_mem a, size_t a_at, size_t lda, cl_mem b,
                             size_t b_at, size_t ldb, float beta, cl_mem c, size_t c_at, size_t ldc, cl_command_queue *queue, cl_event *event);

/* One buffer of the engine, cut by hand, in floats: everything that a step touches. */
enum { AT_SEQS = 0, AT_PAGES = 64, AT_X = 128, AT_WQ = AT_X + HIDDEN, AT_WO = AT_WQ + Q * HIDDEN, AT_K = AT_WO + HIDDEN * Q,
       AT_V = AT_K + TOKENS * KV_HEADS * DIM, AT_Q = AT_V + TOKENS * KV_HEADS * DIM, AT_OUT = AT_Q + Q, AT_Y = AT_OUT + Q, FLOATS = AT_Y + HIDDEN };

typedef struct engine {
    cl_device_id device;
    cl_context context;
    cl_command_queue queue;
    cl_mem memory, state, work;
    float host[FLOATS];
} engine;

static engine e;

static void *library(const char *file) {
    void *lib = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        printf("%s is not here: nothing to show\n", file);
    return lib;
}

static int libraries(void) {
    void *cl = library("libOpenCL.so.1"), *blas = cl ? library("libclblast.so.1") : NULL, *symbol;
    if (!blas)
        return 0;
#define X(name) \
    symbol = dlsym(cl, #name); \
    memcpy(&p_##name, &symbol, sizeof symbol); \
    if (!symbol) \
        return 0;
    OPENCL(X)
#undef X
    symbol = dlsym(blas, "CLBlastSgemm");
    memcpy(&p_CLBlastSgemm, &symbol, sizeof symbol);
    return symbol != NULL;
}

static void must(int good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "interop: %s failed\n", what);
    exit(1);
}
#define CL(call) must((call) == CL_SUCCESS, #call)
#define PRHS(call) must((call) == PRHS_OK, #call)

static void print(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    fprintf(stderr, "prhs: %s\n", text);
}

static int find_device(void) {
    cl_platform_id platforms[8];
    cl_uint count = 0, found = 0;
    if (p_clGetPlatformIDs(8, platforms, &count) != CL_SUCCESS)
        count = 0;
    for (cl_uint i = 0; i < count && i < 8 && !found; i++)
        if (p_clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 1, &e.device, &found) != CL_SUCCESS)
            found = 0;
    if (!found)
        puts("there is no OpenCL device: nothing to show");
    return found != 0;
}

static cl_mem allocate(size_t bytes) {
    cl_int error;
    cl_mem mem = p_clCreateBuffer(e.context, CL_MEM_READ_WRITE, bytes, NULL, &error);
    must(error == CL_SUCCESS, "clCreateBuffer");
    return mem;
}

static void start(void) {
    cl_int error;
    unsigned seed = 1;
    e.context = p_clCreateContext(NULL, 1, &e.device, NULL, NULL, &error);
    must(error == CL_SUCCESS, "clCreateContext");
    e.queue = p_clCreateCommandQueue(e.context, e.device, 0, &error);
    must(error == CL_SUCCESS, "clCreateCommandQueue");
    e.memory = allocate(sizeof e.host);
    for (int i = AT_X; i < AT_Q; i++) {
        seed = seed * 1664525u + 1013904223u;
        e.host[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
        if (i >= AT_WQ && i < AT_K)
            e.host[i] *= 0.25f;
    }
    for (int32_t i = 0; i < PAGES; i++)
        memcpy(&e.host[AT_PAGES + i], &i, sizeof i);
    CL(p_clEnqueueWriteBuffer(e.queue, e.memory, CL_FALSE, 0, sizeof e.host, e.host, 0, NULL, NULL));
}

/* What the engine made for libprhs, and what libprhs made of it. */
typedef struct plugged {
    prhs_device *device;
    prhs_queue *queue;
    prhs_buffer *memory, *state, *work;
    prhs_session *session;
} plugged;

static void plug(plugged *p) {
    static const prhs_log log = { PRHS_LOG_WARN, NULL, print };
    prhs_opencl_params params = PRHS_OPENCL_PARAMS_INIT;
    params.device = e.device;
    params.context = e.context;
    PRHS(prhs_opencl_device_open(&params, &log, &p->device));
    PRHS(prhs_opencl_queue_wrap(p->device, e.queue, &p->queue));
    PRHS(prhs_opencl_buffer_wrap(p->device, e.memory, &p->memory));
    prhs_session_params s = PRHS_SESSION_PARAMS_INIT;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    PRHS(prhs_policy_preset("dense", 1, &s.policy));
    s.shape = (prhs_shape){ HEADS, KV_HEADS, DIM, 0.0f };
    s.layers = s.max_slots = s.max_seqs = s.max_rows = 1;
    s.max_kv_len = TOKENS;
    s.kv_dtype = PRHS_F32;
    PRHS(prhs_session_get_sizes(p->device, &s, &sizes));
    e.state = allocate((size_t)sizes.state);
    e.work = allocate((size_t)sizes.workspace);
    PRHS(prhs_opencl_buffer_wrap(p->device, e.state, &p->state));
    PRHS(prhs_opencl_buffer_wrap(p->device, e.work, &p->work));
    PRHS(prhs_session_create(p->device, &s, p->queue, (prhs_mem){ p->state, 0 }, (prhs_mem){ p->work, 0 }, &p->session));
}

static prhs_step make_step(const plugged *p) {
    prhs_step step = PRHS_STEP_INIT;
    step.batch = (prhs_batch){ { p->memory, 4 * AT_SEQS }, { p->memory, 4 * AT_PAGES }, 1, PAGES, 1, 1, PRHS_HAS_DECODE };
    step.kv = (prhs_kv){ .dtype = PRHS_F32, .page_size = PAGE, .pages = PAGES, .k = { p->memory, 4 * AT_K }, .v = { p->memory, 4 * AT_V } };
    prhs_kv_strides_nhd(&step.kv, KV_HEADS, DIM);
    step.q.mem = (prhs_mem){ p->memory, 4 * AT_Q };
    step.out.mem = (prhs_mem){ p->memory, 4 * AT_OUT };
    return step;
}

/* y [out] = w [out][in] * x [in] */
static void product(size_t w, size_t x, size_t y, size_t in, size_t out) {
    must(p_CLBlastSgemm(COLUMNS, TRANSPOSED, PLAIN, out, 1, in, 1.0f, e.memory, w, in, e.memory, x, in, 0.0f, e.memory, y, out, &e.queue, NULL) == 0,
         "CLBlastSgemm");
}

/* The layer's output with `tokens` cached tokens. */
static void decode(const plugged *p, const prhs_step *step, int tokens, float y[HIDDEN]) {
    const prhs_seq seq = { .slot = 0, .row_count = 1, .kv_len = tokens };
    CL(p_clEnqueueWriteBuffer(e.queue, e.memory, CL_FALSE, 4 * AT_SEQS, sizeof seq, &seq, 0, NULL, NULL));
    product(AT_WQ, AT_X, AT_Q, HIDDEN, Q);
    PRHS(prhs_session_step(p->session, p->queue, step));
    product(AT_WO, AT_OUT, AT_Y, Q, HIDDEN);
    /* The only wait of a step, which `seq` also needs. */
    CL(p_clEnqueueReadBuffer(e.queue, e.memory, CL_TRUE, 4 * AT_Y, HIDDEN * sizeof *y, y, 0, NULL, NULL));
}

static void reference_product(const float *w, const double *x, int in, int out, double *y) {
    for (int i = 0; i < out; i++) {
        y[i] = 0.0;
        for (int j = 0; j < in; j++)
            y[i] += (double)w[i * in + j] * x[j];
    }
}

static void reference_attention(const double *q, int tokens, double *out) {
    for (int h = 0; h < HEADS; h++) {
        double sum = 0.0;
        memset(out + h * DIM, 0, DIM * sizeof *out);
        for (int j = 0; j < tokens; j++) {
            const int row = (j * KV_HEADS + h / (HEADS / KV_HEADS)) * DIM;
            double dot = 0.0;
            for (int d = 0; d < DIM; d++)
                dot += q[h * DIM + d] * (double)e.host[AT_K + row + d];
            const double w = exp(dot / sqrt(DIM));
            sum += w;
            for (int d = 0; d < DIM; d++)
                out[h * DIM + d] += w * (double)e.host[AT_V + row + d];
        }
        for (int d = 0; d < DIM; d++)
            out[h * DIM + d] /= sum;
    }
}

/* The largest difference from plain C. */
static double error_of(const float y[HIDDEN], int tokens) {
    double x[HIDDEN], q[Q], out[Q], want[HIDDEN], worst = 0.0;
    for (int i = 0; i < HIDDEN; i++)
        x[i] = (double)e.host[AT_X + i];
    reference_product(e.host + AT_WQ, x, HIDDEN, Q, q);
    reference_attention(q, tokens, out);
    reference_product(e.host + AT_WO, out, Q, HIDDEN, want);
    for (int i = 0; i < HIDDEN; i++) {
        const double off = fabs(want[i] - (double)y[i]);
        worst = off <= worst ? worst : off; /* NaN stays */
    }
    return worst;
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
    CL(p_clReleaseMemObject(e.work));
    CL(p_clReleaseMemObject(e.state));
    CL(p_clReleaseMemObject(e.memory));
    CL(p_clReleaseCommandQueue(e.queue));
    CL(p_clReleaseContext(e.context));
}

int main(void) {
    plugged p = { 0 };
    float y[HIDDEN];
    double worst = 0.0;
    if (!libraries() || !find_device())
        return 77;
    start();
    plug(&p);
    const prhs_step step = make_step(&p);
    for (int tokens = FIRST; tokens < FIRST + STEPS; tokens++) {
        decode(&p, &step, tokens, y);
        const double off = error_of(y, tokens);
        worst = off <= worst ? worst : off;
    }
    unplug(&p);
    stop();
    printf("%d steps of a layer on the engine's queue, CLBlast, libprhs, CLBlast: off by at most %.1e\n", STEPS, worst);
    return worst < 1e-5 ? 0 : 1;
}
