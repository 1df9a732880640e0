/* SPDX-License-Identifier: Apache-2.0 */
/* Command-line values that the commands share, and the run's fate: interrupts, progress, errors. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <signal.h>

#include "bpe.h"
#include "engine.h"

typedef struct common_options {
    const char *model;          /* GGUF file */
    const char *linear;         /* of compute_open; NULL: auto */
    bool half;                  /* float16 weights */
    prhs_backend_kind backend;
    uint32_t index;
    prhs_dtype kv_dtype;
    prhs_log_level level;
} common_options;

typedef struct loaded {
    gguf *file;
    bpe *tokens;
    model m;
} loaded;

extern volatile sig_atomic_t interrupted;

/* "cpu", "opencl", "opencl:1", "any"; false: no such device name. */
bool parse_device(const char *text, common_options *o);
bool parse_kv(const char *text, common_options *o);
bool parse_weights(const char *text, common_options *o);
/* NAME[,key=value...], e.g. cis-mass,k=476,eps=0.1; list_layers as policy_parse's; false with a sentence on standard error. */
bool parse_policy(const char *text, uint32_t layers, prhs_policy *policy, uint32_t **list_layers);
bool parse_u32(const char *text, uint32_t *out);

bool load_model(const common_options *o, loaded *l);
void unload_model(loaded *l);
/* A whole file, malloc'ed; NULL: it cannot be read. */
char *read_file(const char *path, size_t *size);
prhs_log stderr_log(const common_options *o);

/* A bar on a terminal, a line every tenth elsewhere; to standard error. */
void progress(const char *what, size_t done, size_t all);
double now(void);

int cmd_generate(int argc, char **argv);
int cmd_perplexity(int argc, char **argv);
int cmd_speed(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);

#endif
