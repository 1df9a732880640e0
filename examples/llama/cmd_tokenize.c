/* SPDX-License-Identifier: Apache-2.0 */
/* prhs-llama tokenize: a text's token ids, one a line. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "options.h"

static const char help[] = "usage: prhs-llama tokenize --model FILE TEXT-FILE\n"
                           "  --model FILE        GGUF model of the llama family; only its vocabulary is used\n";

static bool print_ids(const int32_t *ids, size_t n) {
    for (size_t i = 0; i < n && !interrupted; i++)
        printf("%d\n", ids[i]);
    return fflush(stdout) == 0 && !ferror(stdout);
}

static int tokenize(const char *model, const char *path) {
    char error[512];
    size_t size = 0, n = SIZE_MAX;
    int32_t *ids = NULL;
    int status = 1;
    gguf *file = gguf_open(model, error, sizeof error);
    bpe *tokens = file ? bpe_open(file, error, sizeof error) : NULL;
    char *text = tokens ? read_file(path, &size) : NULL;
    if (!tokens)
        fprintf(stderr, "prhs-llama: %s\n", error);
    else if (!text)
        fprintf(stderr, "prhs-llama: %s cannot be read\n", path);
    else if ((n = bpe_encode(tokens, text, size, &ids)) == SIZE_MAX)
        fputs("prhs-llama: out of memory\n", stderr);
    else if (!print_ids(ids, n))
        fputs("prhs-llama: the token ids cannot be written\n", stderr);
    else
        status = 0;
    free(ids);
    free(text);
    bpe_close(tokens);
    gguf_close(file);
    return interrupted ? 130 : status;
}

int cmd_tokenize(int argc, char **argv) {
    static const struct option options[] = { { "model", 1, 0, 'm' }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 } };
    const char *model = NULL;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 'm': model = optarg; break;
        case 'h': fputs(help, stdout); return 0;
        default: fputs(help, stderr); return 2;
        }
    }
    if (!model || optind + 1 != argc) {
        fputs(help, stderr);
        return 2;
    }
    return tokenize(model, argv[optind]);
}
