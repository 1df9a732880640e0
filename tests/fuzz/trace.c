/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trace files that nobody wrote: opened and read to their ends. Built with clang's -fsanitize=fuzzer this is a libFuzzer target;
 * without it, a driver of its own mutates a sound file. In both, every second file gets right checksums again, or nothing behind
 * them would be reached. usage without libFuzzer: fuzz-trace [--files N] [--seconds N] [--seed N] [FOLDER]
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "synth.h"
#include "trace_format.h"

static uint64_t opened, whole;

static void seal(unsigned char *data, size_t size) {
    if (size < TRACE_HEADER)
        return;
    uint64_t at = trace_get64(data + AT_INDEX);
    if (at <= size)
        trace_put64(data + AT_INDEX_HASH, trace_hash(data + at, (size_t)(size - at)));
    trace_put64(data + AT_HEADER_HASH, trace_hash(data, AT_HEADER_HASH));
}

/* A false promise must not make the reader read or write elsewhere; all that it says is a sentence. */
static void demand(int good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "fuzz-trace: %s\n", what);
    abort();
}

static void check_sentence(const char error[TRACE_ERROR]) {
    const char *end = memchr(error, 0, TRACE_ERROR);
    demand(end && strncmp(error, "fuzzed: ", 8) == 0 && end > error + 12, "refused without a sentence");
}

static bool read_all(trace *t) {
    const trace_shape *s = trace_get_shape(t);
    char error[TRACE_ERROR];
    bool ok = true;
    for (uint32_t i = 0; i < s->layer_count * s->seqs * TRACE_KINDS; i++) {
        trace_kind kind = (trace_kind)(i % TRACE_KINDS);
        uint32_t seq = i / TRACE_KINDS % s->seqs;
        const trace_seq *q = trace_get_seq(t, seq);
        uint32_t begin = trace_begin(q, kind), rows = q->context + q->steps - begin;
        size_t n = rows * trace_row(s, kind);
        uint16_t *out = malloc(n * sizeof *out);
        memset(error, '?', sizeof error);
        demand(out != NULL, "more rows are promised than the file can hold");
        bool read = trace_read(t, s->first_layer + i / TRACE_KINDS / s->seqs, seq, kind, begin, rows, out, error);
        if (!read)
            check_sentence(error);
        ok = ok && read;
        free(out);
    }
    return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first byte says whether the rest gets right checksums. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char error[TRACE_ERROR];
    if (size == 0)
        return 0;
    unsigned char *copy = malloc(size > 1 ? size - 1 : 1); /* exactly as large, for the address sanitizer */
    demand(copy != NULL, "no memory");
    memcpy(copy, data + 1, size - 1);
    if (data[0] & 1)
        seal(copy, size - 1);
    memset(error, '?', sizeof error);
    trace *t = trace_open_memory(copy, size - 1, "fuzzed", error);
    if (t) {
        opened++;
        whole += read_all(t);
    } else {
        check_sentence(error);
    }
    trace_close(t);
    free(copy);
    return 0;
}

#ifndef PRHS_LIBFUZZER
static const uint64_t values[] = { 0,         1, 2, 63, 64, 65, 255, 4095, 4096, 65536, 0x7fffffff, 0xffffffff, UINT64_C(1) << 61,
                                   UINT64_MAX };

static size_t below(uint64_t *state, size_t n) { return (size_t)(synth_draw(state) % n); }

/* One change: a bit, a field, a copied stretch, an end. Most of them where the structure is: in the header and the index. */
static size_t mutate(unsigned char *data, size_t size, size_t index, uint64_t *state) {
    size_t at = below(state, 4) == 0 ? below(state, size)
                : below(state, 2)    ? below(state, TRACE_HEADER)
                                     : index + below(state, size - index);
    size_t width = (size_t)1 << below(state, 4), n = 0;
    at = at < size ? at : size - 1;
    switch (below(state, 8)) {
    case 0: data[at] ^= (unsigned char)(1u << below(state, 8)); break;
    case 1: data[at] = (unsigned char)synth_draw(state); break;
    case 2: return below(state, size) + 1;
    case 3:
        n = below(state, size - at) + 1;
        memmove(data + at, data + below(state, size - n + 1), n < 48 ? n : 48);
        break;
    default: {
        uint64_t x = values[below(state, sizeof values / sizeof values[0])];
        at -= at % 4;
        if (below(state, 3) == 0 && at + 4 <= size)
            x = trace_get32(data + at) + x - 64 * below(state, 3);
        for (size_t i = 0; i < width && at + i < size; i++)
            data[at + i] = (unsigned char)(x >> 8 * i);
    }
    }
    return size;
}

static void one(const unsigned char *good, size_t size, size_t index, unsigned char *file, uint64_t *state) {
    size_t n = size;
    memcpy(file + 1, good, size);
    for (size_t changes = 1 + below(state, 4); changes-- && n == size;)
        n = mutate(file + 1, n, index, state);
    file[0] = (unsigned char)synth_draw(state);
    LLVMFuzzerTestOneInput(file, n + 1);
}

int main(int argc, char **argv) {
    static const uint32_t contexts[] = { 70, 3 }, steps[] = { 2, 66 };
    const synth small = {
        .shape = { 3, 1, 2, 2, 1, 8, 0.35f, 2, 0 }, .contexts = contexts, .steps = steps, .seed = 1, .drift = 1.0f
    };
    uint64_t seed = 1, files = 0, least = 200000;
    long seconds = 0;
    const char *folder = ".";
    char path[512];
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds = strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--files") == 0 && i + 1 < argc)
            least = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 10);
        else
            folder = argv[i];
    }
    snprintf(path, sizeof path, "%.400s/fuzz-%ld.trace", folder, (long)getpid());
    synth_write(&small, path);
    size_t size;
    unsigned char *good = synth_bytes(path, &size), *file = malloc(size + 1);
    remove(path);
    demand(file != NULL, "no memory");
    uint64_t state = seed;
    size_t index = (size_t)trace_get64(good + AT_INDEX);
    for (time_t end = time(NULL) + seconds; files < least || time(NULL) < end; files++)
        one(good, size, index, file, &state);
    printf("seed %" PRIu64 ": %" PRIu64 " files, %" PRIu64 " opened, %" PRIu64 " of them read to the end\n", seed, files, opened,
           whole);
    free(good);
    free(file);
    return opened > 0 && whole > 0 ? 0 : 1;
}
#endif
