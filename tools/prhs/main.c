/* SPDX-License-Identifier: Apache-2.0 */
/* prhs: what a user of the library runs by hand. Exit status: 0 done, 1 failed, 2 usage, 77 no such device. */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <prhs/prhs.h>

#include "suite.h"

static const char help[] =
    "usage: prhs info\n"
    "       prhs verify [--backend cpu|opencl] [--device INDEX] [--caps HEX] [--quick] [--seed N] [--filter TEXT] [--verbose]\n"
    "info    lists the devices of every backend, as --backend and --device name them\n"
    "verify  runs the test suite on a device and closes with 'N passed, N failed, N skipped'\n";

static void print_line(void *user, const char *line) {
    (void)user;
    puts(line);
}

static void print_message(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    fprintf(stderr, "prhs: %s\n", text);
}

static int info(void) {
    const prhs_log log = { PRHS_LOG_WARN, NULL, print_message };
    size_t n = 0;
    if (prhs_enumerate(NULL, &n, &log) != PRHS_OK)
        return 1;
    prhs_device_info *infos = calloc(n ? n : 1, sizeof *infos);
    if (!infos || prhs_enumerate(infos, &n, &log) != PRHS_OK) {
        free(infos);
        return 1;
    }
    for (size_t i = 0; i < n; i++) {
        const prhs_device_info *d = &infos[i];
        printf("%s %u: %s\n    platform %s, driver %s\n    %u compute units, memory %.1f GiB, largest buffer %.1f GiB\n    capabilities:%s%s%s\n",
               prhs_backend_name(d->backend), d->index, d->name, d->platform, d->driver, d->compute_units,
               (double)d->memory / (1 << 30), (double)d->max_buffer / (1 << 30), d->caps & PRHS_CAP_WIDE ? " wide" : "",
               d->caps & PRHS_CAP_THREADS ? " threads" : "", d->caps & PRHS_CAP_HOST_MEM ? " host-memory" : "");
    }
    free(infos);
    return 0;
}

static int verify(int argc, char **argv) {
    static const struct option options[] = {
        { "backend", 1, 0, 'b' }, { "device", 1, 0, 'd' }, { "caps", 1, 0, 'c' },    { "quick", 0, 0, 'q' }, { "seed", 1, 0, 's' },
        { "filter", 1, 0, 'f' },  { "help", 0, 0, 'h' },   { "verbose", 0, 0, 'v' }, { 0, 0, 0, 0 },
    };
    prhs_suite_options o = { .backend = PRHS_BACKEND_CPU, .caps_mask = PRHS_CAPS_ALL, .seed = (uint64_t)time(NULL), .log = print_line };
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 'b':
            o.backend = strcmp(optarg, "cpu") == 0 ? PRHS_BACKEND_CPU : strcmp(optarg, "opencl") == 0 ? PRHS_BACKEND_OPENCL : PRHS_BACKEND_ANY;
            if (o.backend == PRHS_BACKEND_ANY) {
                fprintf(stderr, "prhs: there is no backend '%s'; there are cpu and opencl\n", optarg);
                return 2;
            }
            break;
        case 'd': o.index = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'c': o.caps_mask = (uint32_t)strtoul(optarg, NULL, 16); break;
        case 'q': o.quick = 1; break;
        case 's': o.seed = strtoull(optarg, NULL, 10); break;
        case 'f': o.filter = optarg; break;
        case 'v': o.verbose = 1; break;
        case 'h': fputs(help, stdout); return 0;
        default: fputs(help, stderr); return 2;
        }
    }
    prhs_suite_result r = { 0, 0, 0 };
    int status = prhs_suite_run(&o, &r);
    if (status == PRHS_SUITE_NO_DEVICE) {
        fprintf(stderr, "prhs: there is no such device; 'prhs info' lists what there is\n");
        return 77;
    }
    printf("%u passed, %u failed, %u skipped\n", r.passed, r.failed, r.skipped);
    return status == PRHS_SUITE_PASS ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "info") == 0)
        return info();
    if (argc >= 2 && strcmp(argv[1], "verify") == 0)
        return verify(argc - 1, argv + 1);
    bool wanted = argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    fputs(help, wanted ? stdout : stderr);
    return wanted ? 0 : 2;
}
