/* SPDX-License-Identifier: Apache-2.0 */
/* prhs-tests: the suite on one device. Exit status: 0 all passed, 1 some failed, 2 usage, 77 no such device. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "suite/suite.h"

static const char usage[] =
    "usage: prhs-tests [--backend cpu|opencl|cuda] [--index N] [--caps HEX] [--threads N] [--cache-dir DIR]\n"
    "                  [--seed N] [--filter TEXT] [--quick] [--verbose] [--kernels] [--list]\n";

static void print_line(void *user, const char *line) {
    (void)user;
    puts(line);
    fflush(stdout);
}

static int bad(const char *what) {
    fprintf(stderr, "prhs-tests: %s\n%s", what, usage);
    return 2;
}

static int flag(const char *arg, prhs_suite_options *opt, int *list) {
    if (!strcmp(arg, "--quick"))
        opt->quick = 1;
    else if (!strcmp(arg, "--verbose"))
        opt->verbose = 1;
    else if (!strcmp(arg, "--kernels"))
        opt->kernels = 1;
    else if (!strcmp(arg, "--list"))
        *list = 1;
    else
        return 0;
    return 1;
}

/* PRHS_BACKEND_ANY: there is none of that name. */
static prhs_backend_kind backend_of(const char *name) {
    for (int kind = PRHS_BACKEND_CPU; strcmp(prhs_backend_name((prhs_backend_kind)kind), "?") != 0; kind++)
        if (strcmp(name, prhs_backend_name((prhs_backend_kind)kind)) == 0)
            return (prhs_backend_kind)kind;
    return PRHS_BACKEND_ANY;
}

static int value(const char *arg, const char *text, prhs_suite_options *opt) {
    if (!strcmp(arg, "--backend"))
        opt->backend = backend_of(text);
    else if (!strcmp(arg, "--index"))
        opt->index = (uint32_t)strtoul(text, NULL, 0);
    else if (!strcmp(arg, "--caps"))
        opt->caps_mask = (uint32_t)strtoul(text, NULL, 16);
    else if (!strcmp(arg, "--threads"))
        opt->threads = (uint32_t)strtoul(text, NULL, 0);
    else if (!strcmp(arg, "--cache-dir"))
        opt->cache_dir = text;
    else if (!strcmp(arg, "--seed"))
        opt->seed = strtoull(text, NULL, 0);
    else if (!strcmp(arg, "--filter"))
        opt->filter = text;
    else
        return 0;
    return 1;
}

int main(int argc, char **argv) {
    prhs_suite_options opt = { .backend = PRHS_BACKEND_CPU, .caps_mask = PRHS_CAPS_ALL, .log = print_line };
    prhs_suite_result result;
    int list = 0;
    const char *seed = getenv("PRHS_TEST_SEED");
    opt.seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL);
    for (int i = 1; i < argc; i++) {
        if (flag(argv[i], &opt, &list))
            continue;
        if (i + 1 == argc || !value(argv[i], argv[i + 1], &opt))
            return bad(argv[i]);
        i++;
    }
    if (opt.backend == PRHS_BACKEND_ANY)
        return bad("--backend takes cpu, opencl or cuda");
    if (list) {
        prhs_suite_list(print_line, NULL);
        return 0;
    }
    int status = prhs_suite_run(&opt, &result);
    printf("seed %" PRIu64 "\n%u passed, %u failed, %u skipped\n", opt.seed, result.passed, result.failed, result.skipped);
    return status;
}
