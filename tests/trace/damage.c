/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trace files: what was written is read again bit for bit; what cannot be recorded is refused; every damage is named in a
 * sentence. usage: trace-damage [FOLDER]
 */
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "checks.h"
#include "synth.h"
#include "trace_format.h"

static char path[512], error[TRACE_ERROR];

static const uint32_t contexts[] = { 130, 5 }, steps[] = { 3, 70 };
static const synth small = {
    .shape = { 5, 2, 2, 4, 2, 8, 0.25f, 2, 0 }, .contexts = contexts, .steps = steps, .seed = 7, .drift = 0.5f
};

/* --- what was written is read ------------------------------------------------------------------------------------------ */

static void check_rows(trace *t, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t first, uint32_t rows) {
    const size_t n = trace_row(&small.shape, kind);
    uint16_t *got = malloc((rows * n + 1) * sizeof *got);
    got[rows * n] = 0x1234;
    size_t wrong = 0;
    bool ok = trace_read(t, layer, seq, kind, first, rows, got, error);
    for (size_t i = 0; ok && i < rows * n; i++)
        wrong += got[i] != trace_to_f16(synth_value(&small, layer, seq, kind, first + (uint32_t)(i / n), i % n));
    check(ok && !wrong && got[rows * n] == 0x1234, "layer %u seq %u kind %d rows %u + %u: %zu wrong %s", layer, seq, kind, first,
          rows, wrong, ok ? "" : error);
    free(got);
}

static void whole(void) {
    trace *t = trace_open(path, error);
    if (!check(t, "a sound file: %s", error))
        return;
    const trace_shape *s = trace_get_shape(t);
    check(memcmp(s, &small.shape, sizeof *s) == 0, "the shape is another one");
    for (uint32_t seq = 0; seq < 2; seq++) {
        const trace_seq *q = trace_get_seq(t, seq);
        check(q->context == contexts[seq] && q->steps == steps[seq], "sequence %u: %u + %u", seq, q->context, q->steps);
        uint32_t end = contexts[seq] + steps[seq];
        for (uint32_t layer = 2; layer < 4; layer++)
            for (int kind = 0; kind < TRACE_KINDS; kind++) {
                uint32_t begin = trace_begin(q, (trace_kind)kind);
                check_rows(t, layer, seq, (trace_kind)kind, begin, end - begin);
                for (uint32_t first = begin; first <= end; first += 13)
                    check_rows(t, layer, seq, (trace_kind)kind, first, (end - first) / 2);
            }
    }
    uint16_t row[64];
    check(!trace_get_seq(t, 2), "a third sequence");
    check(!trace_read(t, 1, 0, TRACE_K, 0, 1, row, error) && !trace_read(t, 4, 0, TRACE_K, 0, 1, row, error) &&
              !trace_read(t, 2, 2, TRACE_K, 0, 1, row, error) && !trace_read(t, 2, 0, TRACE_KINDS, 0, 1, row, error),
          "rows of layers, sequences and kinds that are not there");
    check(!trace_read(t, 2, 0, TRACE_Q, 128, 1, row, error) && !trace_read(t, 2, 0, TRACE_K, 133, 1, row, error) &&
              !trace_read(t, 2, 0, TRACE_K, 132, 2, row, error) && !trace_read(t, 2, 0, TRACE_K, 134, 0, row, error) &&
              !trace_read(t, 2, 0, TRACE_K, 1, UINT32_MAX, row, error),
          "positions that are not there");
    trace_close(t);
}

/* Every float16 through float and back; halves between two of them go to the even one. */
static void halves(void) {
    uint32_t wrong = 0;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = trace_from_f16((uint16_t)h);
        bool nan = (h & 0x7fff) > 0x7c00;
        wrong += nan ? !isnan(f) || (trace_to_f16(f) & 0x7fff) <= 0x7c00 : trace_to_f16(f) != h;
        if ((h & 0x7fff) < 0x7bff) {
            double next = (double)trace_from_f16((uint16_t)(h + 1)), middle = ((double)f + next) / 2;
            uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
            wrong += trace_to_f16((float)middle) != even;
            wrong += trace_to_f16(nextafterf((float)middle, (float)next)) != h + 1;
            wrong += trace_to_f16(nextafterf((float)middle, f)) != h;
        }
    }
    check(!wrong, "%u conversions are wrong", wrong);
    check(trace_to_f16(65519.0f) == 0x7bff && trace_to_f16(65520.0f) == 0x7c00 && trace_to_f16(-1e30f) == 0xfc00, "overflow");
}

/* --- what cannot be recorded ------------------------------------------------------------------------------------------- */

static void refused_shape(const char *what, trace_shape shape, const uint32_t *context, uint32_t most, uint64_t limit,
                          const char *words) {
    char other[600];
    snprintf(other, sizeof other, "%s.none", path);
    trace_writer *w = trace_create(other, &shape, context, most, limit, error);
    check(!w && strstr(error, words), "%s: %s", what, w ? "begun" : error);
    trace_finish(w, false, error);
    check(access(other, F_OK) != 0, "%s: a file was left", what);
}

static void not_recorded(void) {
    const uint64_t limit = 1 << 20;
    const trace_shape good = small.shape;
    const uint32_t zero[] = { 0, 5 }, long_one[] = { 1u << 24, 5 };
    trace_shape s = good;
    s.layers = 0;
    refused_shape("no layers", s, contexts, 70, limit, "number of layers");
    s = good;
    s.layer_count = 4;
    refused_shape("layers past the last", s, contexts, 70, limit, "not layers of the model");
    s = good;
    s.dim = 12;
    refused_shape("dim 12", s, contexts, 70, limit, "head dimension");
    s = good;
    s.kv_heads = 3;
    refused_shape("4 heads on 3", s, contexts, 70, limit, "heads do not fit");
    s = good;
    s.seqs = 0;
    refused_shape("no sequences", s, contexts, 70, limit, "number of sequences");
    s = good;
    s.scale = NAN;
    refused_shape("no scale", s, contexts, 70, limit, "scale");
    refused_shape("no prompt", good, zero, 70, limit, "needs a prompt");
    refused_shape("nothing to decode", good, contexts, 0, limit, "needs a prompt");
    refused_shape("2^24 tokens", good, long_one, 70, limit, "2^24 tokens");
    refused_shape("more than the limit", good, contexts, 70, 20000, "would take up to");
    s = (trace_shape){ 4096, 0, 4096, 65536, 65536, 256, 1.0f, 2, 0 };
    refused_shape("more than 2^64", s, (const uint32_t[]){ 1 << 23, 1 << 23 }, 1 << 23, UINT64_C(1) << 60, "would take up to");
    check(!trace_create("/nonexistent/x.trace", &good, contexts, 70, limit, error) && strstr(error, "No such file"),
          "no folder: %s", error);
    check(trace_add(NULL, &(trace_rows){ 0 }) && trace_finish(NULL, true, error), "no writer is no failure");
}

/* Adds rows to a fresh file; returns what trace_finish says. */
static bool record(const trace_rows *rows, size_t n, bool *added) {
    static const float row[256];
    char other[600];
    snprintf(other, sizeof other, "%s.other", path);
    trace_shape shape = { 1, 0, 1, 2, 1, 8, 1.0f, 2, 0 };
    const uint32_t short_ones[] = { 1, 1 };
    trace_writer *w = trace_create(other, &shape, short_ones, 2, 1 << 20, error);
    *added = w != NULL;
    for (size_t i = 0; i < n; i++) {
        trace_rows r = rows[i];
        r.q = r.k = r.v = row;
        *added = trace_add(w, &r) && *added;
    }
    bool ok = trace_finish(w, true, error);
    check((access(other, F_OK) == 0) == ok, "a failed recording leaves a file, or a good one none");
    strcat(other, ".part");
    check(access(other, F_OK) != 0, "a part of a file is left");
    other[strlen(other) - 5] = 0;
    remove(other);
    return ok;
}

static void wrong_rows(void) {
    static const struct {
        const char *what, *words;
        bool added;
        trace_rows rows[3];
    } cases[] = {
        { "whole", NULL, true, { { .seqs = 2, .rows = 2 }, { .seqs = 2, .first = 2, .rows = 1 } } },
        { "another layer's too", NULL, true, { { .seqs = 2, .rows = 3 }, { .layer = 7, .seqs = 9, .rows = 9 } } },
        { "a gap", "order of their positions", false, { { .seqs = 2, .rows = 1 }, { .seqs = 2, .first = 2, .rows = 1 } } },
        { "twice the same",
          "order of their positions",
          false,
          { { .seqs = 2, .rows = 2 }, { .seqs = 2, .first = 1, .rows = 1 } } },
        { "too many", "more rows", false, { { .seqs = 2, .rows = 4 } } },
        { "a third sequence", "not announced", false, { { .seq = 1, .seqs = 2, .rows = 1 } } },
        { "prompt only", "nothing was decoded", true, { { .seqs = 2, .rows = 1 } } },
        { "one sequence only", "nothing was decoded", true, { { .seqs = 1, .rows = 3 } } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool added;
        error[0] = 0;
        bool ok = record(cases[i].rows, 3, &added);
        check(ok == !cases[i].words && added == cases[i].added && (ok || strstr(error, cases[i].words)), "%s: %s", cases[i].what,
              error);
    }
}

/* No space left: the system says so, and the part that was written goes away. */
static void full_disk(void) {
    struct rlimit old, tight = { 4096, 4096 };
    char other[600];
    snprintf(other, sizeof other, "%s.full", path);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    tight.rlim_max = old.rlim_max;
    float row[32] = { 0 };
    const uint32_t long_one[] = { 4000 };
    trace_shape shape = { 1, 0, 1, 2, 1, 8, 1.0f, 1, 0 };
    trace_writer *w = trace_create(other, &shape, long_one, 1, 1 << 20, error);
    setrlimit(RLIMIT_FSIZE, &tight);
    for (uint32_t i = 0; i < 4001; i++)
        trace_add(w, &(trace_rows){ 0, 0, 1, i, 1, row, row, row });
    bool ok = trace_finish(w, true, error);
    setrlimit(RLIMIT_FSIZE, &old);
    check(!ok && strstr(error, "File too large") && access(other, F_OK) != 0, "a full disk: %s", error);
}

/* --- damage ------------------------------------------------------------------------------------------------------------ */

/* Opens the bytes and reads all rows; true if nothing was found wrong. What is refused is refused in one line that names the
 * file. */
static bool sound(const unsigned char *data, size_t size, const char *what) {
    memset(error, '?', sizeof error);
    /* A block of exactly this size, so that the address sanitizer sees what is read past it. */
    unsigned char *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    trace *t = trace_open_memory(copy, size, "some file", error);
    bool ok = t != NULL;
    if (t) {
        const trace_shape *s = trace_get_shape(t);
        for (uint32_t i = 0; ok && i < s->layer_count * s->seqs * TRACE_KINDS; i++) {
            uint32_t layer = s->first_layer + i / (s->seqs * TRACE_KINDS), seq = i / TRACE_KINDS % s->seqs;
            const trace_seq *q = trace_get_seq(t, seq);
            trace_kind kind = (trace_kind)(i % TRACE_KINDS);
            uint32_t begin = trace_begin(q, kind), rows = q->context + q->steps - begin;
            uint16_t *out = malloc(rows * trace_row(s, kind) * sizeof *out);
            ok = trace_read(t, layer, seq, kind, begin, rows, out, error);
            free(out);
        }
        trace_close(t);
    }
    free(copy);
    if (!ok) {
        const char *end = memchr(error, 0, sizeof error);
        check(end && strncmp(error, "some file: ", 11) == 0 && end > error + 20 && !strchr(error, '\n'), "%s: no proper sentence",
              what);
    }
    return ok;
}

static void truncated(const unsigned char *data, size_t size) {
    char what[64];
    for (size_t n = 0; n < size; n++) {
        snprintf(what, sizeof what, "%zu of %zu bytes", n, size);
        check(!sound(data, n, what), "%s: nothing found", what);
    }
    static const int quarters[] = { 1, 2, 3 };
    for (int i = 0; i < 3; i++) { /* through the file system, as a user meets them */
        char other[600];
        snprintf(other, sizeof other, "%s.short", path);
        FILE *f = fopen(other, "wb");
        fwrite(data, 1, size * (size_t)quarters[i] / 4, f);
        fclose(f);
        check(!trace_open(other, error) && strstr(error, "its header says"), "%d quarters: %s", quarters[i], error);
        remove(other);
    }
    unsigned char *longer = malloc(size + 1);
    memcpy(longer, data, size);
    longer[size] = 0;
    check(!sound(longer, size + 1, "one byte more") && strstr(error, "its header says"), "one byte more: %s", error);
    free(longer);
}

/* Every byte of the file, one bit each: there is none whose change goes unseen. */
static void flipped(const unsigned char *data, size_t size) {
    unsigned char *copy = malloc(size);
    char what[64];
    for (size_t i = 0; i < size; i++) {
        memcpy(copy, data, size);
        copy[i] ^= (unsigned char)(1u << i % 8);
        snprintf(what, sizeof what, "bit %zu of byte %zu", i % 8, i);
        check(!sound(copy, size, what), "%s: nothing found", what);
    }
    static const struct {
        size_t at;
        const char *words;
    } cases[] = { { 0, "begins with other bytes" },  { AT_VERSION, "has version" },     { AT_HEADS, "header is damaged" },
                  { AT_SCALE, "header is damaged" }, { AT_FLAGS, "header is damaged" }, { AT_HEADER_HASH, "header is damaged" } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memcpy(copy, data, size);
        copy[cases[i].at] ^= 4;
        check(!sound(copy, size, "a class") && strstr(error, cases[i].words), "byte %zu: %s", cases[i].at, error);
    }
    memcpy(copy, data, size);
    copy[TRACE_HEADER + 3] ^= 4;
    check(!sound(copy, size, "a block") && strstr(error, "damaged: the checksum of the"), "a block: %s", error);
    memcpy(copy, data, size);
    copy[size - 3] ^= 4;
    check(!sound(copy, size, "the index") && strstr(error, "index is damaged"), "the index: %s", error);
    free(copy);
}

static void seal(unsigned char *data, size_t size) {
    uint64_t at = trace_get64(data + AT_INDEX);
    if (at <= size)
        trace_put64(data + AT_INDEX_HASH, trace_hash(data + at, (size_t)(size - at)));
    trace_put64(data + AT_HEADER_HASH, trace_hash(data, AT_HEADER_HASH));
}

/* Files with right checksums that contradict themselves: somebody else's writer, or malice. */
static void absurd(const unsigned char *data, size_t size) {
    const size_t index = (size_t)trace_get64(data + AT_INDEX), entries = index + 2 * TRACE_SEQ;
    const struct {
        const char *what, *words;
        size_t at, bytes;
        uint64_t value;
    } cases[] = {
        { "header of 2^32 - 1 bytes", "header", AT_HEADER_SIZE, 4, UINT32_MAX },
        { "a flag that there is not", "header", AT_FLAGS, 8, 2 },
        { "flags of 64 bits", "header", AT_FLAGS, 8, UINT64_C(1) << 63 },
        { "queries that are not there", "name every row", AT_FLAGS, 8, 1 },
        { "no layers", "layers", AT_LAYERS, 4, 0 },
        { "2^32 - 1 layers", "layers", AT_LAYERS, 4, UINT32_MAX },
        { "first layer past the last", "layers", AT_FIRST_LAYER, 4, 5 },
        { "no recorded layers", "layers", AT_LAYER_COUNT, 4, 0 },
        { "2^32 - 1 recorded layers", "layers", AT_LAYER_COUNT, 4, UINT32_MAX },
        { "a layer fewer", "name every row", AT_LAYER_COUNT, 4, 1 },
        { "a layer more", "lacks rows", AT_LAYER_COUNT, 4, 3 },
        { "no heads", "heads", AT_HEADS, 4, 0 },
        { "2^32 - 2 heads", "heads", AT_HEADS, 4, UINT32_MAX - 1 },
        { "twice the heads", "outside its place", AT_HEADS, 4, 4096 },
        { "no KV heads", "heads", AT_KV_HEADS, 4, 0 },
        { "dimension 0", "dimension", AT_DIM, 4, 0 },
        { "dimension 2^31", "dimension", AT_DIM, 4, UINT32_C(1) << 31 },
        { "dimension 16", "", AT_DIM, 4, 16 },
        { "scale NaN", "scale", AT_SCALE, 4, 0x7fc00000 },
        { "scale 0", "scale", AT_SCALE, 4, 0 },
        { "scale inf", "scale", AT_SCALE, 4, 0x7f800000 },
        { "no sequences", "sequences", AT_SEQS, 4, 0 },
        { "2^32 - 1 sequences", "sequences", AT_SEQS, 4, UINT32_MAX },
        { "4096 sequences", "index does not end", AT_SEQS, 4, 4096 },
        { "one sequence", "index does not end", AT_SEQS, 4, 1 },
        { "no blocks", "index does not end", AT_BLOCKS, 8, 0 },
        { "2^64 - 1 blocks", "index does not end", AT_BLOCKS, 8, UINT64_MAX },
        { "2^61 blocks", "index does not end", AT_BLOCKS, 8, UINT64_C(1) << 61 },
        { "index at 2^64 - 1", "index does not end", AT_INDEX, 8, UINT64_MAX },
        { "index at 0", "index does not end", AT_INDEX, 8, 0 },
        { "index at the end", "index does not end", AT_INDEX, 8, size },
        { "index an entry later", "index does not end", AT_INDEX, 8, index + TRACE_ENTRY },
        { "2^64 - 1 bytes", "its header says", AT_FILE_SIZE, 8, UINT64_MAX },
        { "context 0", "lengths", index, 4, 0 },
        { "context 2^32 - 1", "lengths", index, 4, UINT32_MAX },
        { "context 2^24 - 4", "name every row", index, 4, (1 << 24) - 4 },
        { "context one less", "name every row", index, 4, 129 },
        { "no steps", "lengths", index + 4, 4, 0 },
        { "2^32 - 1 steps", "lengths", index + 4, 4, UINT32_MAX },
        { "a step fewer", "outside its place", index + 4, 4, 2 },
        { "block at 2^64 - 1", "outside its place", entries + AT_OFFSET, 8, UINT64_MAX },
        { "block in the header", "outside its place", entries + AT_OFFSET, 8, 8 },
        { "block in the index", "outside its place", entries + AT_OFFSET, 8, index - 2 },
        { "another block's place", "damaged: the checksum", entries + AT_OFFSET, 8, TRACE_HEADER + 16 },
        { "layer 2^32 - 1", "name every row", entries + AT_LAYER, 4, UINT32_MAX },
        { "sequence 2^32 - 1", "name every row", entries + AT_SEQ, 4, UINT32_MAX },
        { "kind 3", "name every row", entries + AT_KIND, 4, 3 },
        { "first position 2^32 - 1", "name every row", entries + AT_FIRST, 4, UINT32_MAX },
        { "no rows", "outside its place", entries + AT_ROWS, 4, 0 },
        { "2^32 - 1 rows", "outside its place", entries + AT_ROWS, 4, UINT32_MAX },
        { "a row fewer", "name every row", entries + AT_ROWS, 4, 3 },
        { "reserved field of an entry", "name every row", entries + AT_ZERO, 4, 1 },
    };
    unsigned char *copy = malloc(size);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memcpy(copy, data, size);
        for (size_t j = 0; j < cases[i].bytes; j++)
            copy[cases[i].at + j] = (unsigned char)(cases[i].value >> 8 * j);
        seal(copy, size);
        check(!sound(copy, size, cases[i].what), "%s: nothing found", cases[i].what);
        check(strstr(error, cases[i].words) != NULL, "%s: another sentence: %s", cases[i].what, error);
    }
    free(copy);
}

/* Bytes between blocks and index that belong to nobody, and would be under no checksum. */
static void gap(const unsigned char *data, size_t size) {
    const size_t index = (size_t)trace_get64(data + AT_INDEX), more = 16;
    unsigned char *copy = calloc(1, size + more);
    memcpy(copy, data, index);
    memcpy(copy + index + more, data + index, size - index);
    trace_put64(copy + AT_INDEX, index + more);
    trace_put64(copy + AT_FILE_SIZE, size + more);
    seal(copy, size + more);
    check(!sound(copy, size + more, "a gap") && strstr(error, "do not fill the file"), "a gap before the index: %s", error);
    free(copy);
}

/* With the prompts' queries: all of them are there, and a file that denies or claims them is refused. */
static void with_prompts(void) {
    synth s = small;
    size_t size;
    s.shape.prompts = 1;
    synth_write(&s, path);
    trace *t = trace_open(path, error);
    if (!check(t && trace_get_shape(t)->prompts == 1, "a file with the prompts' queries: %s", error))
        return;
    for (uint32_t seq = 0; seq < 2; seq++) {
        check(trace_begin(trace_get_seq(t, seq), TRACE_Q) == 0, "sequence %u: where queries begin", seq);
        check_rows(t, 3, seq, TRACE_Q, 0, contexts[seq] + steps[seq]);
        check_rows(t, 2, seq, TRACE_Q, 2, 3);
    }
    trace_close(t);
    unsigned char *data = synth_bytes(path, &size);
    check(sound(data, size, "with the prompts' queries"), "with the prompts' queries: %s", error);
    trace_put64(data + AT_FLAGS, 0);
    seal(data, size);
    check(!sound(data, size, "queries denied") && strstr(error, "name every row"), "queries denied: %s", error);
    free(data);
    refused_shape("queries past the limit", s.shape, contexts, 70, 60000, "would take up to");
    s.shape.prompts = 0;
    trace_writer *w = trace_create(path, &s.shape, contexts, 70, 60000, error);
    check(w != NULL && trace_finish(w, false, error), "within the limit without them: %s", error);
    synth_write(&small, path);
}

static void foreign(void) {
    static const unsigned char zeros[200];
    check(!sound(zeros, 0, "empty") && strstr(error, "less than 8"), "an empty file: %s", error);
    check(!sound(zeros, sizeof zeros, "zeros") && strstr(error, "not finished"), "zeros: %s", error);
    check(!sound((const unsigned char *)"GGUF\3\0\0\0 and so on, for a while", 32, "GGUF") && strstr(error, "no trace"),
          "GGUF: %s", error);
    check(!sound((const unsigned char *)TRACE_MAGIC, 8, "magic") && strstr(error, "ends in its header"), "the magic alone: %s",
          error);
    check(!trace_open("/nonexistent/file", error) && strstr(error, "No such file"), "no file: %s", error);
    check(!trace_open("/", error) && strstr(error, "no file"), "a folder: %s", error);
    check(!trace_open("/dev/zero", error) && strstr(error, "no file"), "a device: %s", error);
}

int main(int argc, char **argv) {
    snprintf(path, sizeof path, "%.400s/damage-%ld.trace", argc > 1 ? argv[1] : ".", (long)getpid());
    synth_write(&small, path);
    size_t size;
    unsigned char *data = synth_bytes(path, &size);
    whole();
    halves();
    not_recorded();
    wrong_rows();
    full_disk();
    check(sound(data, size, "the file itself"), "the file itself: %s", error);
    truncated(data, size);
    flipped(data, size);
    absurd(data, size);
    gap(data, size);
    foreign();
    with_prompts();
    free(data);
    remove(path);
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
