/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, buffers, queues and events; the program cache and what damages it. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "groups.h"
#include "world.h"

static void enumerate(t_ctx *t, int row) {
    prhs_device_info infos[16] = { { .size = sizeof *infos } };
    size_t count = 0, all;
    (void)row;
    T_OK(t, prhs_enumerate(NULL, &count, NULL));
    T_CHECK(t, count >= 1 && count <= 16, "%zu devices", count);
    all = count;
    T_OK(t, prhs_enumerate(infos, &count, NULL));
    T_CHECK(t, count == all, "the second listing has %zu devices instead of %zu", count, all);
    int cpu = 0, ours = 0;
    for (size_t i = 0; i < count; i++) {
        cpu += infos[i].backend == PRHS_BACKEND_CPU;
        ours += infos[i].backend == t->info.backend && infos[i].index == t->info.index && !strcmp(infos[i].name, t->info.name);
    }
    T_CHECK(t, cpu == 1, "the cpu backend is listed %d times", cpu);
    T_CHECK(t, ours == 1, "this device is listed %d times", ours);
    memset(infos, T_POISON, sizeof infos);
    infos->size = sizeof *infos;
    count = 1;
    T_OK(t, prhs_enumerate(infos, &count, NULL));
    T_CHECK(t, count == all, "a short array: count %zu", count);
    T_CHECK(t, infos[0].size == sizeof *infos, "an info's size is %zu", infos[0].size);
    T_CHECK(t, (unsigned char)infos[1].name[0] == T_POISON, "more infos were written than asked for");
}

static void transfers(t_ctx *t, int row) {
    uint32_t a[1024], b[1024];
    t_buf x = t_buffer(t, sizeof a), y = t_buffer(t, sizeof a);
    (void)row;
    for (uint32_t i = 0; i < 1024; i++)
        a[i] = (uint32_t)t_rand(t);
    t_put(t, x.mem, a, sizeof a);
    T_OK(t, prhs_queue_copy(t->queue, t_at(y.mem, 1024), t_at(x.mem, 512), 2048));
    T_OK(t, prhs_queue_copy(t->queue, x.mem, t_at(x.mem, 2048), 2048));
    T_OK(t, prhs_queue_fill(t->queue, t_at(y.mem, 16), 0x12345678, 36));
    t_get(t, b, y.mem, sizeof b);
    T_CHECK(t, !memcmp(b + 256, a + 128, 2048), "copy");
    for (int i = 4; i < 13; i++)
        T_CHECK(t, b[i] == 0x12345678, "fill, word %d", i);
    T_CHECK(t, b[3] == 0xffffffff && b[13] == 0xffffffff, "fill went too far");
    t_get(t, b, x.mem, sizeof b);
    T_CHECK(t, !memcmp(b, a + 512, 2048), "copy inside a buffer");
    T_OK(t, prhs_queue_write(t->queue, t_at(x.mem, 64), a, 0));
    T_CHECK(t, prhs_buffer_size(x.mem.buffer) >= sizeof a, "buffer size");
    void *host = prhs_buffer_host(x.mem.buffer);
    T_CHECK(t, !!host == !!(t->info.caps & PRHS_CAP_HOST_MEM), "a host address contradicts the capability");
}

static void events(t_ctx *t, int row) {
    prhs_event *a, *b;
    double seconds = -1.0;
    (void)row;
    T_OK(t, prhs_event_create(t->dev, &a));
    t_own(t, T_EVENT, a, 0);
    T_OK(t, prhs_event_create(t->dev, &b));
    t_own(t, T_EVENT, b, 0);
    T_STATUS(t, PRHS_ERR_STATE, prhs_event_query(a));
    t_buf x = t_buffer(t, 1 << 20);
    T_OK(t, prhs_event_record(t->queue, a));
    T_OK(t, prhs_queue_fill(t->queue, x.mem, 7, 1 << 20));
    T_OK(t, prhs_event_record(t->queue, b));
    prhs_status status = prhs_event_query(b);
    T_CHECK(t, status == PRHS_OK || status == PRHS_NOT_READY, "query: %s", prhs_status_name(status));
    T_OK(t, prhs_queue_finish(t->queue));
    T_OK(t, prhs_event_query(b));
    T_OK(t, prhs_event_elapsed(a, b, &seconds));
    T_CHECK(t, seconds >= 0.0 && seconds < 60.0, "%g seconds for a fill", seconds);
    T_OK(t, prhs_event_record(t->queue, a));
    T_OK(t, prhs_queue_finish(t->queue));
    T_OK(t, prhs_event_query(a));
}

/* --- the program cache ---------------------------------------------------------------------------------------------------- */

typedef enum damage { NOTHING, TRUNCATE, EMPTY, FLIP, GARBAGE } damage;

static void damage_file(t_ctx *t, const char *path, damage how) {
    FILE *f = fopen(path, "rb+");
    T_CHECK(t, f, "cannot open %s", path);
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    for (int i = 0; i < (how == FLIP ? 3 : how == GARBAGE ? 64 : 0); i++) {
        long at = how == FLIP ? size / 4 * (i + 1) - 1 : i;
        fseek(f, at, SEEK_SET);
        int c = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(how == FLIP ? c ^ 0x10 : 0x5a, f);
    }
    fclose(f);
    if (how == TRUNCATE || how == EMPTY)
        T_CHECK(t, truncate(path, how == EMPTY ? 0 : size / 2) == 0, "cannot truncate %s", path);
}

static int for_files(t_ctx *t, const char *dir, damage how, int erase) {
    int n = 0;
    DIR *d = opendir(dir);
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[1024];
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        n++;
        if (erase)
            unlink(path);
        else if (how != NOTHING)
            damage_file(t, path, how);
    }
    closedir(d);
    return n;
}

/* Opens the device with this cache folder and runs a few steps; returns hash-like sum of the outputs. */
static double with_cache(t_ctx *t, const char *dir, uint64_t seed) {
    prhs_device *dev = t->dev;
    prhs_queue *queue = t->queue;
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    prhs_log log = { PRHS_LOG_WARN, t, t->on_message };
    t_world w;
    double sum = 0;
    size_t mark = t_mark(t);
    params.backend = t->info.backend;
    params.index = t->info.index;
    params.caps_mask = t->opt->caps_mask;
    params.cache_dir = dir;
    T_OK(t, prhs_device_open(&params, &log, &t->dev));
    t_own(t, T_DEVICE, t->dev, 0);
    T_OK(t, prhs_queue_create(t->dev, &t->queue));
    t_own(t, T_QUEUE, t->queue, 0);
    t_setup s = t_setup_default(t, "cis-mass", &t_shapes[S_G1_D32]);
    s.seed = seed;
    t_world_make(t, &w, &s);
    t_wseq *seq = t_world_seq(&w, 1, 0);
    t_world_prompt(&w, seq, 60, 64);
    for (int i = 0; i < 4; i++)
        t_world_one(&w, seq, 1, 0);
    for (uint32_t l = 0; l < s.layers; l++)
        for (uint32_t i = 0; i < s.shape->heads * s.shape->dim; i++)
            sum += (double)w.outs[l][i] * (i + 1);
    t_check_guards(t);
    t->dev = dev;
    t->queue = queue;
    t_release_to(t, mark);
    return sum;
}

static void damaged_cache(t_ctx *t, int row) {
    static const damage how[] = { NOTHING, TRUNCATE, EMPTY, FLIP, GARBAGE };
    (void)row;
    if (t->info.backend != PRHS_BACKEND_OPENCL)
        t_skip(t, "the backend has no program cache");
    char dir[] = "/tmp/prhs-cache-XXXXXX";
    T_CHECK(t, mkdtemp(dir), "cannot make %s", dir);
    double want = with_cache(t, dir, 11);
    int files = for_files(t, dir, NOTHING, 0);
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        for_files(t, dir, how[i], 0);
        t_hush(t);
        double got = with_cache(t, dir, 11);
        T_CHECK(t, got == want, "another result after damage %zu", i);
        T_CHECK(t, t->sentences == 0, "damage %zu was an error: %s", i, t->sentence);
        T_CHECK(t, (how[i] != NOTHING) == (t->warnings > 0), "damage %zu made %u warnings", i, t->warnings);
    }
    for_files(t, dir, NOTHING, 1);
    rmdir(dir);
    T_CHECK(t, files > 0, "nothing was cached");
    T_CHECK(t, with_cache(t, "/proc/no/such/folder", 11) == want, "a folder that cannot be made");
    T_CHECK(t, with_cache(t, "", 11) == want, "no cache");
}

/* Prompts of one head size, padded, and K/V dtype whose queries have another dtype, in either order, on a device that has no kernels yet:
 * shared memory is by what is launched, not by what was first. */
static void two_query_dtypes(t_ctx *t, int row) {
    static const int shapes[2] = { S_G3_D96, S_G1_D128 };
    prhs_device *dev = t->dev;
    prhs_queue *queue = t->queue;
    (void)row;
    for (int first = 0; first < 2; first++) {
        prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
        prhs_log log = { PRHS_LOG_WARN, t, t->on_message };
        size_t mark = t_mark(t);
        params.backend = t->info.backend;
        params.index = t->info.index;
        params.caps_mask = t->opt->caps_mask;
        params.cache_dir = t->opt->cache_dir;
        T_OK(t, prhs_device_open(&params, &log, &t->dev));
        t_own(t, T_DEVICE, t->dev, 0);
        T_OK(t, prhs_queue_create(t->dev, &t->queue));
        t_own(t, T_QUEUE, t->queue, 0);
        t_world w[3];
        for (int i = 0; i < 3; i++) {
            t_setup s = t_setup_default(t, "dense", &t_shapes[shapes[(first + i) % 2]]);
            t_world_make(t, &w[i], &s);
            t_world_prompt(&w[i], t_world_seq(&w[i], 1, 0), 70, 64);
        }
        t_check_guards(t);
        t->dev = dev;
        t->queue = queue;
        t_release_to(t, mark);
    }
}

/* The mask takes capabilities away, as the environment variable does. */
static void masks(t_ctx *t, int row) {
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    prhs_device_info info = { .size = sizeof info };
    prhs_device *dev;
    (void)row;
    params.backend = t->info.backend;
    params.index = t->info.index;
    params.cache_dir = t->opt->cache_dir;
    params.caps_mask = PRHS_CAP_HOST_MEM;
    T_OK(t, prhs_device_open(&params, NULL, &dev));
    T_OK(t, prhs_device_get_info(dev, &info));
    T_OK(t, prhs_device_close(dev));
    T_CHECK(t, (info.caps & ~(uint32_t)PRHS_CAP_HOST_MEM) == 0, "masked capabilities are %#x", (unsigned)info.caps);
    setenv("PRHS_CAPS", "0", 1);
    params.caps_mask = PRHS_CAPS_ALL;
    prhs_status status = prhs_device_open(&params, NULL, &dev);
    unsetenv("PRHS_CAPS");
    T_CHECK(t, status == PRHS_OK, "open with PRHS_CAPS=0: %s", prhs_status_name(status));
    T_OK(t, prhs_device_get_info(dev, &info));
    T_OK(t, prhs_device_close(dev));
    T_CHECK(t, info.caps == 0, "with PRHS_CAPS=0 the capabilities are %#x", (unsigned)info.caps);
    T_CHECK(t, t->info.backend != PRHS_BACKEND_CPU || strstr(info.platform, "(base)"), "with PRHS_CAPS=0 the inner loops are those of %s",
            info.platform);
}

/* A tuning file that is none: refused with a sentence that names it; the cpu backend reads none. */
static void tuning_file(t_ctx *t, int row) {
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    prhs_log log = { PRHS_LOG_WARN, t, t->on_message };
    prhs_device *dev = NULL;
    (void)row;
    params.backend = t->info.backend;
    params.index = t->info.index;
    params.cache_dir = t->opt->cache_dir;
    params.tuning = "/proc/self/status"; /* a file, but not of rows */
    prhs_status status = prhs_device_open(&params, &log, &dev);
    if (t->info.backend == PRHS_BACKEND_CPU) {
        T_CHECK(t, status == PRHS_OK, "the cpu backend: %s", prhs_status_name(status));
        T_OK(t, prhs_device_close(dev));
        return;
    }
    T_CHECK(t, status == PRHS_ERR_ARGUMENT && !dev, "a file without rows: %s", prhs_status_name(status));
    T_CHECK(t, strstr(t->sentence, "/proc/self/status, line 1: it is no X(...)"), "the sentence is: %s", t->sentence);
}

static const struct d_row {
    const char *name;
    void (*run)(t_ctx *t, int row);
} rows[] = {
    { "enumerate", enumerate },
    { "transfers", transfers },
    { "events", events },
    { "capability masks", masks },
    { "two query dtypes", two_query_dtypes },
    { "tuning file", tuning_file },
    { "damaged program cache", damaged_cache },
};

static const char *row_name(int row) { return rows[row].name; }

static void run(t_ctx *t, int row) { rows[row].run(t, row); }

const t_group t_group_device = { "device", sizeof rows / sizeof *rows, sizeof rows / sizeof *rows, row_name, run };
