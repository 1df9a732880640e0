/* SPDX-License-Identifier: Apache-2.0 */
/* prhs: what a user of the library runs by hand. Exit status: 0 done, 1 failed, 2 usage, 77 no such device. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

static const char help[] =
    "usage: prhs COMMAND [options]\n"
    "  info      lists devices, their capabilities, and which kernels each op takes and why\n"
    "  verify    runs the test suite, oracle included, on a device\n"
    "  bench     times ops, decode steps and start-up, beside dense attention and the memory's own speed\n"
    "  replay    runs policies over a recorded trace: dropped mass, output error, bytes read, time\n"
    "  report    makes a page with plots of what bench, replay and prhs-llama perplexity measured\n"
    "  tune      measures how many work-groups each op's launch should have, and writes them as rows of tuning\n"
    "'prhs COMMAND --help' lists a command's options. Exit status: 0 done, 1 failed, 2 wrong usage, 77 no such device.\n";

static void print_message(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    fprintf(stderr, "prhs: %s\n", text);
}

const prhs_log tool_log = { PRHS_LOG_WARN, NULL, print_message };

int tool_usage(const char *command) {
    fprintf(stderr, "'prhs %s --help' lists the options\n", command);
    return TOOL_USAGE;
}

bool tool_number(const char *option, const char *text, uint64_t low, uint64_t high, uint64_t *value) {
    char *end = NULL;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 0);
    if (errno || end == text || *end || strchr(text, '-') || n < low || n > high) {
        fprintf(stderr, "prhs: %s takes a number from %llu to %llu, not '%s'\n", option, (unsigned long long)low,
                (unsigned long long)high, text);
        return false;
    }
    *value = n;
    return true;
}

int tool_device_option(int option, const char *value, prhs_device_params *params) {
    uint64_t n = 0;
    char *end = NULL;
    switch (option) {
    case 'b':
        params->backend = PRHS_BACKEND_ANY;
        if (strcmp(value, "any") == 0)
            return 1;
        for (int kind = PRHS_BACKEND_CPU; strcmp(prhs_backend_name((prhs_backend_kind)kind), "?") != 0; kind++)
            if (strcmp(value, prhs_backend_name((prhs_backend_kind)kind)) == 0) {
                params->backend = (prhs_backend_kind)kind;
                return 1;
            }
        fprintf(stderr, "prhs: there is no backend '%s'\n", value);
        return -1;
    case 'd':
        if (!tool_number("--device", value, 0, UINT32_MAX, &n))
            return -1;
        params->index = (uint32_t)n;
        return 1;
    case 'c':
        params->caps_mask = (uint32_t)strtoul(value, &end, 16);
        if (end == value || *end) {
            fprintf(stderr, "prhs: --caps takes a hexadecimal number, not '%s'\n", value);
            return -1;
        }
        return 1;
    case 't':
        if (!tool_number("--threads", value, 0, 4096, &n))
            return -1;
        params->threads = (uint32_t)n;
        return 1;
    case 'C': params->cache_dir = value; return 1;
    default: return 0;
    }
}

int tool_open(const prhs_device_params *params, prhs_device **device) {
    prhs_status status = prhs_device_open(params, &tool_log, device);
    if (status == PRHS_OK)
        return TOOL_OK;
    if (status == PRHS_ERR_NO_DEVICE)
        fprintf(stderr, "prhs: 'prhs info' lists the devices that there are\n");
    return status == PRHS_ERR_NO_DEVICE ? TOOL_NO_DEVICE : TOOL_FAILED;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = { { "info", tool_info },     { "verify", tool_verify }, { "bench", tool_bench },
                     { "replay", tool_replay }, { "report", tool_report },
                     { "tune", tool_tune } };
    const char *word = argc >= 2 ? argv[1] : "";
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(word, commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        fputs(help, stdout);
        return TOOL_OK;
    }
    if (strcmp(word, "--version") == 0) {
        uint32_t v = prhs_version();
        printf("prhs %u.%u.%u\n", v / 10000, v / 100 % 100, v % 100);
        return TOOL_OK;
    }
    if (*word)
        fprintf(stderr, "prhs: there is no command '%s'\n", word);
    fputs(help, stderr);
    return TOOL_USAGE;
}
