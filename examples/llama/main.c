/* SPDX-License-Identifier: Apache-2.0 */
/* prhs-llama: a small llama-family engine around libprhs. Exit status: 0 done, 1 failed, 2 usage, 130 interrupted. */
#include <stdio.h>
#include <string.h>

#include "options.h"

static void on_interrupt(int sig) {
    (void)sig;
    interrupted = 1;
}

static void usage(FILE *to) {
    fputs("usage: prhs-llama generate   --model FILE [options] PROMPT\n"
          "       prhs-llama perplexity --model FILE [options] TEXT-FILE\n"
          "       prhs-llama speed      --model FILE [options] TEXT-FILE\n"
          "       prhs-llama tokenize   --model FILE TEXT-FILE\n"
          "Each command has --help.\n",
          to);
}

int main(int argc, char **argv) {
    struct sigaction action = { .sa_handler = on_interrupt };
    sigaction(SIGINT, &action, NULL);
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    if (strcmp(argv[1], "generate") == 0)
        return cmd_generate(argc - 1, argv + 1);
    if (strcmp(argv[1], "perplexity") == 0)
        return cmd_perplexity(argc - 1, argv + 1);
    if (strcmp(argv[1], "speed") == 0)
        return cmd_speed(argc - 1, argv + 1);
    if (strcmp(argv[1], "tokenize") == 0)
        return cmd_tokenize(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        usage(stdout);
        return 0;
    }
    fprintf(stderr, "prhs-llama: there is no command '%s'\n", argv[1]);
    usage(stderr);
    return 2;
}
