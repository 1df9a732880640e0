/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF files of a few hundred bytes, built in memory, and the reader under test with its mapping between two forbidden pages. */
#ifndef TINY_H
#define TINY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../bpe.h"

enum { TINY_U32 = 4, TINY_I32 = 5, TINY_F32 = 6, TINY_STRING = 8, TINY_ARRAY = 9, TINY_U64 = 10 };

typedef struct bytes {
    unsigned char *data;
    size_t size, room;
} bytes;

void put(bytes *b, const void *data, size_t size);
void put_u32(bytes *b, uint32_t x);
void put_u64(bytes *b, uint64_t x);
void put_text(bytes *b, const char *text); /* length and bytes */
void put_header(bytes *b, uint64_t tensors, uint64_t entries);
void put_key_text(bytes *b, const char *key, const char *text);
void put_key_u32(bytes *b, const char *key, uint32_t x);
void put_key_array(bytes *b, const char *key, uint64_t count); /* of strings; they follow */
void put_tensor(bytes *b, const char *name, uint32_t dims, const uint64_t *dim, uint32_t type, uint64_t offset);
void put_align(bytes *b, size_t align);
void poke(bytes *b, size_t at, uint64_t x, size_t size); /* the low `size` bytes of x */
void bytes_free(bytes *b);

/* A copy whose last byte is followed by a page that nobody may touch; release with unguard. */
void *guard(const void *data, size_t size);
void unguard(void *data, size_t size);

/* Writes the bytes to this process's scratch file and opens it. */
gguf *open_bytes(const bytes *b, char *error, size_t cap);
const char *scratch_path(void);

/* The UTF-8 form in which byte-level vocabularies write this byte; returns its length. */
size_t stand_in_of(unsigned char byte, char out[2]);

/* Repeatable random numbers (splitmix64). */
uint64_t draw(uint64_t *state);

/* Counts and prints a failure unless `good`. */
extern int failures;
bool check(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* "N checks, N failed"; the exit status. Every program sets its alarm first, so that a hang is a failure too. */
void begin(unsigned seconds);
int finish(void);

#endif
