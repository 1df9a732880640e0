/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a trace. Every size is checked against the file's before anything is allocated or added up. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "trace_format.h"

typedef struct block {
    uint64_t offset, hash;
    uint32_t layer, seq, kind, first, rows;
} block;

struct trace {
    FILE *file; /* or NULL: the bytes are in memory */
    const unsigned char *memory;
    uint64_t size;
    char *name;
    trace_shape shape;
    trace_seq *seqs;
    block *blocks;
    uint64_t block_count;
    unsigned char *buffer; /* one block */
    size_t buffer_size;
};

/* Always false, so that a check can end in it. */
static bool say(const trace *t, char error[TRACE_ERROR], const char *what) {
    snprintf(error, TRACE_ERROR, "%.120s: %s", t->name, what);
    return false;
}

static bool read_at(trace *t, uint64_t offset, void *to, size_t size, char error[TRACE_ERROR]) {
    if (offset > t->size || size > t->size - offset)
        return say(t, error, "the file ends too early");
    if (!t->file) {
        memcpy(to, t->memory + offset, size);
        return true;
    }
    if (fseeko(t->file, (off_t)offset, SEEK_SET) != 0)
        return say(t, error, strerror(errno));
    if (fread(to, 1, size, t->file) != size)
        return say(t, error, ferror(t->file) ? "the file cannot be read" : "the file became shorter while it was read");
    return true;
}

static bool read_header(trace *t, unsigned char h[TRACE_HEADER], char error[TRACE_ERROR]) {
    static const unsigned char empty[TRACE_HEADER];
    if (t->size < 8)
        return say(t, error, "this is no trace: it has less than 8 bytes");
    if (!read_at(t, 0, h, t->size < TRACE_HEADER ? 8 : TRACE_HEADER, error))
        return false;
    if (t->size >= TRACE_HEADER && memcmp(h, empty, TRACE_HEADER) == 0)
        return say(t, error, "the recording was not finished");
    if (memcmp(h, TRACE_MAGIC, 8) != 0)
        return say(t, error, "this is no trace: it begins with other bytes");
    if (t->size < TRACE_HEADER)
        return say(t, error, "the file ends in its header");
    if (trace_get32(h + AT_VERSION) != TRACE_VERSION) {
        snprintf(error, TRACE_ERROR, "%.120s: the trace has version %" PRIu32 ", this program reads version %d", t->name,
                 trace_get32(h + AT_VERSION), TRACE_VERSION);
        return false;
    }
    if (trace_hash(h, AT_HEADER_HASH) != trace_get64(h + AT_HEADER_HASH))
        return say(t, error, "the header is damaged: its checksum is wrong");
    if (trace_get32(h + AT_HEADER_SIZE) != TRACE_HEADER || trace_get64(h + AT_FLAGS) > TRACE_HAS_PROMPTS)
        return say(t, error, "the header is not that of a trace of version 1");
    if (trace_get64(h + AT_FILE_SIZE) != t->size) {
        snprintf(error, TRACE_ERROR, "%.120s: the file has %" PRIu64 " bytes, its header says %" PRIu64, t->name, t->size,
                 trace_get64(h + AT_FILE_SIZE));
        return false;
    }
    return true;
}

static bool parse_shape(trace *t, const unsigned char *h, char error[TRACE_ERROR]) {
    uint32_t scale = trace_get32(h + AT_SCALE);
    t->shape = (trace_shape){
        .layers = trace_get32(h + AT_LAYERS),
        .first_layer = trace_get32(h + AT_FIRST_LAYER),
        .layer_count = trace_get32(h + AT_LAYER_COUNT),
        .heads = trace_get32(h + AT_HEADS),
        .kv_heads = trace_get32(h + AT_KV_HEADS),
        .dim = trace_get32(h + AT_DIM),
        .seqs = trace_get32(h + AT_SEQS),
        .prompts = trace_get64(h + AT_FLAGS) == TRACE_HAS_PROMPTS,
    };
    memcpy(&t->shape.scale, &scale, sizeof scale);
    const char *why = trace_shape_error(&t->shape);
    return !why || say(t, error, why);
}

/* The table of sequences and the index: `tail`, checked by its hash. */
static unsigned char *read_tail(trace *t, const unsigned char *h, char error[TRACE_ERROR]) {
    uint64_t at = trace_get64(h + AT_INDEX), room = at <= t->size ? t->size - at : 0;
    uint64_t table = (uint64_t)t->shape.seqs * TRACE_SEQ;
    t->block_count = trace_get64(h + AT_BLOCKS);
    if (at < TRACE_HEADER || at > t->size || room < table || (room - table) % TRACE_ENTRY ||
        t->block_count != (room - table) / TRACE_ENTRY || t->block_count == 0 || room > SIZE_MAX) {
        say(t, error, "the index does not end the file as the header says");
        return NULL;
    }
    unsigned char *tail = malloc((size_t)room);
    if (!tail) {
        say(t, error, "no memory for the index");
        return NULL;
    }
    bool ok = read_at(t, at, tail, (size_t)room, error);
    if (ok && trace_hash(tail, (size_t)room) != trace_get64(h + AT_INDEX_HASH))
        ok = say(t, error, "the index is damaged: its checksum is wrong");
    if (ok)
        return tail;
    free(tail);
    return NULL;
}

static bool parse_seqs(trace *t, const unsigned char *tail, char error[TRACE_ERROR]) {
    t->seqs = calloc(t->shape.seqs, sizeof *t->seqs);
    if (!t->seqs)
        return say(t, error, "no memory for the sequences");
    for (uint32_t i = 0; i < t->shape.seqs; i++) {
        trace_seq *s = &t->seqs[i];
        *s = (trace_seq){ .context = trace_get32(tail + (size_t)i * TRACE_SEQ),
                          .steps = trace_get32(tail + (size_t)i * TRACE_SEQ + 4) };
        s->first_query = t->shape.prompts ? 0 : s->context - 1;
        if (s->context == 0 || s->steps == 0 || s->context > TRACE_MAX_TOKENS - 1 || s->steps > TRACE_MAX_TOKENS - s->context)
            return say(t, error, "the lengths of a sequence are out of range");
    }
    return true;
}

/* Where the rows of the index have come to: layers, sequences, kinds, positions, each in order and without a gap. */
typedef struct cursor {
    uint32_t layer, seq, kind, next;
} cursor;

static void step(const trace *t, cursor *c) {
    if (c->next != t->seqs[c->seq].context + t->seqs[c->seq].steps)
        return;
    if (++c->kind == TRACE_KINDS) {
        c->kind = 0;
        if (++c->seq == t->shape.seqs) {
            c->seq = 0;
            c->layer++;
        }
    }
    c->next = trace_begin(&t->seqs[c->seq], (trace_kind)c->kind);
}

static uint64_t block_size(const trace *t, const block *b) {
    return (uint64_t)b->rows * 2 * trace_row(&t->shape, (trace_kind)b->kind);
}

/* The blocks fill the room between header and index: together they are as large as it, so no row can be promised that is not
 * there. */
static bool parse_index(trace *t, const unsigned char *index, uint64_t end, char error[TRACE_ERROR]) {
    cursor c = { t->shape.first_layer, 0, 0, trace_begin(&t->seqs[0], TRACE_Q) };
    uint64_t sum = TRACE_HEADER;
    t->blocks = calloc((size_t)t->block_count, sizeof *t->blocks);
    if (!t->blocks)
        return say(t, error, "no memory for the index");
    for (uint64_t i = 0; i < t->block_count; i++) {
        const unsigned char *e = index + i * TRACE_ENTRY;
        block *b = &t->blocks[i];
        *b = (block){ trace_get64(e + AT_OFFSET), trace_get64(e + AT_HASH),  trace_get32(e + AT_LAYER), trace_get32(e + AT_SEQ),
                      trace_get32(e + AT_KIND),   trace_get32(e + AT_FIRST), trace_get32(e + AT_ROWS) };
        if (c.layer == t->shape.first_layer + t->shape.layer_count || b->layer != c.layer || b->seq != c.seq ||
            b->kind != c.kind || b->first != c.next || trace_get32(e + AT_ZERO) != 0)
            return say(t, error, "the index does not name every row once and in order");
        uint32_t left = t->seqs[c.seq].context + t->seqs[c.seq].steps - c.next;
        uint64_t size = block_size(t, b);
        if (b->rows == 0 || b->rows > left || b->rows > TRACE_MAX_BLOCK_ROWS || b->offset < TRACE_HEADER || b->offset > end ||
            size > end - b->offset)
            return say(t, error, "a block lies outside its place");
        sum += size;
        if (size > t->buffer_size)
            t->buffer_size = (size_t)size;
        c.next += b->rows;
        step(t, &c);
    }
    if (c.layer != t->shape.first_layer + t->shape.layer_count)
        return say(t, error, "the index lacks rows");
    return sum == end || say(t, error, "the blocks do not fill the file");
}

static trace *start(const char *name, char error[TRACE_ERROR]) {
    const size_t size = strlen(name) + 1;
    trace *t = calloc(1, sizeof *t);
    if (t && (t->name = malloc(size))) {
        memcpy(t->name, name, size);
        return t;
    }
    free(t);
    snprintf(error, TRACE_ERROR, "%.120s: no memory", name);
    return NULL;
}

static trace *parse(trace *t, char error[TRACE_ERROR]) {
    unsigned char header[TRACE_HEADER];
    unsigned char *tail = NULL;
    bool ok = read_header(t, header, error) && parse_shape(t, header, error) && (tail = read_tail(t, header, error)) &&
              parse_seqs(t, tail, error) &&
              parse_index(t, tail + (size_t)t->shape.seqs * TRACE_SEQ, trace_get64(header + AT_INDEX), error);
    free(tail);
    if (ok && !(t->buffer = malloc(t->buffer_size)))
        ok = say(t, error, "no memory for a block");
    if (ok)
        return t;
    trace_close(t);
    return NULL;
}

trace *trace_open(const char *path, char error[TRACE_ERROR]) {
    struct stat st;
    trace *t = start(path, error);
    if (!t)
        return NULL;
    t->file = fopen(path, "rb");
    bool ok = t->file && fstat(fileno(t->file), &st) == 0;
    if (!ok)
        say(t, error, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        ok = say(t, error, "this is no file");
    if (!ok) {
        trace_close(t);
        return NULL;
    }
    t->size = (uint64_t)st.st_size;
    return parse(t, error);
}

trace *trace_open_memory(const void *data, size_t size, const char *name, char error[TRACE_ERROR]) {
    trace *t = start(name, error);
    if (!t)
        return NULL;
    t->memory = data;
    t->size = size;
    return parse(t, error);
}

void trace_close(trace *t) {
    if (!t)
        return;
    if (t->file)
        fclose(t->file);
    free(t->name);
    free(t->seqs);
    free(t->blocks);
    free(t->buffer);
    free(t);
}

const trace_shape *trace_get_shape(const trace *t) { return &t->shape; }
const trace_seq *trace_get_seq(const trace *t, uint32_t seq) { return seq < t->shape.seqs ? &t->seqs[seq] : NULL; }

/* The last block that does not begin after these rows; the index is sorted. */
static uint64_t find(const trace *t, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t first) {
    uint64_t low = 0, high = t->block_count;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        const block *b = &t->blocks[middle];
        const uint32_t x[] = { b->layer, b->seq, b->kind, b->first }, y[] = { layer, seq, (uint32_t)kind, first };
        int i = 0;
        while (i < 3 && x[i] == y[i])
            i++;
        if (x[i] <= y[i])
            low = middle;
        else
            high = middle;
    }
    return low;
}

static bool load(trace *t, const block *b, char error[TRACE_ERROR]) {
    static const char *const kinds[] = { "queries", "keys", "values" };
    size_t size = (size_t)block_size(t, b);
    if (!read_at(t, b->offset, t->buffer, size, error))
        return false;
    if (trace_hash(t->buffer, size) == b->hash)
        return true;
    snprintf(error, TRACE_ERROR,
             "%.120s: damaged: the checksum of the %s of layer %" PRIu32 ", sequence %" PRIu32 ", positions %" PRIu32
             " to %" PRIu32 " is wrong",
             t->name, kinds[b->kind], b->layer, b->seq, b->first, b->first + b->rows - 1);
    return false;
}

bool trace_read(trace *t, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t first, uint32_t rows, uint16_t *out,
                char error[TRACE_ERROR]) {
    const trace_shape *s = &t->shape;
    if (layer < s->first_layer || layer - s->first_layer >= s->layer_count || seq >= s->seqs || (uint32_t)kind >= TRACE_KINDS)
        return say(t, error, "there is no such layer, sequence or kind in the trace");
    uint32_t end = t->seqs[seq].context + t->seqs[seq].steps;
    if (first < trace_begin(&t->seqs[seq], kind) || first > end || rows > end - first)
        return say(t, error, "there are no such rows in the trace");
    const size_t row = trace_row(s, kind);
    for (uint64_t i = find(t, layer, seq, kind, first); rows; i++) {
        const block *b = &t->blocks[i];
        uint32_t skip = first - b->first, n = b->rows - skip < rows ? b->rows - skip : rows;
        if (!load(t, b, error))
            return false;
        for (size_t j = 0; j < n * row; j++)
            out[j] = (uint16_t)(t->buffer[2 * (skip * row + j)] | t->buffer[2 * (skip * row + j) + 1] << 8);
        out += n * row;
        first += n;
        rows -= n;
    }
    return true;
}
