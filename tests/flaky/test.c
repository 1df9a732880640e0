/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libprhs makes of an OpenCL driver that fails: every status of the error table that only a driver can provoke, with its
 * sentence; then one life of a session again and again, with another call failing each time: no crash, no object left behind, and
 * the next life is sound. usage: flaky-opencl DRIVER CACHE-DIR. Exit status: 0 good, 1 a check failed, 77 no OpenCL here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include <prhs/prhs.h>

enum { HEADS = 2, DIM = 32, TOKENS = 64, PAGE = 16, ROWS = 48 };

static int failures, sentences;
static char sentence[1024];
static const char *cache_dir;
static int *after, *sticky, *hits;
static cl_int *error;
static const char **only;

static void listen(void *user, prhs_log_level level, const char *text) {
    (void)user;
    if (level != PRHS_LOG_ERROR)
        return;
    sentences++;
    snprintf(sentence, sizeof sentence, "%s", text);
}

static const prhs_log log_all = { PRHS_LOG_WARN, NULL, listen };

#define CHECK(x, ...) \
    do { \
        if (!(x)) { \
            printf("FAIL line %d: %s: ", __LINE__, #x); \
            printf(__VA_ARGS__); \
            printf(" (last sentence: %s)\n", sentence); \
            failures++; \
        } \
    } while (0)

/* --- one life of a session ------------------------------------------------------------------------------------------------ */

typedef struct life {
    prhs_device *dev;
    prhs_queue *queue;
    prhs_event *event;
    prhs_session *session;
    prhs_stats_request *request;
    prhs_buffer *buffer[12];
    int buffers;
    prhs_session_sizes sizes;
    prhs_step step;
    prhs_seq seq;
    int32_t pages[TOKENS / PAGE];
    float data[ROWS * HEADS * DIM];
} life;

static prhs_status buffer(life *l, size_t size, prhs_mem *mem) {
    prhs_status status = prhs_buffer_create(l->dev, size, &l->buffer[l->buffers]);
    if (status == PRHS_OK)
        *mem = (prhs_mem){ l->buffer[l->buffers++], 0 };
    return status;
}

#define TRY(call) \
    do { \
        prhs_status status_ = (call); \
        if (status_ != PRHS_OK) \
            return status_; \
    } while (0)

static prhs_status make_arrays(life *l) {
    prhs_step step = PRHS_STEP_INIT;
    const size_t cache = TOKENS * HEADS * DIM * 4, rows = sizeof l->data;
    step.kv = (prhs_kv){ .dtype = PRHS_F32, .page_size = PAGE, .pages = TOKENS / PAGE };
    prhs_kv_strides_nhd(&step.kv, HEADS, DIM);
    step.batch = (prhs_batch){ .max_seqs = 1, .page_stride = TOKENS / PAGE, .max_rows = ROWS, .decode_rows = 1 };
    TRY(buffer(l, sizeof l->seq, &step.batch.seqs));
    TRY(buffer(l, sizeof l->pages, &step.batch.pages));
    TRY(buffer(l, cache, &step.kv.k));
    TRY(buffer(l, cache, &step.kv.v));
    TRY(buffer(l, rows, &step.q.mem));
    TRY(buffer(l, rows, &step.k.mem));
    TRY(buffer(l, rows, &step.v.mem));
    TRY(buffer(l, rows, &step.out.mem));
    l->step = step;
    for (int i = 0; i < TOKENS / PAGE; i++)
        l->pages[i] = i;
    for (size_t i = 0; i < rows / sizeof *l->data; i++)
        l->data[i] = (float)(i * 37 % 101) / 50.0f - 1.0f;
    TRY(prhs_queue_write(l->queue, step.batch.pages, l->pages, sizeof l->pages));
    TRY(prhs_queue_write(l->queue, step.q.mem, l->data, rows));
    TRY(prhs_queue_write(l->queue, step.k.mem, l->data, rows));
    return prhs_queue_copy(l->queue, step.v.mem, step.k.mem, rows);
}

static prhs_status begin(life *l) {
    prhs_device_params open = PRHS_DEVICE_PARAMS_INIT;
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    prhs_mem state, work;
    open.backend = PRHS_BACKEND_OPENCL;
    open.cache_dir = cache_dir;
    TRY(prhs_device_open(&open, &log_all, &l->dev));
    TRY(prhs_queue_create(l->dev, &l->queue));
    TRY(prhs_event_create(l->dev, &l->event));
    TRY(prhs_policy_preset("topk", 1, &p.policy));
    p.policy.dense_layers = 0;
    p.policy.k = 16;
    p.policy.local = 8;
    p.shape = (prhs_shape){ HEADS, HEADS, DIM, 0.0f };
    p.layers = p.max_seqs = 1;
    p.max_slots = 2;
    p.max_rows = ROWS;
    p.max_kv_len = TOKENS;
    p.kv_dtype = PRHS_F32;
    l->sizes.size = sizeof l->sizes;
    TRY(prhs_session_get_sizes(l->dev, &p, &l->sizes));
    TRY(buffer(l, l->sizes.state, &state));
    TRY(buffer(l, l->sizes.workspace, &work));
    TRY(prhs_session_create(l->dev, &p, l->queue, state, work, &l->session));
    TRY(prhs_stats_request_create(l->session, &l->request));
    return make_arrays(l);
}

static prhs_status step(life *l, int32_t kv_len) {
    int prompt = kv_len == ROWS;
    l->seq = (prhs_seq){ .row_count = prompt ? ROWS : 1, .kv_len = kv_len, .flags = prompt ? PRHS_SEQ_PREFILL | PRHS_SEQ_SEED : 0 };
    l->step.batch.kinds = prompt ? PRHS_HAS_PREFILL | PRHS_HAS_SEED : PRHS_HAS_DECODE;
    TRY(prhs_queue_write(l->queue, l->step.batch.seqs, &l->seq, sizeof l->seq));
    TRY(prhs_session_step(l->session, l->queue, &l->step));
    return prhs_queue_finish(l->queue);
}

static prhs_status use(life *l) {
    prhs_stats stats = { .size = sizeof stats };
    TRY(step(l, ROWS));
    TRY(step(l, ROWS + 1));
    TRY(prhs_session_fork(l->session, l->queue, 1, 0));
    TRY(prhs_session_poll(l->session, l->queue) == PRHS_NOT_READY ? PRHS_OK : PRHS_ERR_STATE);
    TRY(prhs_stats_request_enqueue(l->request, l->queue));
    TRY(prhs_event_record(l->queue, l->event));
    TRY(prhs_queue_finish(l->queue));
    TRY(prhs_event_query(l->event));
    TRY(prhs_stats_request_get(l->request, 0, 0, &stats));
    TRY(stats.retrieve == HEADS ? PRHS_OK : PRHS_ERR_DATA);
    TRY(prhs_session_poll(l->session, l->queue));
    TRY(prhs_queue_read(l->queue, l->data, l->step.out.mem, HEADS * DIM * sizeof *l->data));
    return prhs_queue_finish(l->queue);
}

static void end(life *l) {
    if (l->queue)
        prhs_queue_finish(l->queue);
    prhs_stats_request_destroy(l->request);
    prhs_session_destroy(l->session);
    while (l->buffers > 0)
        prhs_buffer_destroy(l->buffer[--l->buffers]);
    prhs_event_destroy(l->event);
    prhs_queue_destroy(l->queue);
    CHECK(prhs_device_close(l->dev) == PRHS_OK, "something is left behind");
}

/* --- the tables ----------------------------------------------------------------------------------------------------------- */

static void arm(const char *function, cl_int what, int calls, int all) {
    *only = function;
    *error = what;
    *sticky = all;
    *hits = 0;
    *after = calls;
    sentences = 0;
    sentence[0] = '\0';
}

static void disarm(void) { *after = -1; }

static const struct {
    const char *function;
    cl_int error;
    prhs_status want;
} making[] = {
    { "clCreateContext", CL_OUT_OF_RESOURCES, PRHS_ERR_MEMORY },
    { "clCreateCommandQueue", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
    { "clCreateBuffer", CL_MEM_OBJECT_ALLOCATION_FAILURE, PRHS_ERR_MEMORY },
    { "clBuildProgram", CL_BUILD_PROGRAM_FAILURE, PRHS_ERR_COMPILE },
    { "clBuildProgram", CL_INVALID_OPERATION, PRHS_ERR_DRIVER },
    { "clCreateKernel", CL_INVALID_KERNEL_NAME, PRHS_ERR_DRIVER },
    { "clSetKernelArg", CL_INVALID_ARG_SIZE, PRHS_ERR_DRIVER },
    { "clEnqueueNDRangeKernel", CL_INVALID_OPERATION, PRHS_ERR_DRIVER },
    { "clEnqueueFillBuffer", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
    { "clEnqueueWriteBuffer", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
    { "clEnqueueCopyBuffer", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
};

static void test_making(void) {
    for (size_t i = 0; i < sizeof making / sizeof making[0]; i++) {
        life l = { 0 };
        arm(making[i].function, making[i].error, 0, 1);
        prhs_status status = begin(&l);
        disarm();
        const char *words = making[i].want == PRHS_ERR_COMPILE ? "did not build" : making[i].function;
        CHECK(status == making[i].want, "%s: %s instead of %s", making[i].function, prhs_status_name(status),
              prhs_status_name(making[i].want));
        CHECK(sentences == 1 && strstr(sentence, words), "%s: %d sentences", making[i].function, sentences);
        end(&l);
    }
}

typedef prhs_status call(life *l);

static prhs_status call_step(life *l) { return prhs_session_step(l->session, l->queue, &l->step); }
static prhs_status call_reset(life *l) { return prhs_session_reset(l->session, l->queue, 1); }
static prhs_status call_fork(life *l) { return prhs_session_fork(l->session, l->queue, 1, 0); }
static prhs_status call_write(life *l) { return prhs_queue_write(l->queue, l->step.q.mem, l->data, 64); }
static prhs_status call_read(life *l) { return prhs_queue_read(l->queue, l->data, l->step.q.mem, 64); }
static prhs_status call_finish(life *l) { return prhs_queue_finish(l->queue); }
static prhs_status call_record(life *l) { return prhs_event_record(l->queue, l->event); }
static prhs_status call_query(life *l) { return prhs_event_query(l->event); }
static prhs_status call_poll(life *l) { return prhs_session_poll(l->session, l->queue); }
static prhs_status call_enqueue(life *l) { return prhs_stats_request_enqueue(l->request, l->queue); }
static prhs_status call_get(life *l) {
    prhs_stats stats = { .size = sizeof stats };
    return prhs_stats_request_get(l->request, 0, 0, &stats);
}

static const struct {
    const char *name, *function;
    call *call;
} using[] = {
    { "step", "clEnqueueNDRangeKernel", call_step },
    { "step, arguments", "clSetKernelArg", call_step },
    { "reset", "clEnqueueFillBuffer", call_reset },
    { "fork", "clEnqueueCopyBuffer", call_fork },
    { "write", "clEnqueueWriteBuffer", call_write },
    { "read", "clEnqueueReadBuffer", call_read },
    { "finish", "clFinish", call_finish },
    { "record", "clEnqueueMarkerWithWaitList", call_record },
    { "record, flush", "clFlush", call_record },
    { "query", "clGetEventInfo", call_query },
    { "poll, the last look", "clGetEventInfo", call_poll },
    { "poll, a new look", "clEnqueueReadBuffer", call_poll },
    { "statistics", "clGetEventInfo", call_get },
    { "statistics, a new copy", "clEnqueueReadBuffer", call_enqueue },
};

/* On a session that works: the call fails as documented, and goes well the next time. */
static void test_using(void) {
    life l = { 0 };
    prhs_status status = begin(&l);
    CHECK(status == PRHS_OK, "begin: %s", prhs_status_name(status));
    for (size_t i = 0; status == PRHS_OK && i < sizeof using / sizeof using[0]; i++) {
        status = step(&l, ROWS);
        if (status == PRHS_OK)
            status = prhs_event_record(l.queue, l.event);
        if (status == PRHS_OK && prhs_stats_request_enqueue(l.request, l.queue) != PRHS_OK)
            status = PRHS_ERR_STATE;
        prhs_session_poll(l.session, l.queue);
        CHECK(status == PRHS_OK && prhs_queue_finish(l.queue) == PRHS_OK, "before %s", using[i].name);
        arm(using[i].function, CL_INVALID_OPERATION, 0, 0);
        prhs_status got = using[i].call(&l);
        disarm();
        CHECK(*hits == 1 && got == PRHS_ERR_DRIVER, "%s: %s, %d failed calls", using[i].name, prhs_status_name(got), *hits);
        CHECK(sentences == 1 && (strstr(sentence, using[i].function) || strstr(sentence, "device")), "%s: %d sentences", using[i].name,
              sentences);
        got = using[i].call(&l);
        CHECK(got == PRHS_OK || got == PRHS_NOT_READY, "%s, the second time: %s", using[i].name, prhs_status_name(got));
        CHECK(prhs_queue_finish(l.queue) == PRHS_OK, "after %s", using[i].name);
    }
    end(&l);
}

/* The Nth call of a life fails, for every N. */
static void test_every_call(void) {
    int n = 0, refused = 0;
    for (;; n++) {
        life l = { 0 };
        arm(NULL, CL_OUT_OF_RESOURCES, n, 0);
        prhs_status status = begin(&l);
        if (status == PRHS_OK)
            status = use(&l);
        int hit = *hits;
        disarm();
        CHECK(status == PRHS_OK || hit, "call %d: %s without a failure", n, prhs_status_name(status));
        CHECK(status == PRHS_OK || sentences > 0, "call %d: %s without a sentence", n, prhs_status_name(status));
        refused += status != PRHS_OK;
        end(&l);
        if (!hit)
            break;
    }
    printf("%d driver calls a life, %d of them fatal to it\n", n, refused);
    CHECK(n > 100 && refused > 80, "the test's life is too short");
}

/* Loads the flaky driver in the real one's place. */
static int load(const char *driver) {
    struct link_map *map = NULL;
    void *lib = dlopen("libOpenCL.so.1", RTLD_LAZY | RTLD_LOCAL);
    char path[1024];
    if (!lib || dlinfo(lib, RTLD_DI_LINKMAP, &map) != 0)
        return 0;
    snprintf(path, sizeof path, "%s", map->l_name);
    dlclose(lib);
    setenv("FLAKY_OPENCL", path, 1);
    lib = dlopen(driver, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        printf("%s\n", dlerror());
        return 0;
    }
    after = dlsym(lib, "flaky_after");
    sticky = dlsym(lib, "flaky_sticky");
    hits = dlsym(lib, "flaky_hits");
    error = dlsym(lib, "flaky_error");
    only = dlsym(lib, "flaky_only");
    return after && sticky && hits && error && only;
}

int main(int argc, char **argv) {
    if (argc != 3 || !load(argv[1])) {
        printf("no libOpenCL.so.1, or no flaky driver\n");
        return 77;
    }
    cache_dir = argv[2];
    life l = { 0 };
    prhs_status status = begin(&l); /* also warms the program cache */
    if (status == PRHS_OK)
        status = use(&l);
    end(&l);
    if (status == PRHS_ERR_NO_DEVICE)
        return 77;
    arm("clFinish", CL_INVALID_OPERATION, 1000000, 0);
    l = (life){ 0 };
    CHECK(status == PRHS_OK && begin(&l) == PRHS_OK && *after < 1000000, "the flaky driver is not in use");
    disarm();
    end(&l);
    if (!failures)
        test_making();
    if (!failures)
        test_using();
    if (!failures)
        test_every_call();
    printf("%d checks failed\n", failures);
    return failures ? 1 : 0;
}
