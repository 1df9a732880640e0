/* SPDX-License-Identifier: Apache-2.0 */
/* Reads GGUF model files: memory-mapped, every length and offset checked before it is used. */
#ifndef GGUF_H
#define GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct gguf gguf;

typedef struct gguf_str {
    const char *data;  /* not terminated */
    uint64_t size;
} gguf_str;

typedef struct gguf_tensor {
    gguf_str name;
    uint32_t type;
    uint32_t dims;
    uint64_t dim[4];   /* dim[0] is the row length */
    const void *data;
} gguf_tensor;

/* NULL on failure, with one sentence in `error`. */
gguf *gguf_open(const char *path, char *error, size_t cap);
void gguf_close(gguf *g);

/* Values by key; false (and *out untouched) where the key is missing or of another type. */
bool gguf_u32(const gguf *g, const char *key, uint32_t *out);
bool gguf_f32(const gguf *g, const char *key, float *out);
bool gguf_text(const gguf *g, const char *key, gguf_str *out);
/* An array of strings: its length, or 0; then element i in order (a cursor makes a walk linear). */
uint64_t gguf_strings(const gguf *g, const char *key, const unsigned char **cursor);
gguf_str gguf_next(const unsigned char **cursor);

const gguf_tensor *gguf_find(const gguf *g, const char *name);
/* All elements as float32 into out[elements]; false where the type is not one of F32, F16, BF16, Q8_0, Q4_0, Q4_1. */
bool gguf_floats(const gguf_tensor *t, float *out);
uint64_t gguf_elements(const gguf_tensor *t);

#endif
