/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every call of the driver that fails, one after the other: open, buffers, session, a prompt, decode steps under a graph, statistics, and
 * all destroyed again, in a process each. Each time: success with the same output, or a status and a sentence; the fake driver fails the
 * process for whatever is left behind. Before that without a failure, on a device of each generation: the same output, and PTX only where there
 * is no machine code. usage: failures; failures path (one run, PRHS_FAKE_CUDA_FAIL says which call).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <prhs/cuda.h>
#include <prhs/prhs.h>

enum { HEADS = 4, KV_HEADS = 2, DIM = 64, PAGE = 16, PROMPT = 96, STEPS = 3, TOKENS = 112, MEMS = 9 };

typedef struct run {
    prhs_log log;
    int errors;            /* sentences at level ERROR */
    int without_code;      /* files of kernels of which the PTX was taken */
    char first[512];
    prhs_device *dev;
    prhs_queue *queue;
    prhs_event *event;
    prhs_buffer *buffers[MEMS];
    int count;
    prhs_session *session;
    prhs_cuda_graph *graph;
    prhs_stats_request *request;
    prhs_step step;
    float out[HEADS * DIM];
    double sum;
} run;

static void on_message(void *user, prhs_log_level level, const char *text) {
    run *r = user;
    r->without_code += strstr(text, "it compiles the PTX") != NULL;
    if (level != PRHS_LOG_ERROR)
        return;
    if (r->errors++ == 0)
        snprintf(r->first, sizeof r->first, "%s", text);
}

#define TRY(call)                     \
    do {                              \
        const prhs_status try = (call);\
        if (try != PRHS_OK)           \
            return try;               \
    } while (0)

static prhs_status buffer(run *r, size_t size, prhs_mem *mem) {
    TRY(prhs_buffer_create(r->dev, size, &r->buffers[r->count]));
    *mem = (prhs_mem){ r->buffers[r->count++], 0 };
    return PRHS_OK;
}

static prhs_status random_buffer(run *r, size_t floats, prhs_mem *mem) {
    float x[PROMPT * HEADS * DIM];
    TRY(buffer(r, floats * sizeof *x, mem));
    for (size_t i = 0; i < floats; i++)
        x[i] = (float)((i * 2654435761u + floats) >> 8 & 0xffff) / 16384.0f - 2.0f;
    TRY(prhs_queue_write(r->queue, *mem, x, floats * sizeof *x));
    return prhs_queue_finish(r->queue);
}

static prhs_status make_session(run *r) {
    prhs_session_params params = PRHS_SESSION_PARAMS_INIT;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    prhs_mem state, work;
    TRY(prhs_policy_preset("cis-mass", 1, &params.policy));
    params.policy.dense_layers = 0;
    params.policy.k = 16;
    params.policy.sinks = params.policy.local = 8;
    params.policy.min_sparse_n = 0;
    params.shape = (prhs_shape){ HEADS, KV_HEADS, DIM, 0.0f };
    params.layers = params.max_slots = params.max_seqs = 1;
    params.max_rows = PROMPT;
    params.max_kv_len = TOKENS;
    TRY(prhs_session_get_sizes(r->dev, &params, &sizes));
    TRY(buffer(r, sizes.state, &state));
    TRY(buffer(r, sizes.workspace, &work));
    return prhs_session_create(r->dev, &params, r->queue, state, work, &r->session);
}

static prhs_status make_batch(run *r) {
    int32_t table[TOKENS / PAGE];
    prhs_step *s = &r->step;
    *s = (prhs_step)PRHS_STEP_INIT;
    s->kv = (prhs_kv){ .dtype = PRHS_F16, .page_size = PAGE, .pages = TOKENS / PAGE };
    TRY(buffer(r, (size_t)TOKENS * KV_HEADS * DIM * 2, &s->kv.k));
    TRY(buffer(r, (size_t)TOKENS * KV_HEADS * DIM * 2, &s->kv.v));
    prhs_kv_strides_nhd(&s->kv, KV_HEADS, DIM);
    TRY(random_buffer(r, PROMPT * HEADS * DIM, &s->q.mem));
    TRY(random_buffer(r, PROMPT * KV_HEADS * DIM, &s->k.mem));
    s->v.mem = s->k.mem;
    TRY(buffer(r, PROMPT * HEADS * DIM * sizeof(float), &s->out.mem));
    s->batch = (prhs_batch){ .max_seqs = 1, .page_stride = TOKENS / PAGE, .max_rows = PROMPT, .decode_rows = 1 };
    TRY(buffer(r, sizeof(prhs_seq), &s->batch.seqs));
    TRY(buffer(r, sizeof table, &s->batch.pages));
    for (int32_t i = 0; i < TOKENS / PAGE; i++)
        table[i] = i;
    TRY(prhs_queue_write(r->queue, s->batch.pages, table, sizeof table));
    return prhs_queue_finish(r->queue);
}

static prhs_status prompt(run *r) {
    const prhs_seq seq = { .row_count = PROMPT, .kv_len = PROMPT, .flags = PRHS_SEQ_PREFILL | PRHS_SEQ_SEED };
    r->step.batch.kinds = PRHS_HAS_PREFILL | PRHS_HAS_SEED;
    TRY(prhs_queue_write(r->queue, r->step.batch.seqs, &seq, sizeof seq));
    TRY(prhs_session_step(r->session, r->queue, &r->step));
    return prhs_queue_finish(r->queue);
}

static prhs_status record(run *r) {
    r->step.batch.kinds = PRHS_HAS_DECODE;
    TRY(prhs_cuda_graph_begin(r->queue));
    const prhs_status status = prhs_session_step(r->session, r->queue, &r->step);
    const prhs_status ended = prhs_cuda_graph_end(r->queue, &r->graph);
    return status != PRHS_OK ? status : ended;
}

static prhs_status decode(run *r) {
    for (int t = 1; t <= STEPS; t++) {
        const prhs_seq seq = { .row_count = 1, .kv_len = PROMPT + t };
        TRY(prhs_queue_write(r->queue, r->step.batch.seqs, &seq, sizeof seq));
        if (t % 2)
            TRY(prhs_cuda_graph_launch(r->graph, r->queue));
        else
            TRY(prhs_session_step(r->session, r->queue, &r->step));
        TRY(prhs_queue_read(r->queue, r->out, r->step.out.mem, sizeof r->out));
        TRY(prhs_event_record(r->queue, r->event));
        TRY(prhs_queue_finish(r->queue));
        prhs_status status = PRHS_NOT_READY;
        while (status == PRHS_NOT_READY)
            status = prhs_event_query(r->event);
        TRY(status);
        for (int i = 0; i < HEADS * DIM; i++)
            r->sum += (double)r->out[i] * (i + t);
    }
    return PRHS_OK;
}

static prhs_status statistics(run *r) {
    prhs_stats stats = { .size = sizeof stats };
    TRY(prhs_stats_request_create(r->session, &r->request));
    TRY(prhs_stats_request_enqueue(r->request, r->queue));
    TRY(prhs_queue_finish(r->queue));
    TRY(prhs_stats_request_get(r->request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &stats));
    r->sum += stats.kept;
    prhs_status status;
    while ((status = prhs_session_poll(r->session, r->queue)) == PRHS_NOT_READY)
        TRY(prhs_queue_finish(r->queue));
    return status;
}

static prhs_status all(run *r) {
    prhs_device_params open = PRHS_DEVICE_PARAMS_INIT;
    open.backend = PRHS_BACKEND_CUDA;
    TRY(prhs_device_open(&open, &r->log, &r->dev));
    TRY(prhs_queue_create(r->dev, &r->queue));
    TRY(prhs_event_create(r->dev, &r->event));
    TRY(make_session(r));
    TRY(make_batch(r));
    TRY(prompt(r));
    TRY(record(r));
    TRY(decode(r));
    return statistics(r);
}

/* One path. What it prints: driver calls, the status, a sum over the outputs. */
static int path(void) {
    static run r;
    r.log = (prhs_log){ PRHS_LOG_INFO, &r, on_message };
    const prhs_status status = all(&r);
    int bad = status != PRHS_OK && (!r.first[0] || strchr(r.first, '\n'));
    if (status != PRHS_OK)
        printf("%s%s: %s\n", bad ? "FAIL " : "", prhs_status_name(status), r.first);
    prhs_stats_request_destroy(r.request);
    prhs_cuda_graph_destroy(r.graph);
    prhs_session_destroy(r.session);
    while (r.count > 0)
        prhs_buffer_destroy(r.buffers[--r.count]);
    if (r.event)
        prhs_event_destroy(r.event);
    if (r.queue)
        prhs_queue_destroy(r.queue);
    if (r.dev && prhs_device_close(r.dev) != PRHS_OK) {
        printf("FAIL the device does not close: %s\n", r.first);
        bad = 1;
    }
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), *found = lib ? dlsym(lib, "prhs_fake_cuda_calls") : NULL;
    int (*calls)(void) = NULL;
    memcpy(&calls, &found, sizeof calls);
    printf("calls %d status %d without code %d sum %.9g\n", calls ? calls() : -1, (int)status, r.without_code, r.sum);
    return bad;
}

typedef struct outcome {
    int calls, status, without_code, bad;
    double sum;
    char words[2048];
} outcome;

static outcome attempt(const char *self, int n) {
    outcome o = { .calls = -1, .bad = 1 };
    char command[1024], line[1024], number[16];
    snprintf(number, sizeof number, "%d", n);
    snprintf(command, sizeof command, "'%s' path 2>&1", self);
    setenv("PRHS_FAKE_CUDA_FAIL", number, 1);
    FILE *p = popen(command, "r");
    if (!p)
        return o;
    while (fgets(line, sizeof line, p))
        if (sscanf(line, "calls %d status %d without code %d sum %lf", &o.calls, &o.status, &o.without_code, &o.sum) != 4)
            strncat(o.words, line, sizeof o.words - 1 - strlen(o.words));
    const int ended = pclose(p);
    o.bad = !WIFEXITED(ended) || WEXITSTATUS(ended) != 0;
    if (o.bad)
        printf("wait status %#x\n", (unsigned)ended);
    return o;
}

/* Whether a device of this compute capability gives the same as that of `plain`. */
static bool generation(const char *self, const char *arch, bool has_code, const outcome *plain) {
    setenv("PRHS_FAKE_CUDA_ARCH", arch, 1);
    const outcome o = attempt(self, 0);
    unsetenv("PRHS_FAKE_CUDA_ARCH");
    const bool good = !o.bad && o.status == PRHS_OK && o.sum == plain->sum && (o.without_code == 0) == has_code;
    printf("%s compute capability %s: status %d, sum %.9g, %d files without machine code\n%s", good ? "good" : "FAIL", arch, o.status, o.sum,
           o.without_code, o.words);
    return good;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "path") == 0)
        return path();
    const outcome plain = attempt(argv[0], 0);
    int failures = plain.bad || plain.status != PRHS_OK || plain.calls < 100, ended_badly = 0, n = 1;
    const bool generations[] = { generation(argv[0], "80", true, &plain), generation(argv[0], "89", true, &plain),
                                 generation(argv[0], "90", true, &plain), generation(argv[0], "120", false, &plain) };
    for (size_t i = 0; i < sizeof generations / sizeof generations[0]; i++)
        failures += !generations[i];
    printf("%d calls of the driver\n%s", plain.calls, plain.words);
    for (; !failures && n <= plain.calls; n++) {
        const outcome o = attempt(argv[0], n);
        const int bad = o.bad || (o.status == PRHS_OK && !(o.sum == plain.sum));
        ended_badly += bad;
        if (bad || argc > 1)
            printf("%s call %d: status %d, sum %.9g instead of %.9g\n%s", bad ? "FAIL" : "good", n, o.status, o.sum, plain.sum, o.words);
    }
    printf("%d failing calls tried, %d ended badly\n", n - 1, ended_badly);
    return failures || ended_badly;
}
