/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a trace: rows are gathered into blocks; index and header come last, so that a recording that was cut short is no trace.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trace_format.h"

/* Rows of one layer, sequence and kind that are still to come, and those that wait for a full block. */
typedef struct stream {
    uint32_t next, held;
    unsigned char *rows;
} stream;

struct trace_writer {
    FILE *file;
    char *path, *part; /* the file's name, and the one it has until it is complete */
    trace_shape shape;
    trace_seq *seqs;
    stream *streams; /* [layer_count][seqs][TRACE_KINDS] */
    unsigned char *index;
    size_t blocks, index_room;
    uint64_t at, limit;
    uint32_t max_steps;
    bool failed;
    char error[TRACE_ERROR];
};

static bool fail(trace_writer *w, const char *what) {
    if (!w->failed)
        snprintf(w->error, sizeof w->error, "%.160s: %s", w->path ? w->path : "", what);
    w->failed = true;
    return false;
}

/* Bytes of a complete file, at most; in floating point, because absurd shapes pass 2^64. */
static double size_bound(const trace_shape *s, const uint32_t *contexts, uint32_t steps) {
    double rows = 0, blocks = 0, queries = 0;
    for (uint32_t i = 0; i < s->seqs; i++) {
        const double asked = s->prompts ? contexts[i] + (double)steps : steps + 1.0;
        rows += contexts[i] + (double)steps;
        queries += asked;
        blocks += 3 + (2 * (contexts[i] + (double)steps) + asked) / TRACE_BLOCK_ROWS;
    }
    double values = rows * (double)(trace_row(s, TRACE_K) + trace_row(s, TRACE_V)) + queries * (double)trace_row(s, TRACE_Q);
    return TRACE_HEADER + (double)s->seqs * TRACE_SEQ + s->layer_count * (2 * values + blocks * TRACE_ENTRY);
}

static void release(trace_writer *w) {
    for (size_t i = 0; w->streams && i < (size_t)w->shape.layer_count * w->shape.seqs * TRACE_KINDS; i++)
        free(w->streams[i].rows);
    free(w->streams);
    free(w->seqs);
    free(w->index);
    free(w->path);
    free(w->part);
    free(w);
}

static const char *create_error(const trace_shape *s, const uint32_t *contexts, uint32_t max_steps) {
    const char *why = trace_shape_error(s);
    for (uint32_t i = 0; !why && i < s->seqs; i++)
        if (contexts[i] == 0 || max_steps == 0 || contexts[i] > TRACE_MAX_TOKENS - 1 ||
            max_steps > TRACE_MAX_TOKENS - contexts[i])
            why = "a sequence needs a prompt and a decoded token at least, and may have 2^24 tokens";
    return why;
}

static bool allocate(trace_writer *w, const uint32_t *contexts, const char *path) {
    const size_t seqs = w->shape.seqs, streams = w->shape.layer_count * seqs * TRACE_KINDS;
    const size_t length = strlen(path);
    w->path = malloc(length + 1);
    w->part = malloc(length + sizeof ".part");
    w->seqs = calloc(seqs, sizeof *w->seqs);
    w->streams = calloc(streams, sizeof *w->streams);
    if (!w->path || !w->part || !w->seqs || !w->streams)
        return fail(w, "no memory");
    snprintf(w->path, length + 1, "%s", path);
    snprintf(w->part, length + sizeof ".part", "%s.part", path);
    for (size_t i = 0; i < seqs; i++)
        w->seqs[i] = (trace_seq){ .context = contexts[i], .first_query = w->shape.prompts ? 0 : contexts[i] - 1 };
    for (size_t i = 0; i < streams; i++)
        w->streams[i].next = trace_begin(&w->seqs[i / TRACE_KINDS % seqs], (trace_kind)(i % TRACE_KINDS));
    return true;
}

trace_writer *trace_create(const char *path, const trace_shape *shape, const uint32_t *contexts, uint32_t max_steps,
                           uint64_t limit, char error[TRACE_ERROR]) {
    const char *why = create_error(shape, contexts, max_steps);
    double bound = why ? 0 : size_bound(shape, contexts, max_steps);
    if (bound > (double)limit) {
        snprintf(error, TRACE_ERROR, "%.160s would take up to %.0f MiB, the limit is %" PRIu64, path, ceil(bound / 0x1p20),
                 limit >> 20);
        return NULL;
    }
    trace_writer *w = why ? NULL : calloc(1, sizeof *w);
    if (!w) {
        snprintf(error, TRACE_ERROR, "%.160s cannot be recorded: %s", path, why ? why : "no memory");
        return NULL;
    }
    unsigned char header[TRACE_HEADER] = { 0 };
    *w = (trace_writer){ .shape = *shape, .at = TRACE_HEADER, .limit = limit, .max_steps = max_steps };
    if (allocate(w, contexts, path)) {
        w->file = fopen(w->part, "wb");
        if (w->file && fwrite(header, sizeof header, 1, w->file) == 1)
            return w;
    }
    snprintf(error, TRACE_ERROR, "%.160s cannot be written: %s", path, strerror(errno));
    if (w->file)
        fclose(w->file);
    release(w);
    return NULL;
}

static stream *stream_of(trace_writer *w, uint32_t layer, uint32_t seq, trace_kind kind) {
    return &w->streams[((size_t)layer * w->shape.seqs + seq) * TRACE_KINDS + kind];
}

/* Writes what a stream holds as a block. `layer` counts the recorded ones. */
static bool flush(trace_writer *w, uint32_t layer, uint32_t seq, trace_kind kind) {
    stream *s = stream_of(w, layer, seq, kind);
    if (s->held == 0)
        return true;
    if (w->blocks == w->index_room) {
        size_t room = w->index_room ? 2 * w->index_room : 256;
        unsigned char *index = realloc(w->index, room * TRACE_ENTRY);
        if (!index)
            return fail(w, "no memory for the index");
        w->index = index;
        w->index_room = room;
    }
    size_t size = s->held * 2 * trace_row(&w->shape, kind);
    unsigned char *e = w->index + w->blocks * TRACE_ENTRY;
    trace_put64(e + AT_OFFSET, w->at);
    trace_put64(e + AT_HASH, trace_hash(s->rows, size));
    trace_put32(e + AT_LAYER, w->shape.first_layer + layer);
    trace_put32(e + AT_SEQ, seq);
    trace_put32(e + AT_KIND, kind);
    trace_put32(e + AT_FIRST, s->next - s->held);
    trace_put32(e + AT_ROWS, s->held);
    trace_put32(e + AT_ZERO, 0);
    if (fwrite(s->rows, 1, size, w->file) != size)
        return fail(w, strerror(errno));
    w->blocks++;
    w->at += size;
    s->held = 0;
    return true;
}

static bool add_row(trace_writer *w, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t position, const float *row) {
    stream *s = stream_of(w, layer, seq, kind);
    const size_t n = trace_row(&w->shape, kind);
    if (position < trace_begin(&w->seqs[seq], kind))
        return true;
    if (position != s->next)
        return fail(w, "rows do not come in the order of their positions");
    if (position >= w->seqs[seq].context + w->max_steps)
        return fail(w, "more rows than were announced");
    if (!s->rows && !(s->rows = malloc(TRACE_BLOCK_ROWS * 2 * n)))
        return fail(w, "no memory for rows");
    unsigned char *to = s->rows + s->held * 2 * n;
    for (size_t i = 0; i < n; i++) {
        uint16_t half = trace_to_f16(row[i]);
        to[2 * i] = (unsigned char)half;
        to[2 * i + 1] = (unsigned char)(half >> 8);
    }
    s->next++;
    s->held++;
    return s->held < TRACE_BLOCK_ROWS || flush(w, layer, seq, kind);
}

bool trace_add(trace_writer *w, const trace_rows *r) {
    if (!w || (r->layer < w->shape.first_layer || r->layer - w->shape.first_layer >= w->shape.layer_count))
        return true;
    if (w->failed)
        return false;
    if (r->seq >= w->shape.seqs || r->seqs > w->shape.seqs - r->seq)
        return fail(w, "rows of a sequence that was not announced");
    const float *const from[TRACE_KINDS] = { r->q, r->k, r->v };
    for (int kind = 0; kind < TRACE_KINDS; kind++)
        for (uint32_t i = 0; i < r->seqs; i++)
            for (uint32_t row = 0; row < r->rows; row++)
                if (!add_row(w, r->layer - w->shape.first_layer, r->seq + i, (trace_kind)kind, r->first + row,
                             from[kind] + ((size_t)row * r->seqs + i) * trace_row(&w->shape, (trace_kind)kind)))
                    return false;
    return true;
}

/* All layers and kinds of a sequence must have come equally far. */
static bool end_streams(trace_writer *w) {
    for (uint32_t seq = 0; seq < w->shape.seqs; seq++) {
        uint32_t end = stream_of(w, 0, seq, TRACE_Q)->next;
        for (uint32_t layer = 0; layer < w->shape.layer_count; layer++)
            for (int kind = 0; kind < TRACE_KINDS; kind++) {
                if (stream_of(w, layer, seq, (trace_kind)kind)->next != end)
                    return fail(w, "the recording ended in the middle of a step");
                if (!flush(w, layer, seq, (trace_kind)kind))
                    return false;
            }
        if (end <= w->seqs[seq].context)
            return fail(w, "nothing was decoded");
        w->seqs[seq].steps = end - w->seqs[seq].context;
    }
    return true;
}

static int by_rows(const void *a, const void *b) {
    static const int order[] = { AT_LAYER, AT_SEQ, AT_KIND, AT_FIRST };
    for (int i = 0; i < 4; i++) {
        uint32_t x = trace_get32((const unsigned char *)a + order[i]), y = trace_get32((const unsigned char *)b + order[i]);
        if (x != y)
            return x < y ? -1 : 1;
    }
    return 0;
}

static void fill_header(const trace_writer *w, uint64_t index_size, uint64_t index_hash, unsigned char *h) {
    const trace_shape *s = &w->shape;
    uint32_t scale;
    memcpy(&scale, &s->scale, sizeof scale);
    memcpy(h, TRACE_MAGIC, 8);
    trace_put32(h + AT_VERSION, TRACE_VERSION);
    trace_put32(h + AT_HEADER_SIZE, TRACE_HEADER);
    trace_put32(h + AT_LAYERS, s->layers);
    trace_put32(h + AT_FIRST_LAYER, s->first_layer);
    trace_put32(h + AT_LAYER_COUNT, s->layer_count);
    trace_put32(h + AT_HEADS, s->heads);
    trace_put32(h + AT_KV_HEADS, s->kv_heads);
    trace_put32(h + AT_DIM, s->dim);
    trace_put32(h + AT_SCALE, scale);
    trace_put32(h + AT_SEQS, s->seqs);
    trace_put64(h + AT_BLOCKS, w->blocks);
    trace_put64(h + AT_INDEX, w->at);
    trace_put64(h + AT_FILE_SIZE, w->at + index_size);
    trace_put64(h + AT_INDEX_HASH, index_hash);
    trace_put64(h + AT_FLAGS, s->prompts ? TRACE_HAS_PROMPTS : 0);
    trace_put64(h + AT_HEADER_HASH, trace_hash(h, AT_HEADER_HASH));
}

/* The sequences and the sorted index after the blocks, then the header over its place. */
static bool end_file(trace_writer *w) {
    size_t table = (size_t)w->shape.seqs * TRACE_SEQ, size = table + w->blocks * TRACE_ENTRY;
    unsigned char *tail = malloc(size), header[TRACE_HEADER] = { 0 };
    if (!tail)
        return fail(w, "no memory for the index");
    for (uint32_t i = 0; i < w->shape.seqs; i++) {
        trace_put32(tail + (size_t)i * TRACE_SEQ, w->seqs[i].context);
        trace_put32(tail + (size_t)i * TRACE_SEQ + 4, w->seqs[i].steps);
    }
    qsort(w->index, w->blocks, TRACE_ENTRY, by_rows);
    memcpy(tail + table, w->index, w->blocks * TRACE_ENTRY);
    fill_header(w, size, trace_hash(tail, size), header);
    bool ok = w->at + size <= w->limit;
    if (!ok)
        fail(w, "the file outgrew its limit");
    else if (fwrite(tail, 1, size, w->file) != size || fseek(w->file, 0, SEEK_SET) != 0 ||
             fwrite(header, 1, sizeof header, w->file) != sizeof header)
        ok = fail(w, strerror(errno));
    free(tail);
    return ok;
}

bool trace_finish(trace_writer *w, bool keep, char error[TRACE_ERROR]) {
    if (!w)
        return true;
    bool ok = !w->failed && (!keep || (end_streams(w) && end_file(w)));
    if (fclose(w->file) != 0 && ok)
        ok = fail(w, strerror(errno));
    if (ok && keep && rename(w->part, w->path) != 0)
        ok = fail(w, strerror(errno));
    if (!ok || !keep)
        remove(w->part);
    if (!ok)
        memcpy(error, w->error, TRACE_ERROR);
    release(w);
    return ok;
}
