/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "life.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>

flaky driver;
int failures, sentences, warnings;
char sentence[1024], warned[8192];
const char *cache_dir;
uint32_t caps_mask = PRHS_CAPS_ALL;

static void listen(void *user, prhs_log_level level, const char *text) {
    (void)user;
    if (level == PRHS_LOG_ERROR) {
        sentences++;
        snprintf(sentence, sizeof sentence, "%s", text);
    } else {
        const size_t n = strlen(warned);
        warnings++;
        snprintf(warned + n, sizeof warned - n, "%s\n", text);
    }
}

const prhs_log log_all = { PRHS_LOG_WARN, NULL, listen };

static prhs_status buffer(life *l, size_t size, prhs_mem *mem) {
    prhs_status status = prhs_buffer_create(l->dev, size, &l->buffer[l->buffers]);
    if (status == PRHS_OK)
        *mem = (prhs_mem){ l->buffer[l->buffers++], 0 };
    return status;
}

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

prhs_status open_device(prhs_device **dev) {
    prhs_device_params open = PRHS_DEVICE_PARAMS_INIT;
    open.backend = PRHS_BACKEND_OPENCL;
    open.cache_dir = cache_dir;
    open.caps_mask = caps_mask;
    return prhs_device_open(&open, &log_all, dev);
}

prhs_status begin(life *l) {
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    prhs_mem state, work;
    TRY(open_device(&l->dev));
    TRY(prhs_queue_create(l->dev, &l->queue));
    TRY(prhs_event_create(l->dev, &l->event));
    TRY(prhs_policy_preset("topk", 1, &p.policy));
    p.policy.dense_layers = 0;
    p.policy.k = p.policy.k_min = 16; /* so many, whatever the target: it is there for its kernel */
    p.policy.target = 0.99f;
    p.policy.local = 8;
    p.shape = (prhs_shape){ HEADS, HEADS, DIM, 0.0f };
    p.layers = p.max_seqs = 1;
    p.max_slots = 2;
    p.max_rows = ROWS;
    p.max_kv_len = TOKENS;
    p.kv_dtype = PRHS_F32;
    p.audit = 1;
    l->sizes.size = sizeof l->sizes;
    TRY(prhs_session_get_sizes(l->dev, &p, &l->sizes));
    TRY(buffer(l, l->sizes.state, &state));
    TRY(buffer(l, l->sizes.workspace, &work));
    TRY(prhs_session_create(l->dev, &p, l->queue, state, work, &l->session));
    TRY(prhs_stats_request_create(l->session, &l->request));
    return make_arrays(l);
}

prhs_status step(life *l, int32_t kv_len) {
    int prompt = kv_len == ROWS;
    l->seq =
        (prhs_seq){ .row_count = prompt ? ROWS : 1, .kv_len = kv_len, .flags = prompt ? PRHS_SEQ_PREFILL | PRHS_SEQ_SEED : 0 };
    l->step.batch.kinds = prompt ? PRHS_HAS_PREFILL | PRHS_HAS_SEED : PRHS_HAS_DECODE;
    TRY(prhs_queue_write(l->queue, l->step.batch.seqs, &l->seq, sizeof l->seq));
    TRY(prhs_session_step(l->session, l->queue, &l->step));
    return prhs_queue_finish(l->queue);
}

prhs_status use(life *l) {
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

void end(life *l) {
    if (l->queue)
        prhs_queue_finish(l->queue);
    prhs_stats_request_destroy(l->request);
    prhs_session_destroy(l->session);
    while (l->buffers > 0)
        prhs_buffer_destroy(l->buffer[--l->buffers]);
    prhs_event_destroy(l->event);
    prhs_queue_destroy(l->queue);
    CHECK(prhs_device_close(l->dev) == PRHS_OK, "something is left behind");
    CHECK(*driver.live == 0, "%d objects of the driver are left behind", *driver.live);
}

void arm(const char *function, cl_int what, int calls, int all) {
    *driver.only = function;
    *driver.error = what;
    *driver.sticky = all;
    *driver.hits = 0;
    *driver.after = calls;
    sentences = 0;
    warnings = 0;
    sentence[0] = warned[0] = '\0';
}

void disarm(void) { *driver.after = -1; }

int load(const char *name) {
    struct link_map *map = NULL;
    void *lib = dlopen("libOpenCL.so.1", RTLD_LAZY | RTLD_LOCAL);
    char path[1024];
    if (!lib || dlinfo(lib, RTLD_DI_LINKMAP, &map) != 0)
        return 0;
    snprintf(path, sizeof path, "%s", map->l_name);
    dlclose(lib);
    setenv("FLAKY_OPENCL", path, 1);
    lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        printf("%s\n", dlerror());
        return 0;
    }
    driver.after = dlsym(lib, "flaky_after");
    driver.sticky = dlsym(lib, "flaky_sticky");
    driver.hits = dlsym(lib, "flaky_hits");
    driver.calls = dlsym(lib, "flaky_calls");
    driver.source = dlsym(lib, "flaky_source");
    driver.live = dlsym(lib, "flaky_live");
    driver.error = dlsym(lib, "flaky_error");
    driver.only = dlsym(lib, "flaky_only");
    driver.prefix = dlsym(lib, "flaky_prefix");
    driver.group = dlsym(lib, "flaky_group");
    driver.largest = dlsym(lib, "flaky_largest");
    return driver.after && driver.sticky && driver.hits && driver.calls && driver.source && driver.live && driver.error &&
           driver.only && driver.prefix && driver.group && driver.largest;
}
