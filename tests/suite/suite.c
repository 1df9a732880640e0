/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the groups' tables: reseeds each case, catches its failure, checks the guard bands, releases what it made. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "groups.h"
#include "harness.h"

static const t_group *const groups[] = {
#define X(name) &t_group_##name,
    T_GROUPS(X)
#undef X
};
#define GROUPS (sizeof groups / sizeof *groups)

static void say(const prhs_suite_options *opt, const char *format, ...) T_PRINTF(2, 3);
static void say(const prhs_suite_options *opt, const char *format, ...) {
    char line[1400];
    va_list args;
    if (!opt->log)
        return;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    opt->log(opt->user, line);
}

static void on_message(void *user, prhs_log_level level, const char *text) {
    t_ctx *t = user;
    if (level == PRHS_LOG_ERROR) {
        snprintf(t->sentence, sizeof t->sentence, "%s", text);
        t->sentences++;
    } else if (level == PRHS_LOG_WARN) {
        snprintf(t->warning, sizeof t->warning, "%s", text);
        t->warnings++;
    } else if (t->opt->kernels && strncmp(text, "cuda: first launch of ", 22) == 0) {
        say(t->opt, "launched %s", text + 22);
    } else if (t->opt->kernels && level == PRHS_LOG_INFO && strncmp(text, "opencl: ", 8) == 0) {
        say(t->opt, "%s", text + 8);
    }
}

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void case_name(const t_group *g, int row, char *name, size_t size) {
    snprintf(name, size, "%s/%s", g->name, g->row_name(row));
}

/* 0: passed, 1: failed, 2: skipped. Alone in a function because of setjmp. */
static int attempt(t_ctx *t, const t_group *g, int row) {
    int how = setjmp(t->out);
    if (how == 0) {
        g->run(t, row);
        t_check_guards(t);
    }
    return how;
}

static void run_case(t_ctx *t, const t_group *g, int row, prhs_suite_result *result) {
    char name[160];
    case_name(g, row, name, sizeof name);
    if (t->opt->filter && !strstr(name, t->opt->filter))
        return;
    prhs_device *const dev = t->dev; /* a case that opens another one may end while that is in its place */
    prhs_queue *const queue = t->queue;
    t->rng = t_hash(t->opt->seed * UINT64_C(0x9e3779b97f4a7c15) + 1, name);
    t->skipped = 0;
    t->why[0] = t->note[0] = 0;
    t->worst = 0;
    t_hush(t);
    double begin = seconds();
    int how = attempt(t, g, row);
    if (setjmp(t->out) == 0)
        t_release(t);
    t->dev = dev;
    t->queue = queue;
    double took = seconds() - begin;
    if (t->worst > result->worst) {
        result->worst = t->worst;
        snprintf(result->worst_case, sizeof result->worst_case, "%s", name);
    }
    if (how == 1) {
        result->failed++;
        say(t->opt, "FAIL %s: %s", name, t->why);
    } else if (how == 2) {
        result->skipped++;
        say(t->opt, "skip %s: %s", name, t->why);
    } else {
        result->passed++;
        if (t->opt->verbose)
            say(t->opt, "pass %s (%.2f s, error %.2f of its bar)%s%s", name, took, t->worst, t->note[0] ? ": " : "", t->note);
    }
}

static prhs_status open_device(t_ctx *t, const prhs_suite_options *opt) {
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    prhs_log log = { opt->kernels ? PRHS_LOG_INFO : PRHS_LOG_WARN, t, on_message };
    params.backend = opt->backend;
    params.index = opt->index;
    params.caps_mask = opt->caps_mask;
    params.threads = opt->threads;
    params.cache_dir = opt->cache_dir;
    prhs_status status = prhs_device_open(&params, &log, &t->dev);
    if (status == PRHS_OK)
        status = prhs_queue_create(t->dev, &t->queue);
    t->info.size = sizeof t->info;
    if (status == PRHS_OK)
        status = prhs_device_get_info(t->dev, &t->info);
    return status;
}

int prhs_suite_run(const prhs_suite_options *opt, prhs_suite_result *result) {
    t_ctx t = { .opt = opt, .on_message = on_message };
    *result = (prhs_suite_result){ 0 };
    prhs_status status = open_device(&t, opt);
    if (status != PRHS_OK) {
        say(opt, "no device: %s (%s)", prhs_status_name(status), t.sentence);
        return status == PRHS_ERR_NO_DEVICE ? PRHS_SUITE_NO_DEVICE : PRHS_SUITE_FAIL;
    }
    say(opt, "%s device %" PRIu32 " \"%s\", capabilities %#" PRIx32 ", seed %" PRIu64, prhs_backend_name(t.info.backend),
        t.info.index, t.info.name, t.info.caps & opt->caps_mask, opt->seed);
    for (size_t i = 0; i < GROUPS; i++)
        for (int row = 0; row < (opt->quick ? groups[i]->quick : groups[i]->rows); row++)
            run_case(&t, groups[i], row, result);
    prhs_queue_destroy(t.queue);
    status = prhs_device_close(t.dev);
    if (status != PRHS_OK) {
        result->failed++;
        say(opt, "FAIL close: the device could not be closed after the suite: %s (%s)", prhs_status_name(status), t.sentence);
    }
    free(t.own);
    if (result->worst > 0)
        say(opt, "largest error of an output row: %.3f of its bar, in %s", result->worst, result->worst_case);
    return result->failed ? PRHS_SUITE_FAIL : PRHS_SUITE_PASS;
}

void prhs_suite_list(void (*line)(void *user, const char *name), void *user) {
    char name[160];
    for (size_t i = 0; i < GROUPS; i++)
        for (int row = 0; row < groups[i]->rows; row++) {
            case_name(groups[i], row, name, sizeof name);
            line(user, name);
        }
}
