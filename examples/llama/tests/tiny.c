/* SPDX-License-Identifier: Apache-2.0 */
#include "tiny.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int failures;
static int checks;
static char scratch[256];
static int scratch_fd = -1;

void put(bytes *b, const void *data, size_t size) {
    if (b->size + size > b->room) {
        b->room = 2 * (b->size + size);
        b->data = realloc(b->data, b->room);
        if (!b->data)
            abort();
    }
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

void put_u32(bytes *b, uint32_t x) { put(b, &x, sizeof x); }

void put_u64(bytes *b, uint64_t x) { put(b, &x, sizeof x); }

void put_text(bytes *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

void put_header(bytes *b, uint64_t tensors, uint64_t entries) {
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, tensors);
    put_u64(b, entries);
}

void put_key_text(bytes *b, const char *key, const char *text) {
    put_text(b, key);
    put_u32(b, TINY_STRING);
    put_text(b, text);
}

void put_key_u32(bytes *b, const char *key, uint32_t x) {
    put_text(b, key);
    put_u32(b, TINY_U32);
    put_u32(b, x);
}

void put_key_array(bytes *b, const char *key, uint64_t count) {
    put_text(b, key);
    put_u32(b, TINY_ARRAY);
    put_u32(b, TINY_STRING);
    put_u64(b, count);
}

void put_tensor(bytes *b, const char *name, uint32_t dims, const uint64_t *dim, uint32_t type, uint64_t offset) {
    put_text(b, name);
    put_u32(b, dims);
    put(b, dim, dims * sizeof *dim);
    put_u32(b, type);
    put_u64(b, offset);
}

void put_align(bytes *b, size_t align) {
    while (b->size % align)
        put(b, "", 1);
}

void poke(bytes *b, size_t at, uint64_t x, size_t size) {
    if (at + size > b->size)
        abort();
    memcpy(b->data + at, &x, size);
}

void bytes_free(bytes *b) {
    free(b->data);
    *b = (bytes){ 0 };
}

static void remove_scratch(void) {
    close(scratch_fd);
    unlink(scratch);
}

const char *scratch_path(void) {
    if (scratch_fd < 0) {
        const char *folder = getenv("TMPDIR");
        snprintf(scratch, sizeof scratch, "%s/prhs-gguf-XXXXXX", folder && *folder ? folder : "/tmp");
        scratch_fd = mkstemp(scratch);
        if (scratch_fd < 0) {
            perror(scratch);
            exit(1);
        }
        atexit(remove_scratch);
    }
    return scratch;
}

gguf *open_bytes(const bytes *b, char *error, size_t cap) {
    const char *path = scratch_path();
    if (ftruncate(scratch_fd, (off_t)b->size) != 0 || pwrite(scratch_fd, b->data, b->size, 0) != (ssize_t)b->size) {
        perror(path);
        exit(1);
    }
    return gguf_open(path, error, cap);
}

/* Bytes 33-126, 161-172 and 174-255 are their own code points; the other 68 are numbered from U+0100 on, in order. */
size_t stand_in_of(unsigned char byte, char out[2]) {
    unsigned c = byte;
    if (byte <= 32)
        c = 256u + byte;
    else if (byte >= 127 && byte <= 160)
        c = 256u + 33 + (byte - 127u);
    else if (byte == 173)
        c = 256u + 33 + 34;
    if (c < 128) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 + c / 64);
    out[1] = (char)(0x80 + c % 64);
    return 2;
}

uint64_t draw(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

bool check(bool good, const char *format, ...) {
    checks++;
    if (good)
        return true;
    failures++;
    va_list args;
    va_start(args, format);
    fputs("FAIL ", stdout);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    return false;
}

void begin(unsigned seconds) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(seconds);
}

int finish(void) {
    printf("%d checks, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
