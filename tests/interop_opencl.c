/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An engine's own OpenCL objects: its context, queue and buffers are used as they are, stay alive after libprhs is done with them,
 * and every documented error of opencl.h is provoked. Exit status: 0 good, 1 a check failed, 77 no OpenCL device.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <prhs/opencl.h>
#include <prhs/prhs.h>

enum { HEADS = 2, DIM = 32, PARTS = 3 };

typedef struct engine {
    cl_platform_id platform;
    cl_device_id id;
    cl_context context, other;
    cl_command_queue queue, unordered, foreign;
} engine;

static int failures, sentences;
static char sentence[512];

static void listen(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    sentences++;
    snprintf(sentence, sizeof sentence, "%s", text);
}

static const prhs_log log_all = { PRHS_LOG_WARN, NULL, listen };

#define CHECK(x) \
    do { \
        if (!(x)) { \
            printf("FAIL line %d: %s (%s)\n", __LINE__, #x, sentence); \
            failures++; \
        } \
    } while (0)

/* A call that must fail with a status and, where words are given, with one sentence that holds them. */
static void expect(int line, prhs_status got, prhs_status want, const char *words) {
    if (got != want || (words && (sentences != 1 || !strstr(sentence, words)))) {
        printf("FAIL line %d: status %s instead of %s, %d sentences: %s\n", line, prhs_status_name(got), prhs_status_name(want), sentences,
               sentence);
        failures++;
    }
    sentences = 0;
    sentence[0] = '\0';
}
#define EXPECT(want, words, call) (sentences = 0, expect(__LINE__, (call), PRHS_##want, words))

static bool find(engine *e) {
    cl_uint n = 0;
    return clGetPlatformIDs(1, &e->platform, &n) == CL_SUCCESS && n > 0 &&
           clGetDeviceIDs(e->platform, CL_DEVICE_TYPE_ALL, 1, &e->id, &n) == CL_SUCCESS && n > 0;
}

static void make(engine *e) {
    cl_int error = CL_SUCCESS;
    e->context = clCreateContext(NULL, 1, &e->id, NULL, NULL, &error);
    e->other = clCreateContext(NULL, 1, &e->id, NULL, NULL, &error);
    e->queue = clCreateCommandQueue(e->context, e->id, CL_QUEUE_PROFILING_ENABLE, &error);
    e->unordered = clCreateCommandQueue(e->context, e->id, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, &error);
    e->foreign = clCreateCommandQueue(e->other, e->id, 0, &error);
    CHECK(e->context && e->other && e->queue && e->foreign);
}

static void wrong_devices(const engine *e, prhs_device **device) {
    prhs_opencl_params p = PRHS_OPENCL_PARAMS_INIT;
    EXPECT(ERR_ARGUMENT, "params is NULL", prhs_opencl_device_open(NULL, &log_all, device));
    EXPECT(ERR_ARGUMENT, "device is NULL", prhs_opencl_device_open(&p, &log_all, NULL));
    EXPECT(ERR_ARGUMENT, "params->device", prhs_opencl_device_open(&p, &log_all, device));
    p.device = e->id;
    p.size = 8;
    EXPECT(ERR_ARGUMENT, "size", prhs_opencl_device_open(&p, &log_all, device));
    p.size = sizeof p;
    p.platform = (cl_platform_id)(uintptr_t)&p;
    EXPECT(ERR_ARGUMENT, "platform", prhs_opencl_device_open(&p, &log_all, device));
    CHECK(*device == NULL);
}

static void wrong_objects(const engine *e, prhs_device *device, prhs_device *cpu, cl_mem mem, cl_mem foreign) {
    prhs_queue *queue = NULL;
    prhs_buffer *buffer = NULL;
    EXPECT(ERR_ARGUMENT, NULL, prhs_opencl_queue_wrap(NULL, e->queue, &queue));
    EXPECT(ERR_ARGUMENT, "NULL", prhs_opencl_queue_wrap(device, NULL, &queue));
    EXPECT(ERR_ARGUMENT, "NULL", prhs_opencl_queue_wrap(device, e->queue, NULL));
    EXPECT(ERR_ARGUMENT, "cpu backend", prhs_opencl_queue_wrap(cpu, e->queue, &queue));
    EXPECT(ERR_ARGUMENT, "another context", prhs_opencl_queue_wrap(device, e->foreign, &queue));
    if (e->unordered) /* not every driver has such queues */
        EXPECT(ERR_UNSUPPORTED, "out of order", prhs_opencl_queue_wrap(device, e->unordered, &queue));
    EXPECT(ERR_ARGUMENT, NULL, prhs_opencl_buffer_wrap(NULL, mem, &buffer));
    EXPECT(ERR_ARGUMENT, "NULL", prhs_opencl_buffer_wrap(device, NULL, &buffer));
    EXPECT(ERR_ARGUMENT, "NULL", prhs_opencl_buffer_wrap(device, mem, NULL));
    EXPECT(ERR_ARGUMENT, "cpu backend", prhs_opencl_buffer_wrap(cpu, mem, &buffer));
    EXPECT(ERR_ARGUMENT, "another context", prhs_opencl_buffer_wrap(device, foreign, &buffer));
    CHECK(!queue && !buffer);
    CHECK(!prhs_opencl_platform(cpu) && !prhs_opencl_device(cpu) && !prhs_opencl_context(cpu) && !prhs_opencl_queue(NULL) &&
          !prhs_opencl_buffer(NULL) && !prhs_opencl_context(NULL));
}

/* Three parts with weights 1 : 2 : 5 of constant rows, merged in the engine's own buffers on the engine's own queue. */
static void merge(const engine *e, prhs_device *device, prhs_queue *queue, cl_mem mem) {
    float parts[PARTS * HEADS * DIM], lse[PARTS * HEADS], out[HEADS * DIM];
    const float weight[PARTS] = { 1, 2, 5 };
    const size_t lse_at = sizeof parts, out_at = lse_at + 256;
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    prhs_ops *ops = NULL;
    prhs_buffer *buffer = NULL;
    for (int i = 0; i < PARTS * HEADS * DIM; i++)
        parts[i] = (float)(i / (HEADS * DIM) + 1);
    for (int i = 0; i < PARTS * HEADS; i++)
        lse[i] = logf(weight[i / HEADS]);
    EXPECT(OK, NULL, prhs_opencl_buffer_wrap(device, mem, &buffer));
    CHECK(buffer && prhs_opencl_buffer(buffer) == mem && prhs_buffer_size(buffer) == 4096);
    p.shape = (prhs_shape){ HEADS, HEADS, DIM, 0.0f };
    p.max_seqs = p.max_rows = p.max_slots = p.list_cap = 1;
    p.max_kv_len = 16;
    EXPECT(OK, NULL, prhs_ops_create(device, &p, &ops));
    CHECK(clEnqueueWriteBuffer(e->queue, mem, CL_FALSE, 0, sizeof parts, parts, 0, NULL, NULL) == CL_SUCCESS);
    CHECK(clEnqueueWriteBuffer(e->queue, mem, CL_FALSE, lse_at, sizeof lse, lse, 0, NULL, NULL) == CL_SUCCESS);
    prhs_merge_params m = { .size = sizeof m, .parts = PARTS, .rows = 1, .o = { buffer, 0 }, .lse = { buffer, lse_at } };
    prhs_rows rows = { { buffer, out_at }, PRHS_F32, 0, 0 };
    EXPECT(OK, NULL, prhs_op_merge(ops, queue, &m, &rows));
    CHECK(clEnqueueReadBuffer(e->queue, mem, CL_TRUE, out_at, sizeof out, out, 0, NULL, NULL) == CL_SUCCESS);
    for (int i = 0; i < HEADS * DIM; i++)
        CHECK(fabsf(out[i] - (1.0f * 1 + 2.0f * 2 + 5.0f * 3) / 8.0f) < 1e-6f);
    prhs_ops_destroy(ops);
    prhs_buffer_destroy(buffer);
}

static void release(engine *e, cl_mem mem, cl_mem foreign) {
    char byte = 0;
    /* What was wrapped is still the engine's. */
    CHECK(clEnqueueWriteBuffer(e->queue, mem, CL_TRUE, 0, 1, &byte, 0, NULL, NULL) == CL_SUCCESS);
    cl_uint count = 0;
    CHECK(clGetMemObjectInfo(mem, CL_MEM_REFERENCE_COUNT, sizeof count, &count, NULL) == CL_SUCCESS && count == 1);
    clReleaseMemObject(mem);
    clReleaseMemObject(foreign);
    clReleaseCommandQueue(e->queue);
    clReleaseCommandQueue(e->foreign);
    if (e->unordered)
        clReleaseCommandQueue(e->unordered);
    clReleaseContext(e->context);
    clReleaseContext(e->other);
}

int main(void) {
    engine e = { 0 };
    prhs_device *device = NULL, *cpu = NULL;
    prhs_queue *queue = NULL;
    if (!find(&e)) {
        puts("no OpenCL device");
        return 77;
    }
    make(&e);
    wrong_devices(&e, &device);
    prhs_opencl_params p = PRHS_OPENCL_PARAMS_INIT;
    p.device = e.id;
    p.context = e.context;
    EXPECT(OK, NULL, prhs_opencl_device_open(&p, &log_all, &device));
    prhs_device_params host = PRHS_DEVICE_PARAMS_INIT;
    host.backend = PRHS_BACKEND_CPU;
    EXPECT(OK, NULL, prhs_device_open(&host, &log_all, &cpu));
    if (!device || !cpu)
        return 1;
    CHECK(prhs_opencl_context(device) == e.context && prhs_opencl_device(device) == e.id && prhs_opencl_platform(device) == e.platform);
    cl_mem mem = clCreateBuffer(e.context, CL_MEM_READ_WRITE, 4096, NULL, NULL);
    cl_mem foreign = clCreateBuffer(e.other, CL_MEM_READ_WRITE, 4096, NULL, NULL);
    wrong_objects(&e, device, cpu, mem, foreign);
    EXPECT(OK, NULL, prhs_opencl_queue_wrap(device, e.queue, &queue));
    CHECK(queue && prhs_opencl_queue(queue) == e.queue);
    merge(&e, device, queue, mem);
    EXPECT(ERR_STATE, "live", prhs_device_close(device));
    prhs_queue_destroy(queue);
    EXPECT(OK, NULL, prhs_device_close(device));
    EXPECT(OK, NULL, prhs_device_close(cpu));
    release(&e, mem, foreign);
    printf(failures ? "%d checks failed\n" : "all checks held\n", failures);
    return failures != 0;
}
