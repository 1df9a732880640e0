/* SPDX-License-Identifier: Apache-2.0 */
/* prhs verify: the conformance and session suite with its oracle, on any device. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "suite.h"
#include "tool.h"

static const char help[] =
    "usage: prhs verify [options]\n"
    "Runs the test suite, its double-precision oracle linked in, on one device; closes with 'N passed, N failed, N skipped'.\n"
    TOOL_DEVICE_HELP
    "  --quick           the short half of every table\n"
    "  --filter TEXT     only cases whose group/name contains it\n"
    "  --seed N          of the random data (the time)\n"
    "  --verbose         a line for every case\n"
    "  --list            names the cases and runs none\n";

static void print_line(void *user, const char *line) {
    (void)user;
    puts(line);
    fflush(stdout);
}

/* The suite wants to know which backend `any` is. */
static int resolve(prhs_device_params *params) {
    prhs_device *device = NULL;
    prhs_device_info info = { .size = sizeof info };
    int status = tool_open(params, &device);
    if (status != TOOL_OK)
        return status;
    if (prhs_device_get_info(device, &info) == PRHS_OK) {
        params->backend = info.backend;
        params->index = info.index;
        printf("%s %u: %s\n", prhs_backend_name(info.backend), info.index, info.name);
    }
    prhs_device_close(device);
    return TOOL_OK;
}

static int run(const prhs_device_params *p, prhs_suite_options *o) {
    prhs_suite_result r = { 0 };
    o->backend = p->backend;
    o->index = p->index;
    o->caps_mask = p->caps_mask;
    o->threads = p->threads;
    o->cache_dir = p->cache_dir;
    o->log = print_line;
    int status = prhs_suite_run(o, &r);
    if (status == PRHS_SUITE_NO_DEVICE)
        return TOOL_NO_DEVICE;
    printf("seed %" PRIu64 "\n%u passed, %u failed, %u skipped\n", o->seed, r.passed, r.failed, r.skipped);
    return status == PRHS_SUITE_PASS ? TOOL_OK : TOOL_FAILED;
}

int tool_verify(int argc, char **argv) {
    static const struct option options[] = {
        TOOL_DEVICE_OPTIONS,        { "quick", 0, 0, 'q' }, { "seed", 1, 0, 's' }, { "filter", 1, 0, 'f' },
        { "verbose", 0, 0, 'v' },   { "list", 0, 0, 'l' },  { "help", 0, 0, 'h' }, { 0, 0, 0, 0 },
    };
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    prhs_suite_options o = { .seed = (uint64_t)time(NULL) };
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        int mine = tool_device_option(c, optarg, &params);
        if (mine < 0)
            return TOOL_USAGE;
        if (mine)
            continue;
        switch (c) {
        case 'q': o.quick = 1; break;
        case 's':
            if (!tool_number("--seed", optarg, 0, UINT64_MAX, &o.seed))
                return TOOL_USAGE;
            break;
        case 'f': o.filter = optarg; break;
        case 'v': o.verbose = 1; break;
        case 'l': prhs_suite_list(print_line, NULL); return TOOL_OK;
        case 'h': fputs(help, stdout); return TOOL_OK;
        default: return tool_usage("verify");
        }
    }
    int status = resolve(&params);
    return status == TOOL_OK ? run(&params, &o) : status;
}
