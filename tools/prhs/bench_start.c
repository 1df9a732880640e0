/* SPDX-License-Identifier: Apache-2.0 */
/* Start-up: a process of its own opens the device, makes a session and runs one step; first with empty caches, then with warm ones. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

typedef struct start_times {
    double open, create, step;
} start_times;

static prhs_mem buffer(bench *b, uint64_t size) { return bench_buffer(b, size); }

/* One sequence of one layer; what is in the cache does not matter. */
static prhs_step make_step(bench *b, const bench_shape *s) {
    prhs_step step = PRHS_STEP_INIT;
    prhs_seq seq = { .row_count = 1, .kv_len = (int32_t)s->n };
    uint32_t pages = (s->n + b->o->page_size - 1) / b->o->page_size;
    int32_t *table = bench_alloc(pages, sizeof *table);
    for (uint32_t i = 0; i < pages; i++)
        table[i] = (int32_t)i;
    uint64_t element = prhs_dtype_size(b->o->dtype), size = (uint64_t)pages * b->o->page_size * s->kv_heads * s->dim * element;
    step.batch = (prhs_batch){ bench_filled(b, &seq, sizeof seq), bench_filled(b, table, pages * sizeof *table), 1, pages, 1, 1,
                               PRHS_HAS_DECODE };
    step.kv = (prhs_kv){ .dtype = b->o->dtype, .page_size = b->o->page_size, .pages = pages, .k = buffer(b, size), .v = buffer(b, size) };
    prhs_kv_strides_nhd(&step.kv, s->kv_heads, s->dim);
    bench_must(prhs_queue_fill(b->queue, step.kv.k, 0, size));
    bench_must(prhs_queue_fill(b->queue, step.kv.v, 0, size));
    step.q = bench_rows(b, 1, s->heads, s->dim, true);
    step.k = step.v = bench_rows(b, 1, s->kv_heads, s->dim, true);
    step.out = bench_rows(b, 1, s->heads, s->dim, false);
    bench_must(prhs_queue_finish(b->queue));
    free(table);
    return step;
}

int bench_start_child(const bench_options *o, const bench_shape *s) {
    bench b = { .o = o, .rng = 1, .row_type = PRHS_F32, .normal_bytes = 1 << 20 };
    start_times t;
    double at[4];
    prhs_session *session = NULL;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    at[0] = bench_clock();
    int status = tool_open(&o->device, &b.dev);
    if (status != TOOL_OK)
        return status;
    bench_must(prhs_queue_create(b.dev, &b.queue));
    at[1] = bench_clock();
    bench_must(prhs_policy_preset("cis-mass", 1, &p.policy));
    p.policy.dense_layers = 0;
    p.shape = (prhs_shape){ s->heads, s->kv_heads, s->dim, 0.0f };
    p.layers = p.max_slots = p.max_seqs = p.max_rows = 1;
    p.max_kv_len = s->n;
    p.kv_dtype = o->dtype;
    bench_must(prhs_session_get_sizes(b.dev, &p, &sizes));
    prhs_mem state = buffer(&b, sizes.state), ws = buffer(&b, sizes.workspace);
    prhs_step step = make_step(&b, s);
    at[2] = bench_clock();
    bench_must(prhs_session_create(b.dev, &p, b.queue, state, ws, &session));
    t.open = at[1] - at[0];
    at[3] = bench_clock();
    t.create = at[3] - at[2];
    bench_must(prhs_session_step(session, b.queue, &step));
    bench_must(prhs_queue_finish(b.queue));
    t.step = bench_clock() - at[3];
    printf("%.9f %.9f %.9f\n", t.open, t.create, t.step);
    prhs_session_destroy(session);
    bench_release(&b, 0);
    bench_normals_free(&b);
    prhs_queue_destroy(b.queue);
    return prhs_device_close(b.dev) == PRHS_OK ? TOOL_OK : TOOL_FAILED;
}

/* Runs this program again; false where that did not work. */
static bool run_child(char *const argv[], start_times *t) {
    int out[2];
    char text[128] = "";
    if (pipe(out) != 0)
        return false;
    pid_t child = fork();
    if (child == 0) {
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        execv("/proc/self/exe", argv);
        _exit(127);
    }
    close(out[1]);
    size_t n = 0;
    for (ssize_t got; n < sizeof text - 1 && (got = read(out[0], text + n, sizeof text - 1 - n)) > 0; n += (size_t)got)
        ;
    close(out[0]);
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0 &&
           sscanf(text, "%lf %lf %lf", &t->open, &t->create, &t->step) == 3;
}

static void note(bench *b, const char *name, const start_times *t) {
    char key[64], text[160];
    snprintf(text, sizeof text, "%s: open %.1f ms, session %.1f ms, first step %.1f ms, together %.1f ms", name, t->open * 1e3,
             t->create * 1e3, t->step * 1e3, (t->open + t->create + t->step) * 1e3);
    snprintf(key, sizeof key, "start_%s_session_s", name);
    bench_report_note(b, key, t->create, text);
    snprintf(key, sizeof key, "start_%s_all_s", name);
    snprintf(text, sizeof text, "    (device open and first step are mostly the driver's own)");
    bench_report_note(b, key, t->open + t->create + t->step, text);
}

void bench_start(bench *b, const bench_shape *s, const char *program) {
    char dir[] = "/tmp/prhs-bench-XXXXXX", pocl[64], cuda[64], shape[96], index[16], caps[16], page[16], command[64];
    if (!mkdtemp(dir)) {
        fprintf(stderr, "prhs bench: no folder under /tmp for an empty program cache\n");
        return;
    }
    /* Drivers keep compiled kernels of their own. */
    snprintf(pocl, sizeof pocl, "%s/pocl", dir);
    setenv("POCL_CACHE_DIR", pocl, 1);
    snprintf(cuda, sizeof cuda, "%s/cuda", dir);
    setenv("CUDA_CACHE_PATH", cuda, 1);
    snprintf(shape, sizeof shape, "%u,%u,%u,%u,%u", s->batch, s->n, s->heads, s->kv_heads, s->dim);
    snprintf(index, sizeof index, "%u", b->info.index);
    snprintf(caps, sizeof caps, "%x", (unsigned)b->o->device.caps_mask);
    snprintf(page, sizeof page, "%u", b->o->page_size);
    char *argv[] = { (char *)(uintptr_t)program, "bench", "--start-child", "--shape", shape, "--backend",
                     (char *)(uintptr_t)prhs_backend_name(b->info.backend), "--device", index, "--caps", caps, "--page", page,
                     "--cache-dir", dir, NULL };
    static const char *const names[] = { "cold", "warm" };
    start_times t;
    for (int i = 0; i < 2; i++) {
        if (run_child(argv, &t))
            note(b, names[i], &t);
        else
            fprintf(stderr, "prhs bench: the %s start did not work\n", names[i]);
    }
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    if (system(command) != 0)
        fprintf(stderr, "prhs bench: %s could not be removed\n", dir);
}
